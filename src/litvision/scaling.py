"""`optimizer.lr=auto_scaled`: a learning rate that follows the batch size."""

from __future__ import annotations

from typing import Annotated

from omegaconf import DictConfig, OmegaConf, open_dict
from pydantic import Field

from litvision.errors import UserError
from litvision.optimizers import several_rates
from litvision.preflight import trial_optimizer
from litvision.validation import check_value

WORD = "auto_scaled"


def scale_learning_rate(cfg: DictConfig) -> str | None:
    """Replace `optimizer.lr=auto_scaled` by a number, and add warm-up where the rate is raised.

    The linear scaling rule (Goyal et al. 2017, arXiv 1706.02677): k times the batch, k times the
    rate. `cfg.auto_scaled` states the base. Warm-up from the base's rate comes with it where k is
    above 1 and no schedule sets the rate by step.

    Returns:
        a line that says what was done; None where the rate is a number already.

    Raises:
        UserError: a value that this needs does not fit.
    """
    if cfg.optimizer.get("lr") != WORD:
        return None
    base = cfg.auto_scaled
    if not isinstance(base, DictConfig) or base._is_none():
        raise UserError(
            f"auto_scaled={'null' if base is None else base} does not fit: it takes the lr, "
            f"batch_size and warmup_epochs that optimizer.lr={WORD} is reckoned from."
        )
    check_value("auto_scaled.lr", base.lr, Annotated[float, Field(gt=0)])
    check_value("auto_scaled.batch_size", base.batch_size, Annotated[int, Field(ge=1)])
    check_value("auto_scaled.warmup_epochs", base.warmup_epochs, Annotated[float, Field(ge=0)])
    check_value("data.batch_size", cfg.data.batch_size, Annotated[int, Field(ge=1)])
    finder = (cfg.callbacks or {}).get("batch_size_finder")
    if isinstance(finder, DictConfig) and finder.get("apply"):
        raise UserError(
            "callbacks.batch_size_finder.apply=true changes the batch that optimizer.lr="
            f"{WORD} follows: give optimizer.lr a number, or apply=false and the size found as "
            "data.batch_size."
        )
    accumulated = cfg.trainer.get("accumulate_grad_batches", 1)
    check_value("trainer.accumulate_grad_batches", accumulated, Annotated[int, Field(ge=1)])
    batch = cfg.data.batch_size * accumulated
    share = batch / base.batch_size
    own = cfg.scheduler is not None or "warmup" in (cfg.callbacks or {})  # chosen by hand, or null
    warmup = share > 1 and base.warmup_epochs > 0 and not own
    with open_dict(cfg):
        cfg.optimizer.lr = float(f"{base.lr * share:.6g}")
        if warmup:
            node = {
                "_target_": "litvision.callbacks.warmup.Warmup",
                "epochs": base.warmup_epochs,
                "start": 1 / share,
            }
            # First, so that what logs the rate of a step sees the step's own.
            cfg.callbacks = OmegaConf.merge({"warmup": node}, cfg.callbacks or {})
    line = f"learning rate {cfg.optimizer.lr:g} = {base.lr:g} x {batch} / {base.batch_size}"
    return line + (f", after {base.warmup_epochs:g} epochs of warm-up" if warmup else "")


def check_scaled(cfg: DictConfig) -> None:
    """Refuse the rule where `optimizer.lr` is one learning rate of several.

    Raises:
        UserError: the optimizer has several.
    """
    if rates := several_rates(trial_optimizer(cfg)):
        raise UserError(
            f"optimizer.lr=auto_scaled follows the batch with one learning rate, and the optimizer "
            f"would have {rates}: give optimizer.lr a number, and scale the others alike."
        )
