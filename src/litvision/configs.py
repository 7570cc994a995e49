"""What `conf/` holds, and the names in it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

_PACKAGE = Path(__file__).parent
# Beside the package in a clone, inside it in a wheel.
CONF = next(
    (c for c in (_PACKAGE.parents[1] / "conf", _PACKAGE / "conf") if c.is_dir()), _PACKAGE / "conf"
)


def groups() -> list[str]:
    """Return the config groups, the folders of `conf/`."""
    return sorted(f.name for f in CONF.iterdir() if f.is_dir() and f.name != "hydra")


def keys_of(cfg: Any, prefix: str = "") -> list[str]:
    """Return every dotted key of a config."""
    keys: list[str] = []
    for key in cfg:
        keys.append(f"{prefix}{key}")
        child = cfg._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
            keys += keys_of(child, f"{prefix}{key}.")
    return keys


def nearest(word: str, words: Iterable[str], count: int = 3) -> list[str]:
    """Return the words most like `word`, best first; for a dotted key its last part counts too.

    Of keys with the same last part, one in a config group comes first: optimizer.lr for lr.
    """
    own = groups()
    words = sorted(set(words), key=lambda w: (w.partition(".")[0] not in own, w))
    last = word.rpartition(".")[2]
    found = [w for w in words if "." in w and w.endswith(f".{word}")]
    found += difflib.get_close_matches(word, words, n=count, cutoff=0.6)
    by_last = {w.rpartition(".")[2]: w for w in reversed(words)}
    found += [by_last[w] for w in difflib.get_close_matches(last, by_last, n=count, cutoff=0.7)]
    return list(dict.fromkeys(found))[:count]
