"""What the tests of the convolution share: layers beside torch's, and which way they go."""

from __future__ import annotations

from typing import Any

import pytest
import torch.nn.functional as F
from torch import Tensor, nn

from litvision.networks import convolution
from litvision.networks.convolution import Conv2d


def exact(layer: nn.Conv2d, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
    """Return output and gradients of torch's convolution, in float64."""
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


@pytest.fixture
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
