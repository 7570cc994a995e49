"""Report each epoch to the study of a search, and stop a run that promises nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning as L

from litvision import study
from litvision.callbacks.validated import Validated
from litvision.errors import PrunedError, UserError

if TYPE_CHECKING:
    import optuna

PRUNERS = {
    "median": "MedianPruner",
    "asha": "SuccessiveHalvingPruner",
    "hyperband": "HyperbandPruner",
    "none": "NopPruner",
}


class StudyPruning(Validated, L.Callback):
    """Tell Optuna the watched metric after each epoch, and stop when its pruner says so.

    Args:
        pruner: "median" stops a run whose best so far is worse than half of the others were at that
            epoch; "asha" (arXiv 1810.05934) and "hyperband" (arXiv 1603.06560) let ever fewer of
            them go on to ever more epochs; "none" only reports.
        monitor: the metric, as logged.
        trial: number of this run's trial, in the study that lies beside the run's folder; None:
            not in a search, which is refused.
        options: of Optuna's `MedianPruner`, `SuccessiveHalvingPruner` or `HyperbandPruner`.

    Raises:
        UserError: the run is no trial, or the pruner refuses an option.
        PrunedError: the run is to stop.
    """

    def __init__(
        self,
        pruner: Literal["median", "asha", "hyperband", "none"] = "median",
        monitor: str = "val/loss",
        trial: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.pruner = pruner
        self.monitor = monitor
        self.number = trial
        self.options = options or {}
        self.trial: optuna.Trial | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find this run's trial."""
        import optuna

        if self.number is None:
            raise UserError("callbacks.study_pruning belongs to a search: give sweep=optuna.")
        if not trainer.is_global_zero:
            return
        options = dict(self.options)
        if self.pruner == "hyperband" and trainer.max_epochs and trainer.max_epochs > 0:
            options.setdefault("max_resource", trainer.max_epochs)
        try:
            pruner = getattr(optuna.pruners, PRUNERS[self.pruner])(**options)
        except (TypeError, ValueError) as error:
            raise UserError(f"callbacks.study_pruning.options: {error}") from error
        stored = study.storage(Path(trainer.default_root_dir).parent / study.JOURNAL)
        loaded = optuna.load_study(study_name=study.NAME, storage=stored, pruner=pruner)
        (frozen,) = [t for t in loaded.get_trials(deepcopy=False) if t.number == self.number]
        self.trial = optuna.Trial(loaded, frozen._trial_id)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report, and stop if told to."""
        if not self.is_of_this_epoch(trainer, self.monitor):
            return
        stop = False
        if self.trial is not None:
            self.trial.report(float(trainer.callback_metrics[self.monitor]), trainer.current_epoch)
            stop = self.trial.should_prune()
        if trainer.strategy.broadcast(stop):
            epoch, value = trainer.current_epoch + 1, float(trainer.callback_metrics[self.monitor])
            raise PrunedError(
                f"stopped after epoch {epoch}: {self.monitor} {value:.4f} promises nothing by the "
                f"{self.pruner} rule"
            )
