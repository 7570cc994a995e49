"""Test-time augmentation: ask about a picture and its mirror image, and average."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from litvision.classifier import ImageClassifier

Tta = Literal["flip"]


class FlipAverage(nn.Module):
    """The mean logits of each picture and its mirror image: twice the work of `network`.

    Args:
        network: maps float `[B, C, H, W]` to logits `[B, classes]`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `[B, classes]`."""
        return (self.network(images) + self.network(images.flip(3))) / 2


def average(classifier: ImageClassifier, tta: Tta | None) -> None:
    """Make a trained classifier answer with test-time augmentation; None: leave it as it is."""
    if tta == "flip":
        classifier.network = FlipAverage(classifier.network)
