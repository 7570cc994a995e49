"""The normalisations that a network can be built with, by name."""

from typing import Literal

from torch import nn

Norm = Literal["batch", "layer", "instance", "group", "none"]

GROUPS = 32  # of channels, as Wu & He found best


def normalization(norm: Norm, channels: int) -> nn.Module:
    """Return the normalisation that follows a convolution of `channels` output channels.

    Each subtracts a mean, divides by the square root of a variance plus eps = 1e-5, multiplies by
    a gain gamma and adds a bias beta, both learned, one a channel. What differs is over which
    values of `[N, C, H, W]` mean and variance are taken:

    - "batch": over N, H and W for each channel, and in evaluation the running averages of training
      (Ioffe & Szegedy 2015, arXiv 1502.03167);
    - "layer": over C, H and W for each picture (Ba et al. 2016, arXiv 1607.06450);
    - "instance": over H and W for each picture and channel (Ulyanov et al. 2016, arXiv 1607.08022);
    - "group": over H, W and the channels of one of 32 groups for each picture (Wu & He 2018,
      arXiv 1803.08494);
    - "none": the values as they are.

    Raises:
        ValueError: `norm` is none of these.
    """
    match norm:
        case "batch":
            return nn.BatchNorm2d(channels)
        case "layer":
            return nn.GroupNorm(1, channels)
        case "instance":
            # The formula of InstanceNorm2d, which has no kernel of its own for channels-last.
            return nn.GroupNorm(channels, channels)
        case "group":
            return nn.GroupNorm(GROUPS, channels)
        case "none":
            return nn.Identity()
    raise ValueError(f"norm={norm!r}: it takes one of batch, layer, instance, group, none")
