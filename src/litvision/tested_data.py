"""The pictures to test a trained classifier on: those of its training, or others."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from litvision import records
from litvision.errors import UserError
from litvision.sources.image_folder import fingerprint
from litvision.sources.layout import Layout

log = logging.getLogger(__name__)

FOLDER = "litvision.sources.image_folder.ImageFolder"


def data_config(data: DictConfig, card: dict[str, Any], split: str) -> DictConfig:
    """Return the config of the data to test on, prepared as the classifier was trained.

    Args:
        data: a whole data config if one was chosen, else values that replace the checkpoint's own,
            where they are not null.
        card: what the checkpoint says about itself.
        split: to test on. Of a source that can leave splits out, no other is read, but those of
            training where validation pictures are set aside from them.
    """
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    typed = {records.key_of(override) for override in overrides}
    if "_target_" in data:
        node = OmegaConf.create(OmegaConf.to_container(data, resolve=True, throw_on_missing=True))
        assert isinstance(node, DictConfig)
        own = {"image_size": card["image_size"][0]}
        trained = card["config"]["data"]
        if split != "test":  # what set validation pictures aside from those that were trained on
            own |= {key: trained.get(key) for key in ("seed", "val_fraction", "limit_per_class")}
        aside = _set_aside(trained) if _source(node) == _source(trained) else 0
        if aside and (split != "test" or _were_trained_on(node, card)):
            own["test_fraction"] = aside
        for key, value in own.items():
            if key in node and f"data.{key}" not in typed:
                node[key] = value
        for key in ("root", "eval_batch_size", "num_workers", "test_fraction"):
            if node[key] is None:  # evaluate.yaml has it for the checkpoint's own data
                del node[key]
    else:
        node = OmegaConf.create(card["config"]["data"])
        if _source(node) == FOLDER:  # of a file from before it had one
            node.setdefault("test_fraction", None)
        unknown = [str(key) for key, value in data.items() if value is not None and key not in node]
        if unknown:
            raise UserError(
                f"data.{unknown[0]}: the data that the checkpoint was trained on have no such "
                f"option. They have: {', '.join(map(str, node))}."
            )
        node.update({key: value for key, value in data.items() if value is not None})
        if node.get("root") is not None and not _folder(node).is_dir():
            raise UserError(
                f"The pictures that the classifier was trained on are not at {node.root}: give "
                "data.root=<where they are>, or data=<choice>."
            )
    if "data.test_fraction" in typed:
        aside = _set_aside(card["config"]["data"])
        seen = split == "test" and _set_aside(node) > aside > 0
        if seen and _were_trained_on(node, card):
            log.warning(
                "Some of these pictures were trained on, which set data.test_fraction="
                f"{aside:g} of them aside: leave it out to test on those alone."
            )
    elif node.get("test_fraction") and (_folder(node) / "test").is_dir():
        node.test_fraction = None  # it says nothing of others, with a test split of their own
    given = node.get("classes")
    if given is not None and [str(name) for name in given] != card["classes"]:  # 0 may be a name
        names = ",".join(f"'{name}'" for name in card["classes"])
        raise UserError(
            "data.classes differs from what the checkpoint was trained on, in number or order: "
            f'leave it out, or give "data.classes=[{names}]".'
        )
    # In the order of the logits; what looks like an interpolation is a name as any other.
    node.classes = [name.replace("${", "\\${") for name in card["classes"]]
    if "splits" in node and node.splits is None:
        own_val = (_folder(node) / "val").is_dir()
        others = ["train", "val"] if own_val else ["train"]
        node.splits = [split] if split == "test" or (own_val and split == "val") else others
    node.mean, node.std = card["mean"], card["std"]
    return node


def _were_trained_on(data: DictConfig, card: dict[str, Any]) -> bool:
    """Say whether a folder holds the pictures of the training, a part of which was set aside."""
    trained, folder = card["config"]["data"], _folder(data)
    if not _set_aside(trained) or not folder.is_dir():
        return False
    if folder.resolve() == _folder(trained).resolve():
        return True
    # It may have moved, or the run was started from elsewhere.
    layout = Layout(folder, _set_aside(trained), folder / ".litvision")
    if not (folder / layout.place("train")).is_dir():
        return False
    names = [
        layout.name(path)
        for class_name in layout.classes("train")
        for path, *_ in layout.files("train", class_name)
    ]
    return fingerprint(names) == (card.get("pictures") or {}).get("files")


def _set_aside(data: Any) -> float:
    """Return the share that is set aside to test on; 0 also for what has yet to be refused."""
    value = data.get("test_fraction")
    return value if isinstance(value, int | float) and not isinstance(value, bool) else 0


def _source(data: Any) -> str | None:
    return (data.get("source") or {}).get("_target_")


def _folder(data: Any) -> Path:
    return Path(str(data.get("root"))).expanduser()
