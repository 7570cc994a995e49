"""Your own pictures: a folder of class folders, decoded once into memory-mapped files."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Iterable
from os.path import lexists
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from filelock import FileLock
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from litvision import records
from litvision.batches import Images
from litvision.errors import UserError
from litvision.sources.decode import DecodedBatches, others
from litvision.sources.layout import Layout, Split, loose

log = logging.getLogger(__name__)

_FORMAT = 1  # raise it when `decode` or the cache's layout changes: old caches are then rebuilt


class ImageFolder:
    """Pictures in `root/train/<class>/`, `root/test/<class>/` and perhaps `root/val/<class>/`.

    Or, with `test_fraction`, in `root/<class>/` or `root/train/<class>/` alone.

    Any size and mode that Pillow reads will do. They are decoded once, in parallel, into one file
    a split, which is then memory-mapped: later runs start at once, and a data set larger than
    memory works. When a picture is added, removed or changed, its split is decoded again.

    Args:
        root: the folder that holds the splits.
        image_size: side in pixels to which every picture is brought; see `decode`.
        on_error: what to do with a picture that cannot be read: "raise" stops; "skip" leaves it
            out, logs it, and lists it in `skipped.txt` in the cache.
        decode_workers: processes that decode; None is one a processor, or none for few pictures.
        cache_dir: where to keep what was decoded; None is `root/.litvision`.
        test_fraction: the share of each class to test on, chosen by the pictures' names
            (`litvision.sources.layout.is_held_out`), where there is no folder `test`; of 1, all.
        splits: read these only; None: all that are there. Without "train", the classes are those
            of the splits that are read.
    """

    def __init__(
        self,
        root: str | Path,
        image_size: Annotated[int, Field(ge=1, le=4096)] = 32,
        on_error: Literal["raise", "skip"] = "raise",
        decode_workers: Annotated[int, Field(ge=0)] | None = None,
        cache_dir: str | Path | None = None,
        test_fraction: Annotated[float, Field(gt=0, le=1)] | None = None,
        splits: Annotated[list[Split], Field(min_length=1)] | None = None,
    ) -> None:
        self.root = Path(root).expanduser()
        self.name = str(records.from_here(self.root.absolute()))
        self.image_size = image_size
        self.on_error = on_error
        self.decode_workers = decode_workers
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir else self.root / ".litvision"
        self.test_fraction = test_fraction
        self.splits = splits

    def prepare(self) -> None:
        """Decode every split that is new or has changed; else do nothing.

        Raises:
            UserError: the folder is not laid out as expected, a picture cannot be read (with
                `on_error="raise"`), or the cache cannot be written.
        """
        self._prepared_splits()

    def read(self) -> dict[str, Images]:
        """Map every split into memory, having prepared what is not yet prepared.

        Returns:
            "train", "test" and, where there is such a folder, "val", or those of `splits`: pixels
            uint8 `[N, image_size, image_size, 3]` in the order of the class names, then file names.

        Raises:
            UserError: as `prepare` does.
        """
        splits = self._prepared_splits()
        skipped = [f"{self.root}/{name}" for split in splits for name in split.skipped]
        if skipped:
            log.warning(
                "pictures left out as unreadable: %d, all listed in %s: %s%s",
                len(skipped),
                self.cache_dir / "skipped.txt",
                ", ".join(skipped[:10]),
                ", …" if len(skipped) > 10 else "",
            )
        if self.splits is None:
            splits[0].layout.say_what_is_not_read()
        classes = _classes(splits)
        return {split.name: split.images(classes) for split in splits}

    def _prepared_splits(self) -> list[_Split]:
        layout = Layout(self.root, self.test_fraction, self.cache_dir)
        splits = [
            _Split(layout, name, self.image_size, self.cache_dir)
            for name in layout.splits(self.splits)
        ]
        classes = _classes(splits)
        for split in splits:
            if unknown := sorted(set(split.classes) - set(classes)):
                raise UserError(
                    f"{self.root}/{split.name}/{unknown[0]} is a class that {self.root}/train does "
                    "not have; remove it, or put pictures of that class there"
                )
        # A current cache is only read, so it may lie in a folder that cannot be written.
        if not all(split.is_cached() for split in splits):
            try:
                self.cache_dir.mkdir(parents=True, exist_ok=True)
                with FileLock(self.cache_dir / ".lock"):
                    looked_through: set[Path] = set()
                    for split in splits:
                        if split.is_cached():  # another process was here first
                            continue
                        if split.place not in looked_through:
                            split.say_what_is_left_out()
                            looked_through.add(split.place)
                        split.decode_all(self.on_error, self.decode_workers)
                    _list_skipped(splits, self.cache_dir / "skipped.txt")
            except OSError as error:
                raise UserError(
                    f"cannot write the decoded pictures to {self.cache_dir} ({error}); set "
                    "data.cache_dir to a folder that can be written and has enough space"
                ) from error
        for split in splits:
            split.check(self.on_error)
        return splits


class _Split:
    """The picture files of one split, and the cache of what they decode to."""

    def __init__(self, layout: Layout, name: Split, image_size: int, cache_dir: Path) -> None:
        self.layout, self.name, self.image_size = layout, name, image_size
        self.root, self.place = layout.root, layout.root / layout.place(name)
        # Runs with other fractions do not take each other's pictures away.
        share = "" if layout.test_fraction is None else f"-{layout.test_fraction:g}"
        self.cache = cache_dir / f"{name}{share}-{image_size}px.npy"
        self.record = self.cache.with_suffix(".json")
        self.classes = layout.classes(name)
        self.files: dict[str, str] = {}  # relative to root: their classes
        self.skipped: dict[str, str] = {}  # file: why it cannot be read
        self.bytes = 0
        digest = hashlib.sha256(f"{_FORMAT} {image_size}\n".encode())
        if not cache_dir.is_relative_to(self.root):  # elsewhere, another root may have left its own
            digest.update(os.fsencode(f"{self.root.absolute()}\n"))
        for class_name in self.classes:
            for path, size, mtime in layout.files(name, class_name):
                self.files[path] = class_name
                self.bytes += size
                digest.update(os.fsencode(f"{path}\0{size}\0{mtime}\n"))
        self.digest = digest.hexdigest()
        if not self.files and name == "test" and layout.test_fraction not in (None, 1):
            raise UserError(
                f"data.test_fraction={layout.test_fraction:g} sets no picture in {self.place} "
                "aside to test on: give more, or add pictures"
            )
        if not self.files and layout.test_fraction is not None:
            self.check("skip")  # it knows better, if there are classes
        if not self.files:
            there = others(self.place)
            raise UserError(
                f"no pictures in {self.place}; {layout.expected([name])}{loose(self.place)}"
                + (f"; there are {there}" if there else "")
            )
        self.check("skip")

    def is_cached(self) -> bool:
        """Say whether the cache is whole and up to date; if so, take over what was skipped."""
        record = records.read_object(self.record)
        size = self.cache.stat().st_size if self.cache.is_file() else 0
        if (record.get("digest"), record.get("bytes")) != (self.digest, size):
            return False  # not there, half written, or of other files
        self.skipped = record["skipped"]
        # What cannot be written anew is still good for the others.
        return not (os.access(self.cache.parent, os.W_OK) and self._reads_more_by_now())

    def _reads_more_by_now(self) -> bool:
        """Say whether a file can be read that the system kept from being read.

        A share that comes back or a permission that is given changes neither its size nor its time.
        """
        away = [path for path, why in self.skipped.items() if why.startswith("[Errno ")]
        read = DecodedBatches(away, self.image_size, self.root, batch_size=1)
        return any(len(pixels) for pixels, _ in map(read.__getitem__, range(len(away))))

    def say_what_is_left_out(self) -> None:
        """Count the files that are no pictures of a class."""
        if left := others(self.place, "outside the class folders"):
            log.warning("no pictures by their names, left out of %s: %s", self.place, left)

    def decode_all(self, on_error: str, num_workers: int | None) -> None:
        """Decode every file into the cache, one row each, those that cannot be read left out."""
        batches = DecodedBatches(list(self.files), self.image_size, self.root)
        loader = batches.loader(num_workers, self.bytes)
        self.record.unlink(missing_ok=True)
        part = self.cache.with_suffix(".part")
        shape = (len(self.files), self.image_size, self.image_size, 3)
        try:
            cache = np.lib.format.open_memmap(part, "w+", np.uint8, shape)
            _reserve(part)
            kept, self.skipped = 0, {}
            with tqdm(total=len(self.files), desc=f"decode {self.name}", disable=None) as bar:
                for pixels, errors in loader:
                    if errors and on_error == "raise":
                        raise _unreadable(self.root, *next(iter(errors.items())))
                    self.skipped |= errors
                    cache[kept : kept + len(pixels)] = pixels
                    kept += len(pixels)
                    bar.update(len(pixels) + len(errors))
            cache.flush()
            part.replace(self.cache)
        finally:
            part.unlink(missing_ok=True)
        size = self.cache.stat().st_size
        record = {"digest": self.digest, "bytes": size, "skipped": self.skipped}
        records.write_text(self.record, json.dumps(record, indent=1))

    def check(self, on_error: str) -> None:
        """Raise a UserError for what keeps these files from being trained on."""
        if self.skipped and on_error == "raise":
            raise _unreadable(self.root, *next(iter(self.skipped.items())))
        filled = {name for path, name in self.files.items() if path not in self.skipped}
        if self.name == "train" and (empty := [c for c in self.classes if c not in filled]):
            raise UserError(
                f"no pictures in {self.place / empty[0]}; {self.layout.expected(['train'])}"
                f"{self._where_gone(empty[0])}; add some or remove the folder"
            )

    def _where_gone(self, class_name: str) -> str:
        """Say what has become of a class's pictures, where there are some."""
        unread = sum(self.files[path] == class_name for path in self.skipped)
        fraction = self.layout.test_fraction
        aside = len(self.layout.files("test", class_name)) if fraction is not None else 0
        return (f"; {unread:,} cannot be read" if unread else "") + (
            f"; {aside:,} set aside by data.test_fraction={fraction:g}" if aside else ""
        )

    def images(self, classes: list[str]) -> Images:
        """Map the cache into memory; the labels count in `classes`."""
        kept = [path for path in self.files if path not in self.skipped]
        label = {name: index for index, name in enumerate(classes)}
        return Images(
            pixels=_map(self.cache)[: len(kept)],
            labels=torch.tensor([label[self.files[path]] for path in kept], dtype=torch.int64),
            classes=tuple(classes),
            fingerprint=fingerprint(map(self.layout.name, kept)),
        )


def fingerprint(names: Iterable[str]) -> str:
    """Return a SHA-256 over the names of a split's pictures."""
    return hashlib.sha256(os.fsencode("\0".join(names))).hexdigest()


def _classes(splits: list[_Split]) -> list[str]:
    """Return the classes that labels count in: the training split's, else all."""
    train = [split for split in splits if split.name == "train"]
    return sorted({name for split in train or splits for name in split.classes})


def _map(path: Path) -> Tensor:
    """Map an array's file into memory, so that what is written to it never reaches the file."""
    try:
        array = np.load(path, mmap_mode="c")
    except OSError:  # Linux maps a file larger than memory only for reading
        array = np.load(path, mmap_mode="r")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)


def _reserve(path: Path) -> None:
    """Take up the file's disk space now: a mapped file that finds none later kills the process."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _list_skipped(splits: list[_Split], path: Path) -> None:
    """Write which files cannot be read, with those of splits that are not read this time."""
    lines = path.read_text("utf-8", "surrogateescape").splitlines(True) if path.exists() else []
    read = {f"{split.root}/{name}" for split in splits for name in split.files}
    # What is neither read nor there any more was renamed or deleted.
    lines = [line for line in lines if (name := line.split("\t")[0]) not in read and lexists(name)]
    lines += [f"{s.root}/{name}\t{why}\n" for s in splits for name, why in s.skipped.items()]
    if lines:
        path.write_text("".join(lines), "utf-8", "surrogateescape")
    else:
        path.unlink(missing_ok=True)


def _unreadable(root: Path, path: str, reason: str) -> UserError:
    return UserError(
        f"cannot read {root / path} ({reason}); replace or delete it, "
        "or set data.on_error=skip to leave out every such picture"
    )
