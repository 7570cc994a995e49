"""Test a trained classifier: `python -m litvision.evaluate checkpoint=PATH [data=NAME …]`."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, open_dict

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


@command("evaluate")
def main(cfg: DictConfig) -> float:
    """Rebuild the classifier of `cfg.checkpoint`, test it, print a table, return the accuracy."""
    with quick_imports():
        from litvision import assemble, checkpoints, messages, preflight, records, resume, tta
        from litvision.callbacks.figures import Figures
        from litvision.callbacks.progress import progress
        from litvision.tested_data import data_config
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


def _share(matrix: Tensor, label: int) -> float | None:
    count = int(matrix[label].sum())
    return int(matrix[label, label]) / count if count else None


if __name__ == "__main__":
    main()
