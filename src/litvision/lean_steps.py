"""What Lightning itself does at every step, without what nobody asked for."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

import lightning as L
from lightning.pytorch.profilers import PassThroughProfiler

# Called for every step.
STEP_HOOKS = (
    *("on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward"),
    *("on_before_optimizer_step", "on_train_batch_end"),
)


def trim(trainer: Any) -> None:
    """Spare a Lightning Trainer's steps; with a profiler, hooks stay, for it to see."""
    for callback in trainer.callbacks:
        _settle_state_key(callback)
    if isinstance(trainer.profiler, PassThroughProfiler):
        trainer.profiler = _NoProfiler()
        for callback in trainer.callbacks:
            _leave_out_empty_hooks(callback)


class _NoProfiler(PassThroughProfiler):
    """What Lightning uses where no profiler is wanted, but without a generator at every hook.

    Each hook of each callback, of the module and of the strategy opens a profiling context.
    """

    _nothing = nullcontext()

    def profile(self, action_name: str) -> Any:
        """Return a context that does nothing, always the same one."""
        return self._nothing


def _settle_state_key(callback: L.Callback) -> None:
    """Let a callback write its state key once only.

    Lightning names the callback at every hook, for the profiler, and a checkpoint or early stopping
    writes out its settings each time: 7 % of what a step costs beside its arithmetic.
    """
    key = callback.state_key
    if key != type(callback).__qualname__:
        # The method, for the property `state_key` cannot be replaced in an instance.
        callback._generate_state_key = partial(_first, key)  # type: ignore[method-assign]


def _leave_out_empty_hooks(callback: L.Callback) -> None:
    """Keep Lightning from calling a callback where it does nothing.

    Most of a dozen callbacks have one or two of a step's six hooks. Lightning calls all six of
    each, and skips those that are not callable.
    """
    for name in STEP_HOOKS:
        if getattr(callback, name) == getattr(L.Callback, name).__get__(callback):
            with suppress(AttributeError):  # a callback of one's own may not take attributes
                setattr(callback, name, None)


def _first(value: Any, **others: Any) -> Any:
    return value
