"""ResNet-18: the paper's layers, torchvision's names and numbers, clear limits."""

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.testing import assert_close

from litvision.networks.resnet import ResNet18

LAYERS = [
    "bn1",
    *(f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)),
    "fc",
]


@pytest.fixture(scope="module")
def network() -> ResNet18:
    torch.manual_seed(0)
    return ResNet18()


def with_random_norms(network: nn.Module) -> nn.Module:
    """Make the normalisations differ from the identity, so that a misplaced one shows."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    return network


def torchvision_twin(network: ResNet18) -> nn.Module:
    """torchvision's ResNet-18 with the stem for small pictures and the weights of `network`."""
    twin = torchvision.models.resnet18(num_classes=network.fc.out_features)
    twin.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
    twin.maxpool = nn.Identity()
    twin.load_state_dict(network.state_dict())
    return twin


def outputs_by_layer(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    outputs: dict[str, Tensor] = {}
    for name in LAYERS:
        # A clone, as an activation that follows works in place.
        network.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: outputs.update({name: output.clone()})
        )
    outputs["logits"] = network(x)
    return outputs


def test_parameter_count(network):
    assert sum(p.numel() for p in network.parameters()) == 11_173_962


def test_state_dict_is_torchvisions_but_for_the_stem(network):
    ours = {name: tensor.shape for name, tensor in network.state_dict().items()}
    with torch.device("meta"):
        theirs = torchvision.models.resnet18(num_classes=10).state_dict()
    assert list(ours) == list(theirs)
    different = [name for name in ours if ours[name] != theirs[name].shape]
    assert different == ["conv1.weight"]


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_every_layer_equals_torchvisions(train):
    torch.manual_seed(1)
    network = with_random_norms(ResNet18()).train(train)
    twin = torchvision_twin(network).train(train)
    x = torch.randn(2, 3, 32, 32)

    ours, theirs = outputs_by_layer(network, x), outputs_by_layer(twin, x)
    assert list(ours) == list(theirs) == [*LAYERS, "logits"]
    for name in ours:
        assert_close(ours[name], theirs[name], msg=lambda text, name=name: f"{name}: {text}")

    ours["logits"].square().sum().backward()
    theirs["logits"].square().sum().backward()
    for (name, parameter), twin_parameter in zip(
        network.named_parameters(), twin.parameters(), strict=True
    ):
        assert_close(
            parameter.grad,
            twin_parameter.grad,
            msg=lambda text, name=name: f"gradient of {name}: {text}",
        )
    assert_close(dict(network.named_buffers()), dict(twin.named_buffers()))


@pytest.mark.parametrize(
    ("batch_size", "height", "width"),
    [(3, 32, 32), (2, 33, 33), (2, 32, 47), (2, 64, 64), (1, 96, 96), (1, 224, 224)],
)
def test_output_shape_by_size(network, batch_size, height, width):
    with torch.inference_mode():
        logits = network.eval()(torch.randn(batch_size, 3, height, width))
    assert logits.shape == (batch_size, 10)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_output_shape_by_option(num_classes, in_channels):
    with torch.device("meta"):
        network = ResNet18(num_classes=num_classes, in_channels=in_channels)
        assert network(torch.randn(2, in_channels, 32, 32)).shape == (2, num_classes)


@pytest.mark.parametrize("side", [8, 24, 28])
def test_the_last_stage_has_an_eighth_of_the_side(network, side):
    maps = []
    hook = network.layer4.register_forward_hook(lambda *call: maps.append(call[-1].shape))
    with torch.inference_mode():
        logits = network.eval()(torch.randn(2, 3, side, side))
    hook.remove()
    assert (maps, logits.shape) == ([(2, 512, (side + 7) // 8, (side + 7) // 8)], (2, 10))


def test_gradient_reaches_every_parameter():
    torch.manual_seed(2)
    network = ResNet18()
    network(torch.randn(2, 3, 32, 32)).square().sum().backward()
    without = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize(("height", "width"), [(7, 7), (7, 32), (32, 7)])
def test_small_pictures_are_refused(network, height, width):
    with pytest.raises(ValueError, match=f"at least 8x8 pixels, not {height}x{width}"):
        network(torch.zeros(1, 3, height, width))
