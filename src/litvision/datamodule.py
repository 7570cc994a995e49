"""The LightningDataModule: read once, split, batch, and augment whole batches on their device."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Annotated, Any, Literal, Protocol

import lightning as L
import torch
from pydantic import Field
from torch.utils.data import DataLoader

from litvision import hardware
from litvision.augment import Augment, Mix, mix
from litvision.batches import (
    Batch,
    EpochOrder,
    Images,
    PlaceKeeper,
    PlanSampler,
    Subset,
    channel_statistics,
)
from litvision.errors import UserError, one_line
from litvision.splits import make_subsets
from litvision.transforms import Padding, brighten, crop, cutout, flip, normalize
from litvision.trivial_augment import trivial_augment


class Source(Protocol):
    """Where pictures come from; see `litvision.sources`."""

    def prepare(self) -> None:
        """Download or decode, once; safe to call again."""

    def read(self) -> dict[str, Images]:
        """Return the splits: "train", "test", and "val" where the source has one of its own."""


class ImageDataModule(L.LightningDataModule):
    """Batches of augmented, normalised pictures from any source.

    Args:
        source: called with `options`, gives the source.
        batch_size: pictures a training step, over all devices together.
        eval_batch_size: the same for validation and test, where no gradients need room.
        val_fraction: share of each class of the training split that is set aside for validation.
            Not used where the source has a validation split. The test split is never touched.
            0: train on all of it, and validate nothing: for a recipe that is settled.
        classes: train on these classes only, labelled in this order; None: on all.
        limit_per_class: keep this many pictures of each class of the training split, drawn by
            `seed`, before validation is set aside; None: keep all.
        padding: random crop: pixels added on each side first; 0: none.
        padding_mode: "zero" (black) or "reflect".
        crop: train on random windows of this side in pixels, cut out of the padded pictures, which
            takes less time; None: on windows as large as the pictures. Validation and test see
            whole pictures.
        crop_epochs: do so in this many first epochs, then go on with whole pictures (progressive
            resizing); None: in all.
        flip: mirror a picture left to right with probability 1/2; "alternating": in every other
            epoch, each picture beginning by chance.
        augment: "trivial": TrivialAugment, one random operation a picture, before it is normalised;
            "cutout": a random square of each picture set to the mean colour; None: neither.
        cutout: side of that square in pixels, with or without `augment`; 0: none, or with
            `augment="cutout"` half the picture's shorter side.
        brightness: add a number to every picture, uniform up to this many standard deviations up
            or down.
        contrast: then multiply it by a number, uniform up to this far from 1.
        mix: "mixup" or "cutmix": each training picture blended with another, and their labels.
        mix_alpha: their shares are drawn from Beta(alpha, alpha).
        mean, std: per channel, in units of 0 to 1; None: the data set's published values, else
            measured on the pictures that are trained on.
        num_workers: loader processes; 0, indexing in this process, is fastest for pictures in
            memory. The data are the same for any number.
        on_device: keep the pictures in the memory of the GPU that trains, so that only the numbers
            of a batch's pictures travel; "auto": on CUDA, where they fill at most a quarter of what
            is free and `num_workers` is 0.
        seed: what split, order and augmentation are drawn from.
        options: passed on to `source`.

    Attributes:
        name: what lists of runs call these data: the source's `name`, or class, and `classes`.
    """

    def __init__(
        self,
        source: Callable[..., Source],
        *,
        batch_size: Annotated[int, Field(ge=1)] = 128,
        eval_batch_size: Annotated[int, Field(ge=1)] = 512,
        val_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        classes: list[str] | None = None,
        limit_per_class: Annotated[int, Field(ge=2)] | None = None,
        padding: Annotated[int, Field(ge=0)] = 4,
        padding_mode: Padding = "zero",
        crop: Annotated[int, Field(ge=1)] | None = None,
        crop_epochs: Annotated[int, Field(ge=0)] | None = None,
        flip: bool | Literal["alternating"] = True,
        augment: Augment | None = None,
        cutout: Annotated[int, Field(ge=0)] = 0,
        brightness: Annotated[float, Field(ge=0)] = 0.0,
        contrast: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        mix: Mix | None = None,
        mix_alpha: Annotated[float, Field(gt=0)] = 1.0,
        mean: list[Annotated[float, Field(ge=0, le=1)]] | None = None,
        std: list[Annotated[float, Field(gt=0, le=1)]] | None = None,
        num_workers: Annotated[int, Field(ge=0)] = 0,
        on_device: bool | Literal["auto"] = "auto",
        seed: Annotated[int, Field(ge=0)] = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        self.source = source(**options)
        name = getattr(self.source, "name", type(self.source).__name__)
        self.name = f"{name}: {', '.join(classes)}" if classes else name
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.val_fraction = val_fraction
        self.only_classes = classes
        self.limit_per_class = limit_per_class
        self.padding = padding
        self.padding_mode: Padding = padding_mode
        self.crop = crop
        self.crop_epochs = crop_epochs
        self.flip = flip
        self.augment = augment
        self.cutout = cutout
        self.brightness = brightness
        self.contrast = contrast
        self.mix = mix
        self.mix_alpha = mix_alpha
        self.mean = mean
        self.std = std
        self.num_workers = num_workers
        self.on_device = on_device
        self.seed = seed
        self.test_split: str | None = None  # test on it, and need no other; None: train first
        self.tests = True  # after training; else no test split is needed
        self.subsets: dict[str, Subset] = {}
        self._on_device: dict[int, Images] = {}  # by the address of their pixels in main memory
        if on_device is True and num_workers:
            raise UserError(
                f"data.on_device=true and data.num_workers={num_workers} exclude each other: other "
                "processes cannot read this one's GPU memory. Give data.num_workers=0."
            )

    def prepare_data(self) -> None:
        """Let the source download or decode what it has not yet."""
        if not self.subsets:
            self.source.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Read the pictures and make the subsets `train`, `val` and `test`, once for all stages.

        Raises:
            UserError: `classes` names one that is not there, a split that is needed is missing or
                has no pictures left, or `crop` exceeds the padded pictures.
        """
        if self.subsets:
            return
        try:
            splits = self.source.read()
            for images in splits.values():
                images.check_labels()
        except ValueError as error:  # of `Images`, for a source that is not as it should be
            raise UserError(f"data.source: {one_line(error)}") from error
        needed = ("train", "val", "test") if self.tests else ("train", "val")
        self.subsets = make_subsets(
            splits,
            needed if self.test_split is None else (self.test_split,),
            training=self.test_split is None,
            classes=self.only_classes,
            limit_per_class=self.limit_per_class,
            val_fraction=self.val_fraction,
            seed=self.seed,
        )
        self._check_pictures()

    def _check_pictures(self) -> None:
        """Settle the statistics, and refuse options that do not go with these pictures."""
        images = self.subsets["train"].images
        channels = images.pixels.shape[3]
        if self.mean is None or self.std is None:
            mean, std = images.mean, images.std
            if mean is None or std is None:
                mean, std = channel_statistics(images, self.subsets["train"].indices)
            # A colour that never varies would divide by zero; any finite scale serves it.
            self.mean = self.mean or list(mean)
            self.std = self.std or [value or 1.0 for value in std]
        if len(self.mean) != channels or len(self.std) != channels:
            raise UserError(
                f"data.mean and data.std take {channels} values, one a channel, "
                f"not {len(self.mean)} and {len(self.std)}."
            )
        if self.augment == "trivial" and channels not in (1, 3):
            raise UserError(
                "data.augment=trivial takes grey or colour pictures, and these have "
                f"{channels} channels: give data.augment=cutout, or null."
            )
        self._mean, self._std = torch.tensor(self.mean), torch.tensor(self.std)
        largest = min(self.image_size) + 2 * self.padding
        if self.crop is not None and self.crop > largest:
            raise UserError(
                f"data.crop={self.crop} exceeds the pictures, which allow windows of at most "
                f"{largest}x{largest} pixels with data.padding={self.padding}: give no more, or "
                "null."
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of the labels."""
        return self.subsets["train"].images.classes

    def class_counts(self, split: str) -> list[int]:
        """Return how many pictures of each class a split has, in the order of the labels."""
        subset = self.subsets[split]
        labels = subset.images.labels[subset.indices]
        return torch.bincount(labels, minlength=len(self.classes)).tolist()

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        h, w = self.subsets["train"].images.pixels.shape[1:3]
        return h, w

    def window(self, epoch: int) -> tuple[int, int]:
        """Return height and width in pixels of what the network trains on in an epoch, from 0."""
        if self.crop is None or (self.crop_epochs is not None and epoch >= self.crop_epochs):
            return self.image_size
        return self.crop, self.crop

    @property
    def steps_per_epoch(self) -> int:
        """Training steps in one epoch, a last short batch counted."""
        return len(self._plans("train", training=True))

    def fewest(self, batch_size: int | None = None) -> int:
        """Return the pictures of the smallest batch that a device trains on.

        Args:
            batch_size: what it would be with another batch size; None: with this one.
        """
        plans = self._plans("train", training=True)
        plans.batch_size = batch_size or plans.batch_size
        return plans.fewest()

    def checksum(self) -> str:
        """Return a SHA-256 over the pictures, labels and subsets: equal data, equal checksum."""
        digest = hashlib.sha256()
        for name in ("train", "val", "test"):
            subset = self.subsets[name]
            if name != "val" or subset.images is not self.subsets["train"].images:
                digest.update(subset.images.pixels.contiguous().numpy().data)
                digest.update(subset.images.labels.numpy().data)
            digest.update(subset.indices.numpy().data)
        return digest.hexdigest()

    def train_dataloader(self) -> DataLoader:
        """Return the loader of the training subset."""
        return self._loader("train", training=True)

    def val_dataloader(self) -> Any:
        """Return the loader of the validation subset; none where nothing is validated."""
        return self._loader("val") if len(self.subsets["val"]) else []

    def test_dataloader(self) -> DataLoader:
        """Return the loader of the test split, or of the one that `test_split` names."""
        return self._loader(self.test_split or "test")

    def _plans(self, name: str, training: bool = False) -> PlanSampler:
        world_size = self.trainer.world_size if self.trainer else 1
        rank = self.trainer.global_rank if self.trainer else 0
        size = len(self.subsets[name])
        batch_size = self.batch_size if training else self.eval_batch_size
        if min(size, batch_size) < world_size:
            key = "batch_size" if training else "eval_batch_size"
            raise UserError(
                f"{world_size} devices need at least {world_size} pictures a step: data.{key} is "
                f"{batch_size} and the {name} split has {size}. Raise it or use fewer devices."
            )
        order = EpochOrder(size, self.seed, shuffle=training)
        if training and self.trainer:
            # Loader processes ask for batches before Lightning sets the epoch of a resumed run.
            progress: Any = self.trainer.fit_loop.epoch_progress.current
            order.set_epoch(progress.processed)
        moved = self.padding or self.crop or self.flip
        changed = self.cutout or self.augment or self.brightness or self.contrast or self.mix
        augment = training and bool(moved or changed)
        alternate = self.flip == "alternating"
        return PlanSampler(order, batch_size, rank, world_size, augment, alternate)

    def _loader(self, name: str, training: bool = False) -> DataLoader:
        plans: Any = self._plans(name, training)  # torch annotates batches as lists of indices
        collate: Any = _whole_batch
        subset = self._placed(self.subsets[name])
        return PlaceKeeper(
            self._steps_taken if training else None,
            subset,
            batch_sampler=plans,
            num_workers=self.num_workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available() and subset.images.pixels.device.type == "cpu",
            persistent_workers=self.num_workers > 0,
            # Its own: torch's loader takes a number from the global one at each epoch, so that a
            # resumed run's dropout would draw others.
            generator=torch.Generator(),
        )

    def _steps_taken(self) -> int:
        """Return how many steps of the running epoch are behind the trainer; 0 at its end."""
        progress = self.trainer.fit_loop.epoch_loop.batch_progress if self.trainer else None
        return 0 if progress is None or progress.is_last_batch else progress.current.ready

    def _placed(self, subset: Subset) -> Subset:
        """Return the subset with its pictures where `on_device` wants them, one copy for all."""
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        pixels, wanted = subset.images.pixels, self.on_device
        key = pixels.data_ptr()
        if wanted == "auto":
            room = device.type == "cuda" and torch.cuda.mem_get_info(device)[0]
            fits = key in self._on_device or 4 * pixels.nbytes <= room
            wanted = device.type == "cuda" and self.num_workers == 0 and fits
        if not wanted or device.type == "cpu":
            return subset
        if key not in self._on_device:
            self._on_device[key] = subset.images.to(device)
        return Subset(self._on_device[key], subset.indices)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, index: int) -> Any:
        """Move a batch, but for its random numbers, of which some are read on the processor.

        On a processor it lies where it should, and looking would take a while.
        """
        if not isinstance(batch, Batch):
            return super().transfer_batch_to_device(batch, device, index)
        if device.type == "cpu":
            return batch
        moved = super().transfer_batch_to_device(batch._replace(draws=None), device, index)
        return moved._replace(draws=batch.draws)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment a training batch and normalise any batch, where it now lies."""
        if not isinstance(batch, Batch):
            return batch
        pixels, labels = batch.images, batch.labels
        self._mean, self._std = self._mean.to(pixels.device), self._std.to(pixels.device)
        draws = None if batch.draws is None else hardware.send(batch.draws, pixels.device)
        if draws is not None and (self.padding or self.crop):
            size = h, w = self.window(self.trainer.current_epoch if self.trainer else 0)
            height, width = (side + 2 * self.padding for side in pixels.shape[1:3])
            rows, columns = draws[:, 0] % (height - h + 1), draws[:, 1] % (width - w + 1)
            pixels = crop(pixels, rows, columns, size, self.padding, self.padding_mode)
        if draws is not None and self.flip:
            pixels = flip(pixels, draws[:, 2] % 2 == 1)
        if batch.draws is not None and self.augment == "trivial":
            pixels = trivial_augment(pixels, batch.draws[:, 5])
        images = normalize(pixels, self._mean, self._std)
        if draws is not None and (self.brightness or self.contrast):
            images = brighten(images, draws[:, 5], self.brightness, self.contrast)
        if draws is not None and (self.cutout or self.augment == "cutout"):
            h, w = images.shape[2:]
            rows, columns = draws[:, 3] % h, draws[:, 4] % w
            images = cutout(images, rows, columns, self.cutout or min(h, w) // 2)
        if batch.draws is not None and self.mix:
            seed = int(batch.draws[0, 5])
            images, labels = mix(images, labels, self.mix, self.mix_alpha, len(self.classes), seed)
        return batch._replace(images=images, labels=labels)


def _whole_batch(batch: Batch) -> Batch:
    """Pass on what `Subset.__getitems__` has already collated."""
    return batch
