"""Keep the checkpoint of the best epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from litvision.callbacks.last_checkpoint import LastCheckpoint
from litvision.callbacks.validated import Validated


class BestCheckpoint(Validated, ModelCheckpoint):
    """Lightning's `ModelCheckpoint`, but an equal metric is saved too and a NaN never is.

    Of equally good epochs the later is kept: it has seen more, and "save whenever the loss does not
    rise" is the rule that the plateau schedule counts by.

    Args:
        filename: "best", which is what every other command looks for.
        save_top_k: 1: under one name there is one best.
        options: as `ModelCheckpoint` takes them.
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        filename: Literal["best"] = "best",
        save_top_k: Literal[1] = 1,
        **options: Any,
    ) -> None:
        super().__init__(dirpath, filename, save_top_k=save_top_k, **options)

    @classmethod
    def of(cls, trainer: L.Trainer) -> BestCheckpoint | None:
        """Return a trainer's, the first of several; None if it has none."""
        callbacks: list[L.Callback] = getattr(trainer, "callbacks", [])
        return next((c for c in callbacks if isinstance(c, cls)), None)

    def check_monitor_top_k(self, trainer: L.Trainer, current: Tensor | None = None) -> bool:
        """Say whether `current` is among the best, ties counted as better."""
        if current is None or not torch.isfinite(current):
            return False
        if not self.best_k_models:
            return True
        worst = self.best_k_models[self.kth_best_model_path]
        as_good = torch.le(current, worst) if self.mode == "min" else torch.ge(current, worst)
        return bool(trainer.strategy.reduce_boolean_decision(bool(as_good)))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save, but not when the metric is an earlier epoch's, since this one was not validated.

        Where the data have nothing to validate, no epoch is the best: the last weights count. Nor
        is one that was cut short, which `last.ckpt` goes on within.
        """
        callbacks: list[L.Callback] = getattr(trainer, "callbacks", [])
        if any(isinstance(callback, LastCheckpoint) and callback.cut for callback in callbacks):
            return
        nothing = trainer.enable_validation and not sum(trainer.num_val_batches)
        if self.is_of_this_epoch(trainer, str(self.monitor)) and not nothing:
            super().on_train_epoch_end(trainer, pl_module)

    def _should_save_on_train_epoch_end(self, trainer: L.Trainer) -> bool:
        # Not as Lightning, after the validation of every `check_val_every_n_epoch`-th epoch: what
        # training measured is then an epoch old, and the plateau rule has not counted yet.
        once = getattr(trainer, "val_check_interval", None) == 1.0  # none where it is a time
        if self._save_on_train_epoch_end is None and (
            once or str(self.monitor).startswith("train/")
        ):
            return True
        return super()._should_save_on_train_epoch_end(trainer)

    @property
    def best_epoch(self) -> int | None:
        """The epoch, counted from 0, of the best checkpoint; None before the first."""
        return self._best_epoch

    _best_epoch: int | None = None

    def _update_best_and_save(self, current: Tensor, trainer: L.Trainer, *args: Any) -> None:
        self._best_epoch = trainer.current_epoch  # first, so that the file to be saved holds it
        super()._update_best_and_save(current, trainer, *args)

    def forget(self) -> None:
        """Compare with later epochs only; the file that was the best is replaced by the next."""
        self.best_model_score = self._best_epoch = None
        self.best_k_models = {}
        self.best_model_path = self.kth_best_model_path = ""

    def _moved(self, path: str) -> str:
        here = Path(str(self.dirpath), Path(path).name)
        return str(here) if path and not Path(path).exists() and here.exists() else path

    def state_dict(self) -> dict[str, Any]:
        """Return Lightning's state and the best epoch."""
        return {**super().state_dict(), "best_epoch": self._best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore Lightning's state and the best epoch.

        Also in a new folder, where Lightning would forget the best so far: the first resumed epoch
        would then pass for the best, however bad. The file in the old folder stays where it is. In
        a folder that was moved, it is looked for where it is now.
        """
        super().load_state_dict(state_dict)
        self.best_model_score = state_dict["best_model_score"]
        self.best_model_path = self._moved(state_dict["best_model_path"])
        self.best_k_models = {self._moved(k): v for k, v in state_dict["best_k_models"].items()}
        self.kth_best_model_path = self._moved(state_dict["kth_best_model_path"])
        self.kth_value = state_dict["kth_value"]
        self._best_epoch = state_dict.get("best_epoch")
