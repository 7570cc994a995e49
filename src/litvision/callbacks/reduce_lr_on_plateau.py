"""Lower the learning rate when the watched metric stops improving."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import lightning as L
from lightning.pytorch.utilities.types import LRSchedulerConfig
from pydantic import Field
from torch.optim import lr_scheduler

from litvision.callbacks.validated import Validated
from litvision.errors import UserError

TWO_SCHEDULES = (
    "Two schedules would set the learning rate: the scheduler group and the callback "
    "reduce_lr_on_plateau. Choose one: scheduler=none, or callbacks.reduce_lr_on_plateau=null."
)


class _PlateauSchedule(lr_scheduler.ReduceLROnPlateau):
    """Torch's schedule, for which an equal value is no worse: the `<=` of the best checkpoint."""

    def _is_better(self, a: float, best: float) -> bool:
        return a <= best if self.mode == "min" else a >= best


class ReduceLROnPlateau(Validated, L.Callback):
    """Multiply the learning rate by `factor` after `patience` epochs in a row without improvement.

    Beside early stopping and checkpointing, since the three watch the same number. It wraps torch's
    `ReduceLROnPlateau` and registers it with the trainer before Lightning restores a checkpoint, so
    that resuming and learning-rate monitors see it. It steps it itself, at the end of the training
    epoch and before checkpoints are saved: Lightning steps such schedules after saving, and a
    resumed run would have forgotten an epoch.

    Args:
        monitor: the metric, as logged.
        mode: "min" where lower is better, "max" where higher is.
        factor: what the learning rate is multiplied by.
        patience: epochs without improvement until then. The rate falls at the end of the
            `patience`-th such epoch, as `EarlyStopping` counts (torch's own falls one later).
        cooldown: epochs after a reduction in which nothing is counted.
        min_lr: never go below.
    """

    def __init__(
        self,
        monitor: str = "val/loss",
        mode: Literal["min", "max"] = "min",
        factor: Annotated[float, Field(gt=0, lt=1)] = 0.5,
        patience: Annotated[int, Field(ge=1)] = 10,
        cooldown: Annotated[int, Field(ge=0)] = 0,
        min_lr: Annotated[float, Field(ge=0)] = 0.0,
    ) -> None:
        self.monitor = monitor
        self.options: dict[str, Any] = {
            "mode": mode,
            "factor": factor,
            "patience": patience - 1,
            "cooldown": cooldown,
            "min_lr": min_lr,
        }
        self.schedule: _PlateauSchedule | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Register the schedule with the trainer."""
        if trainer.lr_scheduler_configs:
            raise UserError(TWO_SCHEDULES)
        self.schedule = _PlateauSchedule(trainer.optimizers[0], **self.options)
        trainer.strategy.lr_scheduler_configs.append(
            LRSchedulerConfig(
                self.schedule,
                name="lr",
                interval="callback",  # neither "step" nor "epoch": Lightning leaves stepping to us
                reduce_on_plateau=True,
                monitor=self.monitor,
            )
        )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go by the options given now, of which a resumed run's schedule brings its own."""
        assert self.schedule is not None
        given = {k: v for k, v in self.options.items() if k not in ("mode", "min_lr")}
        vars(self.schedule).update(given)
        groups = trainer.optimizers[0].param_groups
        self.schedule.min_lrs = [self.options["min_lr"]] * len(groups)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare this epoch with the best, unless the metric is still an earlier epoch's.

        Nor where another callback has put its own schedule in place of this one, as Lightning's
        `StochasticWeightAveraging` does.
        """
        ours = any(config.scheduler is self.schedule for config in trainer.lr_scheduler_configs)
        if not ours or not self.is_of_this_epoch(trainer, self.monitor):
            return
        assert self.schedule is not None
        self.schedule.step(self.require(trainer, self.monitor).item())

    def forget(self) -> None:
        """Compare with later epochs only; the learning rate stays where it is."""
        if self.schedule is not None:
            self.schedule._reset()
