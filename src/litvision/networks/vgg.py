"""VGG-16 with batch normalisation, for small pictures.

Simonyan & Zisserman, 2014, https://arxiv.org/abs/1409.1556 (configuration D);
Ioffe & Szegedy, 2015, https://arxiv.org/abs/1502.03167.
"""

from collections.abc import Iterable
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from litvision.networks.convolution import Conv2d
from litvision.networks.normalization import Norm, normalization

SMALLEST_SIDE = 32  # five poolings halve it to 1

# Output channels of each convolution; a max-pooling ends each stage.
STAGES = (
    (64, 64),
    (128, 128),
    (256, 256, 256),
    (512, 512, 512),
    (512, 512, 512),
)


class VGG16(nn.Module):
    """VGG-16 with batch normalisation and one linear layer in place of the paper's three.

    Thirteen 3x3 convolutions in five stages, each stage ended by a max-pooling that halves the
    resolution; then global average pooling, which takes any picture size, and one linear layer.
    14,728,266 parameters at 10 classes.

    `features` has torchvision's names, indices and order, so that the state dict of
    `torchvision.models.vgg16_bn().features` fits; `forward` takes them in the order of
    `pooling_first`.

    Args:
        num_classes: the number of logits.
        in_channels: 1 for grey pictures, 3 for colour.
        norm: the normalisation after each convolution, see `networks/normalization.py`.
    """

    def __init__(
        self,
        num_classes: Annotated[int, Field(ge=1)] = 10,
        in_channels: Annotated[int, Field(ge=1)] = 3,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for stage in STAGES:
            for channels in stage:
                layers += conv_block(in_channels, channels, norm)
                in_channels = channels
            layers += [nn.MaxPool2d(kernel_size=2)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(in_channels, num_classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures to logits.

        Args:
            x: float `[N, in_channels, H, W]`, normalised; H and W at least 32.

        Returns:
            float `[N, num_classes]`, unnormalised.

        Raises:
            ValueError: H or W is below 32.
        """
        height, width = x.shape[-2:]
        if height < SMALLEST_SIDE or width < SMALLEST_SIDE:
            raise ValueError(
                f"VGG16 needs pictures of at least {SMALLEST_SIDE}x{SMALLEST_SIDE} pixels, "
                f"not {height}x{width}: enlarge or pad them"
            )
        for layer in pooling_first(self.features):
            x = layer(x)
        return self.classifier(x.mean(dim=(2, 3)))


def pooling_first(layers: Iterable[nn.Module]) -> list[nn.Module]:
    """Return layers in an order that computes the same in less time: a max-pooling before its ReLU.

    The largest of four values, then the ReLU of it, is the largest of their ReLUs, and where a
    gradient comes back, the same one of the four gets it. The ReLU has a fourth of the values.
    """
    ordered: list[nn.Module] = []
    for layer in layers:
        swap = isinstance(layer, nn.MaxPool2d) and ordered and isinstance(ordered[-1], nn.ReLU)
        ordered.insert(len(ordered) - bool(swap), layer)
    return ordered


def conv_block(in_channels: int, channels: int, norm: Norm) -> list[nn.Module]:
    """A 3x3 convolution, its normalisation and its activation; the resolution stays.

    A flat list, not a module: nesting would change torchvision's indices in `features`.
    """
    return [
        Conv2d(in_channels, channels, kernel_size=3, padding=1),
        normalization(norm, channels),
        nn.ReLU(inplace=True),
    ]
