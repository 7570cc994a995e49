"""Pictures in memory, and the order in which an epoch visits them.

Everything random here is drawn from `(seed, epoch, batch)` alone and never from what ran before.
That one rule gives exact reruns, exact resuming, and the same data whatever the number of loader
processes or devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from litvision import hardware


@dataclass(frozen=True)
class Images:
    """Labelled pictures, decoded, in memory (or in a memory-mapped file).

    Attributes:
        pixels: uint8 `[N, H, W, C]`, 0 to 255; this layout makes a batch channels-last at no cost.
        labels: int64 `[N]`, each an index into `classes`.
        classes: the class names, in the order of the labels.
        mean, std: the data set's published per-channel mean and standard deviation in units of
            0 to 1, or None where none is published (they are measured then).
        fingerprint: the same for the same pictures in the same order, where the source can tell
            without reading them all; else "".
    """

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    fingerprint: str = ""

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

    def check_labels(self) -> None:
        """Raise a ValueError where a label is no class's number."""
        numbers = (int(self.labels.min()), int(self.labels.max())) if len(self) else (0, 0)
        if numbers[0] < 0 or numbers[1] >= len(self.classes):
            raise ValueError(
                f"labels must be 0 to {len(self.classes) - 1}, one number for each of the "
                f"{len(self.classes)} class names, and are {numbers[0]} to {numbers[1]}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Images:
        """Return the same pictures and labels in the memory of `device`."""
        return replace(self, pixels=self.pixels.to(device), labels=self.labels.to(device))


class Plan(NamedTuple):
    """Which pictures one device sees in one step, and the random numbers for augmenting them.

    Attributes:
        indices: int64 `[B]`, positions in the subset.
        draws: int64 `[B, DRAWS]`, uniform in 0 to 2^31 - 1, or None where nothing is augmented.
        share: this device's pictures times the number of devices, over the pictures of the whole
            step; 1.0 except in a last short batch that does not divide evenly.
    """

    indices: np.ndarray
    draws: np.ndarray | None
    share: float


class Batch(NamedTuple):
    """One step's pictures on one device.

    Attributes:
        images: uint8 `[B, H, W, C]` from the loader, in the memory that the data set lies in;
            float32 `[B, C, H, W]`, augmented and normalised, once on the device.
        labels: int64 `[B]`; float32 `[B, classes]`, shares that sum to 1, once pictures are mixed.
        draws, share: as in `Plan`; the draws lie in main memory, whatever the device.
    """

    images: Tensor
    labels: Tensor
    draws: Tensor | None = None
    share: float = 1.0


# Random numbers a picture: crop row, crop column, flip, cutout row, cutout column, and a seed for
# mixing, for TrivialAugment and, by its upper and lower bits, for brightness and contrast.
DRAWS = 6


def random_stream(seed: int, use: str, *position: int) -> np.random.Generator:
    """Return random numbers that are a pure function of the seed, their use and a position.

    A spawn key, and not a longer seed: NumPy pads seeds with zeros, so (3, 1) and (3, 1, 0) would
    give the same numbers.
    """
    uses = ("order", "draws", "split", "limit", "flip")
    return np.random.default_rng(
        np.random.SeedSequence(seed, spawn_key=(uses.index(use), *position))
    )


class EpochOrder(Sampler[int]):
    """The order of one epoch: a permutation drawn from `(seed, epoch)`, or 0, 1, 2, …

    Lightning calls `set_epoch` on it before each epoch, as it does on a `DistributedSampler`.
    """

    def __init__(self, size: int, seed: int, shuffle: bool) -> None:
        self.size = size
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration that of `epoch`, counted from 0."""
        self.epoch = epoch

    def permutation(self) -> np.ndarray:
        """Return the order as int64 `[size]`."""
        if not self.shuffle:
            return np.arange(self.size)
        return random_stream(self.seed, "order", self.epoch).permutation(self.size)

    def __iter__(self) -> Iterator[int]:
        return iter(self.permutation().tolist())

    def __len__(self) -> int:
        return self.size


class PlanSampler(Sampler[Plan]):
    """Cuts an epoch's order into steps and gives each device its share of every step.

    The pictures of a step, and the random numbers that go with each, are the same for any number
    of devices: device `rank` takes each `world_size`-th of them. No picture is dropped or repeated.
    A last batch with fewer pictures than devices joins the one before it, so that every device
    takes the same number of steps.

    Args:
        order: which picture comes when.
        batch_size: pictures a step, over all devices.
        rank, world_size: this device among all.
        augment: whether to draw random numbers for augmentation.
        alternate: whether a picture that is mirrored in one epoch is not in the next, and so on,
            beginning with a coin toss (Jordan 2024, arXiv 2404.00498, section 3.6). Tossed anew
            in each epoch, half of the pairs of epochs show it the same way twice.
    """

    def __init__(
        self,
        order: EpochOrder,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        augment: bool = False,
        alternate: bool = False,
    ) -> None:
        self.sampler = order  # the name under which Lightning looks for `set_epoch`
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.augment = augment
        self.alternate = alternate
        self.start = 0  # steps that the next iteration leaves out, having been taken before

    def __len__(self) -> int:
        full, rest = divmod(self.sampler.size, self.batch_size)
        return max(full + (rest >= self.world_size), min(self.sampler.size, 1))

    def fewest(self) -> int:
        """Return the pictures of the smallest batch that a device gets."""
        last = self.sampler.size - (len(self) - 1) * self.batch_size
        return (min(last, self.batch_size) if len(self) > 1 else last) // self.world_size

    def __iter__(self) -> Iterator[Plan]:
        order, steps = self.sampler.permutation(), len(self)
        first, self.start = self.start, 0
        if self.alternate:
            coins = random_stream(self.sampler.seed, "flip").integers(2, size=len(order))
        for step in range(first, steps):
            start = step * self.batch_size
            stop = len(order) if step == steps - 1 else start + self.batch_size
            draws = None
            if self.augment:
                random = random_stream(self.sampler.seed, "draws", self.sampler.epoch, step)
                # The last column after the others: it came later, and they stay what they were.
                draws = random.integers(2**31, size=(stop - start, DRAWS - 1))
                seeds = random.integers(2**31, size=(stop - start, 1))
                draws = np.concatenate([draws, seeds], axis=1)
                if self.alternate:
                    draws[:, 2] = coins[order[start:stop]] + self.sampler.epoch
                draws = draws[self.rank :: self.world_size]
            indices = order[start:stop][self.rank :: self.world_size]
            yield Plan(indices, draws, len(indices) * self.world_size / (stop - start))


class Subset(Dataset[tuple[Tensor, int]]):
    """Some of the pictures of an `Images`, read a whole batch at a time, without copying the rest.

    Args:
        images: the pictures, shared with every other subset.
        indices: int64 `[n]`, which of them belong to this one.
    """

    def __init__(self, images: Images, indices: Tensor) -> None:
        self.images = images
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitems__(self, plan: Plan) -> Batch:
        rows = self.indices[torch.from_numpy(plan.indices)]
        rows = hardware.send(rows, self.images.pixels.device)
        return Batch(
            self.images.pixels.index_select(0, rows),
            self.images.labels.index_select(0, rows),
            None if plan.draws is None else torch.from_numpy(plan.draws.copy()),
            plan.share,
        )

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return one picture, uint8 `[H, W, C]`, and its label: for looking, not for training."""
        row = int(self.indices[index])
        return self.images.pixels[row], int(self.images.labels[row])


class PlaceKeeper(DataLoader):
    """Torch's loader, but a run that is resumed within an epoch goes on where it was.

    Lightning keeps the state of a loader that has one in its checkpoints.

    Args:
        steps_taken: returns how many steps of the epoch are done; None: for evaluation, which
            begins at the beginning.
        arguments, options: as `DataLoader` takes them; the batch sampler is a `PlanSampler`.
    """

    def __init__(
        self, steps_taken: Callable[[], int] | None, *arguments: Any, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self.steps_taken = steps_taken

    def state_dict(self) -> dict[str, int]:
        """Return the place in the epoch."""
        return {"steps": self.steps_taken() if self.steps_taken else 0}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the next iteration there."""
        plans: Any = self.batch_sampler
        plans.start = state["steps"]


def channel_statistics(images: Images, rows: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measure mean and standard deviation of each channel, in units of 0 to 1, over `rows`.

    Counts how often each of the 256 values occurs, so the result is exact and needs no float copy
    of the pictures.
    """
    channels = images.pixels.shape[3]
    counts = torch.zeros(channels, 256, dtype=torch.float64)
    for chunk in rows.split(4096):
        pixels = images.pixels[chunk]
        for channel in range(channels):
            counts[channel] += torch.bincount(pixels[..., channel].flatten(), minlength=256)
    value = torch.arange(256, dtype=torch.float64) / 255
    share = counts / counts.sum(1, keepdim=True)
    mean = share @ value
    variance = share @ value.square() - mean.square()
    return tuple(mean.tolist()), tuple(variance.clamp(min=0).sqrt().tolist())
