"""The convolution by matrix products equals torch's, and is used only where it is meant to be."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from convolutions import amx, avx2, by_products, exact, layers, note  # noqa: F401 (fixtures)
from torch import Tensor, nn

from litvision.networks import convolution
from litvision.networks.convolution import Conv2d, Products

pytestmark = pytest.mark.usefixtures("avx2")

SHAPES = [
    # height, width, kernel size, stride, padding
    (4, 4, 3, 1, 1),
    (2, 2, 3, 1, 1),
    (1, 1, 3, 1, 1),
    (2, 5, 3, 1, 1),
    (8, 8, 3, 2, 1),
    (7, 3, 3, 2, 1),
    (4, 4, 2, 2, 0),
    (5, 5, 3, 1, 0),
    (3, 3, 5, 1, 2),
    (1, 4, 5, 1, 2),
    (6, 6, 3, 3, 2),
    (7, 8, 5, 2, 2),
    (9, 9, 2, 3, 0),
    (10, 7, 3, 4, 1),
    (9, 9, 5, 2, 0),
    (12, 12, 7, 2, 0),
    (8, 8, 2, 2, 0),
]


def pass_through(
    layer: nn.Conv2d, x: Tensor, grad: Tensor, dtype: torch.dtype = torch.bfloat16
) -> dict[str, Tensor]:
    """Return output and gradients in channels-last, as training runs it in that precision."""
    layer = layer.to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y = layer(x)
    assert y.dtype == dtype
    inputs = {"input": x, **dict(layer.named_parameters())}
    grads = torch.autograd.grad(y, list(inputs.values()), grad.to(y.dtype))
    return {"output": y.detach(), **dict(zip(inputs, grads, strict=True))}


def agrees_on_whole_numbers(
    layer: Conv2d, height: int, width: int, dtype: torch.dtype = torch.bfloat16
) -> None:
    """bfloat16 holds whole numbers up to 256, so that any order of summing gives the same."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randint(-1, 2, parameter.shape, generator=random))
    x = torch.randint(-1, 2, (3, layer.in_channels, height, width), generator=random).float()
    shape = F.conv2d(x, layer.weight, None, layer.stride, layer.padding).shape
    grad = torch.randint(-1, 2, shape, generator=random).float()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        assert by_products(layer, x.clone().to(memory_format=torch.channels_last))
    expected = exact(layer, x, grad)
    for name, found in pass_through(layer, x, grad, dtype).items():
        assert torch.equal(found.double(), expected[name]), name


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("has_amx", [False, True])
@pytest.mark.parametrize(("height", "width", "size", "stride", "padding"), SHAPES)
def test_whole_numbers_come_out_exactly(
    height: int, width: int, size: int, stride: int, padding: int, has_amx: bool, bias: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(convolution, "has_amx", lambda: has_amx)
    monkeypatch.setattr(convolution, "CHANNELS_AMX", 4)
    called = note(monkeypatch, "_strided_input_gradient")
    agrees_on_whole_numbers(Conv2d(4, 6, size, stride, padding, bias=bias), height, width)
    assert bool(called) == (has_amx and stride == 2)


@pytest.mark.usefixtures("amx")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("height", "width", "size", "stride", "padding"),
    [(8, 8, 3, 1, 1), (8, 8, 3, 1, 0), (7, 9, 3, 1, 1), (16, 16, 3, 2, 1), (9, 7, 5, 1, 2)],
)
def test_the_gradients_alone_by_products(
    height: int, width: int, size: int, stride: int, padding: int, bias: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(convolution, "CHANNELS_AMX", 4)
    called = note(monkeypatch, "_convolve", "_strided_input_gradient", "_weight_gradient")
    layer = Conv2d(4, 6, size, stride, padding, bias=bias)
    agrees_on_whole_numbers(layer, height, width)
    expected = ["_strided_input_gradient"] if stride > 1 else []
    assert called == [*expected, "_weight_gradient"]


@pytest.mark.parametrize("all_of_it", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("height", "width", "size", "stride", "padding"), [*SHAPES, (8, 8, 3, 1, 1), (15, 13, 3, 2, 1)]
)
def test_whole_numbers_come_out_exactly_in_float32(
    height: int, width: int, size: int, stride: int, padding: int, bias: bool, all_of_it: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    by_products = Products(all_of_it, all_of_it and stride <= 2, weight_gradient=True)
    monkeypatch.setattr(convolution, "products", lambda *_: by_products)
    called = note(monkeypatch, "_convolve", "_strided_input_gradient", "_weight_gradient")
    layer = Conv2d(4, 6, size, stride, padding, bias=bias)
    agrees_on_whole_numbers(layer, height, width, torch.float32)
    expected = ["_convolve", "_convolve"] if all_of_it else []  # the first, to see which way
    if by_products.input_gradient:
        expected.append("_convolve" if stride == 1 else "_strided_input_gradient")
    assert called == [*expected, "_weight_gradient"]


@pytest.mark.usefixtures("amx")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("channels", "side", "stride"),
    [(64, 4, 1), (96, 2, 1), (64, 8, 2), (128, 8, 2), (128, 8, 1), (128, 16, 2), (256, 8, 2)],
)
def test_it_is_as_near_to_the_truth_as_torchs(
    channels: int, side: int, stride: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    ours, torchs = layers(channels, channels, 3, stride, 1, bias=False)
    x = torch.randn(32, channels, side, side)
    grad = torch.randn(32, channels, side // stride, side // stride)
    truth = exact(ours, x, grad)
    expected = pass_through(torchs, x.clone(), grad, dtype)
    for name, found in pass_through(ours, x.clone(), grad, dtype).items():
        error = (found.double() - truth[name]).norm() / truth[name].norm()
        torchs_error = (expected[name].double() - truth[name]).norm() / truth[name].norm()
        slack = 1e-4 if dtype == torch.bfloat16 else 2e-7
        assert error < 1.1 * torchs_error + slack, name
        assert found.dtype == expected[name].dtype
        assert found.is_contiguous(memory_format=torch.channels_last)


def test_only_inputs_that_gain_take_the_way_by_products() -> None:
    small = torch.randn(2, 4, 4, 4).to(memory_format=torch.channels_last)
    large = torch.randn(2, 4, 16, 16).to(memory_format=torch.channels_last)
    plain = Conv2d(4, 4, 3, padding=1)
    assert not by_products(plain, small)  # float32, and few channels
    with torch.autocast("cpu", torch.bfloat16):
        assert by_products(plain, small)
        assert not by_products(plain, large)
        assert not by_products(plain, small.clone(memory_format=torch.contiguous_format))
        assert not by_products(Conv2d(4, 4, 1), small)
        assert not by_products(Conv2d(4, 4, 3, padding=1, groups=2), small)
        assert not by_products(Conv2d(4, 4, 3, padding=1, dilation=2), small)
        assert not by_products(Conv2d(4, 4, (3, 1)), small)
        assert not by_products(Conv2d(4, 4, 3, padding="same"), small)
        assert not by_products(Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), small)
    assert by_products(Conv2d(4, 4, 3, padding=1).bfloat16(), small.detach().bfloat16())


@pytest.mark.usefixtures("amx")
def test_only_gradients_that_gain_take_the_way_by_products(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = convolution.CHANNELS_AMX

    def of(side: int, inputs: int = wide, outputs: int = wide, **options: Any) -> bool:
        x = torch.randn(2, inputs, side, side).to(memory_format=torch.channels_last)
        layer = Conv2d(inputs, outputs, 3, padding=1, **options)
        layer.weight.requires_grad_(trains)
        with torch.autocast("cpu", torch.bfloat16):
            return by_products(layer, x)

    trains = True
    assert of(8)
    assert of(4)
    assert not of(9)
    assert of(16, stride=2)
    assert not of(8, inputs=wide - 1)
    assert not of(8, outputs=wide - 1)
    trains = False
    assert not of(8)
    assert of(4)
    monkeypatch.setattr(convolution, "has_amx", lambda: False)
    trains = True
    assert not of(8)
    assert of(4)


@pytest.mark.usefixtures("amx")
def test_without_gradients_torchs_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution._Convolution, "apply", pytest.fail)
    x = torch.randn(2, 128, 8, 8).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        assert Conv2d(128, 128, 3, padding=1)(x).shape == (2, 128, 8, 8)


def test_what_follows_may_work_in_place() -> None:
    x = torch.randn(2, 4, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    layer = Conv2d(4, 4, 3, padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        F.relu(layer(x), inplace=True).sum().backward()
        expected = (layer(x.detach()) > 0).float().sum((0, 2, 3))
    assert torch.equal(layer.bias.grad, expected)


@pytest.mark.parametrize(
    ("inputs", "outputs", "stride", "positions", "expected"),
    [
        # output, gradient of the input, gradient of the weights
        (256, 512, 1, 16, (True, True, True)),
        (512, 256, 2, 16, (True, True, True)),
        (256, 256, 3, 16, (True, False, True)),
        (256, 256, 1, 17, (False, False, True)),
        (256, 255, 1, 16, (False, False, True)),
        (128, 192, 1, 256, (False, False, True)),
        (128, 192, 1, 257, (False, False, False)),
        (128, 191, 1, 17, (False, False, False)),
        (127, 192, 1, 17, (False, False, False)),
        (128, 128, 1, 16, (False, False, True)),
        (128, 127, 1, 16, (False, False, False)),
        (127, 128, 1, 16, (False, False, False)),
        (64, 128, 2, 1024, (False, False, True)),
        (64, 128, 2, 1025, (False, False, False)),
        (64, 127, 2, 16, (False, False, False)),
        (63, 128, 2, 16, (False, False, False)),
        (64, 128, 3, 100, (False, False, False)),
        (512, 512, 1, 0, (False, False, False)),
    ],
)
def test_what_goes_by_products_in_float32(
    inputs: int, outputs: int, stride: int, positions: int, expected: tuple[bool, bool, bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def found(dtype: torch.dtype) -> tuple[Any, ...]:
        return astuple(
            convolution.products(dtype, inputs, outputs, size, stride, pictures, positions)
        )

    size = 3
    pictures = 7
    assert found(torch.float32) == (False, False, False)
    pictures = 8
    assert found(torch.float32) == expected
    size = 5  # not measured
    assert found(torch.float32) == (False, False, False)
    size = 3
    assert found(torch.float64) == (False, False, False)
    monkeypatch.setattr(convolution, "has_avx2", lambda: False)
    assert found(torch.float32) == (False, False, False)


def test_in_float32_without_gradients_the_output_alone_goes_by_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called = note(monkeypatch, "_convolve")
    layer = Conv2d(256, 256, 3, padding=1)
    with torch.inference_mode():
        for side in (4, 5):
            layer(torch.randn(8, 256, side, side).to(memory_format=torch.channels_last))
        layer(torch.randn(7, 256, 4, 4).to(memory_format=torch.channels_last))
    assert called == ["_convolve"]
