"""Going on with a run: from which checkpoint, whether it is still that run, and its logs."""

from __future__ import annotations

import copy
import csv
import logging
import shutil
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from omegaconf import DictConfig, OmegaConf, open_dict

from litvision import checkpoints, records
from litvision.datamodule import ImageDataModule
from litvision.errors import UserError
from litvision.records import at, flat

log = logging.getLogger(__name__)

# What a run's weights depend on from its start to its end.
BOUND = {"ema", "finetuning", "pruning", "sparsity_2_4", "warmup", "whitening"}
FROM_THE_START = {"finetuning", "whitening"}


def find_checkpoint(resume: str | None) -> tuple[str | None, dict[str, Any] | None]:
    """Return the checkpoint to resume from, and what it holds.

    Args:
        resume: the file, or a run's folder for the last one in it; None: start afresh. Where the
            last one is damaged, the best one is taken, and a line says so.
    """
    if resume is None:
        return None, None
    path = checkpoints.find(resume, ["last", "best"])
    try:
        return str(path), checkpoints.read(path, "resume")
    except UserError as error:
        best = path.parent / "best.ckpt"
        if not Path(resume).is_dir() or not path.is_file() or not best.is_file():
            raise
        try:
            content = checkpoints.read(best, "resume")
        except UserError:
            raise error from None
        log.warning(
            f"{records.from_here(path)} is damaged: going on from best.ckpt beside it, after "
            f"step {content['global_step']}"
        )
        return str(best), content


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
    pictures = before.get("pictures")  # none in an older file
    _same_options(before["config"], now)
    if pictures is not None and (how := other_pictures(pictures, which_pictures(datamodule))):
        raise UserError(
            f"resume: the pictures have changed, {how}, and others "
            "would be set aside for validation. Bring them back, or begin a run with "
            "init_from=<this one's folder>."
        )


def same_options(before: dict[str, Any], cfg: DictConfig) -> None:
    """Refuse what `same_run` would, before any picture is read, or downloaded in vain.

    Args:
        before: the config that the checkpoint holds.
        cfg: of the run that goes on.
    """
    cfg = copy.deepcopy(cfg)
    with open_dict(cfg):  # what is known with the data
        for key in ("num_classes", "image_size", "total_steps"):
            cfg[key] = before.get(key)
        cfg.data.classes = at(before, "data.classes")
    now: Any = OmegaConf.to_container(cfg, resolve=True)
    _same_options(before, now)


def _same_options(before: dict[str, Any], now: dict[str, Any]) -> None:
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
    found = "callbacks.batch_size_finder.apply"
    applied, applies = (bool(at(config, found)) for config in (before, now))
    if applied != applies:
        with_or_out = "with" if applied else "without"
        raise UserError(
            f"resume: the checkpoint was trained {with_or_out} {found}=true, by whose search the "
            "size of its batches is settled: give the same callbacks as then."
        )
    free = {"root", "url", "cache_dir", "on_error", "num_workers", "decode_workers"}
    free |= {"eval_batch_size", "compile", "channels_last", "splits"}
    compared = ["model", "data", "optimizer", "scheduler", "monitor", "mode"]
    if "sparsity_2_4" in old:
        compared += [f"callbacks.sparsity_2_4.{k}" for k in ("exclude", "except_first_and_last")]
    for part in compared:
        was, says = flat(at(before, part), part), flat(at(now, part), part)
        # What it is first, then its options.
        for key in sorted(was.keys() | says.keys(), key=lambda k: ("_target_" not in k, k)):
            if was.get(key) != says.get(key) and key.rpartition(".")[2] not in free:
                raise UserError(
                    f"resume: the checkpoint was trained with {key}={was.get(key)}, and this "
                    f"command says {says.get(key)}: give the same options as then."
                )


def continue_logs(trainer: L.Trainer, step: int) -> None:
    """Let the loggers go on in the files of a run that is resumed in its own folder.

    What was logged between the checkpoint and the end of the run is logged once more, so it goes.

    Args:
        trainer: with loggers that have not written yet.
        step: global step of the checkpoint.
    """
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger._kwargs["purge_step"] = step
        elif isinstance(logger, CSVLogger):
            path = Path(logger.log_dir) / "metrics.csv"
            if not path.exists():
                continue
            with path.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            # A full disk may have cut the last one short.
            rows = [r for r in rows if (r["step"] or "").isdigit() and int(r["step"]) < step]
            kept = path.with_name("metrics.csv.part")
            shutil.copyfile(path, kept)  # Lightning's writer begins by deleting the file
            try:
                writer = logger.experiment
                writer.metrics = [{k: v for k, v in row.items() if v != ""} for row in rows]
                writer.save()
            except BaseException:
                kept.replace(path)
                raise
            finally:
                kept.unlink(missing_ok=True)
