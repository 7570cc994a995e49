from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from litvision.batches import Batch, Images
from litvision.datamodule import ImageDataModule
from litvision.errors import UserError

CLASSES = ("cat", "dog", "eel")


class Source:
    """Pictures whose every pixel is the picture's own number, so that each can be recognised."""

    def __init__(self, own_validation: bool = False, mean: tuple[float, ...] | None = None) -> None:
        self.reads = 0
        self.own_validation = own_validation
        self.mean = mean

    def prepare(self) -> None:
        pass

    def read(self) -> dict[str, Images]:
        self.reads += 1
        splits = {"train": self.images(0, 60), "test": self.images(100, 15)}
        if self.own_validation:
            splits["val"] = self.images(200, 9)
        return splits

    def images(self, first: int, count: int) -> Images:
        numbers = torch.arange(first, first + count, dtype=torch.uint8)
        pixels = numbers[:, None, None, None].expand(count, 8, 8, 3).contiguous()
        labels = torch.arange(count) % 3
        std = (0.5, 0.5, 0.5) if self.mean else None
        return Images(pixels, labels, CLASSES, self.mean, std)


def datamodule(**options: Any) -> ImageDataModule:
    made = ImageDataModule(Source, **{"batch_size": 8, **options})
    made.prepare_data()
    made.setup()
    return made


def epoch(made: ImageDataModule, number: int = 0, name: str = "train") -> list[Batch]:
    loader = getattr(made, f"{name}_dataloader")()
    loader.batch_sampler.sampler.set_epoch(number)
    return [made.on_after_batch_transfer(batch, 0) for batch in loader]


def numbers(made: ImageDataModule, name: str) -> set[int]:
    subset = made.subsets[name]
    return {int(subset[k][0][0, 0, 0]) for k in range(len(subset))}


def trainer(world_size: int = 1, rank: int = 0, device: str = "cpu") -> Any:
    """What the data module asks of a trainer."""
    strategy = SimpleNamespace(root_device=torch.device(device))
    progress = SimpleNamespace(current=SimpleNamespace(processed=0))
    loop = SimpleNamespace(epoch_progress=progress)
    return SimpleNamespace(
        world_size=world_size, global_rank=rank, strategy=strategy, fit_loop=loop, current_epoch=0
    )


def test_validation_is_taken_from_training_and_never_from_test() -> None:
    made = datamodule(val_fraction=0.2)
    train, val, test = (numbers(made, name) for name in ("train", "val", "test"))
    assert train | val == set(range(60))
    assert not train & val
    assert test == set(range(100, 115))
    assert torch.bincount(torch.tensor([k % 3 for k in val])).tolist() == [4, 4, 4]
    assert made.steps_per_epoch == 6


def test_a_validation_split_of_the_source_is_used_as_it_is() -> None:
    made = datamodule(own_validation=True, val_fraction=0.5)
    assert numbers(made, "train") == set(range(60))
    assert numbers(made, "val") == set(range(200, 209))


def test_setup_reads_once_for_all_stages() -> None:
    made = datamodule()
    made.setup("test")
    assert made.source.reads == 1


def test_classes_select_and_number_in_the_order_asked_for() -> None:
    made = datamodule(classes=["eel", "cat"])
    assert made.classes == ("eel", "cat")
    for name in ("train", "val", "test"):
        subset = made.subsets[name]
        for k in range(len(subset)):
            picture, label = subset[k]
            assert CLASSES[(int(picture[0, 0, 0]) % 100) % 3] == made.classes[label]
    assert len(made.subsets["test"]) == 10


def test_data_are_called_by_their_source_or_its_name_and_the_classes_chosen() -> None:
    class Named(Source):
        name = "data/pets"

    assert datamodule().name == "Source"
    assert ImageDataModule(Named).name == "data/pets"
    assert datamodule(classes=["eel", "cat"]).name == "Source: eel, cat"


def test_an_unknown_class_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"data.classes names 'dogs', .* Nearest: dog"):
        datamodule(classes=["cat", "dogs"])


def test_a_class_named_twice_is_refused() -> None:
    with pytest.raises(UserError, match="names a class twice"):
        datamodule(classes=["cat", "cat"])


def test_limit_per_class_keeps_so_many_of_each_before_validation_is_set_aside() -> None:
    made = datamodule(limit_per_class=10, val_fraction=0.2)
    labels = [k % 3 for k in numbers(made, "train") | numbers(made, "val")]
    assert np.bincount(labels).tolist() == [10, 10, 10]
    assert len(made.subsets["val"]) == 6
    assert len(made.subsets["test"]) == 15
    again, other = datamodule(limit_per_class=10), datamodule(limit_per_class=10, seed=1)
    assert numbers(again, "train") != numbers(other, "train")


@pytest.mark.parametrize("workers", [1, 2])
def test_loader_processes_change_nothing(workers: int) -> None:
    options = {"padding": 2, "cutout": 3}
    alone = datamodule(**options)
    several = datamodule(num_workers=workers, **options)
    for number in (0, 1):
        for a, b in zip(epoch(alone, number), epoch(several, number), strict=True):
            assert torch.equal(a.images, b.images)
            assert torch.equal(a.labels, b.labels)


def test_an_epoch_is_the_same_whatever_ran_before_and_differs_from_the_next() -> None:
    made = datamodule()
    torch.manual_seed(1)
    first = epoch(made, 5)
    torch.manual_seed(2)
    epoch(made, 0)
    assert torch.equal(
        torch.cat([b.images for b in epoch(made, 5)]), torch.cat([b.images for b in first])
    )
    assert not torch.equal(epoch(made, 6)[0].images, first[0].images)


def test_devices_together_see_what_one_device_sees() -> None:
    made = datamodule()
    alone = epoch(made, 1)
    parts = []
    for rank in range(2):
        made.trainer = trainer(world_size=2, rank=rank)
        parts.append(epoch(made, 1))
    assert len(alone) == len(parts[0]) == len(parts[1])
    for whole, even, odd in zip(alone, *parts, strict=True):
        assert torch.equal(whole.images[0::2], even.images)
        assert torch.equal(whole.images[1::2], odd.images)


def test_more_devices_than_pictures_in_a_step_is_refused() -> None:
    made = datamodule(batch_size=2)
    made.trainer = trainer(world_size=4)
    with pytest.raises(
        UserError, match=r"4 devices need at least 4 pictures a step: data\.batch_size"
    ):
        made.train_dataloader()


def test_on_a_device_of_their_own_the_pictures_lie_there_once_for_all_splits() -> None:
    made = datamodule(on_device=True)
    made.trainer = trainer(device="meta")  # a device without storage: all have one
    train, val = made.train_dataloader().dataset, made.val_dataloader().dataset
    assert train.images.pixels.device.type == "meta"
    assert train.images is val.images
    assert made.subsets["train"].images.pixels.device.type == "cpu"
    batch = next(iter(made.train_dataloader()))
    assert (batch.images.device.type, batch.labels.device.type) == ("meta", "meta")
    assert batch.images.shape[1:] == (8, 8, 3)


def test_random_numbers_stay_where_reading_one_waits_for_no_device() -> None:
    made = datamodule(on_device=True)
    made.trainer = trainer(device="meta")
    batch = next(iter(made.train_dataloader()))
    moved = made.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert moved.draws is batch.draws
    assert moved.draws.device.type == "cpu"
    assert moved.images.device.type == "meta"


def test_by_itself_it_puts_pictures_on_a_gpu_where_they_fill_little_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def device(free: int, **options: Any) -> str:
        moved: list[str] = []
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**12))
        monkeypatch.setattr(Images, "to", lambda images, device: moved.append(device.type))
        made = datamodule(**options)
        made.trainer = trainer(device="cuda")
        placed = made._placed(made.subsets["train"])
        return moved[0] if moved else placed.images.pixels.device.type

    size = 60 * 8 * 8 * 3
    assert device(free=4 * size) == "cuda"
    assert device(free=4 * size - 1) == "cpu"
    assert device(free=4 * size, num_workers=1) == "cpu"
    assert device(free=4 * size, on_device=False) == "cpu"
    assert device(free=0, on_device=True) == "cuda"


def test_pictures_on_a_gpu_exclude_loader_processes() -> None:
    with pytest.raises(UserError, match=r"data\.on_device=true and data\.num_workers=2 exclude"):
        datamodule(on_device=True, num_workers=2)


def test_validation_and_test_are_normalised_but_not_augmented() -> None:
    made = datamodule(mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25], cutout=4)
    for name in ("val", "test"):
        (batch,) = epoch(made, 0, name)
        subset = made.subsets[name]
        expected = torch.stack([subset[k][0] for k in range(len(subset))]).permute(0, 3, 1, 2)
        torch.testing.assert_close(batch.images, (expected / 255 - 0.5) / 0.25)


def test_training_pictures_are_cropped_flipped_and_cut_by_their_draws() -> None:
    images = Images(
        torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8), torch.arange(4), tuple("abcd")
    )
    made = datamodule(padding=2, cutout=3, mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0])
    draws = torch.tensor([[2, 2, 0, 4, 4], [0, 4, 1, 0, 0], [7, 6, 3, 7, 7], [2, 2, 2, 9, 9]])
    found = made.on_after_batch_transfer(Batch(images.pixels, images.labels, draws), 0).images
    for k in range(4):
        padded = np.pad(images.pixels[k].numpy(), ((2, 2), (2, 2), (0, 0)))
        row, column, mirrored, y, x = draws[k].tolist()
        window = padded[row % 5 : row % 5 + 8, column % 5 : column % 5 + 8]
        if mirrored % 2:
            window = window[:, ::-1]
        expected = window.transpose(2, 0, 1) / 255
        y, x = y % 8, x % 8
        expected[:, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = 0
        np.testing.assert_allclose(found[k].numpy(), expected, atol=1e-6)


def test_windows_are_small_in_the_first_epochs_and_then_whole() -> None:
    made = datamodule(crop=5, crop_epochs=2)
    made.trainer = trainer()
    sides = []
    for number in range(4):
        made.trainer.current_epoch = number
        sides.append({tuple(batch.images.shape[1:]) for batch in epoch(made, number)})
    assert sides == [{(3, 5, 5)}] * 2 + [{(3, 8, 8)}] * 2
    made.trainer.current_epoch = 0
    assert {tuple(batch.images.shape[2:]) for batch in epoch(made, 0, "val")} == {(8, 8)}
    always = datamodule(crop=5, padding=0, flip=False)
    assert [always.window(number) for number in (0, 99)] == [(5, 5)] * 2
    assert {tuple(batch.images.shape[2:]) for batch in epoch(always)} == {(5, 5)}


def test_every_window_of_the_padded_picture_is_drawn() -> None:
    made = datamodule(crop=6, padding=1, flip=False, mean=[0.0] * 3, std=[1 / 255] * 3)
    place = torch.arange(64, dtype=torch.uint8).view(1, 8, 8, 1).expand(500, 8, 8, 3) + 1
    draws = torch.randint(2**31, (500, 6))
    batch = Batch(place.contiguous(), torch.zeros(500, dtype=torch.int64), draws)
    centres = made.on_after_batch_transfer(batch, 0).images[:, 0, 3, 3].round().int() - 1
    rows, columns = centres // 8, centres % 8  # the window's upper left corner is 2 before it
    assert set(rows.tolist()) == set(columns.tolist()) == {2, 3, 4, 5, 6}


def test_a_window_larger_than_the_padded_pictures_is_refused() -> None:
    datamodule(crop=10, padding=1)
    with pytest.raises(UserError) as caught:
        datamodule(crop=11, padding=1)
    assert str(caught.value) == (
        "data.crop=11 exceeds the pictures, which allow windows of at most 10x10 pixels with "
        "data.padding=1: give no more, or null."
    )


def test_published_statistics_come_before_measured_ones_and_given_ones_before_both() -> None:
    published = ImageDataModule(lambda: Source(mean=(0.1,) * 3))
    published.setup()
    assert published.mean == [0.1] * 3
    measured = datamodule()
    values = torch.tensor([k / 255 for k in sorted(numbers(measured, "train"))]).double()
    np.testing.assert_allclose(measured.mean, [values.mean()] * 3, rtol=1e-6)
    given = datamodule(mean=[0.4] * 3, std=[0.2] * 3)
    assert (given.mean, given.std) == ([0.4] * 3, [0.2] * 3)
    half = datamodule(mean=[0.4] * 3)
    assert half.mean == [0.4] * 3
    np.testing.assert_allclose(half.std, measured.std)
    with pytest.raises(UserError, match="take 3 values, one a channel, not 1 and 3"):
        datamodule(mean=[0.4], std=[0.2] * 3)


def test_checksum_tells_pictures_and_splits_apart() -> None:
    same = {datamodule().checksum(), datamodule().checksum()}
    assert len(same) == 1
    assert datamodule(seed=1).checksum() not in same
    changed = datamodule()
    changed.subsets["train"].images.pixels[7, 0, 0, 0] ^= 1
    assert changed.checksum() not in same
    relabelled = datamodule()
    labels = relabelled.subsets["train"].images.labels
    labels[7] = (labels[7] + 1) % 3
    assert relabelled.checksum() not in same


def test_which_pictures_a_limit_keeps_is_drawn_by_the_seed() -> None:
    limited = [datamodule(limit_per_class=10, val_fraction=0, seed=seed) for seed in (0, 1)]
    assert numbers(limited[0], "train") != numbers(limited[1], "train")


def test_cutout_alone_is_an_augmentation() -> None:
    made = datamodule(padding=0, flip=False, cutout=4)
    assert all(batch.draws is not None for batch in epoch(made))


def test_cutout_takes_half_of_the_shorter_side() -> None:
    class Oblong(Source):
        def images(self, first: int, count: int) -> Images:
            pixels = torch.full((count, 4, 12, 3), 255, dtype=torch.uint8)
            return Images(pixels, torch.arange(count) % 3, CLASSES)

    options: dict[str, Any] = {"padding": 0, "flip": False, "augment": "cutout"}
    made = ImageDataModule(Oblong, mean=[0.0] * 3, std=[1.0] * 3, **options)
    made.setup()
    assert max((b.images == 0).any(1).sum((1, 2)).max() for b in epoch(made)) == 2 * 2
