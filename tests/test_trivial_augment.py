"""TrivialAugment of a batch: what torchvision's does to each picture."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import TrivialAugmentWide
from torchvision.transforms.v2 import functional as transforms

from counted import Counted
from litvision.trivial_augment import BINS, OPERATIONS, Choice, augment, trivial_augment


def pictures(count: int, height: int = 32, width: int = 32, channels: int = 3) -> Tensor:
    """Smooth ones, in which a pixel that comes from elsewhere shows, as does a level too many."""
    torch.manual_seed(0)
    coarse = torch.rand(count, channels, 6, 6)
    smooth = F.interpolate(coarse, (height, width), mode="bilinear")
    return (255 * smooth).byte().permute(0, 2, 3, 1).contiguous()


def affine(picture: Tensor, shear: list[float], shift: list[int], center: list[float] | None):
    return transforms.affine(picture, 0.0, shift, 1.0, shear, center=center)


def degrees(magnitude: float) -> float:
    return math.degrees(math.atan(magnitude))


# What torchvision does to one picture, `[C, H, W]`, and the most strength.
ALONE: dict[str, tuple[float, Callable[[Tensor, float], Tensor]]] = {
    "Identity": (0, lambda p, m: p),
    "ShearX": (0.99, lambda p, m: affine(p, [degrees(m), 0.0], [0, 0], [0, 0])),
    "ShearY": (0.99, lambda p, m: affine(p, [0.0, degrees(m)], [0, 0], [0, 0])),
    "TranslateX": (32, lambda p, m: affine(p, [0.0, 0.0], [int(m), 0], None)),
    "TranslateY": (32, lambda p, m: affine(p, [0.0, 0.0], [0, int(m)], None)),
    "Rotate": (135, transforms.rotate),
    "Brightness": (0.99, lambda p, m: transforms.adjust_brightness(p, 1 + m)),
    "Color": (0.99, lambda p, m: transforms.adjust_saturation(p, 1 + m)),
    "Contrast": (0.99, lambda p, m: transforms.adjust_contrast(p, 1 + m)),
    "Sharpness": (0.99, lambda p, m: transforms.adjust_sharpness(p, 1 + m)),
    "Posterize": (6, lambda p, m: transforms.posterize(p, 8 - round(abs(m)))),
    "Solarize": (1, lambda p, m: transforms.solarize(p, float(255 * torch.tensor(1 - abs(m))))),
    "AutoContrast": (0, lambda p, m: transforms.autocontrast(p)),
    "Equalize": (0, lambda p, m: transforms.equalize(p)),
}


def test_the_operations_are_torchvisions() -> None:
    assert set(OPERATIONS) == set(TrivialAugmentWide._AUGMENTATION_SPACE) == set(ALONE)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 33)])
@pytest.mark.parametrize("channels", [1, 3])
def test_each_picture_becomes_what_torchvision_makes_of_it(
    height: int, width: int, channels: int
) -> None:
    every = [(o, k, s) for o in range(len(OPERATIONS)) for k in range(BINS) for s in (1, -1)]
    given = pictures(len(every), height, width, channels)
    choice = Choice(*torch.tensor(every)[torch.randperm(len(every))].unbind(1))
    found = augment(given, choice)
    assert found.dtype == torch.uint8
    off: dict[str, list[Tensor]] = {}
    for before, after, *chosen in zip(given, found, *(c.tolist() for c in choice), strict=True):
        name, number, sign = OPERATIONS[chosen[0]], chosen[1], chosen[2]
        most, alone = ALONE[name]
        magnitude = sign * float(torch.linspace(0, most, BINS)[number])
        expected = alone(before.permute(2, 0, 1), magnitude).permute(1, 2, 0)
        off.setdefault(name, []).append((after.int() - expected.int()).abs())
    for name, distances in off.items():
        distance = torch.stack(distances)
        if name in ("Brightness", "Color", "Contrast", "Sharpness", "Solarize"):
            # One rounding less than torchvision's; a threshold on which a pixel lies.
            assert (distance > 0).float().mean() < 0.003, name
            assert name == "Solarize" or distance.max() <= 1, name
        elif name == "Rotate":  # a place on the border of two pixels
            assert (distance > 0).float().mean() < 0.002
        else:
            assert not distance.any(), name


def test_a_picture_is_treated_by_its_own_seed_alone() -> None:
    given = pictures(300)
    seeds = torch.randint(2**31, (300,), generator=torch.Generator().manual_seed(0))
    found = trivial_augment(given, seeds)
    assert found.shape == given.shape
    for k in range(0, 300, 7):
        assert torch.equal(trivial_augment(given[k : k + 1], seeds[k : k + 1])[0], found[k])
    assert not torch.equal(trivial_augment(given, seeds + 1), found)


def test_every_choice_is_as_likely() -> None:
    seeds = torch.randint(2**31, (100_000,), generator=torch.Generator().manual_seed(0))
    for values, count in zip(Choice.drawn(seeds), (len(OPERATIONS), BINS, 2), strict=True):
        shares = values.unique(return_counts=True)[1] / len(seeds)
        assert len(shares) == count
        assert (shares * count - 1).abs().max() < 0.08  # 4.6 standard deviations of 31 bins


def test_the_work_is_that_of_a_fixed_number_of_operations() -> None:
    counts = []
    for count in (64, 256):
        seeds = torch.arange(count) * 1_000_003
        with Counted() as counted:
            trivial_augment(pictures(count), seeds)
        counts.append(counted.count)
    assert counts[0] == counts[1] < 250
