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

IMAGENET = "imagenet"


@dataclass
class Initialization:
    """What became of each tensor of a network: names as in its state dict."""

    source: str
    loaded: list[str]
    replaced: list[str]

    def __str__(self) -> str:
        """Say it in one line."""
        some = ", ".join(self.replaced[:6]) + (", …" if len(self.replaced) > 6 else "")
        return (
            f"initialized from {self.source}: {len(self.loaded)} tensors loaded, "
            f"{len(self.replaced)} replaced ({some})"
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
    source, theirs = _read(network, init_from, built_by or {})
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
    return Initialization(source, loaded, [name for name in ours if name not in loaded])


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
) -> tuple[str, dict[str, Tensor]]:
    if init_from == IMAGENET:
        return zoo.trained(network, built_by)
    path = checkpoints.find(init_from)
    content: dict[str, Any] = checkpoints.read(path, "init_from")
    prefix = "network."
    tensors = content["state_dict"].items()
    return str(path), {
        name.removeprefix(prefix): tensor for name, tensor in tensors if name.startswith(prefix)
    }
