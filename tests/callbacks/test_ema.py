"""The moving average of the weights: what is validated, tested, saved, and gone on with."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from commands import run_command
from conftest import Compose, Run
from counted import Counted
from litvision.assemble import assemble
from litvision.callbacks.ema import EMA, _Average
from litvision.errors import UserError

OPTIONS = ["callbacks=ema", "callbacks.ema.decay=0.5", "optimizer.lr=0.1", "logger=none"]
OPTIONS += ["trainer.precision=32-true", "data.padding=0"]


class Record(L.Callback):
    """Averages the weights by the formula, step by step."""

    def __init__(self) -> None:
        self.average: dict[str, torch.Tensor] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        for name, weight in pl_module.named_parameters():
            before = self.average.get(name, weight.detach())
            self.average[name] = 0.5 * before + 0.5 * weight.detach()


def test_the_average_is_saved_and_tested(compose_train: Compose) -> None:
    run = assemble(compose_train(*OPTIONS))
    record = Record()
    run.trainer.callbacks.append(record)
    run.trainer.fit(run.classifier, run.datamodule)
    path = Path(run.cfg.run_dir, "checkpoints", "last.ckpt")
    content = torch.load(path, weights_only=True)
    trained, saved = content["current_model_state"], content["state_dict"]
    for name, average in record.average.items():
        torch.testing.assert_close(saved[name], average)
        assert not torch.equal(saved[name], trained[name])
    # Tested in the process that saved it, Lightning's own callback takes the trained weights.
    run.trainer.test(run.classifier, run.datamodule, ckpt_path=path, verbose=False)
    for name, weight in run.classifier.named_parameters():
        assert torch.equal(weight.cpu(), saved[name])


def test_before_anything_is_averaged_the_trained_weights_are_saved(compose_train: Compose) -> None:
    start = "callbacks.ema.update_starting_at_step=1000"
    run = assemble(compose_train(*OPTIONS, start))
    run.trainer.fit(run.classifier, run.datamodule)
    path = Path(run.cfg.run_dir, "checkpoints", "last.ckpt")
    content = torch.load(path, weights_only=True)
    for name, trained in content["current_model_state"].items():
        assert torch.equal(content["state_dict"][name], trained), name
        assert torch.equal(run.classifier.state_dict()[name].cpu(), trained), name


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("decay=1.5", "decay=1.5 does not fit: it takes a number from 0 up to 1."),
        ("update_every_n_steps=-1", "every_n_steps=-1 does not fit: it takes an integer from 0."),
        ("update_every_n_steps=0", "+callbacks.ema.update_starting_at_epoch=<the first one>, or a"),
        ("update_starting_at_step=-1", "step=-1 does not fit: it takes an integer from 0 or null."),
    ],
)
def test_an_option_out_of_range_is_refused(
    compose_train: Compose, option: str, expected: str
) -> None:
    with pytest.raises(UserError, match=re.escape(expected)):
        assemble(compose_train("callbacks=ema", f"callbacks.ema.{option}"))


def test_a_device_that_is_none_is_refused_before_data_are_read(compose_train: Compose) -> None:
    for device in ("gpu0", "meta", "cuda:99"):
        with pytest.raises(UserError) as caught:
            assemble(compose_train("callbacks=ema", f"+callbacks.ema.device='{device}'"))
        assert str(caught.value) == (
            f"callbacks: ema.device={device} names no device that is here: give cpu, or null for "
            "the one that trains."
        )


def test_it_may_average_at_the_ends_of_epochs_only(compose_train: Compose) -> None:
    options = ["callbacks.ema.update_every_n_steps=0", "+callbacks.ema.update_starting_at_epoch=1"]
    run = assemble(compose_train(*OPTIONS, *options, "trainer.max_epochs=3"))
    run.trainer.fit(run.classifier, run.datamodule)
    path = Path(run.cfg.run_dir, "checkpoints", "last.ckpt")
    assert torch.load(path, weights_only=True)["averaging_state"]["n_averaged"] == 2


def test_an_update_goes_over_all_weights_at_once() -> None:
    module = L.LightningModule()
    module.network = torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(8)))
    module.register_buffer("steps", torch.zeros((), dtype=torch.int64))
    callback = EMA(decay=0.75)
    callback.setup(L.Trainer(logger=False, enable_checkpointing=False), module, "fit")
    average: Any = callback._average_model
    average.update_parameters(module)  # the first copies
    before = [weight.clone() for weight in average.module.parameters()]
    for weight in module.parameters():
        torch.nn.init.normal_(weight)
    module.steps.add_(3)
    with Counted() as update:
        average.update_parameters(module)
    found = zip(average.module.parameters(), before, module.parameters(), strict=True)
    for weight, old, new in found:
        torch.testing.assert_close(weight, 0.75 * old + 0.25 * new)
    assert average.module.steps == 3  # a whole number, of which an average would be less
    assert update.count == 3  # weights, buffers, and how often


def test_the_average_lies_in_memory_as_the_weights(compose_train: Compose) -> None:
    network = ["model.network._target_=callbacks.test_sparsity.Small", "model.channels_last=true"]
    run = assemble(compose_train(*OPTIONS, *network, "trainer.max_epochs=1"))
    (callback,) = [c for c in run.trainer.callbacks if isinstance(c, EMA)]
    run.trainer.fit(run.classifier, run.datamodule)
    average: Any = callback._average_model
    pairs = list(zip(average.module.parameters(), run.classifier.parameters(), strict=True))
    assert any(not weight.is_contiguous() for _, weight in pairs)
    assert all(own.stride() == weight.stride() for own, weight in pairs)


SHORT = [
    *OPTIONS, "data=shapes", "data.train_size=40", "data.test_size=20", "data.batch_size=16",
    "model.network._target_=tiny.TinyNet", "trainer.accelerator=cpu", "trainer.max_epochs=3",
    "callbacks.figures=null", "callbacks.model_summary=null",
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    done = run_command(folder, "train", *SHORT, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_a_run_that_was_stopped_ends_with_the_same_average(
    run: Run, tmp_path: Path, whole: Path, step: int
) -> None:
    stop = f"+callbacks.signal={{_target_: tiny.Signal, step: {step}, number: {signal.SIGTERM:d}}}"
    assert run("train", *SHORT, stop, "hydra.run.dir=run").returncode == 75
    done = run("train", *SHORT, "resume=run")
    assert done.returncode == 0, done.stderr
    expected, found = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        for folder in (whole, tmp_path / "run")
    )
    for kind in ("state_dict", "current_model_state", "averaging_state"):
        assert all(torch.equal(value, found[kind][name]) for name, value in expected[kind].items())


@pytest.mark.parametrize(("use_buffers", "expected"), [(True, 0.25), (False, 1.0)])
def test_buffers_are_averaged_if_wished(use_buffers: bool, expected: float) -> None:
    network = torch.nn.BatchNorm1d(1)
    averaged: Any = _Average(network, torch.device("cpu"), use_buffers, decay=0.75)
    averaged.update_parameters(network)
    network.running_mean += 1
    averaged.update_parameters(network)
    assert averaged.module.running_mean.item() == expected
