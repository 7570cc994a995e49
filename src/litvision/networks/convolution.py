"""A convolution that small maps pass through as matrix products, where that is faster."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp import custom_bwd, custom_fwd
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input

from litvision.hardware import has_amx, has_avx2

# Output positions up to which the products win: measured, see docs/performance.md.
SMALL_MAP = 16
# The same with AMX for gradients alone, and the channels, in and out, that this takes.
SMALL_MAP_AMX = 64
CHANNELS_AMX = 128


@dataclass(frozen=True)  # and no tuple, which autocast would take apart
class Products:
    """What of a convolution is faster as matrix products."""

    output: bool = False
    input_gradient: bool = False
    weight_gradient: bool = False


def products(
    dtype: torch.dtype, inputs: int, outputs: int, stride: int, pictures: int, positions: int
) -> Products:
    """Say what to compute by products on this processor, as measured: see docs/performance.md.

    Args:
        dtype: in which the convolution is computed.
        inputs, outputs: channels of the kernel.
        stride: of the convolution.
        pictures: in the batch.
        positions: of the output's maps, 0 if products cannot stand for the convolution.
    """
    if not positions:
        return Products()
    small, fewer = positions <= SMALL_MAP, min(inputs, outputs)
    if dtype == torch.bfloat16:
        gradients = positions <= SMALL_MAP_AMX and fewer >= CHANNELS_AMX and has_amx()
        by_input = gradients if stride == 2 else small and stride == 1
        return Products(small, by_input, small or gradients)
    if dtype == torch.float32 and has_avx2() and pictures >= 8:
        small_and_wide = small and fewer >= 256
        # The windows' copy counts the less, the more products are made of it.
        if stride == 2:
            by_weight = inputs >= 64 and outputs >= 128 and positions <= 1024
        else:
            by_weight = inputs >= 128 and outputs >= (128 if small else 192) and positions <= 256
        return Products(small_and_wide, small_and_wide and stride <= 2, by_weight)
    return Products()


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d`, faster on a processor where the maps are small.

    oneDNN, which convolves on processors, reaches the speed of a matrix product on large maps, but
    in bfloat16 two thirds of it at 4x4 and a quarter at 2x2, where the last stages of a network for
    CIFAR spend a third of their time. There, the window under each output position becomes a row
    of a matrix (im2col; Chellapilla et al. 2006, "High performance convolutional neural networks
    for document processing"), and rows of zeros above and below the map are left out. With AMX,
    products are several times faster, and oneDNN's gradients of a convolution are not: on maps of
    up to 8x8, those of the weights are products there, and the input's where the stride is 2. In
    float32 the weights' gradient is one, on maps of up to 16x16, of up to 32x32 where the stride is
    2. It takes many channels: see `products`.

    The parameters are those of `nn.Conv2d`, the sums the same but for their order; every other
    input takes torch's own way. But for a 1x1 kernel on maps of one pixel, which is a linear layer,
    on any device and in any precision: as such it takes half the time.

    What goes by products has a gradient, but no gradient of that: for penalties on gradients take
    `nn.Conv2d`, or `model.channels_last=false`, in which nothing does. Within `torch.func` nothing
    does either.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `[N, in_channels, H, W]` to `[N, out_channels, H', W']`."""
        if self._is_linear(x):
            return F.linear(x.flatten(1), self.weight.flatten(1), self.bias)[..., None, None]
        by_products = self._by_products(x)
        trains = torch.is_grad_enabled() and self.weight.requires_grad
        if not by_products.output and not (trains and by_products.weight_gradient):
            return super().forward(x)
        stride, padding = self.stride[0], self.padding[0]
        return _Convolution.apply(x, self.weight, self.bias, stride, padding, by_products)

    def _is_linear(self, x: Tensor) -> bool:
        """Say whether `x` is a batch of single pixels, and the kernel one pixel too."""
        one = self.kernel_size == (1, 1) and self.padding == (0, 0) and self.groups == 1
        return one and x.ndim == 4 and x.shape[2:] == (1, 1)

    def _by_products(self, x: Tensor) -> Products:
        """Return what is faster by products: nothing, if they cannot stand for this convolution."""
        if x.device.type != "cpu" or torch.compiler.is_compiling() or torch._C._is_tracing():
            return Products()
        if x.ndim != 4 or x.shape[1] != self.in_channels or not len(x):
            return Products()  # torch knows what to say
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return Products()  # vmap, grad and jvp need torch's own
        plain = self.groups == 1 and self.padding_mode == "zeros" and self.dilation == (1, 1)
        if not plain or isinstance(self.padding, str):
            return Products()
        (size, width), (stride, across), padding = self.kernel_size, self.stride, self.padding
        if size != width or stride != across or padding[0] != padding[1] or padding[0] >= size:
            return Products()
        if size == 1 or not x.is_contiguous(memory_format=torch.channels_last):
            return Products()
        dtype = self.weight.dtype
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
        elif x.dtype != dtype:
            return Products()
        rows, columns = (_positions(side, size, stride, padding[0]) for side in x.shape[2:])
        positions = max(rows, 0) * max(columns, 0)
        return products(dtype, self.in_channels, self.out_channels, stride, len(x), positions)


class _Convolution(torch.autograd.Function):
    """The convolution and both its gradients, channels-last.

    The weights' gradient always is a product: nothing comes here without it. Output and input's
    gradient are one, or torch's.
    """

    @staticmethod
    @custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int,
        by_products: Products,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding, ctx.has_bias = stride, padding, bias is not None
        ctx.by_products = by_products
        if not by_products.output:
            return F.conv2d(x, weight, bias, stride, padding)
        taps = weight.permute(0, 2, 3, 1).flatten(1).t()  # a view if weights are channels-last
        return _convolve(x, taps, bias, weight.shape[2], stride, padding)

    @staticmethod
    @once_differentiable
    @custom_bwd(device_type="cpu")
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        size, stride, padding = weight.shape[2], ctx.stride, ctx.padding
        grad = grad.contiguous(memory_format=torch.channels_last)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0] and not ctx.by_products.input_gradient:
            grad_x = conv2d_input(x.shape, weight, grad, stride, padding)
        elif ctx.needs_input_grad[0] and stride == 1:
            # What a convolution did is undone in direction by the kernel turned by half a turn.
            taps = weight.permute(2, 3, 0, 1).flatten(0, 1)
            turned = torch.cat([taps[number] for number in reversed(range(len(taps)))])
            grad_x = _convolve(grad, turned, None, size, 1, size - 1 - padding)
        elif ctx.needs_input_grad[0]:
            grad_x = _strided_input_gradient(x.shape, weight, grad, stride, padding)
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(x, grad, size, stride, padding)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, 2, 3), dtype=torch.float32)
        return grad_x, grad_weight, grad_bias, None, None, None


def _convolve(
    x: Tensor, taps: Tensor, bias: Tensor | None, size: int, stride: int, padding: int
) -> Tensor:
    """Convolve `[N, C, H, W]` with `taps`, `[size * size * C, C']`, to `[N, C', H', W']`."""
    parts = []
    for rows, used, windows in _groups(x, size, stride, padding):
        flat = windows @ taps[used] if bias is None else torch.addmm(bias, windows, taps[used])
        parts.append(flat.unflatten(0, (len(x), rows.stop - rows.start, -1)).permute(0, 3, 1, 2))
    # Joined as they are meant, and not turned afterwards: what follows may work in place, which
    # autograd forbids on a view.
    return torch.cat(parts, dim=2)


def _groups(
    x: Tensor, size: int, stride: int, padding: int
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Gather the windows of all output rows that reach equally far over the map's edge.

    Args:
        x: `[N, C, H, W]`, channels-last in memory.
        size, stride, padding: of the convolution, in pixels.

    Yields:
        For each group of output rows: the rows; which of a window's `size * size * C` values (by
        row, column, channel) lie inside the map's height; and those values of every window,
        `[N * rows * W', values]`.
    """
    n, c, h, w = x.shape
    columns = _positions(w, size, stride, padding)
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding, padding))
    picture, down, right, channel = padded.stride()

    def inside(row: int) -> tuple[int, int]:
        top = row * stride - padding
        return max(-top, 0), min(size, h - top)

    for (first, last), members in groupby(range(_positions(h, size, stride, padding)), inside):
        rows = list(members)
        windows = padded.as_strided(
            (n, len(rows), columns, last - first, size, c),
            (picture, down * stride, right * stride, down, right, channel),
            (rows[0] * stride - padding + first) * down,
        )
        yield (
            slice(rows[0], rows[-1] + 1),
            slice(first * size * c, last * size * c),
            (windows.reshape(n * len(rows) * columns, (last - first) * size * c)),
        )


def _strided_input_gradient(
    shape: torch.Size, weight: Tensor, grad: Tensor, stride: int, padding: int
) -> Tensor:
    """Return the gradient of the input, whose shape is given, for a stride above 1.

    Rows of the input that are a stride apart meet the same rows of the kernel, which are a stride
    apart too, and so do columns: that share of the gradient is one product of windows of `grad`.
    """
    size = weight.shape[2]
    found = torch.empty(shape, dtype=grad.dtype, memory_format=torch.channels_last)
    border = -(-size // stride)  # at least as many as a window reaches over the edge
    padded = F.pad(grad.permute(0, 2, 3, 1), (0, 0, *[border] * 4))
    picture, down, right, channel = padded.stride()
    for top, left in product(range(stride), repeat=2):
        share = found[:, :, top::stride, left::stride].permute(0, 2, 3, 1)
        (above, first), (before, second) = (divmod(s + padding, stride) for s in (top, left))
        taps = weight[:, :, first::stride, second::stride].flip(2, 3).permute(2, 3, 0, 1)
        rows, columns, outputs, _ = taps.shape
        corner = (border + above - rows + 1) * down + (border + before - columns + 1) * right
        windows = padded.as_strided(
            (*share.shape[:3], rows, columns, outputs),
            (picture, down, right, down, right, channel),
            corner,
        )
        share.copy_((windows.flatten(3).flatten(0, 2) @ taps.flatten(0, 2)).view(share.shape))
    return found


def _weight_gradient(x: Tensor, grad: Tensor, size: int, stride: int, padding: int) -> Tensor:
    """Return the gradient of the weights, float32 `[C', C, size, size]`.

    One product for each row of the kernel: it sums over all places where that row lies inside the
    map, so that no sums of parts are rounded. The maps' rows come first in memory here, which
    makes the rows that take part one block.
    """
    n, c, h, _ = x.shape
    outputs, rows, columns = grad.shape[1:]
    padded = F.pad(x.permute(2, 0, 3, 1), (0, 0, padding, padding))
    down, picture, right, channel = padded.stride()
    shape, strides = (h, n, columns, size, c), (down, picture, right * stride, right, channel)
    windows = padded.as_strided(shape, strides).flatten(3)  # one row high
    if stride == 1:
        windows = windows.contiguous()  # once, as neighbouring rows of the kernel meet the same
    answers = grad.permute(2, 0, 3, 1).contiguous()
    taps = torch.empty(outputs, size, size * c)
    for row in range(size):
        met = [r for r in range(rows) if 0 <= r * stride - padding + row < h]
        if not met:
            taps[:, row] = 0
            continue
        top, bottom = (r * stride - padding + row for r in (met[0], met[-1]))
        inside = windows[top : bottom + 1 : stride].flatten(0, 2)
        taps[:, row] = answers[met[0] : met[-1] + 1].flatten(0, 2).t() @ inside
    return taps.unflatten(2, (size, c)).permute(0, 3, 1, 2)


def _positions(side: int, size: int, stride: int, padding: int) -> int:
    """Return how many places a kernel of `size` has along a `side`."""
    return (side + 2 * padding - size) // stride + 1
