"""Log how many pictures a second are trained on."""

from __future__ import annotations

import time

import lightning as L
import torch


class Throughput(L.Callback):
    """Log `images_per_second` each epoch: pictures trained on over seconds spent training.

    Loading, augmentation, forward, backward and update count; validation and checkpointing do not.
    Over all devices together.
    """

    def __init__(self) -> None:
        self.pictures = 0
        self.seconds = 0.0
        self._started = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock where a resumed run is within an epoch."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self.pictures, self.seconds = 0, 0.0
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object,
        batch_idx: int,
    ) -> None:  # fmt: skip
        """Count the batch."""
        self.pictures += len(batch[1])  # type: ignore[index]

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock for as long as validation takes."""
        if trainer.state.fn == "fit":
            self._stop(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start it again."""
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the epoch's figure."""
        self._stop(pl_module)
        mine = torch.tensor(float(self.pictures), device=pl_module.device)
        pictures = float(trainer.strategy.reduce(mine, reduce_op="sum"))
        if self.seconds > 0:
            pl_module.log("images_per_second", pictures / self.seconds)

    def _stop(self, pl_module: L.LightningModule) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()  # the GPU may still be at work on the last steps
        now = time.perf_counter()
        self.seconds += now - self._started
        self._started = now
