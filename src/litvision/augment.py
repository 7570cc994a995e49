"""What torchvision does to training pictures beyond crop and flip: TrivialAugment, mixup, CutMix.

torchvision draws from torch's global random numbers; here they are set for each picture or batch
from the sampler's draws and put back afterwards, so that these too are the same in a run that is
repeated or resumed.
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


def trivial_augment(pixels: Tensor, seeds: Tensor) -> Tensor:
    """Do one random thing, of random strength, to each picture: rotate, shear, brighten, …

    TrivialAugment, Müller and Hutter 2021, arXiv 2103.10158; torchvision's wide variant.

    Args:
        pixels: uint8 `[B, H, W, C]`.
        seeds: int64 `[B]`, what each picture's choice is drawn from.

    Returns:
        uint8 `[B, H, W, C]`.
    """
    from torchvision.transforms.v2 import TrivialAugmentWide

    augment = TrivialAugmentWide()
    with _borrowed_random_numbers() as generator:
        pictures = []
        for picture, seed in zip(pixels.permute(0, 3, 1, 2), seeds.tolist(), strict=True):
            generator.manual_seed(seed)
            pictures.append(augment(picture))
    return torch.stack(pictures).permute(0, 2, 3, 1)


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
