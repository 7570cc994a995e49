"""TrivialAugment (Müller and Hutter 2021, arXiv 2103.10158) of a whole batch at once."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from litvision.hardware import send

# torchvision's wide variant; those that move pixels are done together, and those that blend.
MOVES = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
BLENDS = ("Brightness", "Color", "Contrast", "Sharpness")
OPERATIONS = (
    *("Identity", *MOVES, *BLENDS),
    *("Posterize", "Solarize", "AutoContrast", "Equalize"),
)
BINS = 31  # of a magnitude, from none to the most


class Choice(NamedTuple):
    """What is to be done to each picture of a batch, on the CPU."""

    operation: Tensor  # int64 [B], of OPERATIONS
    bins: Tensor  # int64 [B], of BINS
    sign: Tensor  # int64 [B], 1 or -1

    @classmethod
    def drawn(cls, seeds: Tensor) -> Choice:
        """Choose by seeds, int64 `[B]`, uniform up to many times 868: all that may be done."""
        rest, operation = seeds // len(OPERATIONS), seeds % len(OPERATIONS)
        return cls(operation, rest % BINS, 1 - 2 * (rest // BINS % 2))


def trivial_augment(pixels: Tensor, seeds: Tensor) -> Tensor:
    """Do one random thing, of random strength, to each picture: rotate, shear, brighten, …

    Args:
        pixels: uint8 `[B, H, W, C]`.
        seeds: int64 `[B]`, on the CPU, what each picture's choice is drawn from.

    Returns:
        uint8 `[B, H, W, C]`.
    """
    return augment(pixels, Choice.drawn(seeds))


def augment(pixels: Tensor, choice: Choice) -> Tensor:
    """Do to each picture what was chosen for it, as torchvision's TrivialAugmentWide does.

    Pictures that share an operation are taken together: a batch takes 200 calls of torch, however
    many pictures it has. One by one, each takes 17, and three times the CPU waits for a GPU.

    Args:
        pixels: uint8 `[B, H, W, C]`, C being 1 or 3.
        choice: of B pictures.

    Returns:
        uint8 `[B, H, W, C]`.
    """
    from torchvision.transforms.v2 import functional as transforms

    order = choice.operation.argsort()
    operation, bins, sign = (values[order] for values in choice)
    ends = torch.bincount(operation, minlength=len(OPERATIONS)).cumsum(0).tolist()
    bounds = dict(zip(OPERATIONS, zip([0, *ends], ends, strict=False), strict=True))
    there, back = (send(numbers, pixels.device) for numbers in (order, order.argsort()))
    images = pixels.index_select(0, there).permute(0, 3, 1, 2)
    size = images.shape[2:]

    def those(*names: str) -> slice:
        return slice(bounds[names[0]][0], bounds[names[-1]][1])

    part = those(*MOVES)
    matrices = inverse_matrices(operation[part], bins[part], sign[part], size)
    if len(matrices):  # grid_sample takes no empty batch
        images[part] = affine(images[part], send(matrices, images.device))

    part = those(*BLENDS)
    factors = 1 + magnitude(0.99, bins[part]) * sign[part]
    degenerates = [degenerate(name, images[those(name)]) for name in BLENDS]
    images[part] = blend(images[part], torch.cat(degenerates), send(factors, images.device))

    part = those("Posterize")
    lost = magnitude(6, bins[part]).round().long()  # bits, of eight
    masks = send((256 - 2**lost).to(torch.uint8), images.device)
    images[part] &= masks[:, None, None, None]

    part = those("Solarize")
    thresholds = 255 * torch.linspace(1, 0, BINS)[bins[part]]
    thresholds = send(thresholds, images.device)[:, None, None, None]
    some = images[part]
    images[part] = torch.where(some >= thresholds, 255 - some, some)

    part = those("AutoContrast")
    images[part] = transforms.autocontrast(images[part])
    part = those("Equalize")
    images[part] = transforms.equalize(images[part])
    return images.permute(0, 2, 3, 1).index_select(0, back)


def magnitude(most: float, bins: Tensor) -> Tensor:
    """Return the magnitude that stands for each bin, float32, evenly from 0 to `most`."""
    return torch.linspace(0, most, BINS)[bins]


def inverse_matrices(operation: Tensor, bins: Tensor, sign: Tensor, size: torch.Size) -> Tensor:
    """Return where each position comes from, for the operations of MOVES.

    Args:
        operation, bins, sign: of N pictures, see `Choice`.
        size: height and width of the pictures, in pixels.

    Returns:
        float32 `[N, 2, 3]`, in pixels from the picture's middle; `affine` takes them.
    """
    height, width = size
    shear = sign * magnitude(0.99, bins)
    shift = sign * magnitude(32, bins).trunc()
    angle = torch.deg2rad(sign * magnitude(135, bins).double())
    matrices = torch.eye(2, 3).repeat(len(operation), 1, 1)

    def put(name: str, row: int, column: int, values: Tensor) -> None:
        chosen = operation == OPERATIONS.index(name)
        matrices[chosen, row, column] = values[chosen].float()

    # The upper left corner stays.
    put("ShearX", 0, 1, shear)
    put("ShearX", 0, 2, shear * height / 2)
    put("ShearY", 1, 0, shear)
    put("ShearY", 1, 2, shear * width / 2)
    put("TranslateX", 0, 2, -shift)
    put("TranslateY", 1, 2, -shift)
    put("Rotate", 0, 0, angle.cos())
    put("Rotate", 0, 1, -angle.sin())
    put("Rotate", 1, 0, angle.sin())
    put("Rotate", 1, 1, angle.cos())
    return matrices


def affine(images: Tensor, matrices: Tensor) -> Tensor:
    """Take each pixel from where its matrix says, the nearest one; black beyond the edge.

    Args:
        images: uint8 `[N, C, H, W]`.
        matrices: as from `inverse_matrices`.
    """
    height, width = images.shape[2:]
    ys, xs = (torch.arange(n, device=images.device) - (n - 1) / 2 for n in (height, width))
    # By hand: a GPU may multiply matrices in ten bits, which are too few for a place.
    scaled = torch.stack((matrices[:, 0] / (width / 2), matrices[:, 1] / (height / 2)), dim=1)
    a, b, c = scaled[..., None, None].unbind(2)
    grid = (a * xs + b * ys[:, None] + c).permute(0, 2, 3, 1)
    return F.grid_sample(images.float(), grid, mode="nearest", align_corners=False).to(images.dtype)


def degenerate(name: str, images: Tensor) -> Tensor:
    """Return what an operation blends pictures with: black, grey, mean grey, or blurred.

    Args:
        name: of the operation.
        images: uint8 `[N, C, H, W]`.

    Returns:
        float32 `[N, C, H, W]`.
    """
    from torchvision.transforms.v2 import functional as transforms

    if name == "Brightness":
        return torch.zeros_like(images, dtype=torch.float32)
    if name == "Sharpness":
        return _blurred(images.float())
    grey = transforms.adjust_saturation(images, 0).float()
    return grey if name == "Color" else grey[:, :1].mean((1, 2, 3), keepdim=True).expand_as(grey)


def _blurred(images: Tensor) -> Tensor:
    """Smooth `[N, C, H, W]`, float32 of whole numbers, but for the border; the same rounded.

    The kernel of torchvision's `adjust_sharpness`, which makes it anew on the processor for each
    call, and has a GPU wait for it.
    """
    channels, height, width = images.shape[1:]
    if min(height, width) < 3:
        return images
    # Of whole numbers, which a GPU that multiplies in ten bits multiplies exactly.
    sums = F.conv2d(images, _kernel(channels, images.device), groups=channels)
    blurred = images.clone()
    blurred[..., 1:-1, 1:-1] = (sums / 13).round()
    return blurred


@functools.cache
def _kernel(channels: int, device: torch.device) -> Tensor:
    kernel = torch.ones(channels, 1, 3, 3, device=device)
    kernel[:, :, 1, 1] = 5
    return kernel


def blend(images: Tensor, degenerates: Tensor, factors: Tensor) -> Tensor:
    """Return degenerates + factor * (images - degenerates), uint8, with a factor a picture.

    Args:
        images: uint8 `[N, C, H, W]`.
        degenerates: float32, of the same shape.
        factors: float32 `[N]`, 0 to 2.
    """
    differences = (images - degenerates).mul_(factors[:, None, None, None])
    return differences.add_(degenerates).clamp_(0, 255).to(images.dtype)
