"""What is tried before a run starts, so that a mistake costs seconds and not an epoch."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal, TypedDict

import lightning as L
import torch
from hydra.utils import UNSAFE_DISABLE_EXECUTION_CHECKS, instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import FSDPStrategy, Strategy
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from pydantic import Field
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer

from litvision.classifier import METRICS, ImageClassifier
from litvision.datamodule import ImageDataModule
from litvision.errors import UserError, first_line
from litvision.optimizers import several_rates
from litvision.position import batches_per_epoch
from litvision.records import at, flat
from litvision.validation import check, check_keys, check_value

# The config of a clone is its owner's own code and may name any target. A config that came inside
# a checkpoint may not; see `litvision.checkpoints`.
ANY = UNSAFE_DISABLE_EXECUTION_CHECKS


class Shared(TypedDict):
    """The plain keys of `conf/train.yaml` and what they take."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    monitor: str
    mode: Literal["min", "max"]
    test: bool
    init_from: str | None
    resume: str | None


def check_shared(cfg: DictConfig) -> None:
    """Check the plain keys of `conf/train.yaml`, which no class takes as they are."""
    check_keys(cfg, Shared)
    if cfg.monitor not in METRICS and cfg.model._target_.startswith("litvision."):
        raise UserError(f"monitor={cfg.monitor!r} does not fit: it takes {' or '.join(METRICS)}.")
    wrong = {"/acc": "min", "/loss": "max"}
    if any(cfg.monitor.endswith(end) and cfg.mode == mode for end, mode in wrong.items()):
        right = "max" if cfg.mode == "min" else "min"
        raise UserError(
            f"monitor={cfg.monitor} with mode={cfg.mode} keeps the worst: give mode={right} too."
        )
    if (cfg.callbacks or {}).get("finetuning") and cfg.init_from is None and cfg.resume is None:
        raise UserError(
            "callbacks.finetuning freezes what init_from has loaded: give init_from=<a checkpoint, "
            "a run's folder, or imagenet>."
        )
    if "_target_" not in cfg.data:
        raise UserError("No data set is chosen: give data=<choice>, for example data=shapes.")


# Options of the trainer of which Lightning takes any number, or fails late.
TRAINER: dict[str, Any] = {
    "accumulate_grad_batches": Annotated[int, Field(ge=1)],
    "check_val_every_n_epoch": Annotated[int, Field(ge=1)] | None,
    "gradient_clip_val": Annotated[float, Field(ge=0)] | None,
    "val_check_interval": (
        Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)] | str | dict | None
    ),
}
CHOSEN_ELSEWHERE = {
    "enable_checkpointing": "or give callbacks.last_checkpoint=null and "
    "callbacks.best_checkpoint=null to save nothing",
    "enable_model_summary": "or give callbacks.model_summary=null for none",
    "enable_progress_bar": "or give callbacks.progress_bar=null for none",
    "logger": "or choose with logger=none",
    "callbacks": "or choose with callbacks=[default,<others>]",
}


def check_before_reading(cfg: DictConfig) -> None:
    """Check every value that can be checked without knowing the data."""
    trial = cfg.copy()
    with open_dict(trial):  # what the data will tell
        trial.num_classes, trial.image_size, trial.total_steps = 2, [32, 32], 1000
    check(trial)
    accumulated = trial.trainer.get("accumulate_grad_batches", 1)
    for key, annotation in TRAINER.items():
        if key in trial.trainer:
            check_value(f"trainer.{key}", trial.trainer[key], annotation)
    precision = str(trial.trainer.get("precision"))
    if precision in ("bf16-true", "16-true", "64-true", "64"):
        mixed = "16-mixed" if precision.startswith("16") else "bf16-mixed"
        raise UserError(
            f"trainer.precision={precision} does not fit: weights, their updates and all metrics "
            f"are float32. It takes auto, 32-true, bf16-mixed or 16-mixed: give {mixed}."
        )
    for key, instead in CHOSEN_ELSEWHERE.items():
        if trial.trainer.get(key) is not None:
            raise UserError(f"trainer.{key} is set by what there is: leave it out, {instead}.")
    for key in ("max_epochs", "max_steps", "limit_train_batches"):
        if trial.trainer.get(key) == 0:
            raise UserError(
                f"trainer.{key}=0 trains nothing: give more, or test what is trained already with "
                "make evaluate."
            )
    mode = trial.model.get("compile", False)
    if accumulated > 1 and mode in ("reduce-overhead", "max-autotune"):
        raise UserError(
            f"model.compile={mode} replays a recorded step, whose gradients do not outlive it, and "
            f"trainer.accumulate_grad_batches={accumulated} adds up those of several: give "
            "model.compile=true."
        )
    try_optimizer(trial)


def trial_optimizer(cfg: DictConfig) -> Optimizer:
    """Build the optimizer for one number as a bias, one as a matrix, and one as a filter."""
    with parts("optimizer"):
        shapes = [[1], [1, 1], [1, 1, 1, 1]]
        built: Optimizer = build(cfg.optimizer)(
            [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
        )
    return built


def try_optimizer(cfg: DictConfig) -> Optimizer:
    """Build optimizer and schedule for one number of each kind: they know their own ranges.

    Returns:
        that optimizer.
    """
    optimizer = trial_optimizer(cfg)
    if cfg.scheduler is None:
        return optimizer
    rates = several_rates(optimizer)
    if rates and not isinstance(cfg.scheduler.get("max_lr", []), list | ListConfig):
        raise UserError(
            f"scheduler: this schedule sets one learning rate, and the optimizer has {rates}: "
            "choose one that scales them, as scheduler=linear or scheduler=cosine."
        )
    written = OmegaConf.to_container(cfg.scheduler, resolve=False)
    if cfg.total_steps is None and "${total_steps}" in str(written):
        raise UserError(
            "scheduler: this schedule needs to know when the run ends: set trainer.max_epochs or "
            "trainer.max_steps."
        )
    try:
        build(cfg.scheduler)(optimizer)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise UserError(
            f"scheduler: {' '.join(str(error).split())} (for {cfg.total_steps} steps). Change the "
            "schedule's options, or trainer.max_epochs or trainer.max_steps."
        ) from error
    return optimizer


def check_strategy(strategy: Strategy, cfg: DictConfig) -> None:
    """Refuse an optimizer that needs whole filters where the strategy hands out pieces of them.

    Raises:
        UserError: the optimizer, or the whitening of a first layer, does not go with FSDP.
    """
    if not isinstance(strategy, FSDPStrategy):
        return
    what = []
    if getattr(trial_optimizer(cfg), "mixes_entries", False):
        what.append(f"optimizer {cfg.optimizer._target_.rpartition('.')[2]}")
    if (cfg.callbacks or {}).get("whitening"):
        what.append("callbacks.whitening")
    if what:
        raise UserError(
            f"trainer=fsdp leaves each device a piece of the weights, and {' and '.join(what)} "
            "needs whole filters: give trainer=ddp, or train without."
        )


# What a run's weights depend on from its start to its end.
BOUND = {"ema", "finetuning", "pruning", "sparsity_2_4", "warmup", "whitening"}
FROM_THE_START = {"finetuning", "whitening"}


def which_pictures(datamodule: ImageDataModule) -> dict[str, Any]:
    """Return how many pictures are there to train on, "train", and to validate, "val".

    And under "files" what they are called, as a fingerprint, where they come from files.
    """
    numbers = {name: len(datamodule.subsets[name]) for name in ("train", "val")}
    return {**numbers, "files": datamodule.subsets["train"].images.fingerprint}


def other_pictures(then: dict[str, Any], now: dict[str, Any]) -> str | None:
    """Say in what pictures differ from those of a run, as `which_pictures` gives both; or None."""
    if any(then[name] != now[name] for name in ("train", "val")):
        sizes = [f"{n['train']:,} to train on and {n['val']:,} to validate" for n in (then, now)]
        return f"{sizes[0]} then and {sizes[1]} now"
    return "files of other names" if then.get("files", now["files"]) != now["files"] else None


def same_run(before: dict[str, Any], now: dict[str, Any], datamodule: ImageDataModule) -> None:
    """Refuse to resume with options that the checkpoint's state would silently override or break.

    Args:
        before: what the checkpoint says about itself.
        now: the resolved config, a plain dict.
        datamodule: of the run that goes on.
    """
    if list(datamodule.classes) != before["classes"]:
        raise UserError(
            f"resume: the checkpoint was trained on the classes {', '.join(before['classes'])}, "
            f"and the data now have {', '.join(datamodule.classes)}: give the same as then."
        )
    pictures, before = before.get("pictures"), before["config"]  # none in an older file
    old, new = ({k for k, v in (c.get("callbacks") or {}).items() if v} for c in (before, now))
    for name in sorted((old & BOUND) - new):
        raise UserError(
            f"resume: the checkpoint was trained with callbacks.{name}, and this command "
            "leaves it out: give the same callbacks as then."
        )
    for name in sorted((new & FROM_THE_START) - old):
        raise UserError(
            f"resume: the checkpoint was trained without callbacks.{name}, which is for a whole "
            "run: leave it out, or begin a run with init_from=<this one's folder>."
        )
    free = {"root", "url", "cache_dir", "on_error", "num_workers", "decode_workers"}
    free |= {"eval_batch_size", "compile", "channels_last", "splits"}
    compared = ["model", "data", "optimizer", "scheduler", "monitor", "mode"]
    if "sparsity_2_4" in old:
        compared += [f"callbacks.sparsity_2_4.{k}" for k in ("exclude", "except_first_and_last")]
    for part in compared:
        was, says = flat(at(before, part), part), flat(at(now, part), part)
        for key in sorted(was.keys() | says.keys()):
            if was.get(key) != says.get(key) and key.rpartition(".")[2] not in free:
                raise UserError(
                    f"resume: the checkpoint was trained with {key}={was.get(key)}, and this "
                    f"command says {says.get(key)}: give the same options as then."
                )
    if pictures is not None and (how := other_pictures(pictures, which_pictures(datamodule))):
        raise UserError(
            f"resume: the pictures have changed, {how}, and others "
            "would be set aside for validation. Bring them back, or begin a run with "
            "init_from=<this one's folder>."
        )


def check_monitor(cfg: DictConfig, trainer: L.Trainer, datamodule: ImageDataModule) -> None:
    """Refuse to watch a metric of validation where nothing is validated.

    Raises:
        UserError: it does, or an epoch has fewer batches than there are between two validations.
    """
    interval = cfg.trainer.get("val_check_interval")
    batches = batches_per_epoch(trainer, datamodule)
    within = trainer.check_val_every_n_epoch is not None and trainer.limit_val_batches
    within = within and not getattr(trainer, "fast_dev_run", 0)  # which has one batch
    if within and isinstance(interval, int) and interval > batches:
        raise UserError(
            f"trainer.val_check_interval={interval} is more than an epoch's batches, {batches}: "
            "give fewer, or trainer.check_val_every_n_epoch=null too, to count through epochs."
        )
    if not cfg.monitor.startswith("val/"):
        return
    why = "trainer.limit_val_batches=0" if not trainer.limit_val_batches else None
    every, last = trainer.check_val_every_n_epoch, trainer.max_epochs
    if every is not None and last is not None and 0 <= last < every:
        why = f"trainer.check_val_every_n_epoch={every} with trainer.max_epochs={last}"
    if not len(datamodule.subsets["val"]):
        why = f"data.val_fraction={datamodule.val_fraction:g}"
    if why:
        raise UserError(
            f"monitor={cfg.monitor} needs pictures to validate, and {why} leaves none: give "
            f"monitor={cfg.monitor.replace('val/', 'train/', 1)} too, or leave {why} out."
        )


def try_network(classifier: ImageClassifier, datamodule: ImageDataModule) -> None:
    """Send black pictures of each size through the network: it knows which it takes.

    Raises:
        UserError: the network refuses the size, or gives another number of logits than classes.
    """
    network = _copy(classifier.network)
    modes = {module: module.training for module in network.modules()}
    network.eval()
    for size in dict.fromkeys((datamodule.window(0), datamodule.image_size)):  # often the same
        picture = torch.zeros(1, _channels(datamodule), *size)
        try:
            with torch.no_grad():
                logits = network(picture)
        except (ValueError, RuntimeError) as error:
            cut = "" if size == datamodule.image_size else f"data.crop={datamodule.crop}: "
            text = " ".join(str(error).split())
            if f"expected input{list(picture.shape)} to have" in text:  # the first layer
                text += f": give model.network.in_channels={picture.shape[1]} if it has that"
            raise UserError(
                f"{cut}model.network refuses a picture of shape {list(picture.shape)}: {text}"
            ) from error
    for module, training in modes.items():
        module.training = training
    if logits.shape != (1, len(datamodule.classes)):
        raise UserError(
            f"model.network gives {list(logits.shape)} for one picture, not logits of shape "
            f"[1, {len(datamodule.classes)}]: let it have ${{num_classes}} classes."
        )
    classifier.example_input_array = picture  # for the model summary


def try_one_picture(classifier: ImageClassifier, datamodule: ImageDataModule) -> None:
    """Where an epoch ends with a batch of one picture, see that the network can train on it.

    Batch normalisation of a layer of one pixel cannot: one number has no variance.

    Raises:
        UserError: it cannot.
    """
    trainer: Any = datamodule.trainer
    steps, allowed = datamodule.steps_per_epoch, trainer.limit_train_batches
    cut = (allowed if isinstance(allowed, int) else int(steps * allowed)) < steps

    def fewest(batch_size: int) -> int:
        whole = batch_size // trainer.world_size
        return whole if cut else datamodule.fewest(batch_size)

    size, batch = len(datamodule.subsets["train"]), datamodule.batch_size
    if fewest(batch) > 1:
        return
    picture = torch.zeros(1, _channels(datamodule), *datamodule.window(0))
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            _copy(classifier.network)(picture)
    except ValueError as error:
        sizes = (*range(batch + 1, size + 1), *range(batch - 1, 1, -1))
        fitting = next((n for n in sizes if fewest(n) > 1), None)
        raise UserError(
            f"data.batch_size={batch} and {size:,} pictures make a batch of one, which the network "
            f"cannot be trained on ({first_line(error).rstrip('.')}): give "
            + (f"data.batch_size={fitting}, or " if fitting else "more pictures, or ")
            + "model.network.norm=layer where the network has it."
        ) from error


def _channels(datamodule: ImageDataModule) -> int:
    return datamodule.subsets["train"].images.pixels.shape[3]


def _copy(network: torch.nn.Module) -> torch.nn.Module:
    """Return a network to try: what it keeps of a picture, and its modes, stay out of the real one.

    One whose weights get their shapes from the first picture is itself the one to be tried, and so
    is one that cannot be copied, as with torch's old `weight_norm`.
    """
    if any(isinstance(p, UninitializedParameter) for p in network.parameters()):
        return network
    try:
        return copy.deepcopy(network)
    except (RuntimeError, TypeError):
        return network


def build(node: DictConfig | None, trust: Any = ANY, **more: Any) -> Any:
    """Instantiate a node; what it takes as lists and dicts are plain ones, not OmegaConf's.

    Args:
        node: with a `_target_`, or null.
        trust: the targets that it may name.
        more: options to add.
    """
    if node is None:
        return None
    # By itself: with options to add, of which `_convert_` is one, Hydra would copy all of the
    # config that the node belongs to.
    alone = OmegaConf.create(OmegaConf.to_container(node, resolve=True))
    return instantiate(alone, _convert_="all", _execution_whitelist_=trust, **more)


@contextmanager
def parts(name: str) -> Iterator[None]:
    """Turn a value that an object refuses into one line that names the part of the config."""
    try:
        yield
    except (ValueError, MisconfigurationException) as error:
        raise UserError(f"{name}: {' '.join(str(error).split())}") from error
