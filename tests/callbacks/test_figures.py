"""Figures of a classifier: what they count, when they are drawn, and where they go."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import multiclass_calibration_error

from conftest import Run
from litvision import figures
from litvision.batches import Batch
from litvision.callbacks.figures import Figures
from litvision.callbacks.forget import forget_the_best
from litvision.classifier import ImageClassifier
from tiny import TinyNet

CARD = {"classes": ["ant", "bee", "cat", "dog"], "mean": [0.5] * 3, "std": [0.25] * 3}


class Scripted(ImageClassifier):
    """Answers 2, 1, 2 with logits 3, 1, 2 in their places, whatever it is shown."""

    def __init__(self) -> None:
        super().__init__(TinyNet(4), partial(torch.optim.SGD, lr=0.0))
        self.card = CARD

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(3, 4)
        logits[0, 2], logits[1, 1], logits[2, 2] = 3, 1, 2
        return logits[: len(images)] + 0 * self.network(images)


def batches(count: int = 2) -> DataLoader:
    """Pictures of one value each: -1, 0 and 1; of three, the last is wrong."""
    images = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1).expand(3, 3, 8, 8)
    return DataLoader([Batch(images, torch.tensor([2, 1, 0]))] * count, batch_size=None)


def trainer(folder: Path, *callbacks: L.Callback, **options: Any) -> L.Trainer:
    fixed = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(
        accelerator="cpu", callbacks=list(callbacks), default_root_dir=folder,
        enable_checkpointing=False, num_sanity_val_steps=0, **{**fixed, **options},
    )  # fmt: skip


def test_a_test_is_counted_and_drawn(tmp_path: Path) -> None:
    callback = Figures(str(tmp_path / "figures"), wrong=4)
    for _ in range(2):  # a second test starts from zero
        trainer(tmp_path, callback).test(Scripted(), batches(), verbose=False)
    tally = callback.tally
    assert tally is not None
    expected = torch.zeros(4, 4, dtype=torch.int64)
    expected[2, 2], expected[1, 1], expected[0, 2] = 2, 2, 2
    assert torch.equal(tally.matrix, expected)
    wrong = float(torch.tensor([0.0, 0.0, 2.0, 0.0]).softmax(0)[2])
    assert tally.sure.tolist() == pytest.approx([wrong, wrong, -1, -1])
    assert tally.labels[:2].tolist() == [0, 0]
    assert tally.answers[:2].tolist() == [2, 2]
    assert (tally.images[:2] == 1).all()
    names = {"test_confusion.png", "test_class_accuracy.png", "test_reliability.png"}
    assert {file.name for file in (tmp_path / "figures").iterdir()} == {*names, "test_wrong.png"}
    for file in (tmp_path / "figures").iterdir():
        with Image.open(file) as picture:
            assert min(picture.size) > 100


def test_the_surest_wrong_answers_come_first() -> None:
    callback = Figures("nowhere", wrong=3)
    for first in (1.0, 4.0, 2.0):
        logits = torch.zeros(5, 2)
        logits[:, 1] = first + torch.arange(5) / 10
        labels = torch.tensor([0, 0, 1, 0, 1])  # 2 and 4 are right
        images = (first + torch.arange(5) / 10).view(5, 1, 1, 1)
        callback._count(logits, Batch(images, labels))
    assert callback.tally is not None
    assert callback.tally.images.flatten().tolist() == pytest.approx([4.3, 4.1, 4.0])
    assert callback.tally.sure.tolist() == sorted(callback.tally.sure.tolist(), reverse=True)
    assert int(callback.tally.matrix.sum()) == 15


def test_the_best_epoch_is_drawn_and_goes_to_tensorboard(tmp_path: Path) -> None:
    class Worse(L.Callback):
        def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
            loss = [0.5, 0.2, 0.2, 0.4, float("nan")][trainer.current_epoch]
            module.log("scripted", loss)

    folder = tmp_path / "figures"
    logger = TensorBoardLogger(str(tmp_path), name="", version="")
    callback = Figures(str(folder), monitor="scripted", share=0)  # drawn at the end alone
    options = {"max_epochs": 5, "logger": logger}
    trainer(tmp_path, Worse(), callback, **options).fit(Scripted(), batches(), batches())
    events = EventAccumulator(str(tmp_path), {"images": 0}).Reload()
    drawn = {tag: [e.step for e in events.Images(tag)] for tag in events.Tags()["images"]}
    assert drawn == {
        "train/batch": [0],
        **{f"val/{name}": [6] for name in ("confusion", "class_accuracy", "reliability", "wrong")},
    }
    shown = np.asarray(Image.open(folder / "train_batch.png"))
    # -1, 0 and 1 times the deviation 0.25 plus the mean 0.5, in a white frame; 8 times enlarged.
    assert shown.shape == (12 * 8, (2 + 3 * 10) * 8, 3)
    assert [shown[40, (2 + 10 * n + 4) * 8, 0] for n in range(3)] == [64, 128, 191]


def test_with_time_to_spare_each_best_epoch_is_drawn(tmp_path: Path) -> None:
    drawn = []

    class Counted(Figures):
        def _show(self, trainer: L.Trainer, tag: str, pixels: Any, step: int) -> None:
            drawn.append((tag, step))

    callback = Counted("nowhere", share=1e6)
    trainer(tmp_path, callback, max_epochs=3).fit(Scripted(), batches(), batches())
    # The same loss each time counts as best again, as for the checkpoint.
    assert [step for tag, step in drawn if tag == "val/confusion"] == [2, 4, 6]


def test_the_best_epoch_of_training_is_the_one_that_is_drawn(tmp_path: Path) -> None:
    drawn = []

    class Noted(Figures):
        def _draw(self, trainer: Any, module: Any, tally: Any, split: str, step: int) -> None:
            drawn.append((split, step))

    class Worse(Scripted):
        def on_train_batch_end(self, *args: Any) -> None:
            self.log("train/loss", float(self.current_epoch))

    callback = Noted(str(tmp_path), monitor="train/loss", share=0.0)
    made = trainer(tmp_path, callback, max_epochs=3)
    made.fit(Worse(), batches(), batches())
    assert drawn == [("val", 2)]


def test_a_resumed_run_compares_with_the_epochs_before(tmp_path: Path) -> None:
    callback = Figures(str(tmp_path))
    callback.best = 0.25
    resumed = Figures(str(tmp_path))
    resumed.load_state_dict(callback.state_dict())
    assert resumed.best == 0.25


def test_calibration_is_that_of_torchmetrics() -> None:
    random = torch.Generator().manual_seed(0)
    probabilities = (3 * torch.randn(500, 7, generator=random)).softmax(1)
    labels = torch.randint(0, 7, (500,), generator=random)
    sure, answers = probabilities.max(1)
    parts = [
        figures.calibration_bins(sure[rows], answers[rows] == labels[rows])
        for rows in torch.arange(500).split(128)
    ]
    bins = torch.stack(parts).sum(0)
    assert int(bins[:, 0].sum()) == 500
    expected = multiclass_calibration_error(probabilities, labels, 7, n_bins=15)
    assert figures.calibration_error(bins) == pytest.approx(float(expected), abs=1e-6)
    assert "expected calibration error" in figures.reliability(bins).axes[0].get_title()


def test_a_matrix_has_names_and_numbers_while_there_is_room() -> None:
    matrix = torch.tensor([[3, 1], [0, 4]])
    axes = figures.confusion(matrix, ["ant", "bee"]).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ant", "bee"]
    assert [text.get_text() for text in axes.texts] == ["3", "1", "4"]
    many = torch.eye(30, dtype=torch.int64)
    assert not figures.confusion(many, [str(n) for n in range(30)]).axes[0].texts
    bars = figures.class_accuracy(matrix, ["ant", "bee"]).axes[0]
    assert [label.get_text() for label in bars.get_yticklabels()] == ["bee", "ant"]
    assert [patch.get_width() for patch in bars.patches] == [100, 75]


def test_names_are_drawn_as_they_are_and_classes_without_pictures_are_left_out() -> None:
    matrix = torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    names = ["$0_$10", "$10_$20", "none"]
    for figure in (
        figures.confusion(matrix, names),
        figures.class_accuracy(matrix, names),
        figures.pictures([np.zeros((8, 8, 3), np.uint8)], ["$0_$10\n$10_$20"], 1),
    ):
        figures.to_pixels(figure)  # what matplotlib takes for a formula fails here
    bars = figures.class_accuracy(matrix, names).axes[0]
    assert [label.get_text() for label in bars.get_yticklabels()] == ["$10_$20", "$0_$10"]


def test_what_was_best_before_is_forgotten(tmp_path: Path) -> None:
    callback = Figures(str(tmp_path))
    callback.best = 0.25
    forget_the_best(trainer(tmp_path, callback), keep_as="best_dense")
    assert callback.best is None


def test_a_run_leaves_its_figures(run: Run, tmp_path: Path) -> None:
    options = ["data=shapes", "data.train_size=60", "data.test_size=20", "data.batch_size=16"]
    options += ["model.network._target_=tiny.TinyNet", "trainer.max_epochs=2"]
    done = run("train", *options, "trainer.accelerator=cpu", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    names = ("confusion", "class_accuracy", "reliability", "wrong")
    expected = {f"{split}_{name}.png" for split in ("val", "test") for name in names}
    folder = tmp_path / "run"
    assert {file.name for file in (folder / "figures").iterdir()} == {*expected, "train_batch.png"}
    events = EventAccumulator(str(folder), {"images": 0}).Reload()
    assert {f"{tag.replace('/', '_')}.png" for tag in events.Tags()["images"]} >= {
        "train_batch.png", *(f"val_{name}.png" for name in names),
    }  # fmt: skip
    assert json.loads((folder / "result.json").read_text())["state"] == "done"
