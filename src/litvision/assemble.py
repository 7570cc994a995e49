"""From a composed config to the live objects of one run."""

from __future__ import annotations

import logging
import re
import typing
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import lightning as L
import torch
from hydra.utils import UNSAFE_DISABLE_EXECUTION_CHECKS, instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Checkpoint, ModelSummary, ProgressBar
from omegaconf import DictConfig, OmegaConf, open_dict
from pydantic import Field

import litvision
from litvision import checkpoints, hardware
from litvision.callbacks.best_checkpoint import BestCheckpoint
from litvision.callbacks.result import Result
from litvision.classifier import METRICS, ImageClassifier
from litvision.datamodule import ImageDataModule
from litvision.errors import UserError
from litvision.validation import check, check_value

log = logging.getLogger(__name__)

# The config of a clone is its owner's own code and may name any target. A config that came inside
# a checkpoint may not; see `litvision.checkpoints`.
ANY = UNSAFE_DISABLE_EXECUTION_CHECKS


class Shared(TypedDict):
    """The plain keys of `conf/train.yaml` and what they take."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    monitor: str
    mode: Literal["min", "max"]
    test: bool
    resume: str | None


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
        folder, checkpoint = _from_here(self.cfg.run_dir), _from_here(self.checkpoint or "")
        return result.summary(folder, str(checkpoint)) if result else f"run {folder}"

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
    for key, annotation in typing.get_type_hints(Shared, include_extras=True).items():
        check_value(key, cfg[key], annotation)
    if cfg.monitor not in METRICS and cfg.model._target_.startswith("litvision."):
        raise UserError(f"monitor={cfg.monitor!r} does not fit: it takes {' or '.join(METRICS)}.")
    if "_target_" not in cfg.data:
        raise UserError("No data set is chosen: give data=<choice>, for example data=shapes.")
    choose_precision(cfg)
    check_before_reading(cfg)
    resume_from = find_checkpoint(cfg.resume)
    trainer = build_trainer(cfg)
    datamodule = build_datamodule(cfg.data)
    datamodule.prepare_data()
    datamodule.setup()
    with open_dict(cfg):
        cfg.num_classes = len(datamodule.classes)
        cfg.total_steps = total_steps(trainer, datamodule)
    # Only now: the initial weights depend on the seed alone, not on how the data were read.
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    with parts("model"):
        optimizer, scheduler = build(cfg.optimizer), build(cfg.scheduler)
        classifier = build(cfg.model, optimizer=optimizer, scheduler=scheduler)
    try_network(classifier, datamodule)
    resolved = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    classifier.card = card(resolved, datamodule)
    if trainer.is_global_zero:
        folder = Path(cfg.run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.create(resolved), folder / "config.yaml")
    sizes = {name: len(subset) for name, subset in datamodule.subsets.items()}
    log.info(
        f"{sizes['train']:,} pictures to train on, {sizes['val']:,} to validate, "
        f"{sizes['test']:,} to test, {cfg.num_classes} classes; "
        f"{datamodule.steps_per_epoch} steps an epoch; precision {cfg.trainer.precision}"
    )
    return Run(cfg, datamodule, classifier, trainer, resume_from)


# What Lightning says that means nothing to a user of this project, as patterns of the beginning.
NOISE = (
    r"Precision bf16-mixed is not supported by the model summary",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    r".*does not have many workers",  # pictures in memory need none
    r"The number of training batches",  # epochs are logged, not batches
    r"Experiment logs directory .* exists",  # the run's folder is there before its loggers
    r"Checkpoint directory .* exists",
    r"Trainer already configured with model summary",
    r"GPU available: False",
    r"TPU available",
    r"\W*Tip: ",
    r"Restoring states from the checkpoint",
    r"Loaded model weights from the checkpoint",
)


def settle_logging() -> None:
    """Let Lightning's messages through once, and leave out those that say nothing here."""
    logging.getLogger("lightning").handlers.clear()  # Hydra's handlers print them too
    for pattern in NOISE:
        warnings.filterwarnings("ignore", message=pattern)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logger = logging.getLogger(name)
        if _means_something not in logger.filters:
            logger.addFilter(_means_something)


def _means_something(record: logging.LogRecord) -> bool:
    return not any(re.match(pattern, record.getMessage()) for pattern in NOISE)


def check_before_reading(cfg: DictConfig) -> None:
    """Check every value; try optimizer and schedule on one number: they know their own ranges."""
    trial = cfg.copy()
    with open_dict(trial):  # what the data will tell
        trial.num_classes, trial.total_steps = 2, 1000
    check(trial)
    with parts("optimizer"):
        optimizer = build(trial.optimizer)([torch.nn.Parameter(torch.zeros(1))])
    if trial.scheduler is not None:
        with parts("scheduler"):
            build(trial.scheduler)(optimizer)


def try_network(classifier: ImageClassifier, datamodule: ImageDataModule) -> None:
    """Send one black picture through the network: it knows which sizes it takes.

    Raises:
        UserError: the network refuses the size, or gives another number of logits than classes.
    """
    picture = torch.zeros(1, 3, *datamodule.image_size)
    with parts("model.network"), torch.inference_mode():
        logits = classifier.network.eval()(picture)
    classifier.network.train()
    if logits.shape != (1, len(datamodule.classes)):
        raise UserError(
            f"model.network gives {list(logits.shape)} for one picture, not logits of shape "
            f"[1, {len(datamodule.classes)}]: let it have ${{num_classes}} classes."
        )
    classifier.example_input_array = picture  # for the model summary


def choose_precision(cfg: DictConfig) -> None:
    """Replace `trainer.precision=auto` by the name of what this machine does fastest."""
    if hardware.accelerator(str(cfg.trainer.accelerator)) == "cuda":
        torch.set_float32_matmul_precision("high")  # what is left in float32 may use TF32
    if cfg.trainer.get("precision") == "auto":
        cfg.trainer.precision = hardware.precision(str(cfg.trainer.accelerator))


def build(node: DictConfig | None, trust: Any = ANY, **more: Any) -> Any:
    """Instantiate a node; what it takes as lists and dicts are plain ones, not OmegaConf's.

    Args:
        node: with a `_target_`, or null.
        trust: the targets that it may name.
        more: options to add.
    """
    return instantiate(node, _convert_="all", _execution_whitelist_=trust, **more)


def build_trainer(cfg: DictConfig) -> L.Trainer:
    """Build the trainer with the callbacks and loggers of the config; null ones are left out."""
    with parts("callbacks"):
        callbacks = [build(node) for node in (cfg.get("callbacks") or {}).values() if node]
    with parts("logger"):
        loggers = [build(node) for node in (cfg.get("logger") or {}).values() if node]
    # Lightning would put in its own for what is left out.
    options = {
        "enable_progress_bar": any(isinstance(c, ProgressBar) for c in callbacks),
        "enable_model_summary": any(isinstance(c, ModelSummary) for c in callbacks),
        "enable_checkpointing": any(isinstance(c, Checkpoint) for c in callbacks),
    }
    with parts("trainer"):
        return build(cfg.trainer, callbacks=callbacks, logger=loggers or False, **options)


def build_datamodule(node: DictConfig, trust: Any = ANY) -> ImageDataModule:
    """Build the data module; no picture is read yet."""
    with parts("data"):
        return build(node, trust)


def total_steps(trainer: L.Trainer, datamodule: ImageDataModule) -> int | None:
    """Return the optimizer steps of the whole run; None if it has no end.

    Not Lightning's `estimated_stepping_batches`: that builds the training loader early, and a
    resumed run would lose its place in it.
    """
    batches: float = datamodule.steps_per_epoch
    limit = trainer.limit_train_batches
    if limit is not None:
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    per_epoch = -(-int(batches) // trainer.accumulate_grad_batches)
    ends = [trainer.max_steps] if trainer.max_steps != -1 else []
    if trainer.max_epochs is not None and trainer.max_epochs != -1:
        ends.append(trainer.max_epochs * per_epoch)
    return max(min(ends), 1) if ends else None


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
    }


def find_checkpoint(resume: str | None) -> str | None:
    """Return the checkpoint to resume from: the file, or the last one of a run's folder."""
    if resume is None:
        return None
    path = Path(resume)
    if path.is_dir():
        path = path / "checkpoints" / "last.ckpt"
    checkpoints.read(path)
    return str(path)


@contextmanager
def parts(name: str) -> Iterator[None]:
    """Turn a value that an object refuses into one line that names the part of the config."""
    try:
        yield
    except (ValueError, MisconfigurationException) as error:
        raise UserError(f"{name}: {' '.join(str(error).split())}") from error


def _from_here(path: str | Path) -> Path:
    path = Path(path)
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
