"""What torchvision does to batches of training pictures: mixup, CutMix.

torchvision draws from torch's global random numbers; here they are set for each batch from the
sampler's draws and put back afterwards, so that these too are the same in a run that is repeated or
resumed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

Augment = Literal["trivial", "cutout"]
Mix = Literal["mixup", "cutmix"]


def mix(
    images: Tensor, labels: Tensor, kind: Mix, alpha: float, classes: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Blend each picture of a batch with its neighbour, and their labels likewise.

    Mixup adds them pixel by pixel (Zhang et al. 2018, arXiv 1710.09412), CutMix pastes a rectangle
    (Yun et al. 2019, arXiv 1905.04899). One share for the whole batch, drawn from
    Beta(alpha, alpha).

    Args:
        images: float `[B, C, H, W]`.
        labels: int64 `[B]`.
        kind: which of the two.
        alpha: near 0, most batches stay nearly as they are; 1: any share is as likely.
        classes: how many there are.
        seed: what the share is drawn from.

    Returns:
        float `[B, C, H, W]`, and float32 `[B, classes]`, each row's sum being 1.
    """
    with _borrowed_random_numbers() as generator:
        generator.manual_seed(seed)
        mixed, shares = _mixer(kind, alpha, classes)(images, labels)
    return mixed, shares


@cache
def _mixer(kind: Mix, alpha: float, classes: int) -> Any:
    from torchvision.transforms import v2

    return {"mixup": v2.MixUp, "cutmix": v2.CutMix}[kind](alpha=alpha, num_classes=classes)


@contextmanager
def _borrowed_random_numbers() -> Iterator[torch.Generator]:
    generator = torch.default_generator
    state = generator.get_state()
    try:
        yield generator
    finally:
        generator.set_state(state)
