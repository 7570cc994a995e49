"""Beside its products the convolution is torch's layer: gradients, precisions and refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from convolutions import avx2, by_products, exact, layers, note  # noqa: F401 (fixtures)
from torch import Tensor, nn

from litvision.networks.convolution import Conv2d

pytestmark = pytest.mark.usefixtures("avx2")


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
