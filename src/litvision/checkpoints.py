"""Read a checkpoint safely, and rebuild the classifier from it alone.

A checkpoint is Lightning's own, plus one entry, `litvision`, of plain values:

    format      1
    version     of this package
    config      the composed config of the run, resolved
    classes     names, in the order of the logits
    mean, std   per channel, in units of 0 to 1, as the pictures were normalised
    image_size  [height, width] in pixels
    pictures    how many there were to train on, "train", and to validate, "val"
    loaded      names of the tensors that training began with, if `init_from` gave some
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from pydantic import BaseModel, Field, FiniteFloat, ValidationError, model_validator
from torch import Tensor

from litvision.classifier import ImageClassifier
from litvision.errors import UserError, first_line
from litvision.trust import (
    TRUSTED,
    memory_limit,
    memory_of,
    plain,
    refuse_other_shapes,
    trusted_model,
)

FORMAT = 1


class Config(BaseModel, strict=True):
    """The parts of a run's config that are built again."""

    model: dict[str, Any]
    data: dict[str, Any]


class Pictures(BaseModel, strict=True):
    """How many the run had."""

    train: int
    val: int


class Card(BaseModel, strict=True):
    """The entry `litvision`, checked here so that nobody who uses it has to."""

    version: str
    config: Config
    classes: Annotated[list[str], Field(min_length=1)]
    mean: Annotated[list[FiniteFloat], Field(min_length=1)]
    std: Annotated[list[Annotated[FiniteFloat, Field(gt=0)]], Field(min_length=1)]
    image_size: Annotated[
        list[Annotated[int, Field(ge=1, le=4096)]], Field(min_length=2, max_length=2)
    ]
    pictures: Pictures | None = None
    loaded: list[str] = []

    @model_validator(mode="after")
    def _one_a_channel(self) -> Card:
        if len(self.mean) != len(self.std):
            raise ValueError(f"{len(self.mean)} means and {len(self.std)} standard deviations")
        return self


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
        other = "; or imagenet" if key == "init_from" else ""
        raise UserError(
            f"There is no checkpoint at {path}: give {key}=<a run's folder, or a file in its "
            f"checkpoints folder{other}>."
        )
    if path.is_dir():
        raise UserError(
            f"{path} is a folder without a checkpoint: it holds no checkpoints/best.ckpt or "
            f"last.ckpt. Give {key}=<the folder of a run that saved one, or the file itself>."
        )
    try:
        # The file is a zip archive with a checksum of each part, which torch does not look at.
        with zipfile.ZipFile(path) as archive:
            # torch packs nothing, so a file that would become larger is a bomb.
            if sum(part.file_size for part in archive.infolist()) > path.stat().st_size:
                raise ValueError("it unpacks to more than there is of it")
            if damaged := archive.testzip():
                raise ValueError(f"the checksum of {damaged} does not fit")
        with memory_limit(4 * path.stat().st_size):
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
    try:
        if not plain(card):
            raise TypeError("the entry 'litvision' holds more than plain values")
        if card.get("format") != FORMAT:
            raise UserError(
                f"{path} has checkpoint format {card.get('format')}, and this version reads "
                f"{FORMAT}: use the version that saved it ({card.get('version')})."
            )
        Card.model_validate(card)
        if not all(map(_is_numbers, dict(content["state_dict"]).values())):
            raise TypeError("its state_dict holds more than tensors of numbers")
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not as a run saves it: {_complaint(error)}. Give one that `make train` "
            "saved."
        ) from error
    return content


def _is_numbers(value: Any) -> bool:
    """Say whether a value is a tensor with numbers of its own; one can be of shape alone."""
    return isinstance(value, Tensor) and value.layout == torch.strided and value.is_cpu


def _complaint(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(map(str, ("litvision", *first["loc"])))
        return f"{place}: {first['msg'][0].lower()}{first['msg'][1:]}"
    return first_line(error)


def rebuild(
    content: dict[str, Any], path: str | Path, trust: Iterable[str] = ()
) -> ImageClassifier:
    """Build the classifier of a checkpoint's config and load its weights.

    Args:
        content: what `read` returned.
        path: where it came from, for messages.
        trust: targets allowed beside networks of this project, torch.nn and torchvision, such as
            "timm.*".

    Raises:
        UserError: the config names a target that is not trusted, or the weights do not fit.
    """
    card = content["litvision"]
    trust = (trust,) if isinstance(trust, str) else tuple(trust)
    model = OmegaConf.create(trusted_model(card["config"]["model"], trust, path))
    weights, whitelist = content["state_dict"], (*TRUSTED, *trust)
    shape = [1, len(card["mean"]), *card["image_size"]]
    try:
        with memory_limit(4 * memory_of(weights)):
            refuse_other_shapes(model, whitelist, weights, len(card["classes"]), shape)
            classifier = instantiate(model, _convert_="all", _execution_whitelist_=whitelist)
        if not isinstance(classifier, ImageClassifier):
            raise TypeError(f"its model is a {type(classifier).__name__}, not an ImageClassifier")
        classifier.load_state_dict(weights)
    except MemoryError as error:
        raise UserError(f"{path} asks for more memory than it brings.") from error
    except Exception as error:  # what a stranger's config leads to
        raise UserError(
            f"{path} does not give a classifier: {first_line(error).rstrip('.:')}. Its weights and "
            "its config do not belong together, or this version's networks differ from those it "
            "was saved by."
        ) from error
    classifier.card = card
    return classifier
