"""Which pictures of a source are trained on, which validate, and which test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from litvision.batches import Images, Subset, random_stream
from litvision.class_choice import choose
from litvision.errors import UserError

NAMES = ("train", "val", "test")


def make_subsets(
    splits: Mapping[str, Images],
    needed: Sequence[str],
    *,
    training: bool,
    classes: list[str] | None,
    limit_per_class: int | None,
    val_fraction: float,
    seed: int,
) -> dict[str, Subset]:
    """Return the subsets "train", "val" and "test"; what is not needed may be empty.

    Args:
        splits: what the source has read, by name.
        needed: names of splits of which at least one picture has to be left.
        training: whether the run trains: then all of `classes` must be there, and validation may
            be left out by `val_fraction=0`.
        classes, limit_per_class, val_fraction, seed: as `ImageDataModule` takes them.

    Raises:
        UserError: `classes` names one that is not there, or a split that is needed is missing or
            has no pictures left.
    """
    _check_there(splits, needed, training)
    if classes is None:
        images = dict(splits)
        rows = {name: torch.arange(len(read)) for name, read in splits.items()}
    else:
        chosen = {name: choose(read, classes, every=training) for name, read in splits.items()}
        images = {name: relabelled for name, (relabelled, _) in chosen.items()}
        rows = {name: kept for name, (_, kept) in chosen.items()}
    # Classes and size of the pictures are asked of "train", even where only another is needed.
    train = images["train" if "train" in images else needed[0]]
    kept = rows.get("train", torch.arange(0))
    if limit_per_class is not None and len(kept):
        kept = kept[_first_of_each(train.labels[kept], limit_per_class, seed)]
    aside = kept[:0]
    if "train" in images and "val" not in images and val_fraction:
        first, second = split_stratified(train.labels[kept], val_fraction, seed)
        kept, aside = kept[first], kept[second]
    rows["train"] = kept
    subsets = {
        name: Subset(images.get(name, train), rows.get(name, aside if name == "val" else kept[:0]))
        for name in NAMES
    }
    for name in needed:
        unasked = name == "val" and "val" not in images and training and not val_fraction
        if not len(subsets[name]) and not unasked:
            raise UserError(
                f"The {name} split has no pictures left: it needs at least one. "
                "Add pictures, or change data.val_fraction or data.classes."
            )
    return subsets


def _check_there(splits: Mapping[str, Images], needed: Sequence[str], training: bool) -> None:
    """Refuse splits of which one that is needed neither is there nor can be made."""
    for name in needed:
        if name not in splits and (name != "val" or "train" not in splits):
            without = ", or test=false" if training and name == "test" else ""
            raise UserError(
                f"There is no {name} split, only {', '.join(splits)}: choose a source, or "
                f"data.splits, that has it{without}."
            )


def split_stratified(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split positions in two so that every class keeps its share in both parts.

    Args:
        labels: int64 `[N]`.
        fraction: share of each class that goes to the second part, rounded to whole pictures but
            never all or none of a class that has at least two.
        seed: what the choice is drawn from.

    Returns:
        Two int64 tensors, ascending, disjoint, together 0 to N - 1.
    """
    random = random_stream(seed, "split")
    second = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique(sorted=True):
        rows = (labels == label).nonzero().flatten()
        count = round(fraction * len(rows))
        if len(rows) > 1:
            count = min(max(count, 1), len(rows) - 1)
        second[rows[torch.from_numpy(random.permutation(len(rows))[:count])]] = True
    return (~second).nonzero().flatten(), second.nonzero().flatten()


def _first_of_each(labels: Tensor, count: int, seed: int) -> Tensor:
    """Return `count` positions of each class, drawn by `seed`, ascending."""
    shuffled = torch.from_numpy(random_stream(seed, "limit").permutation(len(labels)))
    chosen = [shuffled[labels[shuffled] == label][:count] for label in labels.unique(sorted=True)]
    return torch.cat(chosen).sort().values
