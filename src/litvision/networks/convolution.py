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
from torch.autograd.forward_ad import unpack_dual
from torch.nn.grad import conv2d_input, conv2d_weight

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
    dtype: torch.dtype,
    inputs: int,
    outputs: int,
    size: int,
    stride: int,
    pictures: int,
    positions: int,
) -> Products:
    """Say what to compute by products on this processor, as measured: see docs/performance.md.

    Args:
        dtype: in which the convolution is computed.
        inputs, outputs, size: channels and side of the kernel.
        stride: of the convolution.
        pictures: in the batch.
        positions: of the output's maps.
    """
    if not positions:
        return Products()
    small, fewer = positions <= SMALL_MAP, min(inputs, outputs)
    if dtype == torch.bfloat16:
        gradients = positions <= SMALL_MAP_AMX and fewer >= CHANNELS_AMX and has_amx()
        by_input = gradients if stride == 2 else small and stride == 1
        return Products(small, by_input, small or gradients)
    if dtype == torch.float32 and size == 3 and pictures >= 8 and has_avx2():
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

    Gradients of gradients are torch's own, and so is everything within `torch.func` and forward
    differentiation.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `[N, in_channels, H, W]` to `[N, out_channels, H', W']`."""
        weight = self.weight  # once: a parametrization, as spectral_norm's, computes it anew
        if self._is_linear(x):
            return F.linear(x.flatten(1), weight.flatten(1), self.bias)[..., None, None]
        by_products = self._by_products(x, weight)
        trains = torch.is_grad_enabled() and weight.requires_grad
        if not by_products.output and not (trains and by_products.weight_gradient):
            return self._conv_forward(x, weight, self.bias)
        if torch.is_autocast_enabled("cpu"):
            x = x.to(torch.get_autocast_dtype("cpu"))
        stride, padding = self.stride[0], self.padding[0]
        return _Convolution.apply(x, weight, self.bias, stride, padding, by_products)

    def _is_linear(self, x: Tensor) -> bool:
        """Say whether `x` is a batch of single pixels, and the kernel one pixel too."""
        one = self.kernel_size == (1, 1) and self.padding == (0, 0) and self.groups == 1
        return one and x.ndim == 4 and x.shape[2:] == (1, 1)

    def _by_products(self, x: Tensor, weight: Tensor) -> Products:
        """Return what is faster by products: nothing, if they cannot stand for this convolution."""
        if not self._has_square_windows() or not _is_plain(x, weight):
            return Products()
        dtype = weight.dtype
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
        size, stride, padding = self.kernel_size[0], self.stride[0], int(self.padding[0])
        rows, columns = (_positions(side, size, stride, padding) for side in x.shape[2:])
        positions = max(rows, 0) * max(columns, 0)
        outputs, inputs = weight.shape[:2]
        return products(dtype, inputs, outputs, size, stride, len(x), positions)

    def _has_square_windows(self) -> bool:
        """Say whether windows are the same along both sides, and each reaches into the map."""
        plain = self.groups == 1 and self.padding_mode == "zeros" and self.dilation == (1, 1)
        if not plain or isinstance(self.padding, str):
            return False
        sides = zip(self.kernel_size, self.stride, self.padding, strict=True)
        return len(set(sides)) == 1 and self.padding[0] < self.kernel_size[0] > 1


def _is_plain(x: Tensor, weight: Tensor) -> bool:
    """Say whether these are numbers for a processor to convolve, channels-last, and no more."""
    if x.device.type != "cpu" or torch.compiler.is_compiling() or torch._C._is_tracing():
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None:  # vmap, grad and jvp
        return False
    if any(unpack_dual(tensor).tangent is not None for tensor in (x, weight)):
        return False
    if x.ndim != 4 or x.shape[1] != weight.shape[1] or not len(x):
        return False  # torch knows what to say
    if torch.is_autocast_enabled("cpu"):
        fit = torch.float64 not in (x.dtype, weight.dtype)  # which autocast leaves as they are
    else:
        fit = x.dtype == weight.dtype
    return fit and x.is_contiguous(memory_format=torch.channels_last)


class _Convolution(torch.autograd.Function):
    """The convolution and both its gradients, channels-last.

    The weights' gradient is a product: nothing comes here without it. Output and input's gradient
    are one, or torch's, and where gradients are to have gradients, both are torch's. `x` has the
    precision to compute in.
    """

    @staticmethod
    @custom_fwd(device_type="cpu")
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int,
        by_products: Products,
    ) -> Tensor:  # fmt: skip
        kernel = weight.to(x.dtype)
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight, kernel)
        ctx.shape, ctx.stride, ctx.padding, ctx.by_products = x.shape, stride, padding, by_products
        if not by_products.output:
            return F.conv2d(x, kernel, bias, stride, padding)
        taps = kernel.permute(0, 2, 3, 1).flatten(1).t()  # a view if weights are channels-last
        return _convolve(x, taps, bias, kernel.shape[2], stride, padding)

    @staticmethod
    @custom_bwd(device_type="cpu")
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, kernel = ctx.saved_tensors
        to_input, to_weight, to_bias = ctx.needs_input_grad[:3]
        window = ctx.stride, ctx.padding
        grad_x = grad_weight = grad_bias = None
        grad = grad.contiguous(memory_format=torch.channels_last)
        if to_bias:
            grad_bias = grad.sum((0, 2, 3), dtype=torch.float32)
        if torch.is_grad_enabled():  # create_graph: of torch's gradients there are gradients again
            if to_input:
                grad_x = conv2d_input(ctx.shape, weight.to(grad.dtype), grad, *window)
            if to_weight:
                grad_weight = conv2d_weight(x, weight.shape, grad, *window)
            return grad_x, grad_weight, grad_bias, None, None, None
        if to_input and ctx.by_products.input_gradient:
            grad_x = _input_gradient(ctx.shape, kernel, grad, *window)
        elif to_input:
            grad_x = conv2d_input(ctx.shape, kernel, grad, *window)
        if to_weight:
            grad_weight = _weight_gradient(x, grad, weight, *window)
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


def _input_gradient(
    shape: torch.Size, weight: Tensor, grad: Tensor, stride: int, padding: int
) -> Tensor:
    """Return the gradient of the input, whose shape is given.

    What a convolution did is undone in direction by the kernel turned by half a turn.
    """
    if stride > 1:
        return _strided_input_gradient(shape, weight, grad, stride, padding)
    size = weight.shape[2]
    taps = weight.permute(2, 3, 0, 1).flatten(0, 1)
    turned = torch.cat([taps[number] for number in reversed(range(len(taps)))])
    return _convolve(grad, turned, None, size, 1, size - 1 - padding)


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


def _weight_gradient(x: Tensor, grad: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Return the gradient of the weights, `[C', C, size, size]`, in their precision.

    One product for each row of the kernel: it sums over all places where that row lies inside the
    map, so that no sums of parts are rounded. The maps' rows come first in memory here, which
    makes the rows that take part one block.
    """
    n, c, h, _ = x.shape
    outputs, rows, columns = grad.shape[1:]
    size = weight.shape[2]
    padded = F.pad(x.permute(2, 0, 3, 1), (0, 0, padding, padding))
    down, picture, right, channel = padded.stride()
    shape, strides = (h, n, columns, size, c), (down, picture, right * stride, right, channel)
    windows = padded.as_strided(shape, strides).flatten(3)  # one row high
    if stride == 1:
        windows = windows.contiguous()  # once, as neighbouring rows of the kernel meet the same
    answers = grad.permute(2, 0, 3, 1).contiguous()
    taps = weight.new_empty(outputs, size, size * c)
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
