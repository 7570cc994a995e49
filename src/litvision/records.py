"""What a run and a sweep write down about themselves: `result.json` and `sweep.json`.

Nothing but files is needed here, and no import that takes long, so that help and a list of runs are
there at once.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from litvision.errors import UserError

RANKS = ("RANK", "NODE_RANK", "LOCAL_RANK", "SLURM_PROCID")  # of one process of several

LOCK = ".lock"  # held while a command trains in the folder
JOB = ".job"  # beside it, which processes belong to the command

# The last parts of config keys that say where files go, and nothing of what is trained.
PLACES = ("default_root_dir", "dirpath", "overrides", "resume", "run_dir", "save_dir")


def read_result(run: Path) -> dict[str, Any]:
    """Return what a run's `result.json` holds; empty where there is none, or no whole one."""
    return read_object(run / "result.json")


def write_result(run: Path, content: dict[str, Any]) -> None:
    """Write a run's `result.json`, whole or not at all; JSON has no NaN or infinity: null."""
    plain = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in content.items()
    }
    write_text(run / "result.json", json.dumps(plain, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all: what was there before is not lost to a full disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def is_further_process() -> bool:
    """Say whether this process trains on one of several devices, and not on the first."""
    return any(os.environ.get(name, "0") != "0" for name in RANKS)


@contextmanager
def alone(run: Path) -> Iterator[None]:
    """Let no second command train in a run's folder meanwhile.

    The further processes of several devices belong to the first.

    Raises:
        UserError: one does already, on this machine or on another that sees the folder.
    """
    from filelock import FileLock, Timeout

    if is_further_process():
        yield
        return
    run.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run / LOCK, timeout=1)  # another process may be asking `is_taken`
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"{run} is being trained in by another command: wait for it to end, or give another "
            "folder, hydra.run.dir=<folder>."
        ) from None
    try:
        if launch := _launch():
            (run / JOB).write_text(launch, encoding="utf-8")
        yield
    finally:
        (run / JOB).unlink(missing_ok=True)
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _launch() -> str:
    """Return what the processes that torchrun or SLURM has started together have in common."""
    names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_STEP_ID")
    return " ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)


def is_taken(run: Path) -> bool:
    """Say whether a command is training in a run's folder, other than this one's first process."""
    if not (run / LOCK).exists():
        return False
    from filelock import FileLock, Timeout

    try:
        with FileLock(run / LOCK, timeout=0):
            return False
    except Timeout:
        job = run / JOB
        ours = job.is_file() and job.read_text(encoding="utf-8") == _launch()
        return not (ours and is_further_process())


def read_config(run: Path) -> dict[str, Any] | None:
    """Return a run's `config.yaml`; None where there is none, or no run's."""
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    except (OSError, OmegaConfBaseException, YAMLError):
        return None
    whole = isinstance(content, dict) and isinstance(content.get("run_dir"), str)
    return content if whole else None


def read_plan(sweep: Path) -> dict[str, Any]:
    """Return a sweep's plan, `keys` and `runs` as `litvision.sweeps` writes it; empty if none."""
    return read_object(sweep / "sweep.json")


def from_here(path: str | Path) -> Path:
    """Return a path as a person would type it: relative to this folder if it is below it."""
    path = Path(path)
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def key_of(override: str) -> str:
    """Return the key that an override is of: "optimizer.lr" of "+optimizer.lr=0.1"."""
    return override.lstrip("+").partition("=")[0]


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Return dotted key -> value of nested dicts; an empty one is a value."""
    if not isinstance(node, dict) or (prefix and not node):
        return {prefix: node}
    dot = f"{prefix}." if prefix else ""
    return {k: v for key, child in node.items() for k, v in flat(child, f"{dot}{key}").items()}


def at(config: dict[str, Any], key: str) -> Any:
    """Return the value of a dotted key in nested dicts; None where there is none."""
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


def read_object(path: Path) -> dict[str, Any]:
    """Return a JSON file's object; empty where there is no file, or no whole one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
