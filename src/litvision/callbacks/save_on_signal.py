"""Save and stop when asked to: Ctrl-C, a scheduler that wants the machine back, a lost terminal."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from litvision.callbacks.last_checkpoint import LastCheckpoint
from litvision.errors import HANGUP, Interrupted, asking
from litvision.position import can_stop

log = logging.getLogger(__name__)

FIRST = 20  # steps of several devices, by which the time of one is known


class SaveOnSignal(Checkpoint):
    """On SIGINT, SIGTERM or SIGHUP save `last.ckpt` after the running step and exit: status 75.

    The run goes on from there, within the epoch, with `resume=<its folder>`. A second signal ends
    it at once, with status 130 or 143; but not a second SIGHUP, which shell and system both send
    when a terminal is closed. Where it is ignored, as nohup has it, a run does not stop for it.
    Between two epochs nothing need be saved where the epoch's own checkpoint is there.

    A `Checkpoint`, because Lightning puts those last: what other callbacks do with a step, such as
    averaging the weights, is done before it is saved.

    Args:
        dirpath: the folder to save to.
    """

    def __init__(self, dirpath: str) -> None:
        self.dirpath = dirpath
        self.received = 0
        self._before: dict[int, Any] = {}
        self._began = 0.0
        self._chances, self._every = 0, 1  # to save, so far; how many there are to a question

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen."""
        self.received, self._before = 0, {}
        self._chances, self._every = 0, 1
        for number in asking():
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread, where signals do not arrive
                return

    def _note(self, number: int, frame: Any) -> None:
        self.received = number
        self._restore()
        if signal.SIGTERM in self._before:  # Lightning's only notes that it came
            signal.signal(signal.SIGTERM, self._end)
        if HANGUP is not None and HANGUP in self._before:
            signal.signal(HANGUP, signal.SIG_IGN)
        again = "" if number == HANGUP else "; once more ends it at once"
        _say(f"{signal.Signals(number).name}: saving after this step{again}")

    def _end(self, number: int, frame: Any) -> None:
        raise SIGTERMException

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Save and stop, if asked to and between two updates of the weights."""
        # On one device, nothing but a look at a number is added to a step.
        if not (self.received or trainer.world_size > 1) or not can_stop(trainer):
            return
        if self._time_to_ask(trainer) and self._asked(trainer):
            trainer.save_checkpoint(Path(self.dirpath) / "last.ckpt")
            self._stop(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop, if asked to and the epoch before was saved; else after a step of this one."""
        # All devices have to ask together; only the first one's folder is that of the run.
        if not trainer.current_epoch or not self._asked(trainer):
            return
        last = os.path.realpath(Path(self.dirpath) / "last.ckpt")
        saved = any(
            isinstance(callback, LastCheckpoint)
            and callback._last_global_step_saved == trainer.global_step
            and os.path.realpath(callback._last_checkpoint_saved) == last
            for callback in trainer.checkpoint_callbacks
        )
        if trainer.strategy.broadcast(saved):
            self._stop(trainer)

    def _time_to_ask(self, trainer: L.Trainer) -> bool:
        """Say whether the devices ask each other now, for which each waits for its work so far.

        At each of the first steps; from then on about once a second, as the first device's clock
        says, but for all of them at the same step.
        """
        if trainer.world_size == 1:
            return True
        self._chances += 1
        if self._chances == 1:
            self._began = time.perf_counter()
        elif self._chances == FIRST:
            a_step = (time.perf_counter() - self._began) / (FIRST - 1)
            self._every = trainer.strategy.broadcast(max(1, min(50, round(1 / a_step))))
        return self._chances % self._every == 0

    def _asked(self, trainer: L.Trainer) -> bool:
        if trainer.world_size == 1:
            return bool(self.received)
        return trainer.strategy.reduce_boolean_decision(bool(self.received), all=False)

    def _stop(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero:
            folder = trainer.default_root_dir
            _say(
                f"saved at step {trainer.global_step}; to go on: the same command with "
                f"resume={folder}"
            )
        # Lightning kills all processes, be they still writing, when one that it has started fails.
        raise Interrupted if trainer.is_global_zero else Interrupted(code=0)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen no more."""
        self._restore()
        self._before = {}

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Listen no more."""
        self._restore()
        self._before = {}


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # of a terminal that was closed: nobody is there to read it
        print(line, file=sys.stderr, flush=True)
