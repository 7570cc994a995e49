"""Every normalisation equals its formula, and both networks train with each."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from litvision.networks.normalization import normalization
from litvision.networks.resnet import ResNet18
from litvision.networks.vgg import VGG16

EPS = 1e-5
NORMS = ["batch", "layer", "instance", "group", "none"]


def randomized(norm: str, channels: int) -> nn.Module:
    """A normalisation whose gain and bias are not those that it starts with."""
    module = normalization(norm, channels)  # type: ignore[arg-type]
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    return module.double()


def standardized(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Subtract the mean and divide by the root of the biased variance plus eps, as written."""
    mean = x.mean(dims, keepdim=True)
    variance = ((x - mean) ** 2).mean(dims, keepdim=True)
    return (x - mean) / (variance + EPS).sqrt()


def formula(norm: str, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    n, c, h, w = x.shape
    match norm:
        case "batch":
            y = standardized(x, (0, 2, 3))
        case "layer":
            y = standardized(x, (1, 2, 3))
        case "instance":
            y = standardized(x, (2, 3))
        case "group":
            y = standardized(x.view(n, 32, c // 32, h, w), (2, 3, 4)).view(n, c, h, w)
    return y * gamma.view(1, c, 1, 1) + beta.view(1, c, 1, 1)


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("norm", ["layer", "instance", "group"])
def test_those_of_one_picture_are_their_formula_in_training_and_evaluation(norm, train):
    torch.manual_seed(0)
    module, x = randomized(norm, 64).train(train), 3 + 2 * torch.randn(4, 64, 5, 6).double()
    assert_close(module(x), formula(norm, x, module.weight, module.bias), rtol=1e-10, atol=1e-10)


def test_batch_normalisation_is_its_formula_in_training():
    torch.manual_seed(0)
    module, x = randomized("batch", 64), 3 + 2 * torch.randn(4, 64, 5, 6).double()
    assert_close(module(x), formula("batch", x, module.weight, module.bias), rtol=1e-10, atol=1e-10)


def test_batch_normalisation_evaluates_with_running_statistics():
    torch.manual_seed(0)
    module = randomized("batch", 8)
    mean, variance = torch.zeros(8).double(), torch.ones(8).double()
    for _ in range(3):
        x = 3 + 2 * torch.randn(4, 8, 5, 6).double()
        module(x)
        # A tenth of the way to the batch's own, the variance over one value less than there are.
        mean += 0.1 * (x.mean((0, 2, 3)) - mean)
        variance += 0.1 * (x.var((0, 2, 3), correction=1) - variance)
    assert_close(module.running_mean, mean)
    assert_close(module.running_var, variance)
    assert int(module.num_batches_tracked) == 3

    x = torch.randn(2, 8, 5, 6).double()
    standard = (x - mean.view(1, 8, 1, 1)) / (variance.view(1, 8, 1, 1) + EPS).sqrt()
    expected = standard * module.weight.view(1, 8, 1, 1) + module.bias.view(1, 8, 1, 1)
    assert_close(module.eval()(x), expected, rtol=1e-10, atol=1e-10)
    assert int(module.num_batches_tracked) == 3


def test_instance_is_torchs_own():
    torch.manual_seed(0)
    x = torch.randn(3, 16, 5, 4).double()
    expected = nn.InstanceNorm2d(16, affine=True).double()(x)
    assert_close(normalization("instance", 16).double()(x), expected)


def test_none_is_the_identity():
    x = torch.randn(2, 4, 3, 3)
    assert normalization("none", 4)(x) is x
    assert not list(normalization("none", 4).parameters())


def test_another_word_is_refused():
    with pytest.raises(ValueError, match="norm='weight': it takes one of batch, layer, instance"):
        normalization("weight", 4)  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("network", [ResNet18, VGG16])
def test_a_network_has_this_normalisation_and_no_other(network, norm):
    with torch.device("meta"):
        modules = list(network(norm=norm).modules())
        kinds = {str(m) for width in (64, 512) for m in [normalization(norm, width)]}
    found = [m for m in modules if isinstance(m, nn.BatchNorm2d | nn.GroupNorm)]
    convolutions = [m for m in modules if isinstance(m, nn.Conv2d)]
    assert len(found) == (0 if norm == "none" else len(convolutions))
    if norm != "none":
        assert kinds <= {str(m) for m in found}
    if network is ResNet18:
        assert {m.bias is not None for m in convolutions} == {norm == "none"}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("network", [ResNet18, VGG16])
def test_a_step_in_bfloat16_moves_every_weight(network, norm):
    torch.manual_seed(0)
    model = network(norm=norm).to(memory_format=torch.channels_last)
    x = torch.randn(4, 3, 32, 32).to(memory_format=torch.channels_last)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = nn.functional.cross_entropy(model(x).float(), torch.arange(4))
    loss.backward()
    optimizer.step()
    # VGG's convolutions keep their biases, which a normalisation of each channel cancels.
    by_channel = network is VGG16 and norm in ("batch", "instance")
    convolutions = {m.bias for m in model.modules() if isinstance(m, nn.Conv2d)}
    for (name, now), old in zip(model.named_parameters(), before, strict=True):
        assert torch.isfinite(now).all(), name
        assert not torch.equal(now, old) or (by_channel and any(now is b for b in convolutions)), (
            name
        )
