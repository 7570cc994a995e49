"""Find a learning rate before training: loss against a rate that rises from step to step."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any, Literal

import lightning as L
from lightning.pytorch.callbacks import LearningRateFinder
from pydantic import Field

from litvision.errors import UserError

log = logging.getLogger(__name__)


class LRFinder(LearningRateFinder):
    """Lightning's `LearningRateFinder`, with its picture in the run and for any optimizer config.

    A learning rate range test (Smith 2015, arXiv 1506.01186): the rate rises from `min_lr` to
    `max_lr` over `num_training_steps` steps, or until the loss has grown to
    `early_stop_threshold` times its lowest. Suggested is the rate at which the smoothed loss falls
    most steeply. Then weights, optimizer and data are as before. The picture is
    `figures/lr_finder.png` in the run's folder.

    Args:
        min_lr, max_lr: the first and the last rate.
        num_training_steps: steps between them.
        mode: rise by equal factors ("exponential") or equal amounts ("linear").
        early_stop_threshold: stop once the smoothed loss exceeds so many times its lowest; None:
            go through to `max_lr`.
        apply: train with the suggested rate; False: only suggest it.

    Raises:
        UserError: the rates are the wrong way round; or `apply` where a schedule sets the rate.
    """

    def __init__(
        self,
        min_lr: Annotated[float, Field(gt=0)] = 1e-6,
        max_lr: Annotated[float, Field(gt=0)] = 1.0,
        num_training_steps: Annotated[int, Field(ge=15)] = 100,
        mode: Literal["exponential", "linear"] = "exponential",
        early_stop_threshold: Annotated[float, Field(gt=1)] | None = 4.0,
        apply: bool = False,
    ) -> None:
        if min_lr >= max_lr:
            raise UserError(
                f"callbacks.lr_finder.min_lr={min_lr:g} is not below max_lr={max_lr:g}: the rate "
                "rises from the first to the second."
            )
        super().__init__(
            min_lr, max_lr, num_training_steps, mode, early_stop_threshold, update_attr=False
        )
        self.apply = apply

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Run the test, draw it, and say what it suggests; a resumed run has it behind itself."""
        if trainer.global_step:
            return
        if self.apply and trainer.lr_scheduler_configs:
            raise UserError(
                "callbacks.lr_finder.apply=true and the scheduler group would both set the "
                "learning rate: give scheduler=none, or apply=false and the rate as optimizer.lr."
            )
        classifier: Any = pl_module
        epochs, watching = trainer.fit_loop.max_epochs, classifier.stop_if_not_finite
        trainer.fit_loop.max_epochs = -1  # few pictures, or few epochs, shall not end it early
        classifier.stop_if_not_finite = False  # it goes up to where the loss runs away
        try:
            super().on_fit_start(trainer, pl_module)
        finally:
            trainer.fit_loop.max_epochs = epochs
            classifier.stop_if_not_finite = watching
        found = self.optimal_lr
        if found is None:  # trainer.fast_dev_run
            return
        rate = found.suggestion()
        if rate is None:
            log.warning("The learning rate finder saw too few steps to suggest a rate.")
            return
        path = Path(trainer.default_root_dir) / "figures" / "lr_finder.png"
        if trainer.is_global_zero:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._draw(path, rate)
        if self.apply:
            for group in trainer.optimizers[0].param_groups:
                group["lr"] = rate
        then = "training with it" if self.apply else f"to train with it: optimizer.lr={rate:.2g}"
        log.info(f"suggested learning rate {rate:.2g}, {then}; picture: {path}")

    def _draw(self, path: Path, rate: float) -> None:
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
        assert self.optimal_lr is not None
        self.optimal_lr.plot(suggest=True, ax=axes)
        axes.set_title(f"suggested: {rate:.2g}")
        axes.grid(alpha=0.3)
        figure.savefig(path, dpi=120)
        plt.close(figure)
