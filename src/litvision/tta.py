"""Test-time augmentation: ask about several views of a picture, and average."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from litvision.classifier import ImageClassifier

Tta = Literal["flip", "flip_shift"]


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


class FlipShiftAverage(FlipAverage):
    """The mean over mirror images and shifts: six times the work of `network`.

    Half of the weight is the picture's where it is, a quarter each that of the picture moved by one
    pixel towards two opposite corners, its edge mirrored; half of each its mirror image's (Jordan
    2024, arXiv 2404.00498, section 3.5).
    """

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `[B, classes]`."""
        height, width = images.shape[2:]
        padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
        corners = [padded[:, :, k : k + height, k : k + width] for k in (0, 2)]
        shifted = sum(super(FlipShiftAverage, self).forward(corner) for corner in corners)
        return super().forward(images) / 2 + shifted / 4


def average(classifier: ImageClassifier, tta: Tta | None) -> None:
    """Make a trained classifier answer with test-time augmentation; None: leave it as it is."""
    kinds = {"flip": FlipAverage, "flip_shift": FlipShiftAverage}
    if tta is not None:
        classifier.network = kinds[tta](classifier.network)
