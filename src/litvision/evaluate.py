"""Test a trained classifier: `python -m litvision.evaluate checkpoint=PATH [data=NAME …]`."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from litvision.commandline import command
from litvision.errors import UserError
from litvision.importing import quick_imports

if TYPE_CHECKING:
    import lightning as L
    from torch import Tensor

    from litvision.classifier import ImageClassifier
    from litvision.datamodule import ImageDataModule
    from litvision.sparsity import Covered

log = logging.getLogger(__name__)

FOLDER = "litvision.sources.image_folder.ImageFolder"


@command("evaluate")
def main(cfg: DictConfig) -> float:
    """Rebuild the classifier of `cfg.checkpoint`, test it, print a table, return the accuracy."""
    with quick_imports():
        from litvision import assemble, checkpoints, messages, preflight, records, resume, tta
        from litvision.callbacks.figures import Figures
        from litvision.callbacks.progress import progress
        from litvision.trust import TRUSTED, trusted_data
        from litvision.validation import check, check_value

    messages.settle_logging()
    check_value("trust", cfg.trust, list[str])
    path = checkpoints.find(cfg.checkpoint)
    content = checkpoints.read(path)
    card = content["litvision"]
    chosen = "_target_" in cfg.data
    # Data chosen on the command line are the person's own; those in the checkpoint are not.
    trust: Any = preflight.ANY
    if not chosen:
        trust = (*TRUSTED, *cfg.trust)
        card["config"]["data"] = trusted_data(card["config"]["data"], cfg.trust, path)
    with open_dict(cfg):
        cfg.data = data_config(cfg.data, card, cfg.split)
    assemble.use_hardware(cfg)
    check(cfg)
    check_value("sparse", cfg.sparse, bool)
    check_value("tta", cfg.tta, tta.Tta | None)
    if cfg.sparse and cfg.tta:
        raise UserError("sparse=true tests the network as it is: leave tta out.")
    if cfg.split not in ("train", "val", "test"):
        raise UserError(f"split={cfg.split!r} does not fit: it takes one of train, val, test.")
    classifier = checkpoints.rebuild(content, path, cfg.trust)
    covered = sparse_layers(classifier) if cfg.sparse else None
    tta.average(classifier, cfg.tta)
    datamodule = assemble.build_datamodule(cfg.data, trust)
    datamodule.test_split = cfg.split
    datamodule.prepare_data()
    datamodule.setup()
    then, now = card.get("pictures"), resume.which_pictures(datamodule)
    train, val = datamodule.subsets["train"], datamodule.subsets["val"]
    # Where no training pictures were read, those of validation stand for them, with no rows.
    set_aside = val.images is train.images and len(train) > 0
    if cfg.split != "test" and then and set_aside and (how := resume.other_pictures(then, now)):
        log.warning(
            f"The pictures are not those of the training, {how}: others are set aside for "
            "validation, and some of these may have been trained on."
        )
    sizes = [" x ".join(map(str, s)) for s in (datamodule.image_size, card["image_size"])]
    if sizes[0] != sizes[1]:
        log.warning(
            f"The classifier was trained on pictures of {sizes[1]} pixels, and these are of "
            f"{sizes[0]}: it may know them less well."
        )
    figures = Figures(f"{cfg.run_dir}/figures")
    with preflight.parts("trainer"):
        trainer: L.Trainer = preflight.build(
            cfg.trainer,
            callbacks=[figures, progress()],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
        )
    found = trainer.test(classifier, datamodule, verbose=False)
    if not found or figures.tally is None:
        raise UserError("trainer.limit_test_batches leaves nothing to test: leave it out.")
    metrics = dict(found[0])
    matrix = figures.tally.matrix.cpu()
    result = {"checkpoint": str(path), "split": cfg.split, "tta": cfg.tta, **metrics}
    result["test/balanced_acc"] = balanced_accuracy(matrix)
    result |= {f"acc/{name}": _share(matrix, label) for label, name in enumerate(card["classes"])}
    text = table(card["classes"], metrics, matrix)
    if covered:
        text += "\n\n" + test_sparse(trainer, classifier, datamodule, covered, result)
    if trainer.is_global_zero:
        file = Path(cfg.run_dir, "evaluation.json")
        records.write_text(file, json.dumps(result, indent=2) + "\n")
        print(text, flush=True)
    return metrics["test/acc"]


def sparse_layers(classifier: ImageClassifier) -> Covered:
    """Return the layers to prune: those that the run pruned, or would have by default."""
    from litvision import records
    from litvision.sparsity import covered
    from litvision.validation import check_value

    key = "callbacks.sparsity_2_4"
    trained = records.at(classifier.card["config"], key)
    if not isinstance(trained, dict):
        return covered(classifier.network)
    but, exclude = trained.get("except_first_and_last", True), trained.get("exclude") or []
    check_value(f"{key}.except_first_and_last", but, bool)
    check_value(f"{key}.exclude", exclude, list[str])
    return covered(classifier.network, but, exclude)


def test_sparse(
    trainer: L.Trainer,
    classifier: ImageClassifier,
    datamodule: ImageDataModule,
    covered: Covered,
    result: Any,
) -> str:
    """Prune these layers 2:4, test again, add to `result`, and return lines of text."""
    import torch

    from litvision import sparsity

    network = classifier.network
    layers = covered.layers
    changed = sparsity.prune(network, covered)
    dtype = torch.bfloat16 if "bf16" in str(trainer.precision) else torch.float16
    network.to(trainer.strategy.root_device)
    reasons = sparsity.accelerate(network, dtype, covered)
    metrics = dict(trainer.test(classifier, datamodule, verbose=False)[0])
    result |= {f"sparse/{name.removeprefix('test/')}": value for name, value in metrics.items()}
    result["sparse/zeroed"] = changed
    zeroed = f"{changed:,} weights of {len(layers)} layers set to zero"
    lines = [
        f"2:4 sparse accuracy  {metrics['test/acc']:.2%}, dense {result['test/acc']:.2%}; "
        + (zeroed if changed else "the same weights: they were 2:4 sparse already"),
    ]
    whys = [why for why in reasons.values() if why]
    count = len(layers) - len(whys)
    lines.append(f"on sparse tensor cores  {count} of {len(layers)} layers")
    lines += [f"  {whys.count(why)} not: {why}" for why in dict.fromkeys(whys)]
    return "\n".join(lines)


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
    typed = {option.partition("=")[0].lstrip("+") for option in overrides}
    if "_target_" in data:
        node = OmegaConf.create(OmegaConf.to_container(data, resolve=True, throw_on_missing=True))
        assert isinstance(node, DictConfig)
        own = {"image_size": card["image_size"][0]}
        trained = card["config"]["data"]
        if split != "test":  # what set validation pictures aside from those that were trained on
            own |= {key: trained.get(key) for key in ("seed", "val_fraction", "limit_per_class")}
        aside = trained.get("test_fraction") if _source(node) == _source(trained) else None
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
        aside = card["config"]["data"].get("test_fraction") or 1
        seen = split == "test" and (node.get("test_fraction") or 0) > aside
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


def table(classes: list[str], metrics: dict[str, float], matrix: Tensor) -> str:
    """Return loss, accuracy and the accuracy on each class as lines of text.

    Args:
        classes: names, in the order of the matrix.
        metrics: with `test/loss` and `test/acc`.
        matrix: int64 `[true class, predicted class]`.
    """
    width = max(len("accuracy"), *(len(name) for name in classes))
    lines = [
        f"{'pictures':<{width}}  {int(matrix.sum()):>8,}",
        f"{'loss':<{width}}  {metrics['test/loss']:>8.4f}",
        f"{'accuracy':<{width}}  {metrics['test/acc']:>8.2%}",
    ]
    if len({count for count in matrix.sum(1).tolist() if count}) > 1:  # else it is the same
        lines.append(f"{'balanced':<{width}}  {balanced_accuracy(matrix):>8.2%}  mean of classes")
    lines.append("")
    for label, name in enumerate(classes):
        right, count = int(matrix[label, label]), int(matrix[label].sum())
        share = _share(matrix, label)
        shown = "-" if share is None else f"{share:.2%}"
        lines.append(f"{name:<{width}}  {shown:>8}  {right:,} of {count:,}")
    return "\n".join(lines)


def balanced_accuracy(matrix: Tensor) -> float:
    """Return the mean of the accuracies on each class that has pictures, 0 to 1.

    Where classes are unequal, an answer that is always the largest class has a high accuracy, but
    not a high mean (Brodersen et al. 2010, "The balanced accuracy and its posterior distribution").

    Args:
        matrix: int64 `[true class, predicted class]`.
    """
    counts = matrix.sum(1).double()
    there = counts > 0
    return float((matrix.diag()[there] / counts[there]).mean())


def _were_trained_on(data: DictConfig, card: dict[str, Any]) -> bool:
    """Say whether a folder holds the pictures of the training, a part of which was set aside."""
    from litvision.sources.image_folder import fingerprint
    from litvision.sources.layout import Layout

    trained, folder = card["config"]["data"], _folder(data)
    if not trained.get("test_fraction") or not folder.is_dir():
        return False
    if folder.resolve() == _folder(trained).resolve():
        return True
    # It may have moved, or the run was started from elsewhere.
    layout = Layout(folder, trained["test_fraction"], folder / ".litvision")
    if not (folder / layout.place("train")).is_dir():
        return False
    names = [
        layout.name(path)
        for class_name in layout.classes("train")
        for path, *_ in layout.files("train", class_name)
    ]
    return fingerprint(names) == (card.get("pictures") or {}).get("files")


def _source(data: Any) -> str | None:
    return (data.get("source") or {}).get("_target_")


def _folder(data: Any) -> Path:
    return Path(str(data.get("root"))).expanduser()


def _share(matrix: Tensor, label: int) -> float | None:
    count = int(matrix[label].sum())
    return int(matrix[label, label]) / count if count else None


if __name__ == "__main__":
    main()
