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
from litvision.announce import announce
from litvision.callbacks.best_checkpoint import BestCheckpoint
from litvision.callbacks.result import Result
from litvision.callbacks.warmup import Warmup
from litvision.checkpoint_io import WholeCheckpointIO
from litvision.classifier import ImageClassifier
from litvision.datamodule import ImageDataModule
from litvision.errors import UserError
from litvision.initialize import IMAGENET, initialize
from litvision.messages import settle_logging
from litvision.networks.zoo import TrainedOn
from litvision.position import total_steps
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
        announce(cfg, trainer, datamodule, classifier, trial)
        if scaled:
            log.info(scaled)
        if initialized:
            log.info(initialized)
            if other := initialized.unlike(TrainedOn.of(datamodule)):
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
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # what is left in float32 may use TF32
    elif device == "cpu":
        hardware.keep_freed_memory()
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
