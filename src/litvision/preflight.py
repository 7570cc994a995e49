"""What is tried before a run starts, so that a mistake costs seconds and not an epoch."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import dropwhile
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import torch
from hydra.utils import UNSAFE_DISABLE_EXECUTION_CHECKS, instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import FSDPStrategy, Strategy
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from pydantic import Field
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from litvision import hardware
from litvision.callbacks.reduce_lr_on_plateau import TWO_SCHEDULES
from litvision.errors import UNWRITABLE, UserError, first_line, one_line
from litvision.networks.zoo import check_name
from litvision.optimizers import several_rates
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
PRECISIONS = {"auto", "None", "transformer-engine", "transformer-engine-float16"}
PRECISIONS |= {"32", "32-true", "16", "16-mixed", "bf16", "bf16-mixed"}
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
    _check_precision(str(trial.trainer.get("precision")))
    _check_sync_batchnorm(trial)
    check(trial)
    check_name(OmegaConf.select(trial, "model.network") or {})
    accumulated = trial.trainer.get("accumulate_grad_batches", 1)
    for key, annotation in TRAINER.items():
        if key in trial.trainer:
            check_value(f"trainer.{key}", trial.trainer[key], annotation)
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
    if trial.scheduler is not None and "_target_" not in trial.scheduler:
        raise UserError(
            "scheduler has options but no _target_: no schedule is chosen. Add scheduler=<choice>, "
            "scheduler=cosine for example, or take its options out."
        )
    if trial.scheduler is not None and (trial.callbacks or {}).get("reduce_lr_on_plateau"):
        raise UserError(TWO_SCHEDULES)
    try_optimizer(trial, trial_steps=True)


def _check_sync_batchnorm(cfg: DictConfig) -> None:
    """Refuse to normalise over all devices' pictures where that cannot be, or against another."""
    if not cfg.trainer.get("sync_batchnorm"):
        return
    pictures = OmegaConf.select(cfg, "model.network.norm_pictures")
    if pictures:
        raise UserError(
            "trainer.sync_batchnorm=true normalises over the pictures of all devices, and "
            f"model.network.norm_pictures={pictures} over parts of one device's: leave one out."
        )
    if hardware.accelerator(str(cfg.trainer.accelerator)) == "cpu":
        raise UserError(
            "trainer.sync_batchnorm=true works on GPUs only. Leave it out, or choose a "
            "normalisation that looks at one picture at a time: model.network.norm=group."
        )


def _check_precision(precision: str) -> None:
    """Refuse a precision of the weights that is not float32's."""
    if precision in PRECISIONS:
        return
    nearest = "16-mixed" if precision.startswith("16") else "32-true"
    raise UserError(
        f"trainer.precision={precision} does not fit: weights, their updates and all metrics "
        "are float32. It takes auto, 32-true, bf16-mixed or 16-mixed: give "
        f"{'bf16-mixed' if precision.startswith('bf16') else nearest}."
    )


def trial_optimizer(cfg: DictConfig) -> Optimizer:
    """Build the optimizer for one number as a bias, one as a matrix, and one as a filter."""
    with parts("optimizer"):
        shapes = [[1], [1, 1], [1, 1, 1, 1]]
        built: Optimizer = build(cfg.optimizer)(
            [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
        )
    check_kind("optimizer", cfg.optimizer, built, Optimizer)
    return built


def try_optimizer(cfg: DictConfig, trial_steps: bool = False) -> Optimizer:
    """Build optimizer and schedule for one number of each kind: they know their own ranges.

    Args:
        cfg: of the run.
        trial_steps: `total_steps` is a guess, of which messages say nothing.

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
        schedule = build(cfg.scheduler)(optimizer)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        if trial_steps or "${total_steps}" not in str(written):
            raise UserError(f"scheduler: {one_line(error)}. Change its options.") from error
        raise UserError(
            f"scheduler: {one_line(error)} (for {cfg.total_steps} steps). Change the "
            "schedule's options, or trainer.max_epochs or trainer.max_steps."
        ) from error
    check_kind("scheduler", cfg.scheduler, schedule, LRScheduler)
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


def check_kind(path: str, node: Any, found: Any, kind: type) -> None:
    """Refuse what a node has built where it is not of the kind that belongs there.

    Args:
        path: of the node in the config.
        node: with a `_target_`.
        found: what was built.
        kind: the class that it has to be of.

    Raises:
        UserError: it is not.
    """
    if not isinstance(found, kind):
        raise UserError(
            f"{path}._target_={node.get('_target_')} gives {type(found).__name__}, which is no "
            f"{kind.__name__}: name one."
        )


@contextmanager
def parts(name: str) -> Iterator[None]:
    """Turn a value that an object refuses into one line that names the part of the config."""
    try:
        yield
    except (ValueError, MisconfigurationException) as error:
        raise UserError(f"{name}: {one_line(error)}") from error
    except (TypeError, KeyError, OSError) as error:
        # A package's function tells of options only when it is called, in one way or another. A
        # mistake in somebody's own code keeps its traceback, a full disk its own advice.
        full = isinstance(error, OSError) and error.errno in UNWRITABLE
        if full or not _of_a_package(error):
            raise
        text = f"it knows no {error}" if isinstance(error, KeyError) else first_line(error)
        hint = ": leave that option out." if "unexpected keyword argument" in text else ""
        raise UserError(f"{name}: {text}{hint}") from error


def _of_a_package(error: BaseException) -> bool:
    """Say whether an error comes out of an installed package, called by its name in a config."""
    files = [Path(f.f_code.co_filename) for f, _ in traceback.walk_tb(error.__traceback__)]
    called = list(dropwhile(lambda file: "site-packages" not in file.parts, files))
    standard = Path(sysconfig.get_path("stdlib"))  # where code lies that a package calls
    return bool(called) and all(
        "site-packages" in file.parts or file.is_relative_to(standard) or not file.is_absolute()
        for file in called
    )
