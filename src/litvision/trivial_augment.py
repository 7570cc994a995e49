"""TrivialAugment (Müller and Hutter 2021, arXiv 2103.10158) of a whole batch at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from litvision.hardware import send

# torchvision's wide variant. Those that move pixels come first, then those that blend the picture
# with another, so that each of the two kinds is done together.
OPERATIONS = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"),
    *("Brightness", "Color", "Contrast", "Sharpness"),
    *("Posterize", "Solarize", "AutoContrast", "Equalize"),
)
LEVELS = 31  # of strength, from none to the most


class Choice(NamedTuple):
    """What is to be done to each picture of a batch, on the CPU."""

    operation: Tensor  # int64 [B], of OPERATIONS
    level: Tensor  # int64 [B], of LEVELS
    sign: Tensor  # int64 [B], 1 or -1

    @classmethod
    def drawn(cls, seeds: Tensor) -> Choice:
        """Choose by seeds, int64 `[B]`, uniform over many times the 868 things that can be done."""
        rest, operation = seeds // len(OPERATIONS), seeds % len(OPERATIONS)
        return cls(operation, rest % LEVELS, 1 - 2 * (rest // LEVELS % 2))


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
    many pictures it has, where one by one each takes 17, three of which a GPU is waited for.

    Args:
        pixels: uint8 `[B, H, W, C]`, C being 1 or 3.
        choice: of B pictures.

    Returns:
        uint8 `[B, H, W, C]`.
    """
    from torchvision.transforms.v2 import functional as transforms

    order = choice.operation.argsort()
    operation, level, sign = (values[order] for values in choice)
    ends = torch.bincount(operation, minlength=len(OPERATIONS)).cumsum(0).tolist()
    bounds = dict(zip(OPERATIONS, zip([0, *ends], ends, strict=False), strict=True))
    there, back = (send(numbers, pixels.device) for numbers in (order, order.argsort()))
    images = pixels.index_select(0, there).permute(0, 3, 1, 2)
    size = images.shape[2:]

    def between(first: str, last: str) -> slice:
        return slice(bounds[first][0], bounds[last][1])

    part = between("ShearX", "Rotate")
    matrices = inverse_matrices(operation[part], level[part], sign[part], size)
    if len(matrices):
        images[part] = moved(images[part], send(matrices, images.device))

    part = between("Brightness", "Sharpness")
    factors = 1 + strength(0.99, level[part]) * sign[part]
    names = OPERATIONS[OPERATIONS.index("Brightness") : OPERATIONS.index("Posterize")]
    others = [other(name, images[between(name, name)]) for name in names]
    images[part] = blended(images[part], torch.cat(others), send(factors, images.device))

    part = between("Posterize", "Posterize")
    lost = strength(6, level[part]).round().long()  # bits, of eight
    masks = send((256 - 2**lost).to(torch.uint8), images.device)
    images[part] &= masks[:, None, None, None]

    part = between("Solarize", "Solarize")
    thresholds = 255 * torch.linspace(1, 0, LEVELS)[level[part]]
    thresholds = send(thresholds, images.device)[:, None, None, None]
    some = images[part]
    images[part] = torch.where(some >= thresholds, 255 - some, some)

    part = between("AutoContrast", "AutoContrast")
    images[part] = transforms.autocontrast(images[part])
    part = between("Equalize", "Equalize")
    images[part] = transforms.equalize(images[part])
    return images.permute(0, 2, 3, 1).index_select(0, back)


def strength(most: float, level: Tensor) -> Tensor:
    """Return what each level of a strength up to `most` is, float32."""
    return torch.linspace(0, most, LEVELS)[level]


def inverse_matrices(operation: Tensor, level: Tensor, sign: Tensor, size: torch.Size) -> Tensor:
    """Return where each position comes from, for operations from ShearX to Rotate.

    Args:
        operation, level, sign: of N pictures, see `Choice`.
        size: height and width of the pictures, in pixels.

    Returns:
        float32 `[N, 2, 3]`, in pixels from the picture's middle; `moved` takes them.
    """
    height, width = size
    shear = sign * strength(0.99, level)
    shift = sign * strength(32, level).trunc()
    angle = torch.deg2rad(sign * strength(135, level).double())
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


def moved(images: Tensor, matrices: Tensor) -> Tensor:
    """Take each pixel from where its matrix says, the nearest one; black beyond the edge.

    Args:
        images: uint8 `[N, C, H, W]`.
        matrices: as from `inverse_matrices`.
    """
    height, width = images.shape[2:]
    ys, xs = (torch.arange(n, device=images.device) - (n - 1) / 2 for n in (height, width))
    places = torch.stack(
        (*torch.meshgrid(xs, ys, indexing="xy"), torch.ones_like(ys[:, None] + xs))
    )
    half = torch.stack((torch.full_like(xs[0], width / 2), torch.full_like(xs[0], height / 2)))
    grid = (matrices / half[:, None]) @ places.flatten(1)
    grid = grid.mT.unflatten(1, (height, width))
    return F.grid_sample(images.float(), grid, mode="nearest", align_corners=False).to(images.dtype)


def other(name: str, images: Tensor) -> Tensor:
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
        return transforms.adjust_sharpness(images, 0).float()
    grey = transforms.adjust_saturation(images, 0).float()
    return grey if name == "Color" else grey[:, :1].mean((1, 2, 3), keepdim=True).expand_as(grey)


def blended(images: Tensor, others: Tensor, factors: Tensor) -> Tensor:
    """Return others + factor * (images - others), uint8 `[N, C, H, W]`, with a factor a picture.

    Args:
        images: uint8 `[N, C, H, W]`.
        others: float32, of the same shape.
        factors: float32 `[N]`, 0 to 2.
    """
    differences = (images - others).mul_(factors[:, None, None, None])
    return differences.add_(others).clamp_(0, 255).to(images.dtype)
