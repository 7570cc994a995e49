"""Which pictures a trained classifier is tested on: those of its training, or others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from litvision.errors import UserError
from litvision.tested_data import data_config


def of_run(root: Path, **data: Any) -> dict[str, Any]:
    """What a checkpoint says about itself, with these values of its data."""
    config = {"root": str(root), "seed": 7, "val_fraction": 0.3, "limit_per_class": 5, **data}
    return {
        "classes": ["0", "${x}"],
        "image_size": [24, 24],
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "config": {"data": config},
    }


@pytest.mark.parametrize(
    ("split", "set_aside"), [("test", [0, 0.1, None]), ("val", [7, 0.3, 5]), ("train", [7, 0.3, 5])]
)
def test_a_choice_takes_over_what_the_network_was_trained_with(
    tmp_path: Path, split: str, set_aside: list[Any]
) -> None:
    keys = ("seed", "val_fraction", "limit_per_class")
    chosen = {"_target_": "any", "root": str(tmp_path), "image_size": 32, "num_workers": None}
    chosen |= {"eval_batch_size": None, "seed": 0, "val_fraction": 0.1, "limit_per_class": None}
    chosen["test_fraction"] = None
    node = data_config(OmegaConf.create(chosen), of_run(tmp_path), split)
    found = OmegaConf.to_container(node, resolve=True)
    assert isinstance(found, dict)
    assert [found[key] for key in keys] == set_aside
    assert (found["image_size"], found["classes"]) == (24, ["0", "${x}"])
    assert (found["mean"], found["std"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])


def test_classes_may_be_given_as_numbers(tmp_path: Path) -> None:
    given = OmegaConf.create({"classes": [0, 1]})
    card = of_run(tmp_path, classes=None) | {"classes": ["0", "1"]}
    assert data_config(given, card, "test").classes == ["0", "1"]


@pytest.mark.parametrize(
    ("folder", "read"),
    [
        ("val", {"test": ["test"], "val": ["val"], "train": ["train", "val"]}),
        ("other", {"test": ["test"], "val": ["train"], "train": ["train"]}),
    ],
)
def test_only_the_splits_that_are_needed_are_read(
    tmp_path: Path, folder: str, read: dict[str, list[str]]
) -> None:
    (tmp_path / folder).mkdir()
    card = of_run(tmp_path, splits=None)
    null = OmegaConf.create({"root": None})
    assert {split: data_config(null, card, split).splits for split in read} == read


def test_own_data_are_said_to_lack_what_they_lack(tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        data_config(OmegaConf.create({"crop": 8, "other": None}), of_run(tmp_path), "test")
    assert str(raised.value) == (
        "data.crop: the data that the checkpoint was trained on have no such option. They have: "
        "root, seed, val_fraction, limit_per_class."
    )
    gone = tmp_path / "gone"
    with pytest.raises(UserError) as raised:
        data_config(OmegaConf.create({"root": None}), of_run(gone), "test")
    assert str(raised.value) == (
        f"The pictures that the classifier was trained on are not at {gone}: give "
        "data.root=<where they are>, or data=<choice>."
    )
