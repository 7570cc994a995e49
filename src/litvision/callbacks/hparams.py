"""Tell loggers what a run was made with, where they compare runs by it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger

from litvision import records
from litvision.callbacks.best_checkpoint import BestCheckpoint

# A run by itself shows these, and what else the command line changed.
SHOWN = {
    "network": "model.network._target_",
    "optimizer": "optimizer._target_",
    "optimizer.lr": "optimizer.lr",
    "data.batch_size": "data.batch_size",
    "seed": "seed",
}


class HParams(L.Callback):
    """Log a run's options where runs are compared.

    TensorBoard's HParams tab has a column for each option. It gets those that a sweep varies, or
    the few of a run by itself that are looked at first; at the end of the run, however it ends,
    with its best metric. MLflow and Weights & Biases get the config at the start, by dotted keys,
    but for what says where files go.

    Args:
        overrides: what the command line changed, as Hydra lists it.
    """

    def __init__(self, overrides: list[str] | None = None) -> None:
        self.overrides = overrides or []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the config, but not in TensorBoard."""
        config = {key: value for key, value in _config(pl_module).items() if not _is_place(key)}
        for logger in trainer.loggers:
            if config and isinstance(logger, MLFlowLogger | WandbLogger):
                logger.log_hyperparams(config)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log options and metric in TensorBoard."""
        if not trainer.is_global_zero:
            return
        given = dict(o.lstrip("+").split("=", 1) for o in self.overrides if "=" in o)
        if plan := records.read_plan(Path(trainer.default_root_dir).parent):
            options = {key: _number(given[key]) for key in plan["keys"] if key in given}
        else:
            config = _config(pl_module)
            options = {name: _last(config[key]) for name, key in SHOWN.items() if key in config}
            options |= {key: _number(value) for key, value in given.items() if key != "resume"}
        best = BestCheckpoint.of(trainer)
        name, score = (best.monitor, best.best_model_score) if best else ("score", None)
        # Lightning logs no options without a metric; a run that failed early has none.
        metrics = {f"best/{name}": float("nan") if score is None else float(score)}
        for logger in trainer.loggers:
            if options and isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(options, metrics)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Log it too: a run that failed or was pruned belongs in the table."""
        with contextlib.suppress(OSError, ValueError):  # what ended the run comes first
            self.on_fit_end(trainer, pl_module)


def _config(pl_module: Any) -> dict[str, Any]:
    return records.flat(pl_module.card.get("config", {}))


def _is_place(key: str) -> bool:
    first, last = key.partition(".")[0], key.rpartition(".")[2]
    return first in ("logger", "sweep") or last in records.PLACES


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def _last(value: Any) -> Any:
    """Return the class of a `_target_`, and any number as it is."""
    return value.rpartition(".")[2] if isinstance(value, str) else value
