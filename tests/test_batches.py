from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from litvision.batches import (
    DRAWS,
    EpochOrder,
    Images,
    PlanSampler,
    Subset,
    channel_statistics,
    random_stream,
)


@pytest.fixture
def pixels() -> Tensor:
    return torch.randint(0, 256, (6, 5, 7, 3), dtype=torch.uint8)


def plans(size: int, batch_size: int, epoch: int = 0, **options: int) -> list:
    order = EpochOrder(size, seed=3, shuffle=True)
    order.set_epoch(epoch)
    sampler = PlanSampler(order, batch_size, augment=True, **options)
    found = list(sampler)
    assert len(found) == len(sampler)
    return found


def test_images_refuses_other_types_and_shapes() -> None:
    labels = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"uint8 \[N, H, W, C\], not torch.float32"):
        Images(torch.zeros(2, 4, 4, 3), labels, ("a",))
    with pytest.raises(ValueError, match=r"labels must be int64 \[3\]"):
        Images(torch.zeros(3, 4, 4, 3, dtype=torch.uint8), labels, ("a",))


def test_an_epoch_visits_every_picture_once_and_keeps_the_last_short_batch() -> None:
    epoch = plans(10, 4)
    assert [len(p.indices) for p in epoch] == [4, 4, 2]
    assert sorted(np.concatenate([p.indices for p in epoch])) == list(range(10))
    assert all(p.draws.shape == (len(p.indices), DRAWS) and p.share == 1.0 for p in epoch)


def test_order_and_draws_depend_on_seed_and_epoch_alone() -> None:
    first, again, other = plans(10, 4, epoch=2), plans(10, 4, epoch=2), plans(10, 4, epoch=3)
    assert all(
        np.array_equal(a.indices, b.indices) and np.array_equal(a.draws, b.draws)
        for a, b in zip(first, again, strict=True)
    )
    assert not np.array_equal(first[0].indices, other[0].indices)
    assert not np.array_equal(first[0].draws, other[0].draws)


def test_streams_of_different_use_or_position_differ() -> None:
    streams = [("order", 0), ("order", 1), ("draws", 0), ("draws", 0, 0), ("draws", 0, 1)]
    first = {tuple(random_stream(3, *stream).integers(2**31, size=4)) for stream in streams}
    assert len(first) == len(streams)
    again = random_stream(3, "draws", 0, 1).integers(2**31, size=4)
    assert tuple(again) in first


def test_without_shuffling_the_order_is_that_of_the_data_in_every_epoch() -> None:
    order = EpochOrder(5, seed=0, shuffle=False)
    order.set_epoch(4)
    assert list(order) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("size", [7, 8, 9, 11, 12])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_devices_share_the_same_steps_and_draws(size: int, world_size: int) -> None:
    alone = plans(size, 4)
    ranks = [plans(size, 4, rank=r, world_size=world_size) for r in range(world_size)]
    assert len({len(steps) for steps in ranks}) == 1
    seen = np.concatenate([p.indices for steps in ranks for p in steps])
    assert sorted(seen) == list(range(size))
    for parts in zip(*ranks, strict=True):
        total = sum(len(p.indices) for p in parts)
        # Devices' mean gradients are averaged: weighted by share, that is the mean over all.
        assert all(p.share == len(p.indices) * world_size / total for p in parts)
        assert all(len(p.indices) for p in parts)
    step, whole = [steps[0] for steps in ranks], alone[0]
    for rank, part in enumerate(step):
        if len(alone) == len(ranks[0]):  # no short last batch was joined to the first
            np.testing.assert_array_equal(part.indices, whole.indices[rank::world_size])
            np.testing.assert_array_equal(part.draws, whole.draws[rank::world_size])


def test_a_last_batch_smaller_than_the_number_of_devices_joins_the_one_before() -> None:
    assert [len(p.indices) for p in plans(9, 4, rank=0, world_size=2)] == [2, 3]
    assert [len(p.indices) for p in plans(9, 4, rank=1, world_size=2)] == [2, 2]


def test_a_subset_reads_its_own_rows_of_shared_pictures(pixels: Tensor) -> None:
    images = Images(pixels, torch.arange(6), tuple("abcdef"))
    subset = Subset(images, torch.tensor([5, 1, 3]))
    (plan,) = PlanSampler(EpochOrder(3, seed=0, shuffle=False), 8)
    batch = subset.__getitems__(plan)
    assert batch.labels.tolist() == [5, 1, 3]
    assert torch.equal(batch.images, pixels[[5, 1, 3]])
    assert batch.draws is None
    assert subset.images.pixels.data_ptr() == pixels.data_ptr()
    assert subset[2][1] == 3


def test_channel_statistics_equal_those_of_a_float_copy(pixels: Tensor) -> None:
    images = Images(pixels, torch.zeros(6, dtype=torch.int64), ("a",))
    rows = torch.tensor([0, 2, 5])
    mean, std = channel_statistics(images, rows)
    values = pixels[rows].double().flatten(0, 2) / 255
    np.testing.assert_allclose(mean, values.mean(0), rtol=1e-12)
    np.testing.assert_allclose(std, values.std(0, correction=0), rtol=1e-9)


def test_statistics_count_more_pictures_than_are_looked_at_together() -> None:
    pixels = torch.randint(0, 256, (5000, 1, 1, 1), dtype=torch.uint8)
    pixels[4096:] = 255
    images = Images(pixels, torch.zeros(5000, dtype=torch.int64), ("a",))
    mean, _ = channel_statistics(images, torch.arange(5000))
    assert mean[0] == pytest.approx(pixels.double().mean().item() / 255)


def test_as_many_pictures_left_over_as_devices_are_a_batch() -> None:
    alone = PlanSampler(EpochOrder(9, seed=0, shuffle=False), 4)
    assert [len(plan.indices) for plan in alone] == [4, 4, 1]
    two = PlanSampler(EpochOrder(10, seed=0, shuffle=False), 4, rank=0, world_size=2)
    assert [len(plan.indices) for plan in two] == [2, 2, 1]
