"""CIFAR: downloaded once, checked, repaired, and read pixel for pixel."""

import pickle
import socket
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import CifarArchive, FileServer, error_of
from litvision.errors import UserError
from litvision.sources.cifar import CIFAR10, CIFAR100, _unpack
from tiny import Evil


@pytest.fixture
def source(cifar10_source: CIFAR10) -> CIFAR10:
    return cifar10_source


def test_reads_exactly_what_was_pickled(source: CIFAR10, cifar10_archive: CifarArchive) -> None:
    source.prepare()
    splits = source.read()
    assert list(splits) == ["train", "test"]
    for name, images in splits.items():
        assert np.array_equal(images.pixels.numpy(), cifar10_archive.pixels[name])
        assert images.pixels.is_contiguous()
        assert images.labels.dtype == torch.int64
        assert images.labels.tolist() == cifar10_archive.labels[name]
        assert images.classes == tuple(f"class_{index}" for index in range(10))
        assert images.mean == (0.4914, 0.4822, 0.4465)
        assert images.std == (0.2470, 0.2435, 0.2616)


def test_cifar100_reads_its_fine_labels(
    cifar100_archive: CifarArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CIFAR100, "dataset", cifar100_archive.dataset)
    (tmp_path / cifar100_archive.path.name).write_bytes(cifar100_archive.path.read_bytes())
    source = CIFAR100(tmp_path)
    source.prepare()
    splits = source.read()
    for name, images in splits.items():
        assert np.array_equal(images.pixels.numpy(), cifar100_archive.pixels[name])
        assert images.labels.tolist() == cifar100_archive.labels[name]
        assert len(images.classes) == 100
        assert images.mean == (0.5071, 0.4865, 0.4409)
        assert images.std == (0.2673, 0.2564, 0.2762)


def test_the_official_archives_are_what_is_checked() -> None:
    assert CIFAR10.dataset.tgz_md5 == "c58f30108f718f92721af3b95e74349a"
    assert CIFAR100.dataset.tgz_md5 == "eb9058c3a382ffc7106e4002c42a8d85"
    assert CIFAR10("data").url == "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    assert CIFAR100("data").url == "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"


def test_downloads_once_and_is_silent_after(
    source: CIFAR10, file_server: FileServer, capfd: pytest.CaptureFixture[str]
) -> None:
    source.prepare()
    asked = len(file_server.requests)
    assert asked > 0
    capfd.readouterr()
    source.prepare()
    source.read()
    assert len(file_server.requests) == asked
    assert capfd.readouterr() == ("", "")


def test_two_at_once_download_once(source: CIFAR10, file_server: FileServer) -> None:
    CIFAR10(source.root / "other", source.url).prepare()
    for_one = len(file_server.requests)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda _: CIFAR10(source.root, source.url).prepare(), range(4)))
    assert len(file_server.requests) == 2 * for_one
    assert len(source.read()["train"]) == 40


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
@pytest.mark.parametrize("damage", ["corrupt", "missing"])
def test_a_damaged_file_is_unpacked_again_without_download(
    source: CIFAR10, file_server: FileServer, name: str, damage: str
) -> None:
    source.prepare()
    asked = len(file_server.requests)
    file = source.root / "cifar-10-batches-py" / name
    whole = file.read_bytes()
    if damage == "corrupt":
        file.write_bytes(whole[:-1] + b"?")
    else:
        file.unlink()
    with pytest.raises(UserError, match="cifar-10-batches-py is missing or damaged"):
        source.read()
    source.prepare()
    assert file.read_bytes() == whole
    assert len(file_server.requests) == asked


def test_a_damaged_archive_is_downloaded_again(
    source: CIFAR10, cifar10_archive: CifarArchive
) -> None:
    source.root.mkdir()
    archive = source.root / "cifar-10-python.tar.gz"
    archive.write_bytes(cifar10_archive.path.read_bytes()[:1000])
    source.prepare()
    assert archive.read_bytes() == cifar10_archive.path.read_bytes()
    assert len(source.read()["test"]) == 20


def test_an_archive_put_there_by_hand_needs_no_server(
    source: CIFAR10, cifar10_archive: CifarArchive, file_server: FileServer
) -> None:
    source.root.mkdir()
    (source.root / "cifar-10-python.tar.gz").write_bytes(cifar10_archive.path.read_bytes())
    source.prepare()
    assert file_server.requests == []
    assert len(source.read()["train"]) == 40


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("missing", "HTTP Error 404: Not Found"),
        ("html", "what came is incomplete or another file: its MD5 is wrong"),
        ("truncate", "what came is incomplete or another file: its MD5 is wrong"),
    ],
)
def test_a_failed_download_says_the_ways_out_and_leaves_nothing(
    source: CIFAR10, file_server: FileServer, fault: str, reason: str
) -> None:
    file_server.fault = fault
    archive = source.root / "cifar-10-python.tar.gz"
    assert error_of(source) == (
        f"cannot download cifar-10-python.tar.gz from {source.url} ({reason}); put the file "
        f"(MD5 {source.dataset.tgz_md5}) at {archive} by hand, or train on your own pictures with "
        "`data=image_folder data.root=<folder of class folders>`, or on drawn ones that need no "
        "download with `data=shapes`"
    )
    assert [path for path in source.root.iterdir() if not path.name.endswith(".lock")] == []

    file_server.fault = None
    source.prepare()
    assert len(source.read()["train"]) == 40


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:9/x.tar.gz", "Connection refused"),
        ("no-such-scheme://x", "unknown url type: no-such-scheme"),
        ("x.tar.gz", "unknown url type"),
    ],
)
def test_an_address_that_cannot_be_reached_is_one_line(
    source: CIFAR10, url: str, reason: str
) -> None:
    source.url = url
    message = error_of(source)
    assert message.startswith(f"cannot download cifar-10-python.tar.gz from {url} (")
    assert reason in message
    assert "<urlopen" not in message


def test_a_server_that_does_not_answer_is_given_up(
    source: CIFAR10, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("litvision.sources.cifar._TIMEOUT_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        source.url = f"http://127.0.0.1:{silent.getsockname()[1]}/x.tar.gz"
        assert "timed out" in error_of(source)
    assert socket.getdefaulttimeout() is None


def test_an_archive_that_does_not_unpack_is_one_line(source: CIFAR10, tmp_path: Path) -> None:
    source.root.write_text("a file where the folder should be")
    assert error_of(source).startswith(f"cannot unpack cifar-10-python.tar.gz in {source.root} (")


def test_the_archive_is_kept_when_its_replacement_fails(
    source: CIFAR10, file_server: FileServer
) -> None:
    source.root.mkdir()
    archive = source.root / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz"):
        pass
    before = archive.read_bytes()
    file_server.fault = "truncate"
    error_of(source)
    assert archive.read_bytes() == before


def test_a_file_that_would_run_something_is_refused_though_its_md5_fits(
    source: CIFAR10, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.prepare()
    marker = tmp_path / "ran"
    file = source.root / "cifar-10-batches-py" / "data_batch_2"
    file.write_bytes(pickle.dumps({"data": Evil(marker), "labels": []}, protocol=2))
    monkeypatch.setattr(source, "_is_intact", lambda: True)  # a forged MD5
    with pytest.raises(UserError, match=r"data_batch_2 is not what CIFAR's files are: it holds"):
        source.read()
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["parent", "absolute", "link"])
def test_an_archive_that_would_write_elsewhere_is_refused(tmp_path: Path, kind: str) -> None:
    archive, folder = tmp_path / "a.tar.gz", tmp_path / "folder"
    folder.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        names = {"parent": "../out", "absolute": f"{tmp_path}/out", "link": "inside"}
        member = tarfile.TarInfo(names[kind])
        if kind == "link":
            member.type, member.linkname = tarfile.SYMTYPE, str(tmp_path)
        tar.addfile(member)
    with pytest.raises(UserError, match=r"a.tar.gz is not what it should be: it holds"):
        _unpack(archive, folder)
    assert list(folder.iterdir()) == []
    assert not (tmp_path / "out").exists()
