"""Folders of pictures: decoded exactly, once, and again when they change."""

import errno
import logging
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import error_of
from litvision.sources import decode as module
from litvision.sources.decode import decode
from litvision.sources.image_folder import ImageFolder


def count_decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note from here on which files are decoded."""
    decoded: list[str] = []

    def counted(path: Path, image_size: int) -> np.ndarray:
        decoded.append(path.name)
        return decode(path, image_size)

    monkeypatch.setattr(module, "decode", counted)
    return decoded


def test_reads_every_split_with_labels_by_folder_name(image_folder: Path) -> None:
    shutil.copytree(image_folder / "test" / "red", image_folder / "val" / "red")
    splits = ImageFolder(image_folder, image_size=16).read()
    assert {name: len(images) for name, images in splits.items()} == {
        "train": 24,
        "test": 12,
        "val": 4,
    }
    for images in splits.values():
        assert images.classes == ("blue", "green", "red")
        assert images.mean is None
        assert images.std is None
    assert splits["train"].labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert splits["val"].labels.tolist() == [2] * 4
    brightest = splits["train"].pixels.float().mean((1, 2)).argmax(1)
    assert brightest.tolist() == [2] * 8 + [1] * 8 + [0] * 8
    expected = decode(image_folder / "val" / "red" / "2.png", 16)
    assert np.array_equal(splits["val"].pixels[2].numpy(), expected)


def test_worker_processes_give_the_same_and_leave_the_random_state(
    image_folder: Path, tmp_path: Path
) -> None:
    state = torch.get_rng_state()
    here = ImageFolder(image_folder, decode_workers=0, cache_dir=tmp_path / "here").read()
    there = ImageFolder(image_folder, decode_workers=2, cache_dir=tmp_path / "there").read()
    assert torch.equal(torch.get_rng_state(), state)
    for name in ("train", "test"):
        assert torch.equal(here[name].pixels, there[name].pixels)
        assert torch.equal(here[name].labels, there[name].labels)


def test_decodes_once(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    decoded = count_decoded(monkeypatch)
    ImageFolder(image_folder).prepare()
    assert len(decoded) == 36
    ImageFolder(image_folder).prepare()
    ImageFolder(image_folder).read()
    assert len(decoded) == 36
    assert capfd.readouterr() == ("", "")


def test_two_at_once_decode_once(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = count_decoded(monkeypatch)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda _: ImageFolder(image_folder).prepare(), range(4)))
    assert len(decoded) == 36


@pytest.mark.parametrize("change", ["touch", "rewrite", "add", "remove", "rename"])
def test_decodes_a_changed_split_again(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    ImageFolder(image_folder).prepare()
    decoded = count_decoded(monkeypatch)
    picture = image_folder / "test" / "blue" / "0.jpg"
    match change:
        case "touch":
            os.utime(picture, ns=(0, picture.stat().st_mtime_ns + 1))
        case "rewrite":
            Image.new("RGB", (9, 9), "white").save(picture)
        case "add":
            Image.new("RGB", (9, 9), "white").save(picture.with_name("9.png"))
        case "remove":
            picture.unlink()
        case "rename":
            picture.rename(picture.with_name("00.jpg"))
    test = ImageFolder(image_folder).read()["test"]
    left = {"add": 13, "remove": 11}.get(change, 12)
    assert len(decoded) == len(test) == left  # and none of the training pictures
    if change == "rewrite":
        assert (test.pixels[0] == 255).all()


def test_sizes_have_caches_side_by_side(image_folder: Path) -> None:
    for size in (8, 16, 8):
        assert ImageFolder(image_folder, size).read()["train"].pixels.shape == (24, size, size, 3)
    caches = sorted(path.name for path in (image_folder / ".litvision").glob("*.npy"))
    assert caches == ["test-16px.npy", "test-8px.npy", "train-16px.npy", "train-8px.npy"]


@pytest.mark.parametrize("name", ["train-32px.npy", "train-32px.json"])
def test_a_half_written_cache_is_made_anew(image_folder: Path, name: str) -> None:
    whole = ImageFolder(image_folder).read()["train"].pixels.clone()
    file = image_folder / ".litvision" / name
    file.write_bytes(file.read_bytes()[:-10])
    assert torch.equal(ImageFolder(image_folder).read()["train"].pixels, whole)


def test_the_cache_is_mapped_and_what_is_written_stays_in_memory(image_folder: Path) -> None:
    pixels = ImageFolder(image_folder).read()["train"].pixels
    before = pixels.clone()
    pixels.zero_()
    assert torch.equal(ImageFolder(image_folder).read()["train"].pixels, before)


def test_a_cache_larger_than_memory_is_mapped_for_reading(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    expected = ImageFolder(image_folder).read()["train"].pixels
    load = np.load

    def too_large(path: Path, mmap_mode: str) -> np.ndarray:
        if mmap_mode == "c":
            raise OSError(12, "Cannot allocate memory")
        return load(path, mmap_mode)

    monkeypatch.setattr(np, "load", too_large)
    assert torch.equal(ImageFolder(image_folder).read()["train"].pixels, expected)
    assert list(recwarn) == []


def test_a_link_to_nowhere_is_an_unreadable_picture(image_folder: Path) -> None:
    link = image_folder / "test" / "red" / "link.png"
    link.symlink_to(image_folder / "nowhere.png")
    assert error_of(ImageFolder(image_folder)).startswith(f"cannot read {link} (")
    assert len(ImageFolder(image_folder, on_error="skip").read()["test"]) == 12


def test_other_files_are_ignored_and_folders_in_a_class_are_not(image_folder: Path) -> None:
    red = image_folder / "train" / "red"
    for name in ("Thumbs.db", "notes.txt", ".hidden.png", "._0.jpg"):
        (red / name).write_text("no picture")
    (image_folder / "train" / ".ipynb_checkpoints").mkdir()
    (red / "more").mkdir()
    Image.new("RGB", (9, 9), "white").save(red / "more" / "0.PNG")
    train = ImageFolder(image_folder).read()["train"]
    assert len(train) == 25
    assert train.labels.tolist().count(2) == 9
    assert (train.pixels == 255).all((1, 2, 3)).sum() == 1


def break_pictures(root: Path) -> list[Path]:
    """Damage one picture in three ways that Pillow reports differently."""
    cut, text, bomb = (root / "train" / "green" / name for name in ("0.jpg", "1.JPEG", "2.png"))
    cut.write_bytes(cut.read_bytes()[:700])
    text.write_text("not a picture")
    Image.new("1", (500, 500)).save(bomb)
    return [cut, text, bomb]


def test_an_unreadable_picture_stops_by_default(image_folder: Path) -> None:
    text = image_folder / "train" / "green" / "1.JPEG"
    text.write_text("not a picture")
    expected = (
        f"cannot read {text} (not a picture that Pillow knows); replace or delete it, "
        "or set data.on_error=skip to leave out every such picture"
    )
    assert error_of(ImageFolder(image_folder)) == expected
    assert error_of(ImageFolder(image_folder, decode_workers=1)) == expected
    assert [path.name for path in (image_folder / ".litvision").iterdir()] == [".lock"]

    ImageFolder(image_folder, on_error="skip").prepare()
    assert error_of(ImageFolder(image_folder)) == expected  # and not what was left out before


def test_unreadable_pictures_can_be_skipped(
    image_folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    broken = break_pictures(image_folder)
    source = ImageFolder(image_folder, on_error="skip")
    source.prepare()
    listed = image_folder / ".litvision" / "skipped.txt"
    lines = listed.read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == [str(path) for path in broken]
    reasons = [line.split("\t")[1] for line in lines]
    assert "truncated" in reasons[0]
    assert reasons[1] == "not a picture that Pillow knows"
    assert "decompression bomb" in reasons[2]

    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            train = source.read()["train"]
        assert caplog.messages == [
            f"pictures left out as unreadable: 3, all listed in {listed}: "
            + ", ".join(str(path) for path in broken)
        ]
    assert train.labels.tolist() == [0] * 8 + [1] * 5 + [2] * 8
    kept = decode(image_folder / "train" / "green" / "3.png", 32)
    assert np.array_equal(train.pixels[8].numpy(), kept)

    decoded = count_decoded(monkeypatch)
    source.prepare()
    assert decoded == []  # the damaged ones are not tried again
    for path in broken:
        path.unlink()
    caplog.clear()
    assert len(source.read()["train"]) == 21
    assert caplog.messages == []
    assert not listed.exists()


def test_a_picture_that_the_system_kept_from_being_read_is_tried_again(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = image_folder / "train" / "green" / "0.jpg"
    opened = Image.open

    def gone(path: Path) -> None:
        if path == away:
            raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as system:
        system.setattr(Image, "open", lambda path, **o: (gone(path), opened(path, **o))[1])
        for _ in range(2):
            source = ImageFolder(image_folder, on_error="skip")
            assert len(source.read()["train"]) == 23
        decoded = count_decoded(system)
        source.prepare()
        assert decoded == ["0.jpg"]  # as long as it cannot be read, the others are not read again
    with monkeypatch.context() as system:
        system.setattr(os, "access", lambda *a: False)
        assert len(ImageFolder(image_folder, on_error="skip").read()["train"]) == 23
    assert len(ImageFolder(image_folder, on_error="skip").read()["train"]) == 24
    assert not (image_folder / ".litvision" / "skipped.txt").exists()


def test_only_the_first_ten_skipped_are_logged(
    image_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for index in range(11):
        (image_folder / "test" / "red" / f"x{index:02}.png").write_text("")
    ImageFolder(image_folder, on_error="skip").read()
    assert "pictures left out as unreadable: 11" in caplog.text
    assert "x09.png, …" in caplog.text
    assert "x10.png" not in caplog.text


def test_what_one_split_skips_stays_listed_when_the_other_is_read(image_folder: Path) -> None:
    (image_folder / "train" / "red" / "x.png").touch()
    (image_folder / "test" / "red" / "y.png").touch()
    for splits in (None, ["test"]):
        ImageFolder(image_folder, on_error="skip", splits=splits).prepare()
        listed = (image_folder / ".litvision" / "skipped.txt").read_text().splitlines()
        assert [Path(line.split("\t")[0]).name for line in listed] == ["x.png", "y.png"]
        (image_folder / "test" / "blue" / "0.jpg").touch()


def test_files_that_are_left_out_are_counted(
    image_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("red/a.heic", "red/b.HEIC", "blue/deeper/notes", "stray.png", "red/.DS_Store"):
        path = image_folder / "train" / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    ImageFolder(image_folder).prepare()
    (line,) = caplog.messages
    assert line.startswith(f"no pictures by their names, left out of {image_folder}/train: 2 .heic")
    assert sorted(line.partition(": ")[2].split(", ")) == [
        "1 outside the class folders",
        "1 without an ending",
        "2 .heic",
    ]


def test_links_that_lead_in_a_circle_are_one_line(image_folder: Path) -> None:
    red, blue = image_folder / "train" / "red", image_folder / "train" / "blue"
    (red / "link").symlink_to(blue)
    (blue / "link").symlink_to(red)
    assert error_of(ImageFolder(image_folder)).endswith(
        "/link/link is a link to a folder that holds it: remove it"
    )


def test_a_fingerprint_is_of_the_files_names(image_folder: Path) -> None:
    def fingerprint() -> str:
        return ImageFolder(image_folder).read()["train"].fingerprint

    first = fingerprint()
    file = next((image_folder / "train" / "red").glob("*.*"))
    os.utime(file, (1, 1))
    assert fingerprint() == first
    file.rename(file.with_stem("other"))
    assert fingerprint() != first


def test_a_link_to_a_folder_around_it_is_one_line(image_folder: Path) -> None:
    loop = image_folder / "train" / "red" / "loop"
    loop.symlink_to("..")
    assert error_of(ImageFolder(image_folder)) == (
        f"{loop} is a link to a folder that holds it: remove it"
    )


@pytest.mark.parametrize("record", ["{}", "[]", "nothing"])
def test_a_strange_record_is_no_cache(image_folder: Path, record: str) -> None:
    expected = ImageFolder(image_folder).read()["train"]
    (image_folder / ".litvision" / "train-32px.json").write_text(record)
    assert torch.equal(ImageFolder(image_folder).read()["train"].pixels, expected.pixels)


def test_two_folders_of_the_same_names_share_a_cache_folder(tmp_path: Path) -> None:
    for grey in (0, 200):
        for split in ("train", "test"):
            folder = tmp_path / str(grey) / split / "a"
            folder.mkdir(parents=True)
            Image.new("RGB", (32, 32), (grey, grey, grey)).save(folder / "x.bmp")
            os.utime(folder / "x.bmp", (1, 1))
    for grey in (0, 200):
        images = ImageFolder(tmp_path / str(grey), cache_dir=tmp_path / "cache").read()["train"]
        assert images.pixels.unique().tolist() == [grey]


def test_a_cache_that_cannot_be_written_is_one_line(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = tmp_path / "file" / "cache"
    message = error_of(ImageFolder(image_folder, cache_dir=cache))
    assert message.startswith(f"cannot write the decoded pictures to {cache} (")
    assert message.endswith(
        "; set data.cache_dir to a folder that can be written and has enough space"
    )


def test_a_full_disk_is_one_line(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    assert "No space left on device" in error_of(ImageFolder(image_folder))


def test_pictures_after_a_batch_with_a_skipped_one_keep_their_labels(tmp_path: Path) -> None:
    for split, count in (("train", 100), ("test", 2)):
        for number in range(count):
            path = tmp_path / split / ("a" if number < count // 2 else "b") / f"{number:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (number, number, number)).save(path)
    (tmp_path / "train" / "a" / "003.png").write_bytes(b"no picture")
    images = ImageFolder(tmp_path, image_size=4, on_error="skip").read()["train"]
    numbers = images.pixels[:, 0, 0, 0].tolist()
    assert numbers == [number for number in range(100) if number != 3]
    assert images.labels.tolist() == [int(number >= 50) for number in numbers]
