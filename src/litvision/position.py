"""Where a run stands within an epoch: what Lightning knows of it and has no public name for."""

from __future__ import annotations

import lightning as L


def can_save(trainer: L.Trainer) -> bool:
    """Say whether a run resumed from after this batch would miss nothing.

    Not after an epoch's last, which it would take for the whole epoch and not validate; nor between
    batches whose gradients are joined to one step, which no checkpoint holds.
    """
    return not trainer.is_last_batch and not trainer.fit_loop._should_accumulate()


def ends_here(trainer: L.Trainer) -> bool:
    """Say whether the run stops after this batch, by `max_steps`, `max_time` or a callback."""
    stops = trainer.should_stop and trainer.fit_loop._can_stop_early
    return stops or trainer.global_step == trainer.max_steps
