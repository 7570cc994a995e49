"""Stop a run that no longer improves."""

from __future__ import annotations

from typing import Any

import lightning as L
import lightning.pytorch.callbacks


class EarlyStopping(lightning.pytorch.callbacks.EarlyStopping):
    """Lightning's, but a resumed run has the patience that is given now, not that of its start.

    Where it had run out of that, it does not train another epoch. And a metric of training is
    compared when its epoch has ended, also with `check_val_every_n_epoch`: at a validation,
    Lightning's has still that of the epoch before.

    Args:
        monitor, patience, and all others: as Lightning's takes them.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Choose when to compare."""
        if self._check_on_train_epoch_end is None and self.monitor.startswith("train/"):
            self._check_on_train_epoch_end = True
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End a resumed run that had been stopped, unless it has more patience now."""
        if self.stopped_epoch and self.wait_count >= self.patience:
            trainer.should_stop = True
        else:
            self.stopped_epoch = 0

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best value and how long it has been the best."""
        super().load_state_dict({**state_dict, "patience": self.patience})
