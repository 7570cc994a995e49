"""CIFAR-10 and CIFAR-100: 60,000 colour pictures of 32 by 32 pixels, in 10 or 100 classes.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

from __future__ import annotations

import http.client
import pickle
import socket
import tarfile
import urllib.error
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torchvision.datasets
from filelock import FileLock
from torchvision.datasets.utils import check_integrity, download_url

from litvision.batches import Images
from litvision.errors import UserError, one_line

_TIMEOUT_SECONDS = 30.0  # without one, a server that stops answering holds the run for ever


class CIFAR10:
    """CIFAR-10: 50,000 training and 10,000 test pictures in 10 classes.

    Args:
        root: folder for the archive (163 MiB) and what it unpacks to (178 MiB).
        url: where to download the archive from; None is the official address. Whatever the
            address, the archive must have the official MD5.
    """

    dataset: ClassVar[type[torchvision.datasets.CIFAR10]] = torchvision.datasets.CIFAR10
    labels: ClassVar[str] = "labels"  # their key in the files
    mean: ClassVar[tuple[float, ...]] = (0.4914, 0.4822, 0.4465)
    std: ClassVar[tuple[float, ...]] = (0.2470, 0.2435, 0.2616)

    def __init__(self, root: str | Path, url: str | None = None) -> None:
        self.root = Path(root).expanduser()
        self.url = url or self.dataset.url

    def prepare(self) -> None:
        """Download and unpack what is missing or damaged under `root`; else do nothing.

        Raises:
            UserError: the archive cannot be had, or `root` cannot be written.
        """
        if self._is_intact():
            return
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with FileLock(self.root / f".{self.dataset.filename}.lock"):
                if self._is_intact():  # another process was here first
                    return
                archive = self.root / self.dataset.filename
                if not check_integrity(archive, self.dataset.tgz_md5):
                    self._download(archive)
                _unpack(archive, self.root)
        except (OSError, tarfile.TarError) as error:
            raise UserError(
                f"cannot unpack {self.dataset.filename} in {self.root} ({error}); "
                "set data.root to a folder that can be written and has 350 MB free"
            ) from error

    def read(self) -> dict[str, Images]:
        """Read both splits into memory.

        Returns:
            "train" and "test", pixels uint8 `[N, 32, 32, 3]`, in the order of the archive.

        Raises:
            UserError: the unpacked files are missing or damaged.
        """
        if not self._is_intact():
            raise UserError(
                f"{self.root / self.dataset.base_folder} is missing or damaged; "
                "prepare() puts it right"
            )
        lists = {"train": self.dataset.train_list, "test": self.dataset.test_list}
        return {split: self._split([name for name, _ in files]) for split, files in lists.items()}

    def _split(self, names: list[str]) -> Images:
        batches = [self._load(name) for name in names]
        pixels = np.concatenate([batch["data"] for batch in batches])
        labels = [label for batch in batches for label in batch[self.labels]]
        return Images(
            pixels=torch.from_numpy(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1).copy()),
            labels=torch.tensor(labels),
            classes=tuple(self._load(self.dataset.meta["filename"])[self.dataset.meta["key"]]),
            mean=self.mean,
            std=self.std,
        )

    def _load(self, name: str) -> Any:
        path = self.root / self.dataset.base_folder / name
        try:
            with path.open("rb") as file:
                return _PlainUnpickler(file, encoding="latin1").load()
        except pickle.UnpicklingError as error:
            raise UserError(f"{path} is not what CIFAR's files are: {error}") from error

    def _is_intact(self) -> bool:
        meta = (self.dataset.meta["filename"], self.dataset.meta["md5"])
        return all(
            check_integrity(self.root / self.dataset.base_folder / name, md5)
            for name, md5 in (*self.dataset.train_list, *self.dataset.test_list, meta)
        )

    def _download(self, archive: Path) -> None:
        """Replace `archive` by a download, and only by a whole one."""
        part = archive.with_name(f"{archive.name}.part")
        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(_TIMEOUT_SECONDS)
        try:
            download_url(self.url, self.root, part.name, self.dataset.tgz_md5)
            part.replace(archive)
        except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
            raise UserError(
                f"cannot download {archive.name} from {self.url} ({_reason(error)}); put the file "
                f"(MD5 {self.dataset.tgz_md5}) at {archive} by hand, or train on your own pictures "
                "with `data=image_folder data.root=<folder of class folders>`, or on drawn ones "
                "that need no download with `data=shapes`"
            ) from error
        finally:
            socket.setdefaulttimeout(timeout)
            part.unlink(missing_ok=True)


class CIFAR100(CIFAR10):
    """CIFAR-100: 50,000 training and 10,000 test pictures in 100 (fine) classes.

    Args:
        root: folder for the archive (161 MiB) and what it unpacks to (178 MiB).
        url: where to download the archive from; None is the official address. Whatever the
            address, the archive must have the official MD5.
    """

    dataset = torchvision.datasets.CIFAR100
    labels = "fine_labels"
    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)


class _PlainUnpickler(pickle.Unpickler):
    """Reads lists, dicts, text, numbers and NumPy's arrays, and makes nothing else.

    The files' MD5 is known, but MD5 can be forged, and a pickle may run any command.
    """

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the four things that an array is pickled with."""
        module = module.replace("numpy._core", "numpy.core")
        if (module, name) not in (
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),  # how Python 3 writes bytes for Python 2
        ):
            raise pickle.UnpicklingError(f"it holds {module}.{name}, and not pictures alone")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack files and folders, and nothing that would lie outside `folder` or point there."""
    with tarfile.open(archive) as tar:
        for member in tar:
            inside = (folder / member.name).resolve().is_relative_to(folder.resolve())
            if not inside or not (member.isfile() or member.isdir()):
                raise UserError(
                    f"{archive} is not what it should be: it holds {member.name!r}, which is no "
                    "plain file in its folder. Delete it, and it is downloaded again."
                )
        # What the filter adds, where this Python has it: no odd owners and permissions.
        options: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        tar.extractall(folder, **options)


def _reason(error: Exception) -> str:
    """Say in a few words what went wrong with a download."""
    if type(error) is RuntimeError:  # how torchvision reports a wrong MD5
        return "what came is incomplete or another file: its MD5 is wrong"
    if type(error) is urllib.error.URLError:  # its own text is wrapped in "<urlopen error …>"
        return str(error.reason)
    # urllib's text on a server that redirects in circles has three lines.
    return one_line(error)
