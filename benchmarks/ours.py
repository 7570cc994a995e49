"""Litvision's own training, built as the command builds it, and stopped from inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
from hydra import compose, initialize_config_dir
from omegaconf import open_dict

from benchmarks.measure import scratch
from litvision.assemble import Run, assemble
from litvision.configs import CONF


def build(*overrides: str, pictures: int | None = None) -> Run:
    """Assemble the run that `python -m litvision.train` with these overrides starts.

    Args:
        overrides: as on the command line.
        pictures: train on so many random ones instead of what `data` names.
    """
    with initialize_config_dir(str(CONF)):
        cfg = compose("train", overrides=[*overrides])
    if pictures is not None:
        with open_dict(cfg):
            for option in ("root", "url"):
                del cfg.data[option]
            cfg.data.source._target_ = "benchmarks.pictures.Pictures"
            cfg.data.size = pictures
    with open_dict(cfg):
        cfg.run_dir = scratch()
        cfg.overrides = []  # Hydra's own values exist only within its command
    return assemble(cfg)


class Every(L.Callback):
    """Call a function after every `count` training steps; the first call is at the first step."""

    def __init__(self, count: int, call: Callable[[int], Any]) -> None:
        self.count = count
        self.call = call

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any,
        batch_idx: int,
    ) -> None:  # fmt: skip
        if batch_idx % self.count == 0:
            self.call(batch_idx)
