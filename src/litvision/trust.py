"""What a stranger's file may ask for: nothing that runs, fetches, or takes more than it brings."""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from litvision import hardware
from litvision.errors import UserError
from litvision.networks.zoo import CREATE_MODEL, GET_MODEL, classifiers

# Whose networks a checkpoint's config may name: classes only, since functions and methods of these
# packages can download, write files and import. A file never extends this; a person may.
NETWORKS = ("torch.nn", "torchvision.models", "litvision.networks")
# The same for Hydra, which sees through other names for what they lead to.
TRUSTED = (
    *("litvision.classifier.*", "litvision.datamodule.*", "litvision.sources.*"),
    *(f"{package}.*" for package in NETWORKS),
)
# What a file says of its data that is for the person at this machine to say.
NOT_THE_FILES = ("url", "cache_dir", "num_workers", "decode_workers")
DEEPEST = 30  # levels of lists and dicts; a run's config has six
# What threads that start in the meantime reserve: each its stack and its part of malloc.
_ROOM = 2**29 + 2**27 * (os.cpu_count() or 1)


# ------------------------------------------------------------------------------ what is named


def trusted_model(model: Any, trust: Iterable[str], path: str | Path) -> dict[str, Any]:
    """Return a file's config of its classifier, checked, and without what would be downloaded.

    Args:
        model: plain lists and dicts.
        trust: patterns of targets that the person allows beside networks, such as "timm.*".
        path: where it came from, for messages.

    Raises:
        UserError: it names something that is no network, or not by a plain name.
    """
    from litvision.classifier import ImageClassifier

    def allowed(target: str, node: dict[str, Any]) -> bool:
        if node is model and _is_class(target, ImageClassifier, ("litvision.classifier",)):
            return True
        builder = _is_builder(node) and "_args_" not in node
        return builder or _is_class(target, nn.Module, NETWORKS)

    _refuse_untrusted(model, allowed, trust, path)
    checked: dict[str, Any] = _without_downloads(model)
    return checked


def trusted_data(data: Any, trust: Iterable[str], path: str | Path) -> dict[str, Any]:
    """Return a file's config of its data, checked, and without what is not for a file to say.

    Args:
        data: plain lists and dicts.
        trust: patterns of targets that the person allows beside the project's own sources.
        path: where it came from, for messages.

    Raises:
        UserError: it names something that is no data set, or not by a plain name.
    """
    from litvision.datamodule import ImageDataModule

    def allowed(target: str, node: dict[str, Any]) -> bool:
        if node is data:
            return _is_class(target, ImageDataModule, ("litvision.datamodule",))
        source = node is data.get("source") and node.get("_partial_") is True
        return source and _is_class(target, object, ("litvision.sources",))

    _refuse_untrusted(data, allowed, trust, path)
    own: dict[str, Any] = _without(data, NOT_THE_FILES)  # the source takes these options, too
    return own


def plain(value: Any, depth: int = 0) -> bool:
    """Say whether a value is made of dicts with text as keys, lists, text, numbers, truths, null.

    A tuple, say, would be taken for a list by Hydra, but not by what checks it.
    """
    if depth > DEEPEST:
        return False
    if type(value) is dict:
        return all(type(key) is str and plain(v, depth + 1) for key, v in value.items())
    if type(value) is list:
        return all(plain(item, depth + 1) for item in value)
    return value is None or type(value) in (str, int, float, bool)


def _refuse_untrusted(
    config: Any,
    allowed: Callable[[str, dict[str, Any]], bool],
    trust: Iterable[str],
    path: str | Path,
) -> None:
    """Refuse a target that is neither allowed, given its node, nor trusted by the person."""
    if isinstance(config, str) and "${" in config:  # a run writes its config resolved
        raise UserError(f"{path} is not as a run saves it: its config holds {config!r}.")
    if isinstance(config, dict) and "_target_" in config:
        target = str(config["_target_"])
        trusted = any(fnmatchcase(target, pattern) for pattern in trust)
        if not trusted and not allowed(target, config):
            raise UserError(
                f"{path} names {target!r}, which is not trusted. If it comes from a package that "
                "you trust, add trust=[<package>.*]."
            )
    if isinstance(config, dict | list):
        for value in config.values() if isinstance(config, dict) else config:
            _refuse_untrusted(value, allowed, trust, path)


def _is_class(target: str, base: type, packages: Iterable[str]) -> bool:
    """Say whether a target is a class of one of the packages, by its name and by its own account.

    Only a name within the packages is looked up, which imports no more than these.
    """

    def within(name: str) -> bool:
        return any(name == package or name.startswith(f"{package}.") for package in packages)

    if not within(target):
        return False
    try:
        found = pkgutil.resolve_name(target)
    except (ImportError, AttributeError, ValueError):
        return False
    return isinstance(found, type) and issubclass(found, base) and within(found.__module__)


def _is_builder(node: dict[str, Any]) -> bool:
    """Say whether a node calls one of torchvision's functions that build a classifier."""
    target = str(node.get("_target_"))
    name = str(node.get("name")).lower() if target == GET_MODEL else target.rpartition(".")[2]
    return target in (GET_MODEL, f"torchvision.models.{name}") and name in classifiers()


def _without(config: Any, keys: Iterable[str]) -> Any:
    """Return nested dicts without these keys."""
    if not isinstance(config, dict):
        return config
    return {key: _without(value, keys) for key, value in config.items() if key not in keys}


def _without_downloads(config: Any) -> Any:
    """Return a config whose networks do not fetch trained weights: the file brings its own."""
    if isinstance(config, list):
        return [_without_downloads(value) for value in config]
    if not isinstance(config, dict):
        return config
    kept = {key: _without_downloads(value) for key, value in config.items()}
    if _is_builder(kept):
        kept.pop("pretrained", None)  # what torchvision's `weights` was called
        kept["weights"] = None
    if kept.get("_target_") == CREATE_MODEL:
        kept["pretrained"] = False
    return kept


# ---------------------------------------------------------------------------- what it takes


def memory_of(weights: dict[str, Tensor]) -> int:
    """Return the bytes that tensors take, those that share memory counted once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor for tensor in weights.values()}
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


_LAZY = (UninitializedParameter, UninitializedBuffer)


def refuse_other_shapes(
    model: Any, trusted: Iterable[str], weights: dict[str, Tensor], classes: int, shape: list[int]
) -> None:
    """Refuse a network whose tensors are not those of the file, before memory is taken for it.

    A few words of a config can ask for more memory than there is.

    Args:
        model: the config of the classifier.
        trusted: patterns of targets, for Hydra.
        weights: of the file.
        classes: how many the network has to tell apart.
        shape: `[1, C, H, W]` of a picture.

    Raises:
        ValueError: a tensor has another shape, the file does not have it, they take more memory
            than the file's, or the logits are not as many as the classes.
    """
    try:
        with torch.device("meta"):  # shapes without memory
            classifier = instantiate(model, _convert_="all", _execution_whitelist_=tuple(trusted))
            state = classifier.state_dict()
    except (RuntimeError, AttributeError):
        return  # a network that looks at values while it is built
    for name, tensor in state.items():
        if isinstance(tensor, _LAZY):
            continue  # it takes its shape from the file's, which is there already
        there = getattr(weights.get(name), "shape", None)
        if there != tensor.shape:
            raise ValueError(
                f"its config has {name} with shape {list(tensor.shape)}, its weights have "
                f"{'none' if there is None else list(there)}"
            )
    own = {
        id(weight): weight for weight in classifier.parameters() if not isinstance(weight, _LAZY)
    }
    if sum(tensor.nbytes for tensor in own.values()) > memory_of(weights):
        raise ValueError("its weights have the shapes of its config, but not as many values")
    try:
        logits = classifier.network.eval()(torch.empty(shape, device="meta")).shape
    except Exception:  # a network that looks at values while it computes
        return
    if logits != (1, classes):
        raise ValueError(f"its network gives {list(logits)} for a picture and {classes} classes")


def memory_limit(size: int) -> AbstractContextManager[None]:
    """Let this process take `size` bytes more, and some for what a process takes anyway.

    Args:
        size: bytes of address space, used or not.
    """
    return hardware.at_most(size + _ROOM)
