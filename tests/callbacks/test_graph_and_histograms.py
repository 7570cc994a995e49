"""TensorBoard's Graphs and Histograms tabs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.graph_pb2 import GraphDef
from torch.utils.data import DataLoader

from litvision.batches import Batch
from litvision.callbacks.graph import Graph
from litvision.callbacks.histograms import Histograms
from litvision.classifier import ImageClassifier
from litvision.errors import UserError
from tiny import TinyNet

PICTURE = torch.zeros(1, 3, 8, 8)


class Twisted(TinyNet):
    """Cannot be traced: a trace takes nothing but tensors."""

    def forward(self, images: Any) -> Any:
        if torch.jit.is_tracing():
            raise RuntimeError("no trace of me")
        return super().forward(images)


def fit(folder: Path, callback: L.Callback, network: torch.nn.Module, **options: Any) -> Any:
    images = torch.linspace(-1, 1, 4).view(4, 1, 1, 1).expand(4, 3, 8, 8)
    data = DataLoader([Batch(images, torch.arange(4))] * 2, batch_size=None)
    classifier = ImageClassifier(network, partial(torch.optim.SGD, lr=0.1))
    classifier.example_input_array = PICTURE
    fixed = {"logger": TensorBoardLogger(str(folder), name="", version=""), "max_epochs": 3}
    trainer = L.Trainer(
        accelerator="cpu", callbacks=[callback], default_root_dir=folder,
        enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
        num_sanity_val_steps=0, **{**fixed, **options},
    )  # fmt: skip
    trainer.fit(classifier, data)
    return classifier


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), {"histograms": 0}).Reload()


def test_the_graph_has_each_layer_and_tracing_leaves_the_network_alone(tmp_path: Path) -> None:
    network = TinyNet(4)
    network.norm.eval()  # as fine-tuning holds layers that are not trained

    class Held(Graph):
        def setup(self, *args: Any, **kwargs: Any) -> None:
            before = torch.get_rng_state()
            super().setup(*args, **kwargs)
            assert torch.equal(torch.get_rng_state(), before)
            assert network.training
            assert not network.norm.training

    fit(tmp_path, Held(), network)
    graph = GraphDef.FromString(events(tmp_path).Graph().SerializeToString())
    nodes = " ".join(node.name for node in graph.node)
    for layer in ("conv", "norm", "fc"):
        assert f"[{layer}]" in nodes


def test_a_network_that_cannot_be_traced_trains_without_a_graph(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    fit(tmp_path, Graph(), Twisted(4))
    assert not events(tmp_path).Tags()["graph"]
    assert "no trace of me" not in "".join(capsys.readouterr())


@pytest.mark.parametrize(("every", "steps"), [(1, [2, 4, 6]), (2, [4, 6])])
def test_histograms_are_of_the_weights_of_those_epochs(
    tmp_path: Path, every: int, steps: list[int]
) -> None:
    classifier = fit(tmp_path, Histograms(every), TinyNet(4))
    found = events(tmp_path)
    names = {f"weights/{name}" for name, _ in classifier.network.named_parameters()}
    assert set(found.Tags()["histograms"]) == names
    last = found.Histograms("weights/fc.weight")
    assert [event.step for event in last] == steps
    weight = classifier.network.fc.weight.detach().numpy()
    value = last[-1].histogram_value
    assert value.num == weight.size
    assert (value.min, value.max) == pytest.approx((weight.min(), weight.max()))
    assert value.sum == pytest.approx(np.float64(weight.sum()), abs=1e-6)


def test_histograms_need_a_logger_that_shows_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"callbacks\.histograms needs a logger that shows"):
        fit(tmp_path, Histograms(), TinyNet(4), logger=CSVLogger(str(tmp_path)))
