"""Save within long epochs."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from pydantic import Field

from litvision.position import can_stop

EVERY = 50  # steps between the questions that several devices ask each other


class IntervalCheckpoint(ModelCheckpoint):
    """Save `last.ckpt` every so many minutes within an epoch.

    Lightning's `ModelCheckpoint` with a time interval, but only where `can_save` allows it.

    Args:
        dirpath: the folder to save to.
        every_n_minutes: how often; None: never.
    """

    def __init__(
        self, dirpath: str, every_n_minutes: Annotated[float, Field(gt=0)] | None = 30
    ) -> None:
        self.every_n_minutes = every_n_minutes
        self._chances = 0  # to save, since the devices agreed last
        # A hundred years: never, though it is not asked then.
        interval = timedelta(minutes=every_n_minutes) if every_n_minutes else timedelta(36500)
        super().__init__(
            dirpath, filename="last", train_time_interval=interval, enable_version_counter=False
        )

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save if it is time.

        Several devices have to agree on that, and each waits for the others: not at every step.
        """
        if self.every_n_minutes is None or not can_stop(trainer):
            return
        self._chances += 1  # the same on all devices, and counted through epochs
        if trainer.world_size == 1 or self._chances >= EVERY:
            self._chances = 0
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
