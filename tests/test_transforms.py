"""Crop, flip, cutout and normalisation, each against a slow or plain way to the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from litvision.transforms import crop, cutout, flip, normalize


@pytest.fixture
def pixels() -> Tensor:
    return torch.randint(0, 256, (6, 5, 7, 3), dtype=torch.uint8)


@pytest.mark.parametrize("mode", ["zero", "reflect"])
@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("size", [(5, 7), (4, 3), (5, 6)])
def test_crop_equals_numpy_padding_and_slicing(
    pixels: Tensor, mode: str, padding: int, size: tuple[int, int]
) -> None:
    b, height, width, _ = pixels.shape
    h, w = size
    rows = torch.randint(0, height + 2 * padding - h + 1, (b,))
    columns = torch.randint(0, width + 2 * padding - w + 1, (b,))
    # The last window of all ends where memory does.
    rows[-1], columns[-1] = height + 2 * padding - h, width + 2 * padding - w
    found = crop(pixels, rows, columns, size, padding, mode)
    around = ((padding, padding), (padding, padding), (0, 0))
    for k in range(b):
        how = {"mode": "constant" if mode == "zero" else "reflect"}
        padded = np.pad(pixels[k].numpy(), around, **how)
        window = padded[rows[k] : rows[k] + h, columns[k] : columns[k] + w]
        np.testing.assert_array_equal(found[k].numpy(), window)
    assert found.dtype == torch.uint8


def test_a_border_wider_than_the_picture_reflects_on(pixels: Tensor) -> None:
    zero = torch.zeros(6, dtype=torch.int64)
    found = crop(pixels, zero, zero, (5, 7), padding=9, mode="reflect")
    padded = np.pad(pixels[0].numpy(), ((9, 9), (9, 9), (0, 0)), mode="reflect")
    np.testing.assert_array_equal(found[0].numpy(), padded[:5, :7])


def test_flip_mirrors_only_the_pictures_asked_for(pixels: Tensor) -> None:
    mirrored = torch.tensor([True, False, True, False, False, True])
    found = flip(pixels, mirrored)
    for k in range(6):
        assert torch.equal(found[k], pixels[k].flip(1) if mirrored[k] else pixels[k])


def test_cutout_zeroes_a_square_that_the_edge_may_cut() -> None:
    images = torch.ones(2, 3, 8, 8)
    found = cutout(images, torch.tensor([4, 0]), torch.tensor([4, 7]), size=4)
    assert (found[0] == 0).sum() == 3 * 16
    assert (found[0, :, 2:6, 2:6] == 0).all()
    assert (found[1, :, :2, 5:] == 0).all()
    assert (found[1] == 0).sum() == 3 * 2 * 3


def test_normalize_equals_the_formula_and_is_channels_last(pixels: Tensor) -> None:
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.25])
    found = normalize(pixels, mean, std)
    expected = (pixels.permute(0, 3, 1, 2).double() / 255 - mean[:, None, None]) / std[
        :, None, None
    ]
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-6)
    assert found.is_contiguous(memory_format=torch.channels_last)
