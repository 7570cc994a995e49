"""Start anew with what was best, where a network has just been changed by force."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping

from litvision.callbacks.best_checkpoint import BestCheckpoint
from litvision.callbacks.figures import Figures
from litvision.callbacks.reduce_lr_on_plateau import ReduceLROnPlateau

log = logging.getLogger(__name__)


def forget_the_best(trainer: L.Trainer, keep_as: str) -> None:
    """Let all that compares with the best epoch compare with later ones only.

    Else the checkpoint of an epoch before the change would be the best, and the run would end by
    testing a network that it was not meant to train.

    Args:
        trainer: of the run.
        keep_as: the name, without `.ckpt`, under which the best checkpoint so far is kept.
    """
    callbacks: list[L.Callback] = getattr(trainer, "callbacks", [])
    for callback in callbacks:
        if isinstance(callback, BestCheckpoint):
            path = callback.best_model_path
            if trainer.is_global_zero and path and Path(path).exists():
                kept = Path(path).with_stem(keep_as)
                shutil.copyfile(path, kept)
                log.info(f"the best checkpoint so far is kept as {kept}; the search starts anew")
            callback.forget()
        elif isinstance(callback, EarlyStopping):
            callback.wait_count = 0
            worst = torch.inf if callback.mode == "min" else -torch.inf
            callback.best_score = torch.tensor(worst)
        elif isinstance(callback, ReduceLROnPlateau | Figures):
            callback.forget()
