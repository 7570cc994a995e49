"""Which pictures below a folder belong to which split and class, by the folders' names."""

from __future__ import annotations

import hashlib
import logging
import unicodedata
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

from litvision.errors import UserError
from litvision.sources.decode import EXTENSIONS, pictures, visible

log = logging.getLogger(__name__)

Split = Literal["train", "test", "val"]
# Path relative to the root, bytes, modification time in ns.
PictureFile = tuple[str, int, int]

FLAT = "."  # where class folders lie that no split's folder holds


class Layout:
    """The splits and classes below `root`.

    Args:
        root: the folder that holds a folder for each split, and these one for each class.
        test_fraction: None: "test" has a folder of its own. Else this share of each class of
            "train" is the test split (`is_held_out`), and where there is no folder "train" either,
            the class folders lie in `root` itself.
        cache_dir: if it lies below `root`, the folder there that holds it holds no pictures.
    """

    def __init__(self, root: Path, test_fraction: float | None, cache_dir: Path) -> None:
        self.root = root
        self.test_fraction = test_fraction
        cache, here = cache_dir.resolve(), root.resolve()
        inside = cache.relative_to(here).parts if cache.is_relative_to(here) else ()
        self.no_split = {*inside[:1]}
        self._sides: dict[str, tuple[list[PictureFile], list[PictureFile]]] = {}

    def splits(self, only: Sequence[Split] | None) -> Sequence[Split]:
        """Return which splits to read: these, or "train", "test" and, where it is there, "val".

        Raises:
            UserError: one has no folder, or `test_fraction` does not fit what is there.
        """
        needed: Sequence[Split] = only or ("train", "test")
        if self.test_fraction is not None and (self.root / "test").is_dir():
            raise UserError(
                f"data.test_fraction={self.test_fraction:g}, but there is {self.root / 'test'} to "
                "test on: leave data.test_fraction out, or move its pictures to the others"
            )
        if self.test_fraction == 1 and "train" in needed:
            raise UserError(
                "data.test_fraction=1 leaves no picture to train on: give less, such as 0.2"
            )
        for name in needed:
            if not (self.root / self.place(name)).is_dir():
                raise self._missing(name, needed)
        own = only is None and (self.root / "val").is_dir()
        return (*needed, "val") if own else needed

    def place(self, split: str) -> str:
        """Return where the class folders of a split lie, relative to `root`."""
        if self.test_fraction is None or split == "val":
            return split
        return FLAT if self._is_flat else "train"

    def classes(self, split: str) -> list[str]:
        """Return the names of a split's class folders, sorted."""
        place = self.place(split)
        found = {entry.name for entry in visible(self.root / place) if entry.is_dir()}
        return sorted(found - self.no_split - {"val"} if place == FLAT else found)

    def files(self, split: str, class_name: str) -> list[PictureFile]:
        """Return a class's pictures in a split, sorted by path."""
        place = self.place(split)
        folder = class_name if place == FLAT else f"{place}/{class_name}"
        if self.test_fraction is None or split == "val":
            return sorted(pictures(self.root / folder, folder))
        if class_name not in self._sides:  # listed once for both
            sides: tuple[list[PictureFile], list[PictureFile]] = [], []
            for file in sorted(pictures(self.root / folder, folder)):
                sides[is_held_out(self.name(file[0]), self.test_fraction)].append(file)
            self._sides[class_name] = sides
        return self._sides[class_name][split == "test"]

    def name(self, path: str) -> str:
        """Return a picture's path relative to `root` as its name in the fingerprint of a split.

        Where a part of all is set aside, the same in `train/` as beside it.
        """
        return path.removeprefix("train/") if self.test_fraction is not None else path

    def expected(self, splits: Sequence[str]) -> str:
        """Return words for where pictures of these splits should be."""
        places = dict.fromkeys(self.root / self.place(name) for name in splits)
        return f"expected {' and '.join(f'{p}/<class>/*.jpg' for p in places)} (or .png, …)"

    def say_what_is_not_read(self) -> None:
        """Name the folders beside the splits, which may be splits by other names."""
        if self.place("train") == FLAT:
            return
        kept = {*get_args(Split), *self.no_split}
        names = [name for name in self._folders() if name not in kept]
        if names:
            as_val = [n for n in names if n.lower() in ("valid", "validation", "dev")]
            renamed = as_val[0] if as_val and not (self.root / "val").is_dir() else None
            log.warning(
                "not read, as %s has pictures in train, val and test: %s%s",
                self.root,
                ", ".join(names[:10]),
                f"; to validate on those of {renamed}, rename it to val" if renamed else "",
            )

    @cached_property
    def _is_flat(self) -> bool:
        """Say whether the class folders lie in `root` itself: none is called as if it held them."""
        return not {name.lower() for name in self._folders()} & {"train", "test"}

    def _folders(self) -> list[str]:
        try:
            return sorted(entry.name for entry in visible(self.root) if entry.is_dir())
        except OSError:  # nothing there
            return []

    def _missing(self, name: Split, needed: Sequence[Split]) -> UserError:
        """Say what to do about a split that has no folder."""
        no_folder, both = f"no folder {self.root / self.place(name)}", " and ".join(needed)
        above, first = self.root.parent, name == needed[0]
        folders = self._folders()
        itself = self.root.name in get_args(Split)
        if first and itself and ((above / name).is_dir() or self.root.name == name):
            return UserError(
                f"{no_folder}: data.root is the folder that holds {both}, so give data.root={above}"
            )
        if written := [folder for folder in folders if folder.lower() == name]:
            return UserError(f"{no_folder}, but {written[0]}: rename it to {name}")
        trains = "train" in needed  # else it is tested on alone
        if self.test_fraction is not None and (
            named := [f for f in folders if f.lower() == "test"]
        ):
            return UserError(
                f"{self.root / named[0]} has the name of a split: if it is a class, rename it, or "
                f"move the class folders into {self.root / 'train'}; if its pictures are for "
                "testing, rename it to test and leave data.test_fraction out"
            )
        if first and len(folders) > 1:
            share = "0.2 to test on a fifth of each" if trains else "1 to test on all of them"
            ways = [f"give data.test_fraction={share}"] if "test" in needed else []
            tested = f", and some pictures of each into {self.root / 'test'}/<class>"
            ways += [
                f"move them into {self.root / name}"
                + (tested if trains and "test" in needed else "")
            ]
            return UserError(
                f"{no_folder}, but {', '.join(folders[:3])}: if these are the classes, "
                + ", or ".join(ways)
            )
        there = [f for f in ("train", "val") if f in folders] if trains and name == "test" else []
        without = (
            ", or give data.test_fraction=0.2 to test on a fifth of train, or train without: "
            f"data.splits=[{','.join(there)}] test=false"
        )
        holds = both if self.test_fraction is None else "the class folders"
        return UserError(
            f"{no_folder}; {self.expected(needed)}{loose(self.root)}; set data.root to the folder "
            f"that holds {holds}" + (without if there else "")
        )


def loose(folder: Path) -> str:
    """Return words for how many pictures lie in no class folder but beside them; "" for none."""
    try:
        count = sum(entry.name.lower().endswith(EXTENSIONS) for entry in visible(folder))
    except OSError:  # nothing there
        count = 0
    return f"; {count:,} in {folder} itself, in no class's folder" if count else ""


def is_held_out(name: str, fraction: float) -> bool:
    """Say whether a picture is one to test on, by its name alone.

    A name falls to a place between 0 and 1, by its SHA-256, and is held out below `fraction`. So
    the choice is the same on every machine, for every seed and size, and a picture that is added
    or deleted moves no other one: none that was tested on is ever trained on, nor the reverse.

    Args:
        name: class, and path below the class's folder.
        fraction: from 0, none, to 1, all.
    """
    # One machine composes the letters of a file's name that another takes apart.
    same = unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(same).digest()[:8]) < fraction * 2**64
