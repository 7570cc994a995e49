"""Where a folder's pictures belong: its splits and classes, and what of them is tested on."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from litvision.errors import UserError
from litvision.sources.image_folder import ImageFolder
from litvision.sources.layout import held_out


def error_of(source: ImageFolder) -> str:
    with pytest.raises(UserError) as caught:
        source.prepare()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_wrong_layout_is_said_in_one_line(image_folder: Path, tmp_path: Path) -> None:
    root, moved = image_folder, tmp_path / "moved"
    expected = f"expected {root}/train/<class>/*.jpg and {root}/test/<class>/*.jpg (or .png, …)"
    more = ", or give data.test_fraction=0.2 to test on a fifth of train, or train without: "
    more += "data.splits=[train] test=false"
    source = ImageFolder(root)
    for name in ("train", "test"):
        (root / name).rename(moved)
        assert error_of(source) == (
            f"no folder {root / name}; {expected}; "
            "set data.root to the folder that holds train and test"
            + (more if name == "test" else "")
        )
        (root / name).mkdir()
        assert error_of(source) == (
            f"no pictures in {root / name}; expected {root / name}/<class>/*.jpg (or .png, …)"
        )
        (root / name).rmdir()
        moved.rename(root / name)

    (root / "test" / "violet").mkdir()
    assert error_of(source) == (
        f"{root}/test/violet is a class that {root}/train does not have; "
        "remove it, or put pictures of that class there"
    )
    (root / "train" / "violet").mkdir()
    assert error_of(source) == (
        f"no pictures in {root}/train/violet; expected {root}/train/<class>/*.jpg (or .png, …); "
        "add some or remove the folder"
    )
    (root / "train" / "violet" / "0.png").write_text("not a picture")
    assert error_of(ImageFolder(root, on_error="skip")).startswith(
        f"no pictures in {root}/train/violet; "
    )


def test_one_split_alone(image_folder: Path) -> None:
    whole = ImageFolder(image_folder).read()["test"]
    shutil.rmtree(image_folder / "train")
    shutil.rmtree(image_folder / "test" / "blue")
    splits = ImageFolder(image_folder, splits=["test"]).read()
    assert list(splits) == ["test"]
    assert splits["test"].classes == ("green", "red")
    assert splits["test"].labels.tolist() == [0] * 4 + [1] * 4
    assert torch.equal(splits["test"].pixels, whole.pixels[4:])

    tests = (image_folder / "test").rename(image_folder / "tests")
    assert error_of(ImageFolder(image_folder, splits=["test"])) == (
        f"no folder {image_folder}/test; expected {image_folder}/test/<class>/*.jpg (or .png, …); "
        "set data.root to the folder that holds test"
    )
    assert error_of(ImageFolder(tests, splits=["test"])) == (
        f"no folder {tests}/test, but green, red: if these are the classes, give "
        f"data.test_fraction=1 to test on all of them, or move them into {tests}/test"
    )
    trained = image_folder / "trained"  # what may be left out in training is no help in testing
    (trained / "train" / "red").mkdir(parents=True)
    assert error_of(ImageFolder(trained, splits=["test"])) == (
        f"no folder {trained}/test; expected {trained}/test/<class>/*.jpg (or .png, …); "
        "set data.root to the folder that holds test"
    )


def test_a_folder_given_for_another_is_named(image_folder: Path, tmp_path: Path) -> None:
    for name in ("train", "test"):
        assert error_of(ImageFolder(image_folder / name)) == (
            f"no folder {image_folder}/{name}/train: data.root is the folder that holds train and "
            f"test, so give data.root={image_folder}"
        )
    (image_folder / "train").rename(image_folder / "Train")
    assert error_of(ImageFolder(image_folder)) == (
        f"no folder {image_folder}/train, but Train: rename it to train"
    )


def test_folders_that_are_no_splits_are_named(
    image_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(image_folder / "test", image_folder / "valid")
    (image_folder / "notes").mkdir()
    ImageFolder(image_folder).read()
    assert caplog.messages[-1].endswith(
        "train, val and test: notes, valid; to validate on those of valid, rename it to val"
    )


# ---------------------------------------------------------------------------- data.test_fraction


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Class folders a and b of 60 pictures each, no two of one colour, and no splits."""
    for number in range(120):
        path = tmp_path / "flat" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    return tmp_path / "flat"


def numbers(root: Path, split: str, test_fraction: float = 0.2) -> list[int]:
    """What the pictures of a split are called, told by their colours."""
    source = ImageFolder(root, image_size=8, test_fraction=test_fraction, splits=[split])
    return sorted(source.read()[split].pixels[:, 0, 0, 0].tolist())


def test_a_share_of_each_class_is_set_aside_to_test_on(flat: Path) -> None:
    splits = ImageFolder(flat, image_size=8, test_fraction=0.2).read()
    assert list(splits) == ["train", "test"]
    colours = {name: images.pixels[:, 0, 0, 0].tolist() for name, images in splits.items()}
    assert sorted(colours["train"] + colours["test"]) == list(range(120))
    for name, images in splits.items():
        assert images.classes == ("a", "b")
        assert images.labels.tolist() == [number % 2 for number in colours[name]]
        assert numbers(flat, name) == sorted(colours[name])  # read alone, the same ones
    assert splits["test"].labels.bincount().tolist() == [13, 13]  # of 60 each; chance, by names
    assert numbers(flat, "test", 1) == list(range(120))


def test_the_choice_is_of_names_alone(flat: Path) -> None:
    first = numbers(flat, "test")
    assert first[:4] == [0, 8, 20, 21]  # and on every other machine
    (flat / "train").mkdir()  # the class folders may lie there, too
    for name in "ab":
        (flat / name).rename(flat / "train" / name)
    assert numbers(flat, "test") == first
    for number in range(120, 240):
        path = flat / "train" / "ab"[number % 2] / f"{number}.png"
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    more = numbers(flat, "test")
    assert [number for number in more if number < 120] == first
    assert len(more) > len(first)
    assert set(numbers(flat, "test", 0.1)) < set(more) < set(numbers(flat, "test", 0.5))


def test_letters_composed_or_taken_apart_are_the_same_name() -> None:
    composed = [f"\u00e4/{number}.png" for number in range(50)]
    apart = [name.replace("\u00e4", "a\u0308") for name in composed]
    chosen = held_out(composed, 0.3)
    assert {name.replace("\u00e4", "a\u0308") for name in chosen} == held_out(apart, 0.3)
    assert held_out([f"a/\udcff{number}.png" for number in range(9)], 0.5)  # no text at all


@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.999])
def test_of_two_pictures_one_is_on_each_side(fraction: float) -> None:
    for number in range(20):
        pair = [f"a/{number}.png", f"a/{number}.jpg"]
        assert len(held_out(pair, fraction)) == 1
    assert held_out(["a/0.png"], fraction) == set()
    assert held_out([], fraction) == set()


def test_a_fraction_that_does_not_fit_the_folder_is_one_line(flat: Path) -> None:
    def error(root: Path, **options: Any) -> str:
        return error_of(ImageFolder(root, **{"test_fraction": 0.2, **options}))

    assert error_of(ImageFolder(flat)) == (
        f"no folder {flat}/train, but a, b: if these are the classes, give data.test_fraction=0.2 "
        f"to test on a fifth of each, or move them into {flat}/train, and some pictures of each "
        f"into {flat}/test/<class>"
    )
    assert error(flat, test_fraction=1) == (
        "data.test_fraction=1 leaves no picture to train on: give less, such as 0.2"
    )
    (flat / "a" / "deeper").mkdir()
    (flat / "c").mkdir()
    assert error(flat) == (
        f"no pictures in {flat}/c; expected {flat}/<class>/*.jpg (or .png, …); add some or remove "
        "the folder"
    )
    (flat / "c").rename(flat / "Train")
    assert error(flat) == f"no folder {flat}/train, but Train: rename it to train"
    (flat / "Train").rename(flat / "test")
    assert error(flat) == (
        f"data.test_fraction=0.2, but there is {flat}/test to test on: leave data.test_fraction "
        "out, or move its pictures to the others"
    )
    assert error(flat / "nowhere") == (
        f"no folder {flat}/nowhere; expected {flat}/nowhere/<class>/*.jpg (or .png, …); set "
        "data.root to the folder that holds the class folders"
    )
    pictures = flat / "a"  # as if it were all there is
    (pictures / "deeper").rmdir()
    beside = f"; 60 in {pictures} itself, in no class's folder"
    assert error(pictures) == (
        f"no pictures in {pictures}; expected {pictures}/<class>/*.jpg (or .png, …){beside}"
    )
    assert error_of(ImageFolder(pictures)) == (
        f"no folder {pictures}/train; expected {pictures}/train/<class>/*.jpg and "
        f"{pictures}/test/<class>/*.jpg (or .png, …){beside}; set data.root to the folder that "
        "holds train and test"
    )
    single = flat.parent / "single" / "a"
    single.mkdir(parents=True)
    shutil.copy(flat / "a" / "0.png", single)
    assert error(single.parent) == (
        f"data.test_fraction=0.2 finds no class in {single.parent} with two pictures, one to train "
        "on and one to test on: add some"
    )


def test_files_beside_the_classes_are_counted_once(
    flat: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (flat / "README").touch()
    (flat / "decoded").mkdir()
    ImageFolder(flat, image_size=8, test_fraction=0.2, cache_dir=flat / "decoded").read()
    assert caplog.messages == [
        f"no pictures by their names, left out of {flat}: 1 outside the class folders"
    ]


def test_what_is_skipped_is_listed_for_either_side(flat: Path) -> None:
    aside = flat / "a" / "0.png"
    for path in (aside, flat / "a" / "2.png"):
        path.write_text("no picture")
    listed = flat / ".litvision" / "skipped.txt"
    for splits in (None, ["train"], ["test"]):
        ImageFolder(flat, 8, "skip", test_fraction=0.2, splits=splits).prepare()
        lines = [line.split("\t")[0] for line in listed.read_text().splitlines()]
        assert sorted(lines) == [f"{flat}/a/0.png", f"{flat}/a/2.png"]
        (flat / "a" / "1000.png").unlink(missing_ok=True)
        shutil.copy(flat / "a" / "4.png", flat / "a" / "1000.png")
    aside.unlink()
    shutil.copy(flat / "a" / "4.png", flat / "a" / "1001.png")
    ImageFolder(flat, 8, "skip", test_fraction=0.2).prepare()
    assert listed.read_text().startswith(f"{flat}/a/2.png\t")
