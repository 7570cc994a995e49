"""Save within long epochs."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from pydantic import Field

from litvision.position import can_save


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
        # A hundred years: never.
        interval = timedelta(minutes=every_n_minutes) if every_n_minutes else timedelta(36500)
        super().__init__(
            dirpath, filename="last", train_time_interval=interval, enable_version_counter=False
        )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Save if it is time."""
        if can_save(trainer):
            super().on_train_batch_end(trainer, pl_module, *args)
