"""Raise the learning rate step by step at the start of a run."""

from __future__ import annotations

from typing import Annotated, Any

import lightning as L
from pydantic import Field
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.hooks import RemovableHandle

from litvision.errors import UserError


class Warmup(L.Callback):
    """Raise the learning rate linearly, from `start` times its value to its value, over `epochs`.

    Gradual warm-up (Goyal et al. 2017, arXiv 1706.02677, section 2.2). The rate is lower during a
    step only: schedules, a plateau rule and checkpoints see what it would be without warm-up, so
    that each has its full effect and a resumed run goes on where it was.

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
        self._rates: list[float] = []  # of the groups without warm-up, while they have a share
        self._hook: RemovableHandle | None = None

    def share(self, step: int, steps: float) -> float:
        """Return the share of the rate at an optimizer step, of `steps` that warm-up lasts."""
        return min(1.0, self.start + (1 - self.start) * step / steps)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen for the end of a step; refuse a schedule that raises the rate itself.

        Raises:
            UserError: the schedule is a `OneCycleLR`, which knows nothing of rates set by others.
        """
        if any(isinstance(config.scheduler, OneCycleLR) for config in trainer.lr_scheduler_configs):
            raise UserError(
                "callbacks.warmup: scheduler=one_cycle raises the rate itself: take another "
                "schedule, or callbacks.warmup=null."
            )
        self._hook = trainer.optimizers[0].register_step_post_hook(self._restore)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the rate of the step to come."""
        per_epoch = -(-int(trainer.num_training_batches) // trainer.accumulate_grad_batches)
        share = self.share(trainer.global_step, self.epochs * per_epoch)
        if share == 1.0:
            return
        groups = trainer.optimizers[0].param_groups
        self._rates = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] *= share

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Set it back also where no step was made: batches joined to one, or float16 overflown."""
        self._restore(trainer.optimizers[0])

    def _restore(self, optimizer: Optimizer, *args: Any) -> None:
        for group, rate in zip(optimizer.param_groups, self._rates, strict=False):
            group["lr"] = rate
        self._rates = []

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Listen no more."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
