"""Raise the learning rate step by step at the start of a run."""

from __future__ import annotations

from typing import Annotated, Any

import lightning as L
from pydantic import Field
from torch.optim.lr_scheduler import OneCycleLR

from litvision.errors import UserError


class Warmup(L.Callback):
    """Raise the learning rate linearly, from `start` times its value to its value, over `epochs`.

    Gradual warm-up (Goyal et al. 2017, arXiv 1706.02677, section 2.2). Each step multiplies the
    rate that is there by the growth since the step before, so that a plateau rule or a cosine that
    lowers it meanwhile keeps its effect, and a resumed run goes on where it was.

    Args:
        epochs: over how many the rate rises.
        start: share of the rate that the first step has.
    """

    def __init__(
        self,
        epochs: Annotated[float, Field(gt=0)] = 5,
        start: Annotated[float, Field(gt=0, le=1)] = 0.1,
    ) -> None:
        self.epochs = epochs
        self.start = start
        self._applied = -1

    def share(self, step: int, steps: float) -> float:
        """Return the share of the rate at an optimizer step, of `steps` that warm-up lasts."""
        return min(1.0, self.start + (1 - self.start) * step / steps)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse a schedule that raises the rate itself.

        Raises:
            UserError: the schedule is a `OneCycleLR`, which knows nothing of rates set by others.
        """
        if any(isinstance(config.scheduler, OneCycleLR) for config in trainer.lr_scheduler_configs):
            raise UserError(
                "callbacks.warmup: scheduler=one_cycle raises the rate itself: take another "
                "schedule, or callbacks.warmup=null."
            )

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the rate of the step to come."""
        step = trainer.global_step
        steps = self.epochs * -(
            -int(trainer.num_training_batches) // trainer.accumulate_grad_batches
        )
        if step == self._applied or step > steps:  # gradients of one step, accumulated; or all done
            return
        self._applied = step
        before = self.share(step - 1, steps) if step else 1.0
        for group in trainer.optimizers[0].param_groups:
            group["lr"] *= self.share(step, steps) / before
