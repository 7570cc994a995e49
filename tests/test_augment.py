"""Cutout, mixup and CutMix: what they do to a batch, and that it repeats, as TrivialAugment."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from litvision.augment import mix
from litvision.batches import Images
from litvision.classifier import ImageClassifier
from litvision.datamodule import ImageDataModule
from litvision.errors import UserError
from litvision.transforms import brighten
from tiny import TinyLinear

CLASSES = ("a", "b", "c")


def noise(count: int = 8, size: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, size, size, 3), generator=generator, dtype=torch.uint8)


class Source:
    def prepare(self) -> None:
        pass

    def read(self) -> dict[str, Images]:
        pixels = noise(24)
        images = Images(pixels, torch.arange(24) % 3, CLASSES, (0.5,) * 3, (0.25,) * 3)
        return {"train": images, "test": images}


def epoch(**options: Any) -> list[Any]:
    plain = {"padding": 0, "flip": False, "batch_size": 8, **options}
    made = ImageDataModule(Source, **plain)
    made.setup()
    return [made.on_after_batch_transfer(batch, 0) for batch in made.train_dataloader()]


def test_mixup_is_its_formula() -> None:
    images, labels = torch.randn(6, 3, 4, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    mixed, shares = mix(images, labels, "mixup", 1.0, 3, seed=5)
    share = shares[0, 0]  # the neighbour before the first is of class 2
    assert 0 < share < 1
    torch.testing.assert_close(mixed, share * images + (1 - share) * images.roll(1, 0))
    expected = share * F.one_hot(labels, 3) + (1 - share) * F.one_hot(labels.roll(1), 3)
    torch.testing.assert_close(shares, expected)


def test_cutmix_labels_a_picture_by_its_areas() -> None:
    images = torch.arange(6.0)[:, None, None, None].expand(6, 3, 20, 20).contiguous()
    mixed, shares = mix(images, torch.arange(6), "cutmix", 1.0, 6, seed=3)
    for k in range(6):
        own, other = (mixed[k, 0] == k).float().mean(), (mixed[k, 0] == (k - 1) % 6).float().mean()
        assert own + other == 1
        assert shares[k, k] == pytest.approx(float(own), abs=1e-6)
        assert shares[k, (k - 1) % 6] == pytest.approx(float(other), abs=1e-6)
    assert 0 < shares[0, 0] < 1


def test_trivial_augment_takes_grey_and_colour_alone() -> None:
    class Four(Source):
        def read(self) -> dict[str, Images]:
            images = Images(noise()[..., [0, 1, 2, 0]], torch.arange(8) % 3, CLASSES)
            return {"train": images, "test": images}

    made = ImageDataModule(Four, augment="trivial", mean=(0.5,) * 4, std=(0.25,) * 4)
    with pytest.raises(UserError, match=r"augment=trivial takes .* have 4 channels: give"):
        made.setup()


@pytest.mark.parametrize("options", [{"augment": "trivial"}, {"mix": "mixup"}, {"mix": "cutmix"}])
def test_they_are_functions_of_the_seed_and_leave_torchs_random_numbers(options: Any) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = epoch(**options, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    again, other = epoch(**options, seed=3), epoch(**options, seed=4)
    assert all(torch.equal(a.images, b.images) for a, b in zip(first, again, strict=True))
    assert all(torch.equal(a.labels, b.labels) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a.images, b.images) for a, b in zip(first, other, strict=True))


def test_the_share_of_a_mix_differs_from_batch_to_batch() -> None:
    batches = epoch(mix="mixup")
    shares = [float(batch.labels[batch.labels > 0].min()) for batch in batches]
    assert len(set(shares)) == len(shares) == 3
    assert all(batch.labels.dtype == torch.float32 for batch in batches)


@pytest.mark.parametrize(("options", "side"), [({}, 8), ({"cutout": 4}, 4)])
def test_cutout_is_half_the_side_unless_told(options: Any, side: int) -> None:
    plain, cut = epoch(), epoch(augment="cutout", **options)
    gone = torch.cat([(b.images == 0).all(1).sum((1, 2)) for b in cut])
    there = torch.cat([(b.images == 0).all(1).sum((1, 2)) for b in plain])
    assert int(there.max()) == 0
    assert int(gone.max()) == side * side
    assert int(gone.min()) > 0


def test_brightness_and_contrast_are_uniform_over_their_range() -> None:
    seeds = torch.randint(2**31, (20_000,), generator=torch.Generator().manual_seed(0))
    images = torch.stack([torch.zeros(20_000), torch.ones(20_000)], dim=1)[..., None, None]
    found = brighten(images.clone(), seeds, brightness=0.5, contrast=0.2)[:, :, 0, 0]
    factor = found[:, 1] - found[:, 0]
    added = found[:, 0] / factor
    for value, low, high in ((added, -0.5, 0.5), (factor, 0.8, 1.2)):
        counts = torch.histc(value, bins=10, min=low, max=high)
        assert counts.sum() == 20_000
        assert ((counts - 2000).abs() < 200).all()  # more than four standard deviations
    assert abs(float(torch.corrcoef(torch.stack([added, factor]))[0, 1])) < 0.03


@pytest.mark.parametrize("option", ["brightness", "contrast"])
def test_brightness_or_contrast_alone_changes_pictures(option: str) -> None:
    for plain, changed in zip(epoch(), epoch(**{option: 0.3}), strict=True):
        difference = changed.images - plain.images
        added = difference[:, :1, :1, :1]
        if option == "brightness":  # the same number everywhere in a picture
            torch.testing.assert_close(difference, added.expand_as(difference), atol=1e-5, rtol=0)
        assert (difference.abs().amax((1, 2, 3)) > 0).all()
        assert len(added.unique()) == len(added)


def test_validation_and_test_are_left_alone() -> None:
    made = ImageDataModule(Source, augment="trivial", mix="cutmix", batch_size=8)
    made.setup()
    (batch,) = [made.on_after_batch_transfer(b, 0) for b in made.test_dataloader()]
    assert batch.labels.dtype == torch.int64
    pixels = (batch.images * 0.25 + 0.5).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1)
    assert torch.equal(pixels, noise(24))


def test_a_mixed_batch_is_trained_on_and_counted_by_its_larger_share() -> None:
    batch = epoch(mix="mixup")[0]
    classifier = ImageClassifier(TinyLinear(num_classes=3))
    classifier.on_train_epoch_start()
    loss = classifier.training_step(batch, 0)
    logits = classifier(batch.images)
    expected = -(batch.labels * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss, expected)
    right = (logits.argmax(1) == batch.labels.argmax(1)).sum()
    assert int(classifier._correct) == int(right)
