"""Keep the checkpoint of the best epoch."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor


class BestCheckpoint(ModelCheckpoint):
    """Lightning's `ModelCheckpoint`, but an equal metric is saved too and a NaN never is.

    Of equally good epochs the later is kept: it has seen more, and "save whenever the loss does not
    rise" is the rule that the plateau schedule counts by.

    Args:
        monitor, mode, and all others: as `ModelCheckpoint` takes them.
    """

    def check_monitor_top_k(self, trainer: L.Trainer, current: Tensor | None = None) -> bool:
        """Say whether `current` is among the best, ties counted as better."""
        if current is None or self.save_top_k == 0 or not torch.isfinite(current):
            return False
        if self.save_top_k == -1 or len(self.best_k_models) < self.save_top_k:
            return True
        worst = self.best_k_models[self.kth_best_model_path]
        as_good = torch.le(current, worst) if self.mode == "min" else torch.ge(current, worst)
        return bool(trainer.strategy.reduce_boolean_decision(bool(as_good)))

    @property
    def best_epoch(self) -> int | None:
        """The epoch, counted from 0, of the best checkpoint; None before the first."""
        return self._best_epoch

    _best_epoch: int | None = None

    def _update_best_and_save(self, current: Tensor, trainer: L.Trainer, *args: Any) -> None:
        self._best_epoch = trainer.current_epoch  # first, so that the file to be saved holds it
        super()._update_best_and_save(current, trainer, *args)

    def state_dict(self) -> dict[str, Any]:
        """Return Lightning's state and the best epoch."""
        return {**super().state_dict(), "best_epoch": self._best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore Lightning's state and the best epoch."""
        super().load_state_dict(state_dict)
        self._best_epoch = state_dict.get("best_epoch")
