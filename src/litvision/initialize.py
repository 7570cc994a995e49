"""Begin with trained weights: `init_from=<checkpoint, run folder, or imagenet>`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from litvision import checkpoints, records
from litvision.errors import UserError
from litvision.networks import zoo
from litvision.networks.zoo import TrainedOn

IMAGENET = "imagenet"
APART = 0.1  # from there on, of 0 to 1, pictures are normalised in another way


@dataclass
class Initialization:
    """What became of each tensor of a network: names as in its state dict.

    Attributes:
        source: where the weights are from, in words.
        loaded, replaced: the tensors that were taken from there, and those that were not.
        pictures: what they were trained on.
    """

    source: str
    loaded: list[str]
    replaced: list[str]
    pictures: TrainedOn

    def __str__(self) -> str:
        """Say it in one line."""
        some = ", ".join(self.replaced[:6]) + (", …" if len(self.replaced) > 6 else "")
        return (
            f"initialized from {self.source}: {len(self.loaded)} tensors loaded, "
            f"{len(self.replaced)} replaced ({some})"
        )

    def unlike(self, now: TrainedOn) -> str | None:
        """Say in one line in what the pictures `now` differ from what the weights know, or None.

        Means and standard deviations of natural pictures differ little: of that, nothing is said.
        """
        both = (self.pictures, now)
        differ = []
        if self.pictures.image_size != now.image_size:
            differ.append(["x".join(map(str, pictures.image_size)) for pictures in both])
        pairs = [
            *zip(both[0].mean, now.mean, strict=False),
            *zip(both[0].std, now.std, strict=False),
        ]
        if any(abs(a - b) > APART for a, b in pairs):
            differ.append([f"data.mean={_list(p.mean)} data.std={_list(p.std)}" for p in both])
        if not differ:
            return None
        known, given = (" with ".join(said) for said in zip(*differ, strict=True))
        return (
            f"its weights know pictures of {known}, and these are of {given}: the closer they are, "
            "the more the weights are worth"
        )

    def save(self, folder: str | Path) -> None:
        """Write all names to `initialized.json`."""
        text = json.dumps(asdict(self), indent=2) + "\n"
        records.write_text(Path(folder, "initialized.json"), text)


def initialize(
    network: nn.Module, init_from: str, built_by: Mapping[str, Any] | None = None
) -> Initialization:
    """Copy into `network` whatever fits of trained weights, but not the last layer.

    The last layer is the last module with parameters of its own, and where timm says that a network
    has several that give logits, all of them; it stays as it was initialised, for the new classes,
    and so does a tensor of another shape (`conv1.weight` of ImageNet's networks, or of one for grey
    pictures).

    Args:
        network: changed in place.
        init_from: a checkpoint of this project; a run's folder, for the best one in it; or
            "imagenet", for the weights that torchvision or timm has for this network.
        built_by: the network's config, which says whose network it is.

    Raises:
        UserError: they cannot be read or downloaded, are another network's, or none fits.
    """
    source, theirs, pictures = _read(network, init_from, built_by or {})
    heads = tuple(f"{name}." for name in last_layers(network))
    ours = network.state_dict()
    body = [name for name in ours if not name.startswith(heads)]
    others = [name for name in theirs if not name.startswith(heads)]
    missing = [name for name in body if name not in theirs]
    unexpected = [name for name in others if name not in ours]
    if missing or unexpected:
        lacks = f"lacks {missing[0]}" if missing else ""
        has = f"has {unexpected[0]}, which {type(network).__name__} has not" if unexpected else ""
        raise UserError(
            f"init_from: {source} holds another network than {type(network).__name__}: it "
            f"{' and '.join(filter(None, (lacks, has)))}. Give one that was trained with the same "
            "model.network, or choose its model=…."
        )
    loaded = [name for name in body if ours[name].shape == theirs[name].shape]
    if not loaded:
        raise UserError(
            f"init_from: no tensor of {source} fits {type(network).__name__}: their shapes differ. "
            "Give the same model.network options as it was trained with."
        )
    with torch.no_grad():
        for name in loaded:
            ours[name].copy_(theirs[name])
    replaced = [name for name in ours if name not in loaded]
    return Initialization(source, loaded, replaced, pictures)


def last_layers(network: nn.Module) -> list[str]:
    """Return the names of the modules that give logits.

    That is the last one, in the order of definition, with parameters of its own, and what timm
    notes of its networks, some of which have two or more (distilled ones, for example).

    Raises:
        UserError: the network is a single layer.
    """
    names = [name for name, m in network.named_modules() if list(m.parameters(recurse=False))]
    if not names or not names[-1]:
        raise UserError(
            f"init_from: {type(network).__name__} has no layer before its last: nothing to load."
        )
    noted = (getattr(network, "pretrained_cfg", None) or {}).get("classifier") or ()
    return [names[-1], *([noted] if isinstance(noted, str) else noted)]


def _read(
    network: nn.Module, init_from: str, built_by: Mapping[str, Any]
) -> tuple[str, dict[str, Tensor], TrainedOn]:
    if init_from == IMAGENET:
        return zoo.trained(network, built_by)
    path = checkpoints.find(init_from)
    content: dict[str, Any] = checkpoints.read(path, "init_from")
    prefix = "network."
    tensors = content["state_dict"].items()
    state = {
        name.removeprefix(prefix): tensor for name, tensor in tensors if name.startswith(prefix)
    }
    height, width = content["litvision"]["image_size"]
    # Its mean and deviation are its own pictures', as other pictures will have theirs.
    return str(path), state, TrainedOn((height, width), (), ())


def _list(values: tuple[float, ...]) -> str:
    return f"[{','.join(f'{value:.3g}' for value in values)}]"
