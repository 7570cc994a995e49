"""Count which class was taken for which."""

from __future__ import annotations

from typing import Any

import lightning as L
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix


class Confusion(L.Callback):
    """Build the confusion matrix of a test, over all devices.

    Needs a `test_step` that returns the predicted classes, int64 `[B]`.

    Args:
        num_classes: how many classes there are.
    """

    def __init__(self, num_classes: int) -> None:
        self.metric = MulticlassConfusionMatrix(num_classes, validate_args=False)
        self.matrix: Tensor | None = None

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start from zero on the device of the test."""
        self.metric = self.metric.to(pl_module.device)
        self.metric.reset()

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any,
        batch_idx: int, dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Count a batch."""
        self.metric.update(outputs, batch[1])

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the counts: int64 `[true class, predicted class]` on the CPU."""
        self.matrix = self.metric.compute().cpu()
