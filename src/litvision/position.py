"""Where a run stands and where it ends: what Lightning knows, and has no public name for."""

from __future__ import annotations

import logging
from typing import Any

import lightning as L

from litvision.errors import UserError

log = logging.getLogger(__name__)


def can_save(trainer: L.Trainer) -> bool:
    """Say whether a run resumed from after this batch would miss nothing.

    Not after an epoch's last, which it would take for the whole epoch and not validate; nor between
    batches whose gradients are joined to one step, which no checkpoint holds.
    """
    return not trainer.is_last_batch and not trainer.fit_loop._should_accumulate()


def can_stop(trainer: L.Trainer) -> bool:
    """Say whether a run can be saved and stopped after this batch, and go on as if it had not.

    Not before a validation, which the resumed run would not make; but where one follows each update
    of the weights, there is no other place.
    """
    if not can_save(trainer):
        return False
    fetcher, every = trainer.fit_loop._data_fetcher, getattr(trainer, "val_check_batch", None)
    always = isinstance(every, int) and trainer.accumulate_grad_batches % every == 0
    validates = fetcher and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)
    return always or not validates


def ends_here(trainer: L.Trainer) -> bool:
    """Say whether the run stops after this batch, by `max_steps`, `max_time` or a callback."""
    stops = trainer.should_stop and trainer.fit_loop._can_stop_early
    return stops or trainer.global_step == trainer.max_steps


def batches_per_epoch(trainer: L.Trainer, datamodule: Any) -> int:
    """Return the training batches of one epoch: all, a last short one counted, or those allowed.

    Not Lightning's `estimated_stepping_batches`: that builds the training loader early, and a
    resumed run would lose its place in it.
    """
    batches, limit = datamodule.steps_per_epoch, trainer.limit_train_batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def steps_per_epoch(trainer: L.Trainer, datamodule: Any) -> int:
    """Return the optimizer steps of one epoch."""
    return -(-batches_per_epoch(trainer, datamodule) // trainer.accumulate_grad_batches)


def total_steps(trainer: L.Trainer, datamodule: Any) -> int | None:
    """Return the optimizer steps of the whole run; None if it has no end."""
    ends = [trainer.max_steps] if trainer.max_steps != -1 else []
    if trainer.max_epochs is not None and trainer.max_epochs != -1:
        ends.append(trainer.max_epochs * steps_per_epoch(trainer, datamodule))
    return max(min(ends), 1) if ends else None


def last_epoch(trainer: L.Trainer) -> int | None:
    """Return the run's last epoch, counted from 0; None if it has no end.

    Of data whose steps are not known, what `max_epochs` says.
    """
    datamodule: Any = getattr(trainer, "datamodule", None)
    known = hasattr(datamodule, "steps_per_epoch")
    steps = total_steps(trainer, datamodule) if known else None
    if steps is None:
        epochs = trainer.max_epochs
        return None if epochs is None or epochs < 0 else epochs - 1
    return (steps - 1) // max(1, steps_per_epoch(trainer, datamodule))


def refuse_unreached(option: str, epoch: int, trainer: L.Trainer) -> None:
    """Refuse an option that is for an epoch which the run does not come to.

    Where `max_steps` ends it, which may be meant for its first part, a line says so.

    Args:
        option: its key and value.
        epoch: counted from 0.
        trainer: with its data module.

    Raises:
        UserError: `max_epochs` ends the run before.
    """
    last = last_epoch(trainer)
    if last is None or epoch <= last:
        return
    never = f"{option} is never reached: the run ends after epoch {last}, counted from 0"
    if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= epoch:
        raise UserError(f"{never}. Give a smaller one, or more trainer.max_epochs.")
    log.warning(f"{never}, by trainer.max_steps={trainer.max_steps}")
