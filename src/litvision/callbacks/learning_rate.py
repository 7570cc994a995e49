"""Log the learning rate as `lr`, whatever the optimizer and the schedule are called."""

from __future__ import annotations

import lightning as L


class LearningRate(L.Callback):
    """Log `lr`: the first parameter group's learning rate, as used in the steps just taken.

    Lightning's own monitor names the curve after the optimizer's class and group, so that two runs
    with different optimizers share none; it also needs a logger. Here `lr` is a metric like any
    other: at the end of every epoch, and with a schedule that steps by batch also every
    `trainer.log_every_n_steps` steps.
    """

    def __init__(self) -> None:
        self._rate = 0.0
        self._logged = -1

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Log the rate of the step to come, if it changes within an epoch."""
        self._rate = float(trainer.optimizers[0].param_groups[0]["lr"])
        every = getattr(trainer, "log_every_n_steps", 0)
        by_step = any(config.interval == "step" for config in trainer.lr_scheduler_configs)
        due = bool(every) and trainer.global_step % every == 0
        if by_step and due and trainer.global_step != self._logged:
            self._logged = trainer.global_step
            for logger in trainer.loggers:
                logger.log_metrics({"lr": self._rate}, step=trainer.global_step)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the rate of the epoch's last step."""
        pl_module.log("lr", self._rate)
