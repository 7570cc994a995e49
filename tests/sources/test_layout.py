"""Where a folder's pictures belong: its splits and classes, and what of them is tested on."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from conftest import error_of
from litvision.sources.image_folder import ImageFolder
from litvision.sources.layout import Layout, is_held_out


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


def test_a_picture_that_goes_moves_no_other(flat: Path) -> None:
    first = numbers(flat, "test")
    for number in first[:5] + numbers(flat, "train")[:5]:
        (flat / "ab"[number % 2] / f"{number}.png").unlink()
    assert numbers(flat, "test") == first[5:]


def test_letters_composed_or_taken_apart_are_the_same_name() -> None:
    for number in range(50):
        composed = f"\u00e4/{number}.png"
        apart = composed.replace("\u00e4", "a\u0308")
        assert is_held_out(composed, 0.3) == is_held_out(apart, 0.3)


@pytest.mark.parametrize(("one", "other"), [("\u2460", "1"), ("\udc80", "\udc81")])
def test_names_that_only_look_alike_are_two(one: str, other: str) -> None:
    aside = [[is_held_out(f"a/{sign}{n}.png", 0.5) for n in range(40)] for sign in (one, other)]
    assert aside[0] != aside[1]


def test_about_so_many_are_held_out() -> None:
    names = [f"a/{number}.png" for number in range(20_000)]
    for fraction in (0.01, 0.2, 0.9):
        count = sum(is_held_out(name, fraction) for name in names)
        deviation = (20_000 * fraction * (1 - fraction)) ** 0.5
        assert abs(count - 20_000 * fraction) < 3 * deviation
    assert not any(is_held_out(name, 0) for name in names)
    assert all(is_held_out(name, 1) for name in names)


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
    (flat / "Train").rename(flat / "Test")
    assert error(flat) == (
        f"{flat}/Test has the name of a split: if it is a class, rename it, or move the class "
        f"folders into {flat}/train; if its pictures are for testing, rename it to test and leave "
        "data.test_fraction out"
    )
    (flat / "Test").rename(flat / "test")
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
        f"no pictures in {single}; expected {single.parent}/<class>/*.jpg (or .png, …); 1 set "
        "aside by data.test_fraction=0.2; add some or remove the folder"
    )
    (single / "0.png").rename(single / "1.png")  # which falls to the other side
    assert error(single.parent) == (
        f"data.test_fraction=0.2 sets no picture in {single.parent} aside to test on: give more, "
        "or add pictures"
    )
    (single / "0.png").write_text("no picture")
    shutil.copy(flat / "a" / "0.png", single / "8.png")
    (single / "1.png").write_text("no picture")
    assert error(single.parent, on_error="skip") == (
        f"no pictures in {single}; expected {single.parent}/<class>/*.jpg (or .png, …); 1 cannot "
        "be read; 2 set aside by data.test_fraction=0.2; add some or remove the folder"
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
    assert (flat / ".litvision" / "train-0.2-8px.npy").exists()  # none is in another's way


def test_class_folders_may_have_one_to_validate_on_beside_them(flat: Path) -> None:
    for name in "ab":
        shutil.copytree(flat / name, flat / "val" / name)
    splits = ImageFolder(flat, image_size=8, test_fraction=0.2).read()
    assert {name: len(images) for name, images in splits.items()} == {
        "train": 94, "test": 26, "val": 120,
    }  # fmt: skip
    assert splits["train"].classes == ("a", "b")


def test_pictures_to_validate_on_are_none_of_those_set_aside(flat: Path) -> None:
    (flat / "train").mkdir()
    for name in "ab":
        (flat / name).rename(flat / "train" / name)
        (flat / "val" / name).mkdir(parents=True)
        for number in range(10):
            path = flat / "val" / name / f"{number}.png"
            Image.new("RGB", (8, 8), (200 + number, 0, 0)).save(path)
    splits = ImageFolder(flat, image_size=8, test_fraction=0.2).read()
    assert list(splits) == ["train", "test", "val"]
    assert splits["val"].pixels[:, 0, 0, 0].tolist() == 2 * [*range(200, 210)]
    assert numbers(flat, "val") == sorted(2 * [*range(200, 210)])
    assert list(ImageFolder(flat, image_size=8, splits=["train"]).read()) == ["train"]


def test_a_fraction_of_1_is_no_word_on_a_test_folder(flat: Path) -> None:
    assert error_of(ImageFolder(flat, test_fraction=1, splits=["train"])) == (
        "data.test_fraction=1 leaves no picture to train on: give less, such as 0.2"
    )
    (flat / "test").mkdir()
    assert error_of(ImageFolder(flat, test_fraction=1, splits=["test"])).startswith(
        f"data.test_fraction=1, but there is {flat}/test to test on: "
    )


def test_a_cache_hides_no_class(flat: Path, image_folder: Path) -> None:
    elsewhere = ImageFolder(flat, 8, test_fraction=0.2, cache_dir=flat.parent / "scratch" / "a")
    assert elsewhere.read()["train"].classes == ("a", "b")
    within = ImageFolder(flat, 8, test_fraction=0.2, cache_dir=flat / "cache" / "decoded")
    for _ in range(2):
        assert within.read()["train"].classes == ("a", "b")
    named = ImageFolder(image_folder, cache_dir=image_folder / "blue")
    assert named.read()["train"].classes == ("blue", "green", "red")


def test_what_is_left_out_is_said_where_all_is_tested_on(
    flat: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (flat / "a" / "phone.heic").touch()
    ImageFolder(flat, 8, test_fraction=1, splits=["test"]).read()
    assert caplog.messages == [f"no pictures by their names, left out of {flat}: 1 .heic"]


def test_a_fraction_of_1_finds_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert error_of(ImageFolder(tmp_path, test_fraction=1, splits=["test"])) == (
        f"no pictures in {tmp_path}; expected {tmp_path}/<class>/*.jpg (or .png, …)"
    )


def test_an_empty_folder_to_validate_on_is_named(flat: Path) -> None:
    (flat / "val").mkdir()
    assert error_of(ImageFolder(flat, test_fraction=0.2)) == (
        f"no pictures in {flat}/val; expected {flat}/val/<class>/*.jpg (or .png, …)"
    )


# ------------------------------------------------------------------------------ folders of splits


def test_pictures_come_in_the_order_of_their_names(flat: Path) -> None:
    names = [f"{number:03}.png" for number in (7, 3, 9, 1)]
    (flat / "train" / "c").mkdir(parents=True)
    for name in names:
        (flat / "train" / "c" / name).touch()
    found = [path for path, _, _ in Layout(flat, None, flat / "cache").files("train", "c")]
    assert found == [f"train/c/{name}" for name in sorted(names)]


def test_what_is_missing_is_told_by_what_is_needed(flat: Path, image_folder: Path) -> None:
    alone = f"no folder {flat}/train, but a, b: if these are the classes, "
    alone += f"move them into {flat}/train"
    assert error_of(ImageFolder(flat, splits=["train"])) == alone
    assert error_of(ImageFolder(flat, splits=["train", "val"])) == alone
    (image_folder / "test").rename(image_folder / "notes")
    assert error_of(ImageFolder(image_folder)).startswith(
        f"no folder {image_folder}/test; expected {image_folder}/train/<class>/*.jpg and "
    )
    other = image_folder / "pets"  # beside train, but none of the splits
    other.mkdir()
    assert error_of(ImageFolder(other)).startswith(f"no folder {other}/train; expected ")
    nowhere = image_folder / "nowhere" / "train"
    assert error_of(ImageFolder(nowhere)) == (
        f"no folder {nowhere}/train: data.root is the folder that holds train and test, so give "
        f"data.root={image_folder}/nowhere"
    )


def test_a_link_to_nowhere_stays_listed_while_it_is_there(image_folder: Path) -> None:
    link = image_folder / "train" / "red" / "link.png"
    link.symlink_to("nowhere")
    ImageFolder(image_folder, on_error="skip").prepare()
    (image_folder / "test" / "red" / "more.png").write_text("no picture")
    ImageFolder(image_folder, on_error="skip", splits=["test"]).prepare()
    listed = (image_folder / ".litvision" / "skipped.txt").read_text()
    assert f"{link}\t" in listed
    assert "more.png\t" in listed


def test_nothing_is_said_of_what_was_not_asked_for(
    image_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (image_folder / "notes").mkdir()
    ImageFolder(image_folder, splits=["test"]).read()
    assert "not read" not in caplog.text
