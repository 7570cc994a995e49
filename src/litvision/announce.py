"""What a run says of itself before it trains."""

from __future__ import annotations

import logging

import lightning as L
from omegaconf import DictConfig
from torch.optim import Optimizer

from litvision import hardware
from litvision.classifier import ImageClassifier
from litvision.datamodule import ImageDataModule
from litvision.determinism import obstacles
from litvision.optimizers import unfit_for_muon
from litvision.position import batches_per_epoch

log = logging.getLogger(__name__)

UNEQUAL = 1.5  # times as many pictures of one class as of another: from there on a line says so


def announce(
    cfg: DictConfig,
    trainer: L.Trainer,
    datamodule: ImageDataModule,
    classifier: ImageClassifier,
    optimizer: Optimizer,
) -> None:
    """Log what is about to be trained, and what in it a person may not have meant.

    Args:
        cfg: of the run.
        trainer, datamodule, classifier: built from it.
        optimizer: built from it for any weights.
    """
    log.info(statement(cfg, trainer, datamodule))
    if reasons := obstacles(cfg, hardware.accelerator(str(cfg.trainer.accelerator))):
        log.info(f"Another run of it may end otherwise: {'; '.join(reasons)}")
    if cfg.callbacks and "last_checkpoint" not in cfg.callbacks:  # null is a choice
        log.warning(
            f"callbacks has {', '.join(map(str, cfg.callbacks))} alone: nothing will be saved. "
            "To add to the callbacks of every run, give callbacks=[default,<others>]."
        )
    if cfg.num_classes == 1:
        log.warning("There is one class only: nothing to tell apart, and nothing to learn.")
    for sentence in unfit_for_muon(classifier.network, optimizer):
        log.warning(sentence)


def statement(cfg: DictConfig, trainer: L.Trainer, datamodule: ImageDataModule) -> str:
    """Say what one epoch and the whole run are made of, in two lines, or three."""
    sizes = {name: len(subset) for name, subset in datamodule.subsets.items()}
    batch, iterations = datamodule.batch_size, batches_per_epoch(trainer, datamodule)
    last = min(sizes["train"] - (iterations - 1) * batch, batch)
    accumulated, steps = trainer.accumulate_grad_batches, cfg.total_steps
    return (
        f"{sizes['train']:,} pictures to train on, {sizes['val']:,} to validate, "
        f"{sizes['test']:,} to test, {_counted(cfg.num_classes, 'class')}; "
        f"precision {cfg.trainer.precision}\n"
        f"{_counted(iterations, 'iteration')} an epoch, batches of {batch:,}"
        + (f" (the last of {last:,})" if last != batch else "")
        + (f"; weights updated every {accumulated}" if accumulated > 1 else "")
        + (f"; {_counted(steps, 'update')} in all" if steps is not None else "")
        + _unequal(datamodule, weighed=cfg.model.get("class_weights") is not None)
    )


def _unequal(datamodule: ImageDataModule, weighed: bool) -> str:
    """Say which classes have the most and the fewest pictures, where that makes accuracy flatter.

    By how much, the accuracy of the most frequent class as the only answer tells.
    """
    counts = datamodule.class_counts("train")
    most, fewest = counts.index(max(counts)), counts.index(min(counts))
    if counts[most] <= UNEQUAL * counts[fewest]:
        return ""
    split = "val" if len(datamodule.subsets["val"]) else "train"
    seen = datamodule.class_counts(split)
    names = datamodule.classes
    return (
        f"\nunequal classes: {counts[most]:,} pictures of {names[most]}, {counts[fewest]:,} of "
        f"{names[fewest]}; an accuracy of {seen[most] / sum(seen):.2%} is that of always "
        f"answering {names[most]}"
        + ("" if weighed else "; model.class_weights=balanced trains all classes alike")
    )


def _counted(number: int, thing: str) -> str:
    several = f"{thing}es" if thing.endswith("s") else f"{thing}s"
    return f"{number:,} {thing if number == 1 else several}"
