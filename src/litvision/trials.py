"""A network tried on black pictures: what it takes, in which memory layout, and what it gives."""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from litvision import hardware
from litvision.errors import UserError, first_line, one_line

if TYPE_CHECKING:
    from litvision.classifier import ImageClassifier
    from litvision.datamodule import ImageDataModule

# What networks raise that do not take a picture; torchvision's transformers assert.
REFUSALS = (ValueError, RuntimeError, AssertionError)
# What torchvision's and timm's transformers say of a size that they are not built for.
_SIZE = re.compile(r"Expected (\d+) but got \d+!|doesn't match model \((\d+)\)")


def try_network(classifier: ImageClassifier, datamodule: ImageDataModule) -> None:
    """Send black pictures of each size through the network: it knows which it takes.

    Raises:
        UserError: the network refuses the size, gives another number of logits than classes, or
            something else than logits while it trains.
    """
    network = _copy(classifier.network) or classifier.network
    modes = {module: module.training for module in network.modules()}
    network.eval()
    for size in dict.fromkeys((datamodule.window(0), datamodule.image_size)):  # often the same
        picture = torch.zeros(1, _channels(datamodule), *size)
        cut = "" if size == datamodule.image_size else f"data.crop={datamodule.crop}: "
        logits = _logits(network, picture, cut)
    for module, training in modes.items():
        module.training = training
    if logits.shape != (1, len(datamodule.classes)):
        raise UserError(
            f"model.network gives {list(logits.shape)} for one picture, not logits of shape "
            f"[1, {len(datamodule.classes)}]: let it have ${{num_classes}} classes."
        )
    classifier.example_input_array = picture  # for the model summary
    if network is classifier.network:
        return  # to train it would move its running statistics
    _try_training(network.train(), datamodule)


def _try_training(network: nn.Module, datamodule: ImageDataModule) -> None:
    """Send black pictures through a copy of the network in training mode."""
    trainer: Any = datamodule.trainer
    whole = min(datamodule.batch_size // trainer.world_size, len(datamodule.subsets["train"]))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for count in (2, max(2, whole)):  # so few may be refused where a whole batch is not
            pictures = torch.zeros(count, _channels(datamodule), *datamodule.window(0))
            try:
                _check_logits(network(pictures), " while it trains")
            except REFUSALS as error:
                refused = error
            else:
                return
    raise UserError(
        f"model.network refuses pictures of shape {list(pictures.shape)} while it trains: "
        f"{one_line(refused)}. Larger ones may do, by data.image_size, or fewer "
        "outputs, by +model.network.aux_logits=false where it has that."
    ) from refused


def _logits(network: nn.Module, picture: Tensor, cut: str) -> Tensor:
    """Return what a network gives for `[1, C, H, W]`; in one line, what it refuses or gives else.

    Args:
        network: in evaluation mode.
        picture: black.
        cut: the option that made it smaller, for messages, or "".
    """
    try:
        with torch.no_grad():
            logits = network(picture)
    except REFUSALS as error:
        text = one_line(error)
        if f"expected input{list(picture.shape)} to have" in text:  # the first layer
            text += f": give model.network.in_channels={picture.shape[1]} if it has that"
        elif other := _SIZE.search(text):
            size = other[1] or other[2]
            text += f" Give data.image_size={size}, or a network for other sizes."
        raise UserError(
            f"{cut}model.network refuses a picture of shape {list(picture.shape)}: {text}"
        ) from error
    return _check_logits(logits)


def _check_logits(found: Any, when: str = "") -> Tensor:
    if not isinstance(found, Tensor):
        raise UserError(
            f"model.network gives {type(found).__name__}{when}, not a tensor of logits: leave its "
            "other outputs out, by +model.network.aux_logits=false where it has that."
        )
    return found


def try_one_picture(
    classifier: ImageClassifier, datamodule: ImageDataModule, instead: str | None = None
) -> None:
    """Where an epoch ends with a batch of one picture, see that the network can train on it.

    Batch normalisation of a layer of one pixel cannot: one number has no variance.

    Args:
        classifier, datamodule: of the run; a network that cannot be copied is not tried.
        instead: what to give where it cannot; None: the next batch size that leaves none alone.

    Raises:
        UserError: it cannot.
    """
    trainer: Any = datamodule.trainer
    steps, allowed = datamodule.steps_per_epoch, trainer.limit_train_batches
    cut = (allowed if isinstance(allowed, int) else int(steps * allowed)) < steps

    def fewest(batch_size: int) -> int:
        whole = batch_size // trainer.world_size
        return whole if cut else datamodule.fewest(batch_size)

    size, batch = len(datamodule.subsets["train"]), datamodule.batch_size
    if fewest(batch) > 1:
        return
    trial = _copy(classifier.network)
    if trial is None:
        return  # the network itself would move its running statistics
    picture = torch.zeros(1, _channels(datamodule), *datamodule.window(0), device=classifier.device)
    devices = [classifier.device] if classifier.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            trial(picture)
    except ValueError as error:
        sizes = (*range(batch + 1, size + 1), *range(batch - 1, 1, -1))
        fitting = next((n for n in sizes if fewest(n) > 1), None)
        instead = instead or (f"data.batch_size={fitting}" if fitting else "more pictures")
        raise UserError(
            f"data.batch_size={batch} and {size:,} pictures make a batch of one, which the network "
            f"cannot be trained on ({first_line(error).rstrip('.')}): give {instead}, or "
            "model.network.norm=layer where the network has it."
        ) from error


def _channels(datamodule: ImageDataModule) -> int:
    return datamodule.subsets["train"].images.pixels.shape[3]


def _copy(network: nn.Module) -> nn.Module | None:
    """Return a network to try: what it keeps of a picture, and its modes, stay out of the real one.

    None for one whose weights get their shapes from the first picture, and for one that cannot be
    copied, as with torch's old `weight_norm`.
    """
    if any(isinstance(p, UninitializedParameter) for p in network.parameters()):
        return None
    try:
        return copy.deepcopy(network)
    except (RuntimeError, TypeError):
        return None


def picks_channels_last(device: str, network: nn.Module, card: dict[str, Any]) -> bool:
    """Say whether a network is to run with channels last on a device: faster there, and taken."""
    return hardware.prefers_channels_last(device) and takes_channels_last(network, card)


def takes_channels_last(network: nn.Module, card: dict[str, Any]) -> bool:
    """Say whether a network runs with channels last: one that flattens maps by `view` does not.

    Tried on two black pictures, with a copy of the network.

    Args:
        network: on any device.
        card: of its checkpoint, for the pictures' shape; without one it is believed to, as is a
            network that cannot be copied.
    """
    trial = _copy(network) if {"mean", "image_size"} <= card.keys() else None
    if trial is None:
        return True
    pictures = torch.zeros(2, len(card["mean"]), *card["image_size"])
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            trial.cpu().eval().to(memory_format=torch.channels_last)
            trial(pictures.contiguous(memory_format=torch.channels_last))
    except RuntimeError:
        return False
    return True
