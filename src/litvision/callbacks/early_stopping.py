"""Stop a run that no longer improves."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import lightning as L
import lightning.pytorch.callbacks
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason as Reason
from pydantic import Field

from litvision.callbacks.validated import Validated


class EarlyStopping(Validated, lightning.pytorch.callbacks.EarlyStopping):
    """Lightning's, but once an epoch, as the plateau rule counts too, and only if it was validated.

    Where epochs are no measure, as `trainer.check_val_every_n_epoch=null` says, it counts
    validations. A resumed run has the patience that is given now, not that of its start; where it
    had run out of that, it does not train another epoch.

    Args:
        monitor: the metric, as logged.
        min_delta: by how much it has to improve. As good as before is no improvement, which it is
            for the best checkpoint and the learning rate: a run that has come to rest ends.
        patience: epochs in a row without improvement until the run ends.
        verbose, check_finite, divergence_threshold, log_rank_zero_only: as Lightning's takes them.
        mode: "min" where lower is better, "max" where higher is.
        strict: with `check_on_train_epoch_end=False`, fail where the metric is missing.
        stopping_threshold: end the run once the metric is better than this.
        check_on_train_epoch_end: False: count validations; None: as said above.

    Raises:
        UserError: at the end of an epoch that was validated, the metric is missing.
    """

    counted = "epochs"
    _reached: float | None = None  # the threshold that a resumed run had been compared with

    def __init__(
        self,
        monitor: str,
        min_delta: Annotated[float, Field(ge=0)] = 0.0,
        patience: Annotated[int, Field(ge=1)] = 30,
        verbose: bool = False,
        mode: Literal["min", "max"] = "min",
        strict: bool = False,
        check_finite: bool = True,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_on_train_epoch_end: bool | None = None,
        log_rank_zero_only: bool = False,
    ) -> None:
        super().__init__(
            monitor,
            min_delta,
            patience,
            verbose,
            mode,
            strict,
            check_finite,
            stopping_threshold,
            divergence_threshold,
            check_on_train_epoch_end,
            log_rank_zero_only,
        )

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Choose when to compare."""
        every = trainer.check_val_every_n_epoch
        of_training = self.monitor.startswith("train/")
        if self._check_on_train_epoch_end is None:
            self._check_on_train_epoch_end = every is not None or of_training
        if not self._check_on_train_epoch_end or (every != 1 and not of_training):
            self.counted = "validations"

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End a resumed run that had been stopped, unless it has more patience now."""
        patient = self.wait_count < self.patience
        if self.stopping_reason == Reason.STOPPING_THRESHOLD:
            patient = self.stopping_threshold != self._reached
        if self.stopping_reason != Reason.NOT_STOPPED and not patient:
            trainer.should_stop = True
        else:
            self.stopping_reason, self.stopped_epoch = Reason.NOT_STOPPED, 0

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare, unless the metric is still an earlier epoch's."""
        if getattr(trainer, "fast_dev_run", 0) or not self.is_of_this_epoch(trainer, self.monitor):
            return
        self.require(trainer, self.monitor)
        super().on_train_epoch_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return Lightning's state, and which threshold it was compared with."""
        return {**super().state_dict(), "stopping_threshold": self.stopping_threshold}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best value and how long it has been the best."""
        super().load_state_dict({**state_dict, "patience": self.patience})
        self._reached = state_dict.get("stopping_threshold", self.stopping_threshold)


def why(stopping: lightning.pytorch.callbacks.EarlyStopping) -> str | None:
    """Return why the run ended, if this ended it; Lightning's own counts epochs too, as a rule."""
    if stopping.stopping_reason == Reason.NOT_STOPPED:
        return None
    if stopping.stopping_reason == Reason.PATIENCE_EXHAUSTED:
        counted = getattr(stopping, "counted", "epochs")
        return f"{stopping.monitor} did not improve for {stopping.wait_count} {counted}"
    said = (stopping.stopping_reason_message or "").partition(" Signaling")[0]
    return said.rstrip(".") or stopping.stopping_reason.name.lower()
