"""Tell an epoch that was validated from one whose validation metrics are an earlier epoch's."""

from __future__ import annotations

import re
from typing import Any

import lightning as L
from torch import Tensor

from litvision.errors import UserError


class Validated:
    """Gives a callback `validated`: whether the running epoch has been validated.

    Lightning's `callback_metrics` never forget: in an epoch without validation, as with
    `check_val_every_n_epoch` or a last epoch that `max_steps` cuts short, they still hold what an
    earlier epoch measured. Put it before the callback's other bases.
    """

    validated = False

    def on_train_epoch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Forget that an earlier epoch was validated."""
        self.validated = False
        super().on_train_epoch_start(trainer, *args)  # type: ignore[misc]

    def on_validation_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Note that this epoch has metrics of its own."""
        self.validated = not trainer.sanity_checking
        super().on_validation_end(trainer, *args)  # type: ignore[misc]

    def require(self, trainer: L.Trainer, metric: str) -> Tensor:
        """Return a metric.

        Raises:
            UserError: none of that name was logged.
        """
        if metric not in trainer.callback_metrics:
            option = re.sub("(?<=[a-z])(?=[A-Z])", "_", type(self).__name__)
            raise UserError(
                f"callbacks.{option.lower()}.monitor={metric} was not logged. Logged: "
                f"{', '.join(sorted(trainer.callback_metrics))}. Set it to one of these."
            )
        return trainer.callback_metrics[metric]

    def is_of_this_epoch(self, trainer: L.Trainer, metric: str) -> bool:
        """Say whether the running epoch has measured a metric: those of training always are."""
        return self.validated or not trainer.enable_validation or metric.startswith("train/")
