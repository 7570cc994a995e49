"""Tiny data in the real file formats, for every test that needs pictures."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import http.server
import pickle
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from commands import run_command

# What takes long to import is imported where it is used: the process that hands tests out to
# others reads this file too, and they wait for it.
if TYPE_CHECKING:
    import torchvision.datasets
    from omegaconf import DictConfig

    from litvision.datamodule import Source
    from litvision.sources.cifar import CIFAR10


def pytest_collection_finish() -> None:
    """Do not look for garbage among the half a million objects that were imported."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)  # Hypothesis looks through what is not frozen
def pytest_sessionfinish() -> None:
    """Let the process take itself apart at its end, else libraries list on it what is left."""
    gc.unfreeze()


@dataclass(frozen=True)
class CifarArchive:
    """A small archive in CIFAR's own format, and what is in it."""

    path: Path  # the .tar.gz
    dataset: type[torchvision.datasets.CIFAR10]  # torchvision's class with this archive's MD5s
    pixels: dict[str, np.ndarray]  # "train", "test": uint8 [N, 32, 32, 3]
    labels: dict[str, list[int]]


def write_cifar(dataset: type[torchvision.datasets.CIFAR10], folder: Path) -> CifarArchive:
    """Write 40 training and 20 test pictures as `dataset`'s official archive is laid out."""
    rng = np.random.default_rng(0)
    ten = dataset.__name__ == "CIFAR10"
    count = 10 if ten else 100
    pixels: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    labels: dict[str, list[int]] = {"train": [], "test": []}
    files: dict[str, bytes] = {}

    def write(name: str, content: dict[str, Any]) -> str:
        files[name] = pickle.dumps(content, protocol=2)
        return hashlib.md5(files[name]).hexdigest()

    def write_batches(split: str, names: list[str], total: int) -> list[list[str]]:
        md5s = []
        for name in names:
            data = rng.integers(0, 256, (total // len(names), 3, 32, 32), np.uint8)
            targets = rng.integers(0, count, len(data)).tolist()
            pixels[split].append(data.transpose(0, 2, 3, 1))
            labels[split] += targets
            content = {"data": data.reshape(len(data), -1), "filenames": [name] * len(data)}
            md5s.append(
                write(name, content | {"labels" if ten else "fine_labels": targets}),
            )
        return [[name, md5] for name, md5 in zip(names, md5s, strict=True)]

    train_list = write_batches("train", [name for name, _ in dataset.train_list], 40)
    test_list = write_batches("test", [name for name, _ in dataset.test_list], 20)
    meta = dataset.meta["filename"]
    meta_md5 = write(meta, {dataset.meta["key"]: [f"class_{index}" for index in range(count)]})

    unpacked = folder / "unpacked"
    unpacked.mkdir()
    path = folder / dataset.filename
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            (unpacked / name).write_bytes(content)
            tar.add(unpacked / name, f"{dataset.base_folder}/{name}")
    attributes = {
        "tgz_md5": hashlib.md5(path.read_bytes()).hexdigest(),
        "train_list": train_list,
        "test_list": test_list,
        "meta": dataset.meta | {"md5": meta_md5},
    }
    return CifarArchive(
        path,
        type(dataset.__name__, (dataset,), attributes),
        {split: np.concatenate(batches) for split, batches in pixels.items()},
        labels,
    )


@pytest.fixture(scope="session")
def cifar10_archive(tmp_path_factory: pytest.TempPathFactory) -> CifarArchive:
    import torchvision.datasets

    return write_cifar(torchvision.datasets.CIFAR10, tmp_path_factory.mktemp("cifar10"))


@pytest.fixture(scope="session")
def cifar100_archive(tmp_path_factory: pytest.TempPathFactory) -> CifarArchive:
    import torchvision.datasets

    return write_cifar(torchvision.datasets.CIFAR100, tmp_path_factory.mktemp("cifar100"))


@dataclass
class FileServer:
    """Serves the files of `folder`, and misbehaves as `fault` says."""

    folder: Path
    url: str = ""  # of the folder, without a slash at the end
    # "missing" (404), "html" (a login page), "truncate" (half the file), "stall" (half, then
    # silence), "slow" (in pieces), "redirect" (to where it is), "loop" (to itself)
    fault: str | None = None
    requests: list[str] = field(default_factory=list)  # the paths asked for
    pause: threading.Event = field(default_factory=threading.Event)  # set at the end of the test


@pytest.fixture
def file_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A web server on this machine; put files into `file_server.folder`."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    served = FileServer(tmp_path / "served")
    served.folder.mkdir()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.requests.append(self.path)
            file = served.folder / self.path.lstrip("/").partition("?")[0]
            if served.fault == "missing" or not file.is_file():
                self.send_error(404)
                return
            if served.fault == "loop" or (served.fault == "redirect" and "moved" not in self.path):
                self.send_response(302)
                self.send_header(
                    "Location", f"{self.path}{'' if served.fault == 'loop' else '?moved'}"
                )
                self.end_headers()
                return
            body = b"<html>Log in</html>" if served.fault == "html" else file.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            sent = body[: len(body) // 2] if served.fault in ("truncate", "stall") else body
            pieces = 10 if served.fault == "slow" else 1
            with contextlib.suppress(ConnectionError):  # torchvision looks for redirects, hangs up
                for start in range(0, len(sent), -(-len(sent) // pieces)):
                    self.wfile.write(sent[start : start + -(-len(sent) // pieces)])
                    self.wfile.flush()
                    served.pause.wait(0.05 if pieces > 1 else 0)
                if served.fault == "stall":
                    served.pause.wait(30)

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        served.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield served
        served.pause.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def cifar10_source(
    cifar10_archive: CifarArchive,
    file_server: FileServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> CIFAR10:
    """The source of the tiny archive, which lies on the server, not yet downloaded."""
    from litvision.sources.cifar import CIFAR10

    monkeypatch.setattr(CIFAR10, "dataset", cifar10_archive.dataset)
    name = cifar10_archive.path.name
    (file_server.folder / name).write_bytes(cifar10_archive.path.read_bytes())
    return CIFAR10(tmp_path / "data", url=f"{file_server.url}/{name}")


def error_of(source: Source) -> str:
    """What a source that cannot be prepared says, which is one line."""
    from litvision.errors import UserError

    with pytest.raises(UserError) as caught:
        source.prepare()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_image_folder(root: Path) -> Path:
    """Write classes blue, green and red, 8 training and 4 test pictures each, of that colour.

    Sizes, modes and file formats differ, as in a folder from real life.
    """
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for channel, name in ((2, "blue"), (1, "green"), (0, "red")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                height, width = rng.integers(30, 70, 2)
                pixels = rng.integers(0, 100, (height, width, 3), np.uint8)
                pixels[..., channel] += 120
                image = Image.fromarray(pixels)
                match index % 4:
                    case 0:
                        image.save(folder / f"{index}.jpg")
                    case 1:
                        image.save(folder / f"{index}.JPEG")
                    case 2:
                        image.convert("RGBA").save(folder / f"{index}.png")
                    case 3:
                        image.quantize(64).save(folder / f"{index}.png")
    return root


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """A folder of pictures as `write_image_folder` makes it."""
    return write_image_folder(tmp_path / "pictures")


Compose = Callable[..., "DictConfig"]


@pytest.fixture
def compose_train(tmp_path: Path) -> Compose:
    """Compose conf/train.yaml for the built-in pictures and a tiny network, run in `tmp_path`."""

    from hydra import compose, initialize_config_dir

    from litvision.configs import CONF

    def composed(*overrides: str) -> DictConfig:
        fixed = [
            "data=shapes",
            "data.train_size=40",
            "data.test_size=20",
            "data.batch_size=16",
            "model.network._target_=tiny.TinyNet",
            "trainer.accelerator=cpu",
            "trainer.max_epochs=2",
            "overrides=[]",
            "callbacks.model_summary=null",
            "callbacks.figures=null",
            f"run_dir={tmp_path}/run",
        ]
        with initialize_config_dir(str(CONF)):
            return compose("train", overrides=[*fixed, *overrides])

    return composed


Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """`run_command` in `tmp_path`, or in the `folder` given."""

    def in_folder(module: str, *arguments: str, folder: Path = tmp_path, **options: Any) -> Any:
        return run_command(folder, module, *arguments, **options)

    return in_folder
