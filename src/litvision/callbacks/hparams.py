"""Show the runs of a sweep in TensorBoard's HParams tab, by the options in which they differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from litvision import records
from litvision.callbacks.best_checkpoint import BestCheckpoint


class HParams(L.Callback):
    """At the end of a sweep's run, however it ends, log its swept options and its best metric.

    Only those options, for the tab has a column for each. A run by itself logs nothing.

    Args:
        overrides: what the command line changed, as Hydra lists it.
    """

    def __init__(self, overrides: list[str] | None = None) -> None:
        self.overrides = overrides or []

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log it."""
        plan = records.read_plan(Path(trainer.default_root_dir).parent)
        if not trainer.is_global_zero or not plan:
            return
        given = dict(o.lstrip("+").split("=", 1) for o in self.overrides if "=" in o)
        options = {key: _number(given[key]) for key in plan["keys"] if key in given}
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
        self.on_fit_end(trainer, pl_module)


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text
