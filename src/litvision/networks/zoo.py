"""Networks that torchvision and timm build by name, and the weights that they offer for them."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from litvision.configs import nearest
from litvision.errors import UserError, first_line, one_line

if TYPE_CHECKING:
    from litvision.datamodule import ImageDataModule

GET_MODEL, CREATE_MODEL = "torchvision.models.get_model", "timm.create_model"
# Networks of this project whose tensors have the names of torchvision's.
SAME_NAMES = {"ResNet18": "resnet18", "VGG16": "vgg16_bn"}
# Further outputs of googlenet and inception_v3, without which a network may be built.
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")


class TrainedOn(NamedTuple):
    """What weights were trained on: height and width in pixels; mean and std, of 0 to 1, or ()."""

    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, datamodule: ImageDataModule) -> TrainedOn:
        """Return what a data module gives, once it is set up."""
        mean, std = datamodule.mean or (), datamodule.std or ()
        return cls(datamodule.image_size, tuple(mean), tuple(std))


@functools.cache
def classifiers() -> frozenset[str]:
    """Return torchvision's own list of names of networks that classify."""
    import torchvision

    return frozenset(torchvision.models.list_models(module=torchvision.models))


def check_name(node: Mapping[str, Any]) -> None:
    """Refuse a name that torchvision or timm does not know.

    Args:
        node: a config with a `_target_`, those of other packages too, of which nothing is checked.

    Raises:
        UserError: it does not; the message names what is nearest.
    """
    target = node.get("_target_")
    if target == GET_MODEL:
        known = str(node["name"]).lower() in classifiers()
        _check("name", node["name"], sorted(classifiers()), "torchvision", known)
    elif target == CREATE_MODEL:
        import timm

        name = str(node["model_name"])
        elsewhere = ":" in name  # hf-hub:… and local-dir:…
        _check("model_name", name, timm.list_models(), "timm", elsewhere or timm.is_model(name))


def _check(option: str, name: str, names: list[str], package: str, known: bool) -> None:
    if not known:
        near = nearest(name, names)
        hint = f"Nearest: {', '.join(near)}" if near else "It has resnet50, for example"
        raise UserError(
            f"model.network.{option}={name}: {package} has no network of that name that "
            f"classifies. {hint}."
        )


def trained(
    network: nn.Module, node: Mapping[str, Any]
) -> tuple[str, dict[str, Tensor], TrainedOn]:
    """Return weights of the same architecture, trained on ImageNet's classes.

    They are downloaded once, into the cache of torch or of Hugging Face.

    Args:
        network: one of torchvision or timm, or one of this project with the same tensors.
        node: the config that it was built by.

    Returns:
        What they are, in words; the state dict, in torchvision's and timm's names; and what they
        were trained on.

    Raises:
        UserError: there are none, or they cannot be downloaded.
    """
    target = str(node.get("_target_", ""))
    if target == CREATE_MODEL:
        return _from_timm(node)
    if target == GET_MODEL:
        name = str(node["name"]).lower()
    elif target.startswith("torchvision.models."):
        name = target.rpartition(".")[2]
    else:
        name = SAME_NAMES.get(type(network).__name__, "")
    if name not in classifiers():
        raise UserError(
            f"init_from=imagenet has weights for {', '.join(SAME_NAMES)} and the networks of "
            f"torchvision and timm, not for {type(network).__name__}: give a checkpoint, or "
            "choose one of those, such as model=torchvision."
        )
    return _from_torchvision(name, network)


def _from_torchvision(name: str, network: nn.Module) -> tuple[str, dict[str, Tensor], TrainedOn]:
    import torchvision

    weights = torchvision.models.get_model_weights(name).DEFAULT
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        file = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
        raise UserError(
            f"init_from=imagenet: {weights.url} could not be downloaded "
            f"({one_line(error)}). Put that file at {file}, or give a checkpoint."
        ) from error
    ours = network.state_dict()
    if not any(key.startswith(AUXILIARY) for key in ours):
        state = {key: tensor for key, tensor in state.items() if not key.startswith(AUXILIARY)}
    seen = weights.transforms()
    (side,) = seen.crop_size
    pictures = TrainedOn((side, side), tuple(seen.mean), tuple(seen.std))
    return f"torchvision's {name} ({weights})", dict(state), pictures


def _from_timm(node: Mapping[str, Any]) -> tuple[str, dict[str, Tensor], TrainedOn]:
    import timm

    create: Callable[..., nn.Module] = timm.create_model
    left_out = ("num_classes", "pretrained")
    options = {k: v for k, v in node.items() if not k.startswith("_") and k not in left_out}
    hub = logging.getLogger("huggingface_hub")
    level, name = hub.level, options["model_name"]
    try:
        hub.setLevel(logging.ERROR)  # it tries six times, and would say so twelve times
        with torch.random.fork_rng(devices=[]):  # the run's own initial weights are drawn already
            theirs = create(**options, pretrained=True)
    except (OSError, RuntimeError, ValueError) as error:
        about = timm.get_pretrained_cfg(name)
        address = about.hf_hub_id if about else None
        where = f", https://huggingface.co/{address}," if address else ""
        raise UserError(
            f"init_from=imagenet: timm's weights of {name}{where} could not be had "
            f"({first_line(error).rstrip('.')}). Give another name, a file of weights as "
            "+model.network.pretrained_cfg_overlay.file=<path>, or a checkpoint."
        ) from error
    finally:
        hub.setLevel(level)
    given: Any = theirs.pretrained_cfg
    tag = f".{given['tag']}" if given.get("tag") else ""
    _, height, width = given["input_size"]
    pictures = TrainedOn((height, width), tuple(given["mean"]), tuple(given["std"]))
    return f"timm's {given['architecture']}{tag}", theirs.state_dict(), pictures
