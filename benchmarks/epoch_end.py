"""What the end of an epoch costs: metrics, learning rate, checkpoints, loggers, a new iterator."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import lightning as L

from benchmarks.measure import Table
from benchmarks.ours import build

STEPS, VALIDATION, EPOCHS = 20, 1024, 7
FULL, FULL_VALIDATION = 45_000, 5_000  # CIFAR-10 with val_fraction 0.1


class Clock(L.Callback):
    """When a step, the validation and an epoch's end begin and end; the first epoch warms up."""

    def __init__(self) -> None:
        self.step: list[float] = []
        self.validation: list[float] = []
        self.end: list[float] = []
        self._last = 0.0

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        now, first = time.perf_counter(), trainer.fit_loop.batch_idx == 0
        if first and trainer.current_epoch > 1:
            self.end.append(now - self._last - self.validation[-1])
        if first:
            self._first = now

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self._last = time.perf_counter()
        if trainer.fit_loop.batch_idx == STEPS - 1 and trainer.current_epoch:
            self.step.append((self._last - self._first) / STEPS)

    def on_validation_batch_start(self, trainer: L.Trainer, module: Any, batch: Any,
                                  batch_idx: int, *args: Any) -> None:  # fmt: skip
        if batch_idx == 0:
            self._validating = time.perf_counter()

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self._validated = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.validation.append(self._validated - self._validating)


def main() -> None:
    table = Table("End of an epoch: ResNet-18, batch 128, default callbacks and loggers")
    clock = Clock()
    pictures = 128 * STEPS + VALIDATION
    run = build(
        f"trainer.max_epochs={EPOCHS}",
        f"data.val_fraction={VALIDATION / pictures}",
        # Every epoch is the best so far: the most that there can be to write.
        "callbacks.best_checkpoint.monitor=epoch",
        "callbacks.best_checkpoint.mode=max",
        pictures=pictures,
    )
    run.trainer.callbacks.append(clock)
    run.trainer.fit(run.classifier, run.datamodule)
    step, validation, end = map(statistics.median, (clock.step, clock.validation, clock.end))
    steps, validating = -(-FULL // 128), validation / VALIDATION * FULL_VALIDATION
    epoch = step * steps + validating + end
    megabytes = Path(run.checkpoint or "").stat().st_size / 1e6
    table.add(
        f"seconds beside those of an epoch of {FULL:,} pictures",
        f"{end:.2f}",
        f"{epoch:.1f}",
        end / epoch,
        "≤ 0.03",
    )
    table.add(
        f"seconds to validate {FULL_VALIDATION:,} pictures in batches of 512, beside the same",
        f"{validating:.1f}",
        f"{epoch:.1f}",
        validating / epoch,
    )
    table.add(
        "images/s of validation, beside training's",
        f"{VALIDATION / validation:.0f}",
        f"{128 / step:.0f}",
        VALIDATION / validation / (128 / step),
    )
    table.notes.append(
        f"Both checkpoints are written at each end, {megabytes:.0f} MB each. Measured on "
        f"epochs of {STEPS} steps, of which {FULL:,} pictures need {steps}; the end does "
        f"not depend on how many there are. Medians of {len(clock.end)} epochs."
    )
    table.save("epoch_end")


if __name__ == "__main__":
    main()
