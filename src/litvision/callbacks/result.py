"""Write how a run ended: `result.json` in the run's folder, and a summary for its reader."""

from __future__ import annotations

import contextlib
import statistics
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from litvision import records
from litvision.callbacks.best_checkpoint import BestCheckpoint
from litvision.callbacks.early_stopping import why
from litvision.errors import Interrupted, PrunedError


class Result(L.Callback):
    """Keep `result.json` up to date: one flat object, rewritten whole at each change.

    It holds every final metric by its name (those of validation are the last epoch's),
    `best_<monitor>` and its `mode` ("min" or "max"), `best_epoch` (counted from 1, as printed),
    `data` (the data module's `name`), `epochs`, `seconds` (training and validation),
    `images_per_second` (the median epoch's), `stopped` (why, if early), `state` ("running", "done",
    "failed", "pruned" or "interrupted") with `error`, and `overrides`.

    Args:
        overrides: what the command line changed, as Hydra lists it.
        try_next: commands to suggest at the end; `{run}` and `{checkpoint}` are filled in.
        test: the run ends with a test, and is "done" after it.
    """

    def __init__(
        self,
        overrides: list[str] | None = None,
        try_next: list[str] | None = None,
        test: bool = False,
    ) -> None:
        self.test = test
        self.overrides = overrides or []
        self.try_next = try_next or []
        self.content: dict[str, Any] = {}
        self._rates: list[float] = []
        self._started = 0.0
        self._before = 0.0  # seconds of the run before it was resumed

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run has to know."""
        return {
            "seconds": self._seconds(),
            "rates": list(self._rates),
            "content": {k: v for k, v in self.content.items() if k not in ("overrides", "error")},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on; a run that had ended but for its test has no other metrics."""
        self.content = {**state_dict["content"], **self.content}
        self._before, self._rates = state_dict["seconds"], list(state_dict["rates"])

    def _seconds(self) -> float:
        return round(self._before + time.perf_counter() - self._started, 3)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Say that the run is under way."""
        if stage == "fit":
            self._started, self._before, self._rates = time.perf_counter(), 0.0, []
            self.content = {"state": "running", "overrides": self.overrides}
            if name := getattr(getattr(trainer, "datamodule", None), "name", None):
                self.content["data"] = str(name)
            self._write(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over the epoch's metrics."""
        self._take(trainer)
        if "images_per_second" in self.content:
            self._rates.append(self.content["images_per_second"])
        self.content["epochs"] = trainer.current_epoch + 1
        self._write(trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over the best epoch and close the training part."""
        self._take(trainer)
        self.content["seconds"] = self._seconds()
        if self._rates:
            self.content["images_per_second"] = statistics.median(self._rates)
        self._take_best(trainer)
        callbacks: list[L.Callback] = getattr(trainer, "callbacks", [])
        for stopping in (c for c in callbacks if isinstance(c, EarlyStopping)):
            if reason := why(stopping):
                self.content["stopped"] = reason
        for timer in (c for c in callbacks if isinstance(c, Timer)):
            left = timer.time_remaining()
            if left is not None and left <= 0:
                self.content["stopped"] = "trainer.max_time was over"
        if not self.test or not getattr(trainer, "limit_test_batches", 1):
            self.content["state"] = "done"
        self._write(trainer)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the test metrics."""
        self._take(trainer, prefix="test/")
        self.content["state"] = "done"
        self._write(trainer)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Say that the run failed or was pruned, and why."""
        error = str(exception).strip() or type(exception).__name__
        state = "pruned" if isinstance(exception, PrunedError) else "failed"
        if isinstance(exception, Interrupted | KeyboardInterrupt | SIGTERMException):
            state, error = "interrupted", "stopped from outside"
        self.content |= {"state": state, "error": error.splitlines()[0]}
        self._take_best(trainer)
        with contextlib.suppress(OSError):  # of a full disk, say, which may be why it failed
            self._write(trainer)

    def summary(self, run: Path, checkpoint: str) -> str:
        """Return what a person wants to read at the end, several lines."""
        get = self.content.get
        rows = [
            ("test accuracy", _percent(get("test/acc"))),
            (
                "best epoch",
                f"{get('best_epoch')} of {get('epochs')}" if get("best_epoch") else None,
            ),
            ("stopped early", get("stopped")),
            ("seconds", f"{get('seconds'):.0f}" if get("seconds") is not None else None),
            ("images/s", f"{get('images_per_second'):.0f}" if get("images_per_second") else None),
            ("run", str(run)),
        ]
        lines = [f"{name:<15}{value}" for name, value in rows if value is not None]
        commands = [c for c in self.try_next if checkpoint or "{checkpoint}" not in c]
        if commands:
            lines += ["", "Next, try:"]
            lines += [f"  {c.format(run=run, checkpoint=checkpoint)}" for c in commands]
        return "\n".join(lines)

    def _take(self, trainer: L.Trainer, prefix: str = "") -> None:
        for name, value in trainer.callback_metrics.items():
            if name.startswith(prefix):
                # The shortest number that is this float32: 0.01, not 0.009999999776482582.
                self.content[name] = float(str(np.float32(value.item())))

    def _take_best(self, trainer: L.Trainer) -> None:
        best = BestCheckpoint.of(trainer)
        if best is not None and best.best_epoch is not None and best.best_model_score is not None:
            self.content["best_epoch"] = best.best_epoch + 1
            self.content[f"best_{best.monitor}"] = float(best.best_model_score)
            self.content["mode"] = best.mode

    def _write(self, trainer: L.Trainer) -> None:
        if not trainer.is_global_zero:
            return
        records.write_result(Path(trainer.default_root_dir), self.content)


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{value:.2%}"
