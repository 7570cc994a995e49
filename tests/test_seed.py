"""`Trainer.fit` is the plain loop that the recipe grew from, epoch by epoch."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import lightning as L
import pytest
from torch import Tensor

from conftest import Compose
from litvision.assemble import Run, assemble
from litvision.callbacks.best_checkpoint import BestCheckpoint
from reference_loop import reference_loop

PATIENCE, STOP_AFTER, EPOCHS, LR = 3, 10, 120, 0.05
OPTIONS = [
    "experiment=seed",
    f"trainer.max_epochs={EPOCHS}",
    # What the plain loop has, so that sums are rounded alike.
    "trainer.precision=32-true",
    "model.channels_last=false",
    f"optimizer.lr={LR}",
    f"callbacks.reduce_lr_on_plateau.patience={PATIENCE}",
    f"callbacks.early_stopping.patience={STOP_AFTER}",
    "callbacks.progress_bar=null",
    "callbacks.provenance=null",
    "logger=none",
    "callbacks.figures=null",
    "test=false",
]


class Recorder(L.Callback):
    """Keeps the rows that the plain loop returns, from what the run has logged and saved."""

    def __init__(self, forget_momentum: bool) -> None:
        self.rows: list[dict[str, Any]] = []
        self.forget_momentum = forget_momentum

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.note_what_was_kept(trainer)
        if self.forget_momentum:
            trainer.optimizers[0].state.clear()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        names = ("train/loss", "lr", "val/loss", "val/acc")
        row = {name: trainer.callback_metrics[name].item() for name in names}
        self.rows.append({"epoch": trainer.current_epoch, **row})

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.note_what_was_kept(trainer)

    def note_what_was_kept(self, trainer: L.Trainer) -> None:
        (best,) = [c for c in trainer.callbacks if isinstance(c, BestCheckpoint)]
        if self.rows:
            self.rows[-1]["kept"] = best.best_epoch == self.rows[-1]["epoch"]


def batches(run: Run, loader: Any, epoch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what the run trains or validates on: pictures as the network gets them, and labels."""
    loader.batch_sampler.sampler.set_epoch(epoch)
    for raw in loader:
        batch = run.datamodule.on_after_batch_transfer(raw, 0)
        yield batch.images.contiguous(), batch.labels


def both(
    cfg: Any, epochs: int, lr: float, new_optimizer_each_epoch: bool = False
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows of the run and of the plain loop, from the same initial weights."""
    run, recorder = assemble(cfg), Recorder(new_optimizer_each_epoch)
    network = copy.deepcopy(run.classifier.network)
    run.trainer.callbacks.insert(-1, recorder)  # behind what logs the rate, before checkpoints
    run.trainer.fit(run.classifier, run.datamodule)
    expected = reference_loop(
        network,
        lambda epoch: batches(run, run.datamodule.train_dataloader(), epoch),
        lambda: batches(run, run.datamodule.val_dataloader()),
        epochs=epochs,
        lr=lr,
        patience=PATIENCE,
        stop_after=STOP_AFTER,
        new_optimizer_each_epoch=new_optimizer_each_epoch,
    )
    return recorder.rows, expected


def assert_equal(rows: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(rows) == len(expected)
    for row, wanted in zip(rows, expected, strict=True):
        assert row == pytest.approx(wanted, rel=1e-6, abs=0), f"epoch {wanted['epoch']}"


@pytest.mark.parametrize("new_optimizer_each_epoch", [False, True])
def test_every_epoch_equals_the_plain_loops(
    compose_train: Compose, new_optimizer_each_epoch: bool
) -> None:
    cfg = compose_train(*OPTIONS, "data.train_size=100", "data.batch_size=16")
    rows, expected = both(cfg, EPOCHS, LR, new_optimizer_each_epoch)
    rates = [row["lr"] for row in expected]
    assert len(set(rates)) >= 3  # the plateau rule fired at least twice
    assert len(expected) < EPOCHS  # and training was stopped early
    assert 1 < sum(row["kept"] for row in expected) < len(expected)
    assert_equal(rows, expected)


def test_forgetting_the_momentum_each_epoch_makes_a_difference(compose_train: Compose) -> None:
    cfg = compose_train(*OPTIONS, "data.train_size=100", "trainer.max_epochs=3")
    run = assemble(cfg)
    losses = []
    for new_optimizer in (False, True):
        rows = reference_loop(
            copy.deepcopy(run.classifier.network),
            lambda epoch: batches(run, run.datamodule.train_dataloader(), epoch),
            lambda: batches(run, run.datamodule.val_dataloader()),
            epochs=3,
            lr=LR,
            patience=PATIENCE,
            stop_after=STOP_AFTER,
            new_optimizer_each_epoch=new_optimizer,
        )
        losses.append([row["train/loss"] for row in rows])
    assert losses[0][0] == losses[1][0]
    assert abs(losses[0][2] - losses[1][2]) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("model", ["resnet18", "vgg16"])
def test_the_real_networks_equal_it_too(compose_train: Compose, model: str) -> None:
    target = {"resnet18": "resnet.ResNet18", "vgg16": "vgg.VGG16"}[model]
    cfg = compose_train(
        *OPTIONS,
        f"model={model}",
        f"model.network._target_=litvision.networks.{target}",
        "data.train_size=60",
        "data.batch_size=16",
        "trainer.max_epochs=2",
        "callbacks.last_checkpoint=null",
    )
    cfg.optimizer.lr = 0.001  # on so few pictures a larger one amplifies the last digit
    rows, expected = both(cfg, 2, 0.001)
    assert_equal(rows, expected)
