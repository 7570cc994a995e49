"""From a composed config to the live objects of one run."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, Checkpoint, ModelSummary, ProgressBar
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf, open_dict

import litvision
from litvision import checkpoints, hardware, lean_steps, records, sweeps
from litvision.callbacks.best_checkpoint import BestCheckpoint
from litvision.callbacks.result import Result
from litvision.callbacks.warmup import Warmup
from litvision.checkpoint_io import WholeCheckpointIO
from litvision.classifier import ImageClassifier
from litvision.datamodule import ImageDataModule
from litvision.determinism import obstacles
from litvision.errors import UserError
from litvision.initialize import IMAGENET, initialize
from litvision.messages import settle_logging
from litvision.networks.zoo import TrainedOn
from litvision.optimizers import unfit_for_muon
from litvision.position import batches_per_epoch, total_steps
from litvision.preflight import (
    ANY,
    build,
    check_before_reading,
    check_kind,
    check_shared,
    check_strategy,
    parts,
    try_optimizer,
)
from litvision.resume import (
    continue_logs,
    find_checkpoint,
    same_options,
    same_run,
    which_pictures,
)
from litvision.scaling import check_scaled, scale_learning_rate
from litvision.trials import try_network, try_one_picture
from litvision.watched import check_metrics, check_validated

log = logging.getLogger(__name__)

UNEQUAL = 1.5  # times as many pictures of one class as of another: from there on a line says so


@dataclass
class Run:
    """The live objects of one training run."""

    cfg: DictConfig
    datamodule: ImageDataModule
    classifier: ImageClassifier
    trainer: L.Trainer
    resume_from: str | None

    @property
    def checkpoint(self) -> str | None:
        """The path of the best checkpoint; None if none was saved."""
        callback = self._callback(BestCheckpoint)
        return (callback.best_model_path or None) if callback else None

    @property
    def score(self) -> float | None:
        """The best value of the watched metric: what a sweep optimises."""
        callback = self._callback(BestCheckpoint)
        if callback is not None and callback.best_model_score is not None:
            return float(callback.best_model_score)
        value = self.trainer.callback_metrics.get(self.cfg.monitor)
        return None if value is None else float(value)

    def summary(self) -> str:
        """Return what a person wants to read at the end of the run."""
        result = self._callback(Result)
        folder = records.from_here(self.cfg.run_dir)
        checkpoint = str(records.from_here(self.checkpoint)) if self.checkpoint else ""
        return result.summary(folder, checkpoint) if result else f"run {folder}"

    def _callback(self, kind: type) -> Any:
        callbacks: list[L.Callback] = getattr(self.trainer, "callbacks", [])
        return next((c for c in callbacks if isinstance(c, kind)), None)


def assemble(cfg: DictConfig) -> Run:
    """Build everything that one training run needs, and save its resolved config.

    The config is checked as a whole first, then whatever can be built without data, so that a
    mistake is found before any picture is read.

    Raises:
        UserError: a value of the config does not fit, or the data cannot be read.
    """
    settle_logging()
    check_shared(cfg)
    scaled = scale_learning_rate(cfg)
    use_hardware(cfg)
    check_before_reading(cfg)
    if scaled:
        check_scaled(cfg)
    resume_from, resumed = find_checkpoint(cfg.resume)
    if resumed is not None:
        same_options(resumed["litvision"]["config"], cfg)
    elif cfg.init_from not in (None, IMAGENET):
        checkpoints.read(checkpoints.find(cfg.init_from), "init_from")
    trainer = build_trainer(cfg)
    check_strategy(trainer.strategy, cfg)
    check_metrics(cfg, trainer)
    datamodule = build_datamodule(cfg.data)
    datamodule.tests = cfg.test
    datamodule.trainer = trainer  # the number of devices decides the number of steps
    datamodule.prepare_data()
    datamodule.setup()
    with open_dict(cfg):
        cfg.num_classes = len(datamodule.classes)
        cfg.image_size = list(datamodule.image_size)
        cfg.total_steps = total_steps(trainer, datamodule)
    check_validated(cfg, trainer, datamodule)
    trial = try_optimizer(cfg)
    # Only now: the initial weights depend on the seed alone, not on how the data were read.
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    with parts("model"):
        optimizer, scheduler = build(cfg.optimizer), build(cfg.scheduler)
        classifier = build(cfg.model, optimizer=optimizer, scheduler=scheduler)
    check_kind("model", cfg.model, classifier, ImageClassifier)
    check_kind("model.network", cfg.model.get("network", {}), classifier.network, torch.nn.Module)
    classifier.weigh_classes(datamodule.class_counts("train"))
    try_network(classifier, datamodule)
    if not cfg.trainer.get("sync_batchnorm"):  # which looks at all devices' pictures
        try_one_picture(classifier, datamodule)
    resolved: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    if resumed is not None:
        same_run(resumed["litvision"], resolved, datamodule)
        if trainer.is_global_zero:
            continue_logs(trainer, resumed["global_step"])
    classifier.card = card(resolved, datamodule)
    initialized = None
    if resumed is not None:  # whose weights are all there
        classifier.card["loaded"] = resumed["litvision"].get("loaded", [])
    elif cfg.init_from is not None:
        initialized = initialize(
            classifier.network, cfg.init_from, resolved["model"].get("network")
        )
        classifier.card["loaded"] = initialized.loaded
    if trainer.is_global_zero:
        folder = Path(cfg.run_dir)
        records.write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(resolved)))
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
        for sentence in unfit_for_muon(classifier.network, trial):
            log.warning(sentence)
        if scaled:
            log.info(scaled)
        if initialized:
            log.info(initialized)
            now = TrainedOn(
                datamodule.image_size, tuple(datamodule.mean or ()), tuple(datamodule.std or ())
            )
            if other := initialized.unlike(now):
                log.info(other)
            initialized.save(folder)
    return Run(cfg, datamodule, classifier, trainer, resume_from)


def use_hardware(cfg: DictConfig) -> None:
    """Prepare torch for the device, and replace `trainer.precision=auto` by what is fastest.

    Runs of a sweep that joblib starts side by side share the cores, and take the GPUs in turn.
    """
    device = hardware.accelerator(str(cfg.trainer.accelerator))
    if device == "gpu" or (device == "cuda" and not torch.cuda.is_available()):
        raise UserError(
            f"trainer.accelerator={cfg.trainer.accelerator}: torch {torch.__version__} finds no "
            "GPU here. Give trainer.accelerator=cpu; if there is one, its driver may be too old "
            "for this build of torch: make install TORCH=cu128 takes another."
        )
    pictures = OmegaConf.select(cfg, "model.network.norm_pictures")
    if pictures and cfg.trainer.get("sync_batchnorm"):
        raise UserError(
            "trainer.sync_batchnorm=true normalises over the pictures of all devices, and "
            f"model.network.norm_pictures={pictures} over parts of one device's: leave one out."
        )
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # what is left in float32 may use TF32
    elif device == "cpu":
        hardware.keep_freed_memory()
        if cfg.trainer.get("sync_batchnorm"):
            raise UserError(
                "trainer.sync_batchnorm=true works on GPUs only. Leave it out, or choose a "
                "normalisation that looks at one picture at a time: model.network.norm=group."
            )
    runs, number = sweeps.side_by_side()
    if runs > 1:
        torch.set_num_threads(max(1, sweeps.cores() // runs))
        if device == "cuda" and cfg.trainer.devices == 1:
            cfg.trainer.devices = [number % torch.cuda.device_count()]
    if cfg.trainer.get("precision") == "auto":
        cfg.trainer.precision = hardware.precision(str(cfg.trainer.accelerator))


def build_trainer(cfg: DictConfig) -> L.Trainer:
    """Build the trainer with the callbacks and loggers of the config; null ones are left out."""
    callbacks, loggers = build_all(cfg, "callbacks", L.Callback), build_all(cfg, "logger", Logger)
    # First, so that a learning rate is found for the batch that training takes, and that what logs
    # a step's rate sees the step's own.
    first = (BatchSizeFinder, Warmup)
    callbacks.sort(key=lambda callback: not isinstance(callback, first))
    # Lightning would put in its own for what is left out.
    options = {
        "enable_progress_bar": any(isinstance(c, ProgressBar) for c in callbacks),
        "enable_model_summary": any(isinstance(c, ModelSummary) for c in callbacks),
        "enable_checkpointing": any(isinstance(c, Checkpoint) for c in callbacks),
    }
    with parts("trainer"):
        trainer = build(cfg.trainer, callbacks=callbacks, logger=loggers or False, **options)
    if trainer.strategy._checkpoint_io is None:  # a strategy or a plug-in may have its own
        trainer.strategy._checkpoint_io = WholeCheckpointIO()
    lean_steps.trim(trainer)
    # With `max_steps`, Lightning takes every checkpoint for one from within an epoch, and resumed
    # from an epoch's end trains a batch more of that epoch.
    trainer.fit_loop._iteration_based_training = lambda: False
    return trainer


def build_all(cfg: DictConfig, group: str, kind: type) -> list[Any]:
    """Instantiate the members of a group that are not null, all of one kind."""
    members = [(name, node) for name, node in (cfg.get(group) or {}).items() if node is not None]
    for name, node in members:
        if not isinstance(node, DictConfig):
            raise UserError(f"{group}.{name}={node} does not fit: it takes null, or options.")
        if "_target_" not in node:
            raise UserError(
                f"{group}.{name} has options but no _target_: it was taken out or never chosen. "
                f"Add {group}=[default,{name}], or take its options out."
            )
    with parts(group):
        built = [build(node) for _, node in members]
    for (name, node), member in zip(members, built, strict=True):
        check_kind(f"{group}.{name}", node, member, kind)
    return built


def build_datamodule(node: DictConfig, trust: Any = ANY) -> ImageDataModule:
    """Build the data module; no picture is read yet."""
    with parts("data"):
        return build(node, trust)


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


def card(config: Any, datamodule: ImageDataModule) -> dict[str, Any]:
    """Return what a checkpoint says about itself: plain values only."""
    return {
        "format": checkpoints.FORMAT,
        "version": litvision.__version__,
        "config": config,
        "classes": list(datamodule.classes),
        "mean": list(datamodule.mean or ()),
        "std": list(datamodule.std or ()),
        "image_size": list(datamodule.image_size),
        "pictures": which_pictures(datamodule),
    }


def _counted(number: int, thing: str) -> str:
    several = f"{thing}es" if thing.endswith("s") else f"{thing}s"
    return f"{number:,} {thing if number == 1 else several}"
