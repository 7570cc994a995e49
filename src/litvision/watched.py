"""The metrics that a run watches: whether they will be there, and which way is better."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import lightning as L
from omegaconf import DictConfig

from litvision.datamodule import ImageDataModule
from litvision.errors import UserError
from litvision.position import batches_per_epoch
from litvision.validation import locate

log = logging.getLogger(__name__)


def logged_by(*parts: Any) -> dict[str, str]:
    """Return the metrics that models and callbacks list in `logs`, each "min" or "max".

    Args:
        parts: classes or their instances; what their bases list counts too.
    """
    listed: dict[str, str] = {}
    for part in parts:
        bases = reversed((part if isinstance(part, type) else type(part)).__mro__)
        found = [vars(base).get("logs") for base in bases]
        found.append(getattr(part, "logs", None))  # of an instance, by its options
        for logs in found:
            listed |= logs if isinstance(logs, Mapping) else {}  # another's word by that name
    return listed


def check_metrics(cfg: DictConfig, trainer: L.Trainer) -> None:
    """Refuse a metric that nothing logs, and one that is watched for its worst value.

    Args:
        cfg: of the run; of its callbacks, whatever has a `monitor`.
        trainer: with its callbacks.

    Raises:
        UserError: it watches one.
    """
    callbacks: list[L.Callback] = getattr(trainer, "callbacks", [])
    model = locate("model", cfg.model._target_)
    if not hasattr(model, "logs"):
        return  # not a model, as will be said of it
    known = logged_by(model, *callbacks)
    _check("", cfg.monitor, cfg.mode, known)
    for name, node in (cfg.callbacks or {}).items():
        metric = None if node is None else node.get("monitor")
        # Another package's callback may watch what Lightning logs, such as a rate.
        if metric is not None and (metric in known or node._target_.startswith("litvision.")):
            _check(f"callbacks.{name}.", metric, node.get("mode"), known)


def _check(where: str, metric: str, mode: str | None, known: dict[str, str]) -> None:
    if metric not in known:
        raise UserError(
            f"{where}monitor={metric!r} does not fit: it takes {' or '.join(known)}. What a "
            f"callback or model of your own logs, let its class list: logs = {{'{metric}': 'max'}}."
        )
    if mode is not None and mode != known[metric]:
        raise UserError(
            f"{where}monitor={metric} with {where}mode={mode} keeps the worst: give "
            f"{where}mode={known[metric]} too."
        )


def check_validated(cfg: DictConfig, trainer: L.Trainer, datamodule: ImageDataModule) -> None:
    """Refuse to watch a metric of validation where nothing is validated.

    Raises:
        UserError: it does, or an epoch has fewer batches than there are between two validations.
    """
    interval = cfg.trainer.get("val_check_interval")
    batches = batches_per_epoch(trainer, datamodule)
    within = trainer.check_val_every_n_epoch is not None and trainer.limit_val_batches
    within = within and not getattr(trainer, "fast_dev_run", 0)  # which has one batch
    if within and isinstance(interval, int) and interval > batches:
        raise UserError(
            f"trainer.val_check_interval={interval} is more than an epoch's batches, {batches}: "
            "give fewer, or trainer.check_val_every_n_epoch=null too, to count through epochs."
        )
    if not cfg.monitor.startswith("val/"):
        return
    why = "trainer.limit_val_batches=0" if not trainer.limit_val_batches else None
    every, last = trainer.check_val_every_n_epoch, trainer.max_epochs
    if every is not None and last is not None and 0 <= last < every:
        why = f"trainer.check_val_every_n_epoch={every} with trainer.max_epochs={last}"
    if not len(datamodule.subsets["val"]):
        why = f"data.val_fraction={datamodule.val_fraction:g}"
    if why is None and within and _ends_before_validation(cfg, trainer, batches):
        log.warning(
            f"Nothing will be validated, and no checkpoint be the best: trainer.max_steps="
            f"{trainer.max_steps} ends the run before that."
        )
    if why:
        raise UserError(
            f"monitor={cfg.monitor} needs pictures to validate, and {why} leaves none: give "
            f"monitor={cfg.monitor.replace('val/', 'train/', 1)} too, or leave {why} out."
        )


def _ends_before_validation(cfg: DictConfig, trainer: L.Trainer, batches: int) -> bool:
    """Say whether `max_steps` ends the run before the first validation within or after an epoch."""
    interval, every = cfg.trainer.get("val_check_interval") or 1.0, trainer.check_val_every_n_epoch
    if trainer.max_steps < 0 or every is None or not isinstance(interval, int | float):
        return False
    first = interval if isinstance(interval, int) else max(1, int(batches * interval))
    seen = trainer.max_steps * trainer.accumulate_grad_batches
    return seen < (every - 1) * batches + first
