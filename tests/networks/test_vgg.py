"""VGG-16: the paper's layers, torchvision's names and numbers, clear limits."""

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.testing import assert_close

from litvision.networks.vgg import VGG16, pooling_first


@pytest.fixture(scope="module")
def network() -> VGG16:
    torch.manual_seed(0)
    return VGG16()


def torchvision_features() -> nn.Sequential:
    """The convolutional part of torchvision's VGG-16, without storage.

    Its three linear layers are most of its 138 million parameters; none of them is needed here.
    """
    with torch.device("meta"):
        return torchvision.models.vgg16_bn().features


def outputs_by_layer(features: nn.Sequential, x: Tensor) -> list[Tensor]:
    outputs = []
    for layer in features:
        x = layer(x)
        # A clone, as an activation that follows works in place.
        outputs.append(x.clone())
    return outputs


def test_parameter_count(network):
    assert sum(p.numel() for p in network.parameters()) == 14_728_266


def test_layers_are_torchvisions(network):
    assert [str(layer) for layer in network.features] == [
        str(layer) for layer in torchvision_features()
    ]
    assert list(network.features.state_dict()) == list(torchvision_features().state_dict())


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_every_layer_equals_torchvisions(train):
    torch.manual_seed(1)
    network = VGG16().train(train)
    for module in network.modules():  # differ from the identity, so that a misplaced one shows
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    twin = torchvision_features().to_empty(device="cpu").train(train)
    twin.load_state_dict(network.features.state_dict())
    x = torch.randn(2, 3, 32, 32)

    ours, theirs = outputs_by_layer(network.features, x), outputs_by_layer(twin, x)
    for index, (output, twin_output) in enumerate(zip(ours, theirs, strict=True)):
        assert_close(output, twin_output, msg=lambda text, index=index: f"features.{index}: {text}")
    assert_close(dict(network.features.named_buffers()), dict(twin.named_buffers()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pooling_before_relu_computes_the_same(dtype):
    def trained(in_order: bool) -> list[Tensor]:
        torch.manual_seed(1)
        network = VGG16()
        x = torch.randn(4, 3, 33, 32)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            if in_order:
                logits = network.classifier(network.features(x).mean(dim=(2, 3)))
            else:
                logits = network(x)
        logits.float().square().sum().backward()
        return [logits, *(p.grad for p in network.parameters()), *network.buffers()]

    assert_close(trained(False), trained(True), rtol=0, atol=0)


def test_only_a_relu_before_a_pooling_changes_places():
    order = [type(layer).__name__ for layer in pooling_first(VGG16().features)]
    block = ["Conv2d", "BatchNorm2d", "ReLU"]
    ended = ["Conv2d", "BatchNorm2d", "MaxPool2d", "ReLU"]
    assert order == (block + ended) * 2 + (block * 2 + ended) * 3
    alone = [nn.MaxPool2d(2), nn.Sigmoid(), nn.MaxPool2d(2)]
    assert pooling_first(alone) == alone


def test_logits_are_the_linear_map_of_the_mean_feature(network):
    x = torch.randn(2, 3, 96, 64)
    with torch.inference_mode():
        features = network.eval().features(x)
        assert features.shape == (2, 512, 3, 2)
        pooled = nn.AdaptiveAvgPool2d(1)(features).flatten(1)
        assert_close(network(x), pooled @ network.classifier.weight.T + network.classifier.bias)


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
        network = VGG16(num_classes=num_classes, in_channels=in_channels)
        assert network(torch.randn(2, in_channels, 32, 32)).shape == (2, num_classes)


def test_gradient_reaches_every_parameter():
    torch.manual_seed(2)
    # Evaluation mode: in training, batch normalisation cancels a convolution's bias exactly.
    network = VGG16().eval()
    network(torch.randn(2, 3, 32, 32)).square().sum().backward()
    without = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize(("height", "width"), [(28, 28), (31, 32), (32, 31)])
def test_small_pictures_are_refused(network, height, width):
    with pytest.raises(ValueError, match=f"at least 32x32 pixels, not {height}x{width}"):
        network(torch.zeros(1, 3, height, width))
