"""ResNet-18 for small pictures (He et al., 2015, https://arxiv.org/abs/1512.03385)."""

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from litvision.networks.convolution import Conv2d
from litvision.networks.normalization import Norm, normalization

SMALLEST_SIDE = 8  # below it, the last stages have less than one position to halve to


class ResNet18(nn.Module):
    """ResNet-18 with a stem for small pictures: a 3x3 convolution of stride 1, no max-pooling.

    Four stages of two basic blocks, of 64, 128, 256 and 512 channels, the last three each halving
    the resolution; then global average pooling and one linear layer. 11,173,962 parameters at
    10 classes.

    Parameters and buffers have torchvision's names, so that a state dict of
    `torchvision.models.resnet18` fits in everything but `conv1.weight` (and `fc` where the number
    of classes differs).

    Args:
        num_classes: the number of logits.
        in_channels: 1 for grey pictures, 3 for colour.
        norm: the normalisation after each convolution, see `networks/normalization.py`. Modules
            keep the names `bn…` whatever it is; without any, convolutions have biases.
    """

    def __init__(
        self,
        num_classes: Annotated[int, Field(ge=1)] = 10,
        in_channels: Annotated[int, Field(ge=1)] = 3,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, 64, 3, norm=norm)
        self.bn1 = normalization(norm, 64)
        self.layer1 = stage(64, 64, stride=1, norm=norm)
        self.layer2 = stage(64, 128, stride=2, norm=norm)
        self.layer3 = stage(128, 256, stride=2, norm=norm)
        self.layer4 = stage(256, 512, stride=2, norm=norm)
        self.fc = nn.Linear(512, num_classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures to logits.

        Args:
            x: float `[N, in_channels, H, W]`, normalised; H and W at least 8.

        Returns:
            float `[N, num_classes]`, unnormalised.

        Raises:
            ValueError: H or W is below 8.
        """
        height, width = x.shape[-2:]
        if height < SMALLEST_SIDE or width < SMALLEST_SIDE:
            raise ValueError(
                f"ResNet18 needs pictures of at least {SMALLEST_SIDE}x{SMALLEST_SIDE} pixels, "
                f"not {height}x{width}: enlarge or pad them"
            )
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        x = self.layer4(x)
        return self.fc(x.mean(dim=(2, 3)))


def stage(in_channels: int, channels: int, stride: int, norm: Norm) -> nn.Sequential:
    """Two basic blocks, of which the first changes the width and the resolution."""
    return nn.Sequential(
        BasicBlock(in_channels, channels, stride, norm),
        BasicBlock(channels, channels, stride=1, norm=norm),
    )


def convolution(
    in_channels: int, channels: int, size: int, stride: int = 1, *, norm: Norm
) -> Conv2d:
    """A convolution that keeps the resolution but for its stride.

    It has a bias only where no normalisation follows, which would subtract any constant again.
    """
    bias = norm == "none"
    return Conv2d(in_channels, channels, size, stride, padding=size // 2, bias=bias)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the shortcut around them (figure 2 and option B of the paper).

    `[N, in_channels, H, W]` to `[N, channels, H / stride, W / stride]`, rounded up.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, norm: Norm = "batch") -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, channels, 3, stride, norm=norm)
        self.bn1 = normalization(norm, channels)
        self.conv2 = convolution(channels, channels, 3, norm=norm)
        self.bn2 = normalization(norm, channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                convolution(in_channels, channels, 1, stride, norm=norm),
                normalization(norm, channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Add what the two convolutions make of `x` to `x` itself, at the new width."""
        residual = F.relu(self.bn1(self.conv1(x)), inplace=True)
        residual = self.bn2(self.conv2(residual))
        # In place: backward needs neither summand, and one activation fewer is kept.
        residual += self.downsample(x)
        return F.relu(residual, inplace=True)
