"""What a stranger's file may ask for: nothing that runs, fetches, or takes more than it brings."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate

from litvision import hardware
from litvision.errors import UserError

# The targets that a checkpoint's config may name. A file never extends this list; a person may.
TRUSTED = (
    *("litvision.classifier.*", "litvision.datamodule.*"),
    *("litvision.networks.*", "litvision.sources.*"),
    *("torch.nn.*", "torchvision.models.*"),
)
# What threads that start in the meantime reserve: each its stack and its part of malloc.
_ROOM = 2**29 + 2**27 * (os.cpu_count() or 1)


def refuse_untrusted(config: Any, trusted: Iterable[str], path: str | Path) -> None:
    """Refuse a config that names a target that is not trusted, before anything is imported for it.

    Args:
        config: plain lists and dicts.
        trusted: patterns such as "torch.nn.*".
        path: where the config came from, for messages.
    """
    for text in _strings(config):
        # A run writes its config resolved; anything else would be looked up on this machine.
        if "${" in text:
            raise UserError(f"{path} is not as a run saves it: its config holds {text!r}.")
    for target in _targets(config):
        # Each of torchvision's sets of weights can download itself, to any folder.
        download = target.startswith("torchvision.") and "_Weights" in target
        if download or not any(fnmatchcase(target, pattern) for pattern in trusted):
            raise UserError(
                f"{path} names {target!r}, which is not trusted. If it comes from a package that "
                "you trust, add trust=[<package>.*]."
            )


def without_downloads(config: Any) -> Any:
    """Return a config whose networks do not fetch trained weights: the file brings its own."""
    if isinstance(config, list):
        return [without_downloads(value) for value in config]
    if not isinstance(config, dict):
        return config
    package = str(config.get("_target_", "")).partition(".")[0]
    options: dict[str, dict[str, Any]] = {
        "torchvision": {"weights": None, "weights_backbone": None},
        "timm": {"pretrained": False},
    }
    fetching = options.get(package, {})
    kept = {key: without_downloads(value) for key, value in config.items()}
    return kept | {key: value for key, value in fetching.items() if key in config}


def refuse_other_shapes(model: Any, trusted: Iterable[str], weights: dict[str, Any]) -> None:
    """Refuse a network whose tensors are not those of the file, before memory is taken for it.

    A few words of a config can ask for more memory than there is.

    Raises:
        ValueError: a tensor has another shape, or the file does not have it.
    """
    try:
        with torch.device("meta"):  # shapes without memory
            classifier = instantiate(model, _convert_="all", _execution_whitelist_=tuple(trusted))
            shapes = {name: tensor.shape for name, tensor in classifier.state_dict().items()}
    except (RuntimeError, AttributeError):
        return  # a network of the user's own that looks at values while it is built
    for name, shape in shapes.items():
        there = getattr(weights.get(name), "shape", None)
        if there == shape and not _holds_its_values(weights[name]):
            raise ValueError(f"its {name} has shape {list(shape)} but not as many values")
        if there != shape:
            raise ValueError(
                f"its config has {name} with shape {list(shape)}, its weights have "
                f"{'none' if there is None else list(there)}"
            )


def _holds_its_values(tensor: torch.Tensor) -> bool:
    """Say whether a tensor takes the memory that its shape says; one number can stand for many."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        return False
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


def _strings(config: Any) -> Iterator[str]:
    if isinstance(config, str):
        yield config
    elif isinstance(config, dict | list):
        for value in config.values() if isinstance(config, dict) else config:
            yield from _strings(value)


def _targets(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        if "_target_" in config:
            yield str(config["_target_"])
        for value in config.values():
            yield from _targets(value)
    elif isinstance(config, list):
        for value in config:
            yield from _targets(value)


def memory_limit(size: int) -> AbstractContextManager[None]:
    """Let this process take `size` bytes more, and some for what a process takes anyway.

    Args:
        size: bytes of address space, used or not.
    """
    return hardware.at_most(size + _ROOM)
