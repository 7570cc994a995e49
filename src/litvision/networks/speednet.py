"""A network for small pictures that learns in few epochs: SpeedNet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from litvision.networks.convolution import Conv2d

SMALLEST_SIDE = 9  # below it, nothing is left after three poolings


class SpeedNet(nn.Module):
    """Three groups of two convolutions behind a fixed layer that whitens 2x2 patches.

    The architecture of Jordan 2024 ("94% on CIFAR-10 in 3.29 Seconds on a Single GPU", arXiv
    2404.00498), which goes back to Page's ResNet series (2018) and Balsam's "hlb-CIFAR10" (2023):

    - whitening: filters that make the patches' values uncorrelated and of equal variance, each also
      with the opposite sign, computed once from training pictures by `whiten` and never trained;
    - convolutions that begin as the identity on as many channels as they take, filled up with
      random ones, so that the signal is there from the first step;
    - batch normalisation without gains;
    - logits divided by the number of features, which keeps the first answers unsure.

    Until `whiten` is called, the first layer's filters are random.

    Args:
        num_classes: number of logits.
        in_channels: channels of the pictures.
        widths: channels of the three groups.
        epsilon: added to the variance of each direction of the patches, so that one that holds
            little but noise, as colour within a 2x2 patch of a JPEG, is not blown up.
        directions: of the 4 * `in_channels` of a patch, the whitening looks at so many, those of
            the largest variance; None: at all. Fewer take less time: 8 make 16 channels, where 24
            fill the processor's registers badly.
        gates: weigh channels by the whole picture after each convolution, see `Gate`.
        norm_pictures: normalise over so many pictures of a batch at a time, see `GhostBatchNorm2d`;
            None: over all.

    Raises:
        ValueError: a patch has fewer directions.
    """

    def __init__(
        self,
        num_classes: Annotated[int, Field(ge=1)] = 10,
        in_channels: Annotated[int, Field(ge=1)] = 3,
        widths: Annotated[Sequence[int], Field(min_length=3, max_length=3)] = (64, 256, 256),
        epsilon: Annotated[float, Field(gt=0)] = 5e-4,
        directions: Annotated[int, Field(ge=1)] | None = None,
        gates: bool = False,
        norm_pictures: Annotated[int, Field(ge=2)] | None = None,
    ) -> None:
        super().__init__()
        patch = in_channels * 2 * 2
        directions = directions or patch
        if directions > patch:
            raise ValueError(
                f"directions={directions}: 2x2 patches of {in_channels} channels have {patch}"
            )
        whitened = 2 * directions  # each with both signs
        self.epsilon = epsilon
        self.directions = directions
        self.whitening = nn.Conv2d(in_channels, whitened, kernel_size=2)
        self.whitening.weight.requires_grad_(False)
        self.gate = Gate(whitened) if gates else nn.Identity()
        self.groups = nn.ModuleList(
            ConvGroup(before, after, gates, norm_pictures)
            for before, after in zip((whitened, *widths), widths, strict=False)
        )
        self.fc = nn.Linear(widths[-1], num_classes, bias=False)
        with torch.no_grad():
            self.fc.weight /= self.fc.weight.std()

    @torch.no_grad()
    def whiten(self, batches: Iterable[Tensor]) -> None:
        """Compute the filters of the first layer.

        With the eigenvectors v and eigenvalues s of the patches' second moments, they are
        v / sqrt(s + epsilon) and the negatives of these, for the `directions` largest s.

        Args:
            batches: normalised training pictures, each float `[N, in_channels, H, W]`, H and W
                at least 2. While one is taken apart, it needs about 70 bytes a value.
        """
        size = self.whitening.kernel_size
        moments, count = torch.zeros(()), 0
        for images in batches:
            doubles = images.cpu().double()  # not every device has them
            patches = F.unfold(doubles, size).transpose(1, 2).flatten(0, 1)
            moments, count = moments + patches.T @ patches, count + len(patches)
        values, vectors = torch.linalg.eigh(moments / count)
        filters = (vectors / (values + self.epsilon).sqrt()).T.unflatten(1, (-1, *size))
        filters = filters[-self.directions :]  # the values ascend
        self.whitening.weight.copy_(torch.cat((filters, -filters)))

    def forward(self, x: Tensor) -> Tensor:
        """Classify pictures.

        Args:
            x: float `[N, in_channels, H, W]`, H and W at least 9.

        Returns:
            float `[N, num_classes]`, unnormalised.

        Raises:
            ValueError: H or W is below 9.
        """
        if min(x.shape[-2:]) < SMALLEST_SIDE:
            raise ValueError(
                f"SpeedNet needs pictures of at least {SMALLEST_SIDE}x{SMALLEST_SIDE} pixels, "
                f"not {x.shape[-2]}x{x.shape[-1]}: enlarge or pad them"
            )
        x = self.gate(F.gelu(self.whitening(x)))
        for group in self.groups:
            x = group(x)
        # Not `amax`: compiled for bfloat16 on a processor, its gradient compares what is rounded
        # with what is not, finds no largest, and divides by zero.
        x = F.max_pool2d(x, x.shape[2:]).flatten(1)
        return self.fc(x) / x.shape[1]


class ConvGroup(nn.Module):
    """Two 3x3 convolutions, halving the resolution after the first.

    `[N, in_channels, H, W]` to `[N, channels, H / 2, W / 2]`, rounded down. Of a side of odd
    length, pooling by two drops the last position, so the first convolution does not compute it:
    at 7x7 that is a quarter of its work.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        gate: bool = False,
        norm_pictures: int | None = None,
    ) -> None:
        super().__init__()
        self.conv1 = identity_convolution(in_channels, channels, padding=0)
        self.norm1 = normalization(channels, norm_pictures)
        self.gate1 = Gate(channels) if gate else nn.Identity()
        self.conv2 = identity_convolution(channels, channels)
        self.norm2 = normalization(channels, norm_pictures)
        self.gate2 = Gate(channels) if gate else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, pool, normalise, weigh; convolve, normalise, weigh."""
        h, w = x.shape[2:]
        x = self.conv1(F.pad(x, (1, 1 - w % 2, 1, 1 - h % 2)))
        x = self.gate1(F.gelu(self.norm1(F.max_pool2d(x, 2))))
        return self.gate2(F.gelu(self.norm2(self.conv2(x))))


class Gate(nn.Module):
    """Multiplies each channel by what a linear layer makes of all channels' means over the picture.

    Squeeze-and-excitation (Hu et al. 2018, arXiv 1709.01507) with one layer instead of two with a
    bottleneck, which costs accuracy (Wang et al. 2020, arXiv 1910.03151), and with factors between
    0 and 2, so that they begin near 1. `[N, channels, H, W]` to the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return x, each channel scaled."""
        # Channels last, as it lies in memory, a mean over one dimension takes a fourth of the time.
        positions = x.permute(0, 2, 3, 1).flatten(1, 2)
        # And a sum, in bfloat16, takes a seventh of the time of a mean.
        means = (positions.sum(1) / positions.shape[1])[..., None, None]
        factors = 2 * torch.sigmoid(self.conv(means)).flatten(1)
        scaled = positions * factors[:, None]
        return scaled.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


def identity_convolution(in_channels: int, channels: int, padding: int = 1) -> Conv2d:
    """A 3x3 convolution whose first `in_channels` outputs begin as its inputs."""
    layer = Conv2d(in_channels, channels, 3, padding=padding, bias=False)
    with torch.no_grad():
        nn.init.dirac_(layer.weight[:in_channels])
    return layer


def normalization(channels: int, pictures: int | None = None) -> nn.BatchNorm2d:
    """Batch normalisation with a bias but no gain: the next layer's filters can scale as well."""
    layer = GhostBatchNorm2d(channels, pictures)
    layer.weight.requires_grad_(False)
    return layer


class GhostBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation, in training, over parts of a batch, noisy as over small batches.

    Hoffer et al. 2017, arXiv 1705.08741. The running averages follow as fast as with one part.

    Args:
        channels: C of the `[N, C, H, W]` that it takes.
        pictures: in a part, at least; None: the whole batch. One alone may have no variance.
    """

    def __init__(self, channels: int, pictures: int | None = None) -> None:
        super().__init__(channels, eps=1e-12)
        self.pictures = pictures

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `[N, C, H, W]`."""
        count = len(x) // self.pictures if self.pictures else 1
        if not self.training or count < 2:
            return super().forward(x)
        averages = self.running_mean, self.running_var
        follow = 1 - (1 - (self.momentum or 0.0)) ** (1 / count)
        fewest, more = len(x) // count, len(x) % count  # a compiler knows no `divmod`
        sizes = [fewest + 1] * more + [fewest] * (count - more)
        # Not `tensor_split`, which returns slices: each slice's gradient is as large as the batch.
        parts = [
            F.batch_norm(part, *averages, self.weight, self.bias, True, follow, self.eps)
            for part in x.split(sizes)
        ]
        return torch.cat(parts)
