"""Show how a run goes: a bar on a terminal, one plain line an epoch everywhere else."""

from __future__ import annotations

import sys
import time
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar

from litvision.callbacks.validated import Validated
from litvision.position import last_epoch
from litvision.watched import logged_by

CLASSIFIERS = {
    "train/loss": "{:.4f}",
    "val/loss": "{:.4f}",
    "train/acc": "{:.2%}",
    "val/acc": "{:.2%}",
}
SPEED = {"lr": "{:.4g}", "images_per_second": "{:.0f} images/s"}


def epoch_line(trainer: L.Trainer, seconds: float, validated: bool) -> str:
    """Return one line about the epoch that has just ended, from the metrics logged in it."""
    metrics = trainer.callback_metrics
    last = last_epoch(trainer)
    parts = [f"epoch {trainer.current_epoch + 1}" + ("" if last is None else f"/{last + 1}")]
    callbacks: list[L.Callback] = getattr(trainer, "callbacks", [])
    others = [n for n in logged_by(trainer.lightning_module, *callbacks) if n not in CLASSIFIERS]
    for name, form in {**CLASSIFIERS, **dict.fromkeys(others, "{:.4g}"), **SPEED}.items():
        if name in metrics and (validated or not name.startswith("val/")):
            text = form.format(float(metrics[name]))
            parts.append(text if name == "images_per_second" else f"{name} {text}")
    return "  ".join([*parts, f"{seconds:.1f} s"])


class _EpochLines(Validated):
    """Times each epoch and says its line when it has ended."""

    _started = 0.0

    def on_train_start(self, trainer: L.Trainer, *args: Any) -> None:
        super().on_train_start(trainer, *args)  # type: ignore[misc]
        self._started = time.perf_counter()  # an epoch that a resumed run is within has begun

    def on_train_epoch_start(self, trainer: L.Trainer, *args: Any) -> None:
        super().on_train_epoch_start(trainer, *args)
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, *args: Any) -> None:
        super().on_train_epoch_end(trainer, *args)  # type: ignore[misc]
        if trainer.is_global_zero:
            seconds = time.perf_counter() - self._started
            self.say(epoch_line(trainer, seconds, self.validated))

    def say(self, line: str) -> None:
        print(line, flush=True)


class PlainProgress(_EpochLines, ProgressBar):
    """Print one line at the end of each epoch and nothing else: for logs, pipes and batch jobs."""

    def disable(self) -> None:
        """Stay quiet on every process but the first."""

    def enable(self) -> None:
        """Speak, on the first process."""


class BarProgress(_EpochLines, RichProgressBar):
    """Lightning's Rich progress bar, which also leaves a line for each epoch above itself."""

    def say(self, line: str) -> None:
        """Print above the bar."""
        if self.progress is not None:
            self.progress.console.print(line, highlight=False, soft_wrap=True)
        else:
            super().say(line)

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Show no metrics in the bar: the lines above have them."""
        return {}


def progress(kind: Literal["auto", "bar", "plain"] = "auto", refresh_rate: int = 2) -> ProgressBar:
    """Return the progress display.

    Args:
        kind: "bar", "plain", or "auto": a bar if standard output is a terminal, else plain lines.
        refresh_rate: updates of the bar a second, drawn by a thread of its own: drawing at every
            step would cost more than a small network's step.
    """
    bar = sys.stdout.isatty() if kind == "auto" else kind == "bar"
    return BarProgress(refresh_rate=refresh_rate) if bar else PlainProgress()
