"""What a step costs beside its arithmetic: Lightning, metrics, callbacks, loggers."""

from __future__ import annotations

import io
import statistics
import sys
import time
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from benchmarks.measure import Table, ratios, scratch
from benchmarks.ours import build
from benchmarks.pictures import Pictures
from litvision.batches import Batch
from litvision.datamodule import ImageDataModule

STEPS, ROUNDS = 300, 15
PICTURES = 150 * STEPS  # a tenth of them is set aside for validation


class Linear(nn.Module):
    """So little arithmetic that the rest of the step shows."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.fc = nn.Linear(3072, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))


class Usual(L.LightningModule):
    """The usual LightningModule: two torchmetrics objects, logged at every step and epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Linear()
        self.train_loss, self.train_acc = MeanMetric(), MulticlassAccuracy(10)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits = self.network(batch.images)
        loss = F.cross_entropy(logits, batch.labels)
        self.train_loss(loss)
        self.train_acc(logits.argmax(1), batch.labels)
        options = {"on_step": True, "on_epoch": True, "prog_bar": True}
        self.log("train/loss", self.train_loss, **options)
        self.log("train/acc", self.train_acc, **options)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)


class Terminal(io.StringIO):
    """Rich draws nothing on what is not a terminal."""

    def isatty(self) -> bool:
        return True


class Clock(L.Callback):
    """The seconds of a step, from the end of the 50th to the end of the last."""

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.fit_loop.batch_idx == 49:
            self.started = time.perf_counter()
        self.seconds = (time.perf_counter() - self.started) / (STEPS - 50) if (
            trainer.fit_loop.batch_idx == STEPS - 1
        ) else 0.0  # fmt: skip


def ours() -> float:
    clock = Clock()
    run = build(
        "model.network._target_=benchmarks.overhead.Linear",
        "~model.network.in_channels",
        "~model.network.norm",
        "trainer.max_epochs=1",
        "trainer.precision=32-true",
        "trainer.accelerator=cpu",
        f"trainer.limit_train_batches={STEPS}",
        "callbacks.progress_bar.kind=bar",
        pictures=PICTURES,
    )
    run.trainer.callbacks.append(clock)
    run.trainer.fit(run.classifier, run.datamodule)
    return clock.seconds


def usual(datamodule: ImageDataModule) -> float:
    clock, folder = Clock(), scratch()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_train_batches=STEPS,
        limit_val_batches=0,
        callbacks=[clock, TQDMProgressBar()],
        logger=[TensorBoardLogger(folder), CSVLogger(folder)],
        default_root_dir=folder,
    )
    trainer.fit(Usual(), datamodule)
    return clock.seconds


def plain(datamodule: ImageDataModule) -> float:
    network = Linear()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    for number, raw in enumerate(datamodule.train_dataloader()):
        batch = datamodule.on_after_batch_transfer(raw, 0)
        optimizer.zero_grad()
        loss = F.cross_entropy(network(batch.images), batch.labels)
        loss.backward()
        optimizer.step()
        if number == 49:
            started = time.perf_counter()
        if number == STEPS - 1:
            break
    return (time.perf_counter() - started) / (STEPS - 50)


def main() -> None:
    datamodule = ImageDataModule(Pictures, size=PICTURES)
    datamodule.setup()
    found: dict[str, list[float]] = {"ours": [], "usual": [], "plain": []}
    terminal, sys.stdout = sys.stdout, Terminal()  # the bars are drawn, but not shown
    try:
        for number in range(ROUNDS + 1):
            turn = {"plain": plain(datamodule), "ours": ours(), "usual": usual(datamodule)}
            for name, seconds in turn.items():
                if number:
                    found[name].append(seconds)
    finally:
        sys.stdout = terminal
    extra = {
        name: [s - p for s, p in zip(found[name], found["plain"], strict=True)]
        for name in ("ours", "usual")
    }
    table = Table("Overhead of a step: a linear model, batch 128, float32")
    ms = {name: statistics.median(values) * 1e3 for name, values in found.items()}
    more = {name: statistics.median(values) * 1e3 for name, values in extra.items()}
    table.add("ms a step over the plain loop", f"{more['ours']:.3f}", "", more["ours"], "≤ 0.45")
    table.add(
        "the same, beside the usual way",
        f"{more['ours']:.3f} ms",
        f"{more['usual']:.3f} ms",
        ratios(extra["ours"], extra["usual"]),
        "≤ 0.25",
    )
    table.notes.append(
        f"Whole steps: plain loop {ms['plain']:.3f} ms, ours {ms['ours']:.3f} ms (all default "
        f"callbacks and loggers, Rich bar), the usual way {ms['usual']:.3f} ms (two torchmetrics "
        "objects logged at every step, TensorBoard and CSV, tqdm bar). The same data module in all "
        f"three. Medians of {ROUNDS} runs of {STEPS - 50} steps, in turn."
    )
    table.save("overhead")


if __name__ == "__main__":
    main()
