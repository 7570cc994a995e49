from __future__ import annotations

from typing import Any

import pytest
import torch

from litvision.batches import Images, Subset
from litvision.errors import UserError
from litvision.splits import make_subsets, split_stratified

CLASSES = ("cat", "dog", "eel")


def images(count: int) -> Images:
    return Images(torch.zeros(count, 2, 2, 3, dtype=torch.uint8), torch.arange(count) % 3, CLASSES)


def make(splits: dict[str, Images], *needed: str, **options: Any) -> dict[str, Subset]:
    usual = {"classes": None, "limit_per_class": None, "val_fraction": 0.2, "seed": 0}
    given = {"training": len(needed) > 1, **usual, **options}
    return make_subsets(splits, needed, **given)


def sizes(subsets: dict[str, Subset]) -> dict[str, int]:
    return {name: len(subset) for name, subset in subsets.items()}


TRAINS = ("train", "val", "test")
BOTH = {"train": images(30), "test": images(9)}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (24, 6, 9)),
        ({"val_fraction": 0.0}, (30, 0, 9)),
        ({"classes": ["eel", "cat"]}, (16, 4, 6)),
        ({"limit_per_class": 5}, (12, 3, 9)),
        ({"limit_per_class": 5, "classes": ["dog"]}, (4, 1, 3)),
    ],
)
def test_what_trains_validates_and_tests(
    options: dict[str, Any], expected: tuple[int, int, int]
) -> None:
    assert sizes(make(BOTH, *TRAINS, **options)) == dict(zip(TRAINS, expected, strict=True))


def test_a_split_that_is_not_needed_and_not_there_is_empty() -> None:
    subsets = make({"train": images(30)}, "train", "val")
    assert sizes(subsets) == {"train": 24, "val": 6, "test": 0}


def test_validation_pictures_are_training_pictures_but_none_that_is_trained_on() -> None:
    subsets = make(BOTH, *TRAINS)
    assert subsets["val"].images is subsets["train"].images is BOTH["train"]
    rows = torch.cat([subsets["train"].indices, subsets["val"].indices])
    assert sorted(rows.tolist()) == list(range(30))


def test_a_validation_split_of_its_own_leaves_training_whole() -> None:
    subsets = make({**BOTH, "val": images(12)}, *TRAINS)
    assert sizes(subsets) == {"train": 30, "val": 12, "test": 9}


def test_a_test_needs_no_other_split_whatever_training_was_limited_to() -> None:
    subsets = make({"test": images(9)}, "test", limit_per_class=5, val_fraction=0.0)
    assert sizes(subsets) == {"train": 0, "val": 0, "test": 9}
    assert subsets["train"].images.classes == CLASSES


def test_other_classes_than_the_classifiers_are_left_out_of_a_test() -> None:
    subsets = make({"test": images(9)}, "test", classes=["newt", "dog"])
    assert sizes(subsets)["test"] == 3
    assert subsets["test"].images.labels[subsets["test"].indices].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("splits", "needed", "message"),
    [
        (
            {"train": images(9)},
            TRAINS,
            "There is no test split, only train: choose a source, or data.splits, that has it, or "
            "test=false.",
        ),
        (
            {"train": images(9)},
            ("test",),
            "There is no test split, only train: choose a source, or data.splits, that has it.",
        ),
        (
            {"test": images(9)},
            ("val",),
            "There is no val split, only test: choose a source, or data.splits, that has it.",
        ),
    ],
)
def test_a_split_that_is_needed_and_missing_is_named(
    splits: dict[str, Images], needed: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError) as error:
        make(splits, *needed)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("splits", "needed", "fraction", "name"),
    [
        ({**BOTH, "test": images(0)}, TRAINS, 0.2, "test"),
        ({**BOTH, "val": images(0)}, TRAINS, 0.0, "val"),  # not asked for, but there
        (BOTH, ("val",), 0.0, "val"),  # to evaluate on what was not set aside
        ({"train": images(1), "test": images(9)}, TRAINS, 0.9, "train"),
    ],
)
def test_a_split_that_is_needed_and_empty_is_named(
    splits: dict[str, Images], needed: tuple[str, ...], fraction: float, name: str
) -> None:
    with pytest.raises(UserError) as error:
        make(splits, *needed, val_fraction=fraction)
    assert str(error.value) == (
        f"The {name} split has no pictures left: it needs at least one. "
        "Add pictures, or change data.val_fraction or data.classes."
    )


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.9])
def test_split_is_disjoint_complete_stratified_and_drawn_from_the_seed(fraction: float) -> None:
    labels = torch.tensor([0] * 40 + [1] * 20 + [2] * 2)[torch.randperm(62)]
    first, second = split_stratified(labels, fraction, seed=1)
    assert sorted(torch.cat([first, second]).tolist()) == list(range(62))
    counts = torch.bincount(labels[second], minlength=3).tolist()
    assert counts == [round(40 * fraction), round(20 * fraction), 1]
    assert torch.equal(split_stratified(labels, fraction, seed=1)[1], second)
    assert not torch.equal(split_stratified(labels, fraction, seed=2)[1], second)
