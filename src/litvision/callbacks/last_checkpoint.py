"""Save where a run stands at the end of each epoch, and where it is cut short."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from litvision.position import can_save, ends_here


class LastCheckpoint(ModelCheckpoint):
    """Lightning's `ModelCheckpoint`, but a run that ends after a step of an epoch can go on there.

    Where `trainer.max_steps` or `trainer.max_time` ends a run, Lightning saves at what it takes for
    the epoch's end: with more steps or time, the run would go on with the next epoch and never see
    the rest of this one. It still does where the time is over between batches that are joined to
    one step, or where early stopping follows a validation within an epoch.

    Attributes:
        cut: whether the running epoch was cut so; it is no whole one, and none to be the best.

    Args:
        dirpath, filename, and all others: as `ModelCheckpoint` takes them.
    """

    cut = False

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin a whole epoch, as far as is known."""
        self.cut = False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Save, if this was the last step of the run and not of the epoch."""
        super().on_train_batch_end(trainer, pl_module, *args)
        if ends_here(trainer) and can_save(trainer):
            trainer.save_checkpoint(Path(str(self.dirpath), f"{self.filename}.ckpt"))
            self.cut = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save, if the epoch was whole."""
        if not self.cut:
            super().on_train_epoch_end(trainer, pl_module)
