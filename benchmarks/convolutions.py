"""A convolution forward and backward on small maps, in training's precision: ours beside torch's.

On a GPU and on larger maps ours is torch's own, and there is nothing to compare.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.measure import Table
from litvision import hardware
from litvision.networks.convolution import Conv2d

ROUNDS = 25
# Pictures, channels in and out, side, stride, padding of 3x3 kernels
LAYERS = {
    "ResNet-18, 16x16 to 8x8": (128, 128, 256, 16, 2, 1),
    "ResNet-18 and VGG-16, 8x8": (128, 256, 256, 8, 1, 1),
    "VGG-16, 8x8, first": (128, 128, 256, 8, 1, 1),
    "SpeedNet, 7x7": (500, 192, 192, 7, 1, 1),
    "SpeedNet, 8x8 to 6x6": (500, 192, 256, 8, 1, 0),
    "ResNet-18, 8x8 to 4x4": (128, 256, 512, 8, 2, 1),
    "ResNet-18 and VGG-16, 4x4": (128, 512, 512, 4, 1, 1),
    "SpeedNet, 3x3": (500, 256, 256, 3, 1, 1),
    "VGG-16, 2x2": (128, 512, 512, 2, 1, 1),
}


def passes(layer: nn.Conv2d, x: Tensor) -> Callable[[], object]:
    """Return what takes `x` through a layer and all gradients back."""
    layer.to(memory_format=torch.channels_last)
    inputs = [x, layer.weight]
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=x.dtype == torch.bfloat16)

    def both() -> object:
        with autocast:
            y = layer(x)
        return torch.autograd.grad(y, inputs, torch.ones_like(y))

    return both


def main() -> None:
    bf16 = hardware.runs_bf16("cpu")
    if not bf16 and not hardware.has_avx2():
        print("Convolutions are torch's own on a processor without bfloat16 and AVX2.")
        return
    hardware.keep_freed_memory()  # as every run does
    table = Table("Convolutions on small maps, forward and backward, in ms")
    for name, (pictures, inputs, outputs, side, stride, padding) in LAYERS.items():
        x = torch.randn(pictures, inputs, side, side, dtype=torch.bfloat16 if bf16 else None)
        x = x.to(memory_format=torch.channels_last).requires_grad_()
        options = (inputs, outputs, 3, stride, padding)
        layers = Conv2d(*options, bias=False), nn.Conv2d(*options, bias=False)
        table.compare(name, *(passes(layer, x) for layer in layers), ROUNDS)
    precision = "bfloat16" if bf16 else "float32"
    amx = "with" if hardware.has_amx() else "without"
    table.notes.append(
        f"In {precision} on a processor {amx} AMX; medians of {ROUNDS} in turn; "
        f"{torch.get_num_threads()} threads."
    )
    table.save("convolutions")


if __name__ == "__main__":
    main()
