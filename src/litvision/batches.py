"""Pictures in memory, the order in which an epoch visits them, and what is done to a batch.

Everything random here is drawn from `(seed, epoch, batch)` alone and never from what ran before.
That one rule gives exact reruns, exact resuming, and the same data whatever the number of loader
processes or devices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, Sampler

Padding = Literal["zero", "reflect"]


@dataclass(frozen=True)
class Images:
    """Labelled pictures, decoded, in memory (or in a memory-mapped file).

    Attributes:
        pixels: uint8 `[N, H, W, C]`, 0 to 255; this layout makes a batch channels-last at no cost.
        labels: int64 `[N]`, each an index into `classes`.
        classes: the class names, in the order of the labels.
        mean, std: the data set's published per-channel mean and standard deviation in units of
            0 to 1, or None where none is published (they are measured then).
    """

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8 or self.pixels.ndim != 4:
            raise ValueError(
                f"pixels must be uint8 [N, H, W, C], not {self.pixels.dtype} "
                f"{list(self.pixels.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.pixels.shape[:1]:
            raise ValueError(
                f"labels must be int64 [{len(self.pixels)}], not {self.labels.dtype} "
                f"{list(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.labels)
