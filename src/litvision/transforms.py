"""What a batch is taken through: crop, flip, cutout, brightness and contrast, normalisation.

What is random comes as numbers, which the sampler has drawn (`batches.Plan`).
"""

from __future__ import annotations

import functools
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Padding = Literal["zero", "reflect"]


def crop(
    pixels: Tensor,
    rows: Tensor,
    columns: Tensor,
    size: tuple[int, int],
    padding: int,
    mode: Padding,
) -> Tensor:
    """Pad every picture on all sides and cut a window out of each.

    Args:
        pixels: uint8 `[B, H, W, C]`.
        rows: int64 `[B]`, 0 to `H + 2 * padding - h`: the windows' uppermost rows.
        columns: int64 `[B]`, 0 to `W + 2 * padding - w`: their leftmost columns.
        size: height h and width w of the windows.
        padding: pixels added on each side.
        mode: "zero" pads with black, "reflect" mirrors at the edge pixel.

    Returns:
        uint8 `[B, h, w, C]`.
    """
    b, height, width, c = pixels.shape
    if mode == "zero":
        padded = F.pad(pixels, (0, 0, padding, padding, padding, padding))
    else:
        padded = pixels.index_select(1, _reflection(height, padding, pixels.device))
        padded = padded.index_select(2, _reflection(width, padding, pixels.device))
    # Every window of every picture as one view, numbered by where it begins in memory: taking one
    # of them is then a copy of whole rows, where one index a dimension would copy byte by byte.
    height, width = padded.shape[1:3]
    h, w = size
    begins = (b - 1) * height * width + (height - h) * width + width - w + 1
    windows = padded.as_strided((begins, h, w * c), (c, width * c, 1))
    picture = torch.arange(b, device=pixels.device) * (height * width)
    return windows.index_select(0, picture + rows * width + columns).view(b, h, w, c)


@functools.cache  # on a GPU, four operations of every step for the same few numbers
def _reflection(size: int, padding: int, device: torch.device) -> Tensor:
    """Return the source positions of a mirrored border: 2 1 | 0 1 2 3 | 2 1 for size 4, padding 2.

    A border wider than the picture goes on bouncing between its edges.
    """
    period = max(2 * (size - 1), 1)
    position = torch.arange(-padding, size + padding, device=device) % period
    return torch.minimum(position, period - position) if size > 1 else torch.zeros_like(position)


def flip(pixels: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror the pictures, `[B, H, W, C]`, for which `mirrored`, bool `[B]`, is true."""
    both = torch.cat((pixels, pixels.flip(2)))  # choosing by picture copies, by byte computes
    picture = torch.arange(len(pixels), device=pixels.device)
    return both.index_select(0, picture + len(pixels) * mirrored)


def cutout(images: Tensor, rows: Tensor, columns: Tensor, size: int) -> Tensor:
    """Set a square of every picture to zero: Cutout, DeVries and Taylor 2017, arXiv 1708.04552.

    Args:
        images: float `[B, C, H, W]`, normalised, so that zero is the mean colour; changed in place.
        rows, columns: int64 `[B]`, the square's centre; at the edge a part of it falls outside.
        size: the square's side in pixels.
    """
    h, w = images.shape[2:]

    def inside(centre: Tensor, length: int) -> Tensor:
        offset = torch.arange(length, device=images.device) - (centre[:, None] - size // 2)
        return (offset >= 0) & (offset < size)

    square = inside(rows, h)[:, None, :, None] & inside(columns, w)[:, None, None, :]
    return images.masked_fill_(square, 0.0)


def brighten(images: Tensor, seeds: Tensor, brightness: float, contrast: float) -> Tensor:
    """Add a random number to every picture, then multiply it by another.

    Args:
        images: float `[B, C, H, W]`, normalised; changed in place.
        seeds: int64 `[B]`, uniform in 0 to 2^31 - 1, what each picture's numbers are drawn from.
        brightness: what is added is uniform between minus this and this, in standard deviations.
        contrast: what multiplies is uniform between 1 minus this and 1 plus this.
    """
    first, second = (seeds >> 16) / 2**14 - 1, (seeds & 0xFFFF) / 2**15 - 1
    images += (brightness * first)[:, None, None, None]
    images *= (1 + contrast * second)[:, None, None, None]
    return images


def normalize(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Scale to 0 to 1, subtract the mean, divide by the standard deviation, a channel at a time.

    Args:
        pixels: uint8 `[B, H, W, C]`.
        mean, std: float32 `[C]`, in units of 0 to 1.

    Returns:
        float32 `[B, C, H, W]`, channels-last in memory.
    """
    b, h, w, c = pixels.shape
    # A row's values at once: one pixel's three are too few for a processor's vector instructions.
    scale, shift = (1 / (255 * std)).repeat(w), (-mean / std).repeat(w)
    rows = pixels.reshape(b, h, w * c).float()
    torch.addcmul(shift, rows, scale, out=rows)  # in the same memory, which is near still
    return rows.view(b, h, w, c).permute(0, 3, 1, 2)
