"""Read a checkpoint safely, and rebuild the classifier from it alone.

A checkpoint is Lightning's own, plus one entry, `litvision`, of plain values:

    format      1
    version     of this package
    config      the composed config of the run, resolved
    classes     names, in the order of the logits
    mean, std   per channel, in units of 0 to 1, as the pictures were normalised
    image_size  [height, width] in pixels
    loaded      names of the tensors that training began with, if `init_from` gave some
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from litvision.classifier import ImageClassifier
from litvision.commandline import first_line
from litvision.errors import UserError

FORMAT = 1
# The targets that a checkpoint's config may name. A file never extends this list; a person may.
TRUSTED = (
    *("litvision.classifier.*", "litvision.datamodule.*"),
    *("litvision.networks.*", "litvision.sources.*"),
    *("torch.nn.*", "torchvision.models.*"),
)


def find(path: str | Path, names: Iterable[str] = ("best", "last")) -> Path:
    """Return the checkpoint that is meant by a file or a run's folder.

    Args:
        path: a file, or a folder with `checkpoints/` in it.
        names: which one of a folder to take, the first that is there.
    """
    path = Path(path)
    saved = [path / "checkpoints" / f"{name}.ckpt" for name in names]
    return next((file for file in saved if file.exists()), path)


def read(path: str | Path, key: str = "checkpoint") -> dict[str, Any]:
    """Load a checkpoint's content without running anything that it holds.

    Args:
        path: the file.
        key: the option that named it, for messages.

    Raises:
        UserError: the file is missing, a folder, truncated, or not a checkpoint of this project.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(
            f"There is no checkpoint at {path}: give {key}=<a run's folder, or a file in its "
            "checkpoints folder>."
        )
    if path.is_dir():
        raise UserError(
            f"{path} is a folder without a checkpoint: it holds no checkpoints/best.ckpt or "
            f"last.ckpt. Give {key}=<the folder of a run that saved one, or the file itself>."
        )
    try:
        # The file is a zip archive with a checksum of each part, which torch does not look at.
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"the checksum of {damaged} does not fit")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever a foreign file's bytes lead it to
        raise UserError(
            f"{path} cannot be read as a checkpoint: it is truncated, damaged, another kind of "
            "file, or holds more than tensors and plain values. Give one that `make train` saved."
        ) from error
    card = content.get("litvision") if isinstance(content, dict) else None
    if not isinstance(card, dict) or "state_dict" not in content:
        raise UserError(
            f"{path} is a checkpoint of another program: it lacks the entry 'litvision' that every "
            "checkpoint of this project has. Give one that `make train` saved."
        )
    if card.get("format") != FORMAT:
        raise UserError(
            f"{path} has checkpoint format {card.get('format')}, and this version reads {FORMAT}: "
            f"use the version that saved it ({card.get('version')})."
        )
    return content


def rebuild(
    content: dict[str, Any], path: str | Path, trust: Iterable[str] = ()
) -> ImageClassifier:
    """Build the classifier of a checkpoint's config and load its weights.

    Args:
        content: what `read` returned.
        path: where it came from, for messages.
        trust: targets allowed beside `TRUSTED`, such as "timm.*".

    Raises:
        UserError: the config names a target that is not trusted, or the weights do not fit.
    """
    card, trusted = content["litvision"], (*TRUSTED, *trust)
    refuse_untrusted(card["config"]["model"], trusted, path)
    model = OmegaConf.create(card["config"]["model"])
    try:
        refuse_other_shapes(model, trusted, content["state_dict"])
        classifier = instantiate(model, _convert_="all", _execution_whitelist_=trusted)
        if not isinstance(classifier, ImageClassifier):
            raise TypeError(f"its model is a {type(classifier).__name__}, not an ImageClassifier")
        classifier.load_state_dict(content["state_dict"])
    except (HydraException, ImportError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} does not give a classifier: {first_line(error).rstrip('.:')}. Its weights and "
            "its config do not belong together, or this version's networks differ from those it "
            "was saved by."
        ) from error
    classifier.card = card
    return classifier


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
        if not any(fnmatchcase(target, pattern) for pattern in trusted):
            raise UserError(
                f"{path} names {target!r}, which is not trusted. If it comes from a package that "
                "you trust, add trust=[<package>.*]."
            )


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
        if there != shape:
            raise ValueError(
                f"its config has {name} with shape {list(shape)}, its weights have "
                f"{'none' if there is None else list(there)}"
            )


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
