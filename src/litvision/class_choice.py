"""`data.classes`: some of a data set's classes, in an order of one's own."""

from __future__ import annotations

import difflib
import logging
from dataclasses import replace

import torch
from torch import Tensor

from litvision.batches import Images
from litvision.errors import UserError

log = logging.getLogger(__name__)


def choose(images: Images, names: list[str], every: bool) -> tuple[Images, Tensor]:
    """Number the classes anew, and find the pictures that are of one of them.

    Args:
        images: of one split.
        names: the classes, in the order of their new numbers.
        every: each of them must be there. Else one must, and a line says which other classes'
            pictures are left out.

    Returns:
        the same pictures with labels that count in `names`, -1 in other classes; and int64 `[n]`,
        ascending, which of them are of one of these classes.

    Raises:
        UserError: a class is named twice, or is not there.
    """
    if len(set(names)) != len(names):
        raise UserError("data.classes names a class twice: name each once.")
    missing = [name for name in names if name not in images.classes]
    if not every and len(missing) == len(names):
        raise UserError(
            f"None of the classes {', '.join(names)} is there: the data have "
            f"{', '.join(images.classes)}."
        )
    if missing and every:
        near = difflib.get_close_matches(missing[0], images.classes, n=3, cutoff=0.0)
        raise UserError(
            f"data.classes names {missing[0]!r}, which the data set does not have. "
            f"Nearest: {', '.join(near)}; it has {len(images.classes)} classes in all."
        )
    others = [name for name in images.classes if name not in names]
    if others and not every:
        log.warning(
            "left out the pictures of classes that the classifier does not know: %s",
            ", ".join(others),
        )
    number = torch.tensor([names.index(n) if n in names else -1 for n in images.classes])
    labels = number[images.labels]
    chosen = replace(images, labels=labels, classes=tuple(names))
    return chosen, (labels >= 0).nonzero().flatten()
