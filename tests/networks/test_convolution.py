"""The convolution by matrix products equals torch's, and is used only where it is meant to be."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litvision.networks import convolution
from litvision.networks.convolution import Conv2d, Products

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


def exact(layer: nn.Conv2d, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
    """The same in float64."""
    weight = layer.weight.detach().double().requires_grad_()
    bias = None if layer.bias is None else layer.bias.detach().double().requires_grad_()
    x = x.double().requires_grad_()
    y = F.conv2d(x, weight, bias, layer.stride, layer.padding)
    y.backward(grad.double())
    found = {"output": y.detach(), "input": x.grad, "weight": weight.grad}
    return found if bias is None else found | {"bias": bias.grad}


def layers(*arguments: Any, **options: Any) -> tuple[Conv2d, nn.Conv2d]:
    ours, torchs = Conv2d(*arguments, **options), nn.Conv2d(*arguments, **options)
    torchs.load_state_dict(ours.state_dict())
    return ours, torchs


def by_products(layer: Conv2d, x: Tensor) -> bool:
    """Say whether a layer goes its own way, from what autograd has noted."""
    y = layer(x.requires_grad_())
    return "_Convolution" in str(y.grad_fn)


@pytest.fixture(autouse=True)
def avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor with AVX2 and without AMX, unless a test asks for another."""
    monkeypatch.setattr(convolution, "has_amx", lambda: False)
    monkeypatch.setattr(convolution, "has_avx2", lambda: True)


@pytest.fixture
def amx(avx2: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor with AMX, for what is decided by it."""
    monkeypatch.setattr(convolution, "has_amx", lambda: True)


def note(monkeypatch: pytest.MonkeyPatch, *names: str) -> list[str]:
    """Return a list of those of the module's functions that are called from here on."""
    called: list[str] = []

    def noted(name: str) -> Any:
        function = getattr(convolution, name)
        return lambda *a: (called.append(name), function(*a))[1]

    for name in names:
        monkeypatch.setattr(convolution, name, noted(name))
    return called


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


def wide(stride: int = 1, **options: Any) -> tuple[Conv2d, nn.Conv2d, Tensor]:
    """Return a layer that goes by products in float32, torch's with its weights, and an input."""
    torch.manual_seed(0)
    ours, torchs = layers(256, 256, 3, stride, 1, **options)
    x = torch.randn(8, 256, 4 * stride, 4 * stride).to(memory_format=torch.channels_last)
    assert by_products(ours, x.clone(memory_format=torch.preserve_format))
    return ours, torchs, x


@pytest.mark.parametrize("trains", [True, False], ids=["trains", "frozen"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_penalty_on_gradients_has_gradients(
    dtype: torch.dtype, stride: int, trains: bool
) -> None:
    """As a penalty on the gradient of the input (double back-propagation) needs them."""

    def penalise(layer: nn.Conv2d) -> list[Tensor]:
        layer.weight.requires_grad_(trains)
        taken = x.clone(memory_format=torch.preserve_format).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            y = layer(taken).float()
        asked = [taken, *layer.parameters()] if trains else [taken]
        first = torch.autograd.grad(y.square().sum(), asked, create_graph=True)
        found = list(first)
        for grad in first:  # each by itself: weights' are far larger than inputs'
            found += torch.autograd.grad(grad.square().sum(), asked, retain_graph=True)
        return found

    ours, torchs, x = wide(stride)
    tolerance = 0.02 if dtype == torch.bfloat16 else 1e-5
    for found, expected in zip(penalise(ours), penalise(torchs), strict=True):
        assert found.dtype == expected.dtype
        assert (found - expected).norm() < tolerance * expected.norm()


def test_only_the_gradients_that_are_asked_for_are_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, _, x = wide(2)
    called = note(monkeypatch, "_input_gradient", "_weight_gradient")
    ours(x.detach()).sum().backward()
    assert called == ["_weight_gradient"]
    ours.requires_grad_(False)
    y = ours(x.requires_grad_())
    kept = [saved.shape for saved in y.grad_fn.saved_tensors if saved is not None]
    assert set(kept) == {ours.weight.shape}  # not the input's
    y.sum().backward()
    assert called == ["_weight_gradient", "_input_gradient"]
    torchs_own = note(monkeypatch, "conv2d_input")
    picture = torch.randn(8, 128, 16, 16).to(memory_format=torch.channels_last)
    first = Conv2d(128, 192, 3, padding=1)
    first(picture).sum().backward()
    assert not torchs_own
    first(picture.requires_grad_()).sum().backward()
    assert torchs_own == ["conv2d_input"]


def test_the_bias_gradient_is_a_sum_in_float32() -> None:
    layer = Conv2d(4, 4, 3, padding=1)
    x = torch.zeros(257, 4, 1, 1).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x).sum().backward()
    assert layer.bias.grad.tolist() == [257.0] * 4  # which bfloat16 would round to 256


def test_the_gradient_of_a_step_in_float32_is_so_where_autocast_is_on_by_then() -> None:
    ours, _, x = wide()
    grad = torch.randn(8, 256, 4, 4)
    truth = exact(ours, x, grad)
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        y = ours(x.requires_grad_())
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(y, [x, ours.weight], grad)
    for name, gradient in zip(("input", "weight"), found, strict=True):
        assert (gradient - truth[name]).norm() < 1e-5 * truth[name].norm(), name


def test_the_precision_is_the_weights_own_whatever_torchs_default() -> None:
    ours, _, x = wide()
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = torch.autograd.grad(ours(x), [ours.weight], torch.ones(8, 256, 4, 4).float())
    finally:
        torch.set_default_dtype(torch.float32)
    truth = exact(ours, x, torch.ones(8, 256, 4, 4))
    assert (found[0] - truth["weight"]).norm() < 1e-5 * truth["weight"].norm()


def test_a_parametrization_is_computed_once_a_pass() -> None:
    ours, torchs, x = wide()
    for layer in (ours, torchs):
        torch.manual_seed(0)
        nn.utils.parametrizations.spectral_norm(layer)
    torch.testing.assert_close(ours(x), torchs(x))
    left, right = (layer.parametrizations["weight"][0]._u for layer in (ours, torchs))
    assert torch.equal(left, right)
    ours(x.contiguous()), torchs(x.contiguous())  # torch's own way
    assert torch.equal(left, right)


def test_forward_differentiation_is_torchs_own() -> None:
    ours, torchs, x = wide()
    x = x.detach()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        tangent = torch.autograd.forward_ad.unpack_dual(ours(dual)).tangent
        turned = torch.autograd.forward_ad.make_dual(torchs.weight.detach(), ours.weight.detach())
        with torch.no_grad():
            by_weight = torch.func.functional_call(ours, {"weight": turned}, (x,))
            other = torch.autograd.forward_ad.unpack_dual(by_weight).tangent
    for found in (tangent, other):
        torch.testing.assert_close(found, F.conv2d(x, torchs.weight, padding=1))


def test_a_recorded_layer_is_torchs_own() -> None:
    ours, _, x = wide()
    assert "aten::_convolution" in str(torch.jit.trace(ours, x).inlined_graph)
    recorded: list[str] = []

    def keep(module: torch.fx.GraphModule, _: Any) -> Any:
        recorded.append(module.code)
        return module.forward

    torch.compile(ours, backend=keep, fullgraph=True)(x)
    assert "conv2d" in recorded[0]
    assert "autograd" not in recorded[0]


def test_float64_is_left_to_torch_within_autocast_too() -> None:
    x = torch.randn(8, 4, 4, 4).double().to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        double = Conv2d(4, 4, 3, padding=1).double()
        assert not by_products(double, x)
        with pytest.raises(RuntimeError, match="should be the same"):
            double(x.detach().float())
        with pytest.raises(RuntimeError, match="should be the same"):
            Conv2d(4, 4, 3, padding=1)(x)


def test_in_another_layout_it_is_torchs_own_to_the_bit() -> None:
    torch.manual_seed(0)
    ours, torchs = layers(256, 256, 3, 1, 1)
    x = torch.randn(8, 256, 4, 4)
    assert torch.equal(ours(x), torchs(x))


def test_within_torch_func_it_is_torchs_own() -> None:
    torch.manual_seed(0)
    ours, torchs = layers(256, 256, 3, 1, 1)
    x = torch.randn(2, 8, 256, 4, 4)
    torch.testing.assert_close(torch.vmap(ours)(x), torch.stack([torchs(part) for part in x]))
    picture = x[0].to(memory_format=torch.channels_last)
    _, tangent = torch.func.jvp(ours, (picture,), (picture,))
    torch.testing.assert_close(tangent, F.conv2d(picture, ours.weight, padding=1))


def test_precisions_that_do_not_fit_are_refused_as_torch_refuses_them() -> None:
    x = torch.randn(8, 256, 4, 4).bfloat16().to(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match="should be the same"):
        Conv2d(256, 256, 3, padding=1)(x)


@pytest.mark.parametrize("side", [1, 2])
def test_a_kernel_too_large_for_the_map_is_refused_as_torch_refuses_it(side: int) -> None:
    x = torch.randn(1, 4, side, side).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="Kernel size"):
        Conv2d(4, 4, 3)(x)


def test_what_torch_refuses_or_takes_besides_batches_of_maps() -> None:
    layer = Conv2d(4, 6, 3, padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(RuntimeError, match="to have 4 channels, but got 2 channels"):
            layer(torch.randn(1, 2, 4, 4).to(memory_format=torch.channels_last))
        assert layer(torch.randn(0, 4, 4, 4).to(memory_format=torch.channels_last)).shape[0] == 0
        assert layer(torch.randn(4, 3, 3)).shape == (6, 3, 3)


@pytest.mark.parametrize("bias", [False, True])
def test_on_single_pixels_it_is_a_linear_layer(bias: bool) -> None:
    torch.manual_seed(0)
    ours, torchs = layers(6, 4, 1, stride=2, bias=bias)
    x = torch.randn(3, 6, 1, 1, requires_grad=True)
    y = ours(x)
    torch.testing.assert_close(y, torchs(x))
    assert "Unsqueeze" in str(y.grad_fn)  # each side added to a matrix
    assert ours(torch.randn(3, 6, 2, 1)).shape == (3, 4, 1, 1)  # more than a pixel: torch's own way
    padded, _ = layers(6, 4, 1, padding=1)
    assert padded(x).shape == (3, 4, 3, 3)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1, "dilation": 2},
        {"kernel_size": 3, "padding": 1, "stride": (1, 2)},
        {"kernel_size": 3, "padding": (1, 0)},
        {"kernel_size": 2, "padding": 2},
    ],
    ids=str,
)
def test_other_windows_take_torchs_way(options: dict[str, Any]) -> None:
    ours, theirs = Conv2d(4, 4, **options), nn.Conv2d(4, 4, **options)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 4, 3, 3).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        y = ours(x)
        assert "_Convolution" not in str(y.grad_fn)
        torch.testing.assert_close(y, theirs(x), rtol=0.05, atol=0.05)


def test_windows_outside_of_the_map_are_torchs() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        for padding, expected in ((1, True), (2, False)):
            x = torch.randn(2, 4, 1, 1).to(memory_format=torch.channels_last)
            assert by_products(Conv2d(4, 4, 2, padding=padding), x) == expected


def test_a_layer_says_which_channels_are_its_inputs() -> None:
    x = torch.randn(8, 128, 4, 4).to(memory_format=torch.channels_last)
    assert by_products(Conv2d(64, 128, 3, stride=2, padding=1), x[:, :64].clone())
    assert not by_products(Conv2d(128, 64, 3, stride=2, padding=1), x)


def test_groups_of_single_pixels() -> None:
    ours, theirs = Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 4, 1, groups=2)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 4, 1, 1)
    torch.testing.assert_close(ours(x), theirs(x))
