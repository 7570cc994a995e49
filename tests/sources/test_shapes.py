"""Drawn shapes: reproducible, balanced, and not to be had without seeing shape."""

import hashlib

import pytest
import torch
import torch.nn.functional as F

from litvision.batches import Images
from litvision.sources.shapes import Shapes


@pytest.fixture(scope="module")
def splits() -> dict[str, Images]:
    return Shapes(train_size=1000, test_size=300).read()


def test_has_the_asked_form(splits: dict[str, Images]) -> None:
    assert list(splits) == ["train", "test"]
    assert splits["train"].pixels.shape == (1000, 32, 32, 3)
    assert splits["test"].pixels.shape == (300, 32, 32, 3)
    assert Shapes(10, 10, image_size=48).read()["train"].pixels.shape == (10, 48, 48, 3)
    assert splits["train"].classes == (
        *("bar", "bowtie", "crescent", "cross", "disk"),
        *("half_disk", "ring", "square", "star", "triangle"),
    )
    assert splits["train"].mean is None


def test_every_class_has_as_many_pictures_in_random_order(splits: dict[str, Images]) -> None:
    assert splits["train"].labels.bincount().tolist() == [100] * 10
    assert splits["test"].labels.bincount().tolist() == [30] * 10
    assert Shapes(25, 10).read()["train"].labels.bincount().tolist() == [3] * 5 + [2] * 5
    first_half = splits["train"].labels[:500].bincount()
    assert first_half.min() > 25
    assert first_half.max() < 75


def test_the_seed_decides_every_pixel() -> None:
    first, again, other = (Shapes(50, 50, seed=seed).read() for seed in (3, 3, 4))
    for name in ("train", "test"):
        assert torch.equal(first[name].pixels, again[name].pixels)
        assert torch.equal(first[name].labels, again[name].labels)
        assert not torch.equal(first[name].pixels, other[name].pixels)


def test_the_test_pictures_do_not_depend_on_the_number_of_training_pictures() -> None:
    few, many = Shapes(10, 50).read()["test"], Shapes(200, 50).read()["test"]
    assert torch.equal(few.pixels, many.pixels)
    assert torch.equal(few.labels, many.labels)


def test_no_picture_comes_twice(splits: dict[str, Images]) -> None:
    pictures = [p.numpy().tobytes() for images in splits.values() for p in images.pixels]
    assert len({hashlib.sha256(p).digest() for p in pictures}) == 1300


def test_the_channels_are_alike_and_vary(splits: dict[str, Images]) -> None:
    pixels = splits["train"].pixels.float() / 255
    assert ((pixels.mean((0, 1, 2)) - 0.32).abs() < 0.03).all()
    assert (pixels.std((0, 1, 2)) > 0.15).all()


def test_a_linear_classifier_does_not_pass(splits: dict[str, Images]) -> None:
    train, test = splits["train"], splits["test"]
    mean = train.pixels.float().mean((0, 1, 2))
    std = train.pixels.float().std((0, 1, 2))
    x, y = (((s.pixels.float() - mean) / std).flatten(1) for s in (train, test))
    weight = torch.zeros(10, x.shape[1], requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.002, momentum=0.9)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(x @ weight.T, train.labels).backward()
        optimizer.step()
    with torch.no_grad():
        trained = ((x @ weight.T).argmax(1) == train.labels).float().mean()
        tested = ((y @ weight.T).argmax(1) == test.labels).float().mean()
    assert trained > 0.3  # it did learn what there is to learn
    assert tested < 0.3
