"""Find a learning rate before training: loss against a rate that rises from step to step."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import LearningRateFinder
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from litvision.errors import UserError
from litvision.optimizers import several_rates

log = logging.getLogger(__name__)


class LRFinder(LearningRateFinder):
    """Lightning's `LearningRateFinder`, with its picture in the run and for any optimizer config.

    A learning rate range test (Smith 2015, arXiv 1506.01186): the rate rises from `min_lr` to
    `max_lr` over `num_training_steps` steps, or until the loss has grown to
    `early_stop_threshold` times its lowest. Suggested is the rate at which the loss falls most
    steeply (`steepest`). Then weights, optimizer and data are as before. The picture is
    `figures/lr_finder.png` in the run's folder.

    The curve is this class's own: Lightning's running average starts at half the loss and lags 50
    steps behind (its issue 14167), and its suggestion takes the slope over the rate itself where
    the rate rises by factors, which picks the smallest rates (its issue 21141).

    Args:
        min_lr, max_lr: the first and the last rate.
        num_training_steps: steps between them.
        mode: rise by equal factors ("exponential") or equal amounts ("linear").
        early_stop_threshold: stop once the smoothed loss exceeds so many times its lowest; None:
            go through to `max_lr`.
        apply: train with the suggested rate; False: only suggest it.

    Raises:
        UserError: the rates are the wrong way round; or `apply` where a schedule sets the rate; or
            the optimizer has several rates, as Muon.
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
        self.rates: list[float] = []
        self.losses: list[float] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Run the test, draw it, and say what it suggests; a resumed run has it behind itself."""
        if trainer.ckpt_path is not None:
            return
        if self.apply and trainer.lr_scheduler_configs:
            raise UserError(
                "callbacks.lr_finder.apply=true and the scheduler group would both set the "
                "learning rate: give scheduler=none, or apply=false and the rate as optimizer.lr."
            )
        if rates := several_rates(trainer.optimizers[0]):
            raise UserError(
                "callbacks.lr_finder tries one learning rate for all weights, and this optimizer "
                f"has several ({rates}): give another optimizer, or callbacks.lr_finder=null."
            )
        classifier: Any = pl_module
        epochs, watching = trainer.fit_loop.max_epochs, classifier.stop_if_not_finite
        trainer.fit_loop.max_epochs = -1  # few pictures, or few epochs, shall not end it early
        classifier.stop_if_not_finite = False  # it goes up to where the loss runs away
        seen: dict[float, list[Tensor]] = {}
        step = classifier.training_step

        def watched(batch: Any, batch_idx: int) -> Tensor:
            loss = step(batch, batch_idx)
            # Batches that are joined to one step share a rate.
            seen.setdefault(trainer.optimizers[0].param_groups[0]["lr"], []).append(loss.detach())
            return loss

        classifier.training_step = watched
        try:
            super().on_fit_start(trainer, pl_module)
        finally:
            del classifier.training_step  # the class's own is there again
            trainer.ckpt_path = None  # what was restored is the beginning of this run, not another
            trainer.fit_loop.max_epochs = epochs
            classifier.stop_if_not_finite = watching
        if self.optimal_lr is None:  # trainer.fast_dev_run
            return
        self.rates = list(seen)
        self.losses = [float(torch.stack(losses).mean()) for losses in seen.values()]
        rate = steepest(self.rates, self.losses, log_scale=self._mode == "exponential")
        rate = trainer.strategy.broadcast(rate)
        if rate is None:
            log.warning(
                "The learning rate finder suggests no rate: the loss fell at none from "
                f"{self.rates[0]:.2g} to {self.rates[-1]:.2g}. Let it see others: "
                "callbacks.lr_finder.min_lr and max_lr."
            )
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
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        smooth = smoothed(self.losses)
        axes.plot(self.rates, self.losses, color="C0", alpha=0.3, label="loss")
        axes.plot(self.rates[: len(smooth)], smooth, color="C0", label="smoothed")
        axes.axvline(rate, color="C3", linestyle="--", label=f"suggested: {rate:.2g}")
        if self._mode == "exponential":
            axes.set_xscale("log")
        finite = [loss for loss in smooth if math.isfinite(loss)]
        if finite:  # what happens after the loss ran away would flatten all before
            low, high = min(finite), min(max(finite), 1.5 * finite[0])
            axes.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
        axes.set_xlabel("learning rate")
        axes.set_ylabel("train/loss")
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(path, dpi=120)


def smoothed(losses: Sequence[float]) -> list[float]:
    """Return the mean of each loss and its neighbours, a twentieth of all to either side.

    Ends with the last loss before the first that is not finite. Near the ends there are fewer
    neighbours, as many on one side as on the other, so that the curve does not lag.
    """
    reach = _reach(losses)
    end = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    means = []
    for i in range(end):
        near = min(reach, i, end - 1 - i)
        means.append(statistics.fmean(losses[i - near : i + near + 1]))
    return means


def steepest(
    rates: Sequence[float], losses: Sequence[float], log_scale: bool = True
) -> float | None:
    """Return the rate at which the smoothed loss falls most steeply, before it is lowest.

    Args:
        rates: rising learning rates.
        losses: the loss at each.
        log_scale: take the slope over the logarithm of the rate; False: over the rate.

    Returns:
        one of `rates`; None where the loss does not fall anywhere.
    """
    smooth, reach = smoothed(losses), _reach(losses)
    if len(smooth) < 2 * reach + 1:
        return None
    at = torch.tensor(rates[: len(smooth)], dtype=torch.float64)
    slopes = torch.gradient(
        torch.tensor(smooth, dtype=torch.float64), spacing=(at.log() if log_scale else at,)
    )[0]
    # Where neighbours are few, the slope is noise.
    lowest = min(range(reach, len(smooth) - reach), key=smooth.__getitem__)
    best = reach + int(slopes[reach : lowest + 1].argmin())
    return rates[best] if slopes[best] < 0 else None


def _reach(losses: Sequence[float]) -> int:
    return max(1, len(losses) // 20)
