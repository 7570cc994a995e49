"""The metrics that a run watches: whether they will be there, and which way is better."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import lightning as L
from omegaconf import DictConfig

from litvision.classifier import ImageClassifier
from litvision.datamodule import ImageDataModule
from litvision.errors import UserError
from litvision.position import batches_per_epoch, steps_per_epoch
from litvision.validation import locate

log = logging.getLogger(__name__)


def logged_by(*parts: Any) -> dict[str, str]:
    """Return the metrics that models and callbacks list in `logs`, each "min" or "max".

    Args:
        parts: classes or their instances; what their bases list counts too.

    Raises:
        UserError: one of this project lists them in another way.
    """
    listed: dict[str, str] = {}
    for part in parts:
        bases = reversed((part if isinstance(part, type) else type(part)).__mro__)
        found = [(base, vars(base).get("logs", {})) for base in bases]
        found.append((type(part), getattr(part, "logs", {})))  # of an instance, by its options
        for owner, logs in found:
            plain = isinstance(logs, Mapping)
            fitting = {k: v for k, v in logs.items() if v in ("min", "max")} if plain else {}
            if owner.__module__.startswith("litvision.") and fitting != logs:
                raise UserError(
                    f"{owner.__name__}.logs = {logs!r} does not fit: it takes each metric's name, "
                    "and min or max, as {'val/f1': 'max'}."
                )
            listed |= fitting  # another package may mean something else by that word
    return listed


def check_metrics(cfg: DictConfig, trainer: L.Trainer) -> None:
    """Refuse a metric that nothing logs, and one that is watched for its worst value.

    What a model outside this project logs and does not list is believed to be there.

    Args:
        cfg: of the run; of its callbacks, whatever has a `monitor`.
        trainer: with its callbacks.

    Raises:
        UserError: it watches one.
    """
    known = _known(cfg, trainer)
    ours = cfg.model._target_.startswith("litvision.")
    if ours or cfg.monitor in known:
        _check("", cfg.monitor, cfg.mode, known)
    for name, node in (cfg.callbacks or {}).items():
        metric = None if node is None else node.get("monitor")
        # Another package's callback may watch what Lightning logs, such as a rate.
        if metric in known or (metric and ours and node._target_.startswith("litvision.")):
            _check(f"callbacks.{name}.", metric, node.get("mode"), known)


def _known(cfg: DictConfig, trainer: L.Trainer) -> dict[str, str]:
    callbacks: list[L.Callback] = getattr(trainer, "callbacks", [])
    # A function may give the model.
    return logged_by(ImageClassifier, locate("model", cfg.model._target_), *callbacks)


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
    if why:
        instead = cfg.monitor.replace("val/", "train/", 1)
        if instead not in _known(cfg, trainer):
            instead = "train/loss" if cfg.mode == "min" else "train/loss mode=min"
        raise UserError(
            f"monitor={cfg.monitor} needs pictures to validate, and {why} leaves none: give "
            f"monitor={instead} too, or leave {why} out."
        )
    ends_before = within and _ends_before_validation(cfg, trainer, datamodule)
    if ends_before and trainer.is_global_zero:
        log.warning(
            f"Nothing will be validated, and no checkpoint be the best: trainer.max_steps="
            f"{trainer.max_steps} ends the run before that."
        )


def _ends_before_validation(
    cfg: DictConfig, trainer: L.Trainer, datamodule: ImageDataModule
) -> bool:
    """Say whether `max_steps` ends the run before the first validation within or after an epoch."""
    interval, every = cfg.trainer.get("val_check_interval") or 1.0, trainer.check_val_every_n_epoch
    if trainer.max_steps < 0 or every is None or not isinstance(interval, int | float):
        return False
    batches = batches_per_epoch(trainer, datamodule)
    first = interval if isinstance(interval, int) else max(1, int(batches * interval))
    epochs, steps = divmod(trainer.max_steps, steps_per_epoch(trainer, datamodule))
    # An epoch's last step may join fewer batches.
    seen = epochs * batches + steps * trainer.accumulate_grad_batches
    return seen < (every - 1) * batches + first
