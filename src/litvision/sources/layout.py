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


class Layout:
    """The splits and classes below `root`.

    Args:
        root: the folder that holds a folder for each split, and these one for each class.
        test_fraction: None: "test" has a folder of its own. Else this share of each class of
            "train" is the test split (`held_out`), and where there is no folder "train" either,
            the class folders lie in `root` itself.
        cache_name: a folder in `root` that holds no pictures.
    """

    def __init__(self, root: Path, test_fraction: float | None, cache_name: str) -> None:
        self.root = root
        self.test_fraction = test_fraction
        self.cache_name = cache_name

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
        return "." if self._is_flat else "train"

    def classes(self, split: str) -> list[str]:
        """Return the names of a split's class folders, sorted."""
        place = self.place(split)
        found = {entry.name for entry in visible(self.root / place) if entry.is_dir()}
        return sorted(found - {self.cache_name} if place == "." else found)

    def files(self, split: str, class_name: str) -> list[tuple[str, int, int]]:
        """Return path relative to `root`, bytes and modification time in ns of a class's pictures.

        Sorted by path.
        """
        place = self.place(split)
        folder = class_name if place == "." else f"{place}/{class_name}"
        found = sorted(pictures(self.root / folder, folder))
        if self.test_fraction is None or split == "val":
            return found
        above = len(folder) - len(class_name)
        tested = held_out([path[above:] for path, _, _ in found], self.test_fraction)
        return [file for file in found if (file[0][above:] in tested) == (split == "test")]

    def expected(self, splits: Sequence[str]) -> str:
        """Return words for where pictures of these splits should be."""
        places = dict.fromkeys(self.root / self.place(name) for name in splits)
        return f"expected {' and '.join(f'{p}/<class>/*.jpg' for p in places)} (or .png, …)"

    def say_what_is_not_read(self) -> None:
        """Name the folders beside the splits, which may be splits by other names."""
        if self.place("train") == ".":
            return
        kept = {*get_args(Split), self.cache_name}
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
        """Say whether the class folders lie in `root` itself: no folder there is called a split."""
        return not {name.lower() for name in self._folders()} & {*get_args(Split)}

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
        if first and len(folders) > 1:
            share = "0.2 to test on a fifth of each" if trains else "1 to test on all of them"
            ways = [f"give data.test_fraction={share}"] if "test" in needed else []
            tested = f", and some pictures of each into {self.root / 'test'}/<class>"
            ways += [f"move them into {self.root / name}" + (tested if len(needed) > 1 else "")]
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


def held_out(names: Sequence[str], fraction: float) -> set[str]:
    """Return those of a class's pictures that are tested on, chosen by their names alone.

    A name falls to a place between 0 and 1, by its SHA-256, and is held out below `fraction`. So
    the choice is the same on every machine and for every seed, and pictures that are added do not
    move those that are there. Where all would fall to one side, one goes to the other, if there
    are two: to train on comes first.

    Args:
        names: of the pictures of one class, in any order.
        fraction: above 0; of 1, all of them.
    """
    if fraction == 1:
        return set(names)
    ranked = sorted(names, key=_place)
    count = sum(_place(name) < fraction for name in names)
    return set(ranked[: max(0, min(max(count, 1), len(names) - 1))])


def _place(name: str) -> float:
    """Return a number from 0 below 1 that looks drawn by chance."""
    # One machine composes the letters of a file's name that another takes apart.
    same = unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(same).digest()[:8]) / 2**64
