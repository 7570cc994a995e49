"""Repeat a run from what it left in its folder: `python -m litvision.rerun FOLDER`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from litvision import records
from litvision.commandline import mistakes_in_one_line, new_folder
from litvision.errors import UserError

# The folder of a rerun on several devices: Lightning starts the same command again for each.
_FOLDER = "LITVISION_RERUN_FOLDER"
METRICS = ("train/loss", "train/acc", "val/loss", "val/acc", "test/loss", "test/acc")


def main(arguments: list[str] | None = None) -> None:
    """Train again as the run's `config.yaml` says, in a new folder, and compare the metrics."""
    parser = argparse.ArgumentParser(prog="make rerun", description=__doc__)
    parser.add_argument("folder", nargs="?", help="of the run")
    given = parser.parse_args(arguments)
    with mistakes_in_one_line():
        if given.folder is None:
            raise UserError("give the folder of a run: make rerun RUN=logs/…")
        run = Path(given.folder)
        content = read(run)
        target = os.environ.get(_FOLDER) or new_folder(
            f"logs/rerun/{time.strftime('%Y-%m-%d_%H-%M-%S')}"
        )
        os.environ[_FOLDER] = target
        cfg = config(content, Path(target).absolute())
        logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)
        for line in changes(run):
            print(f"not as then: {line}", flush=True)
        import torch

        from litvision.train import train

        # Sums are taken in another order by another number of threads.
        hardware = records.read_object(run / "provenance.json").get("hardware") or {}
        if isinstance(threads := hardware.get("threads"), int):
            torch.set_num_threads(threads)
        train(cfg)
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(compare(run, Path(target)))


def read(run: Path) -> dict[str, Any]:
    """Return a run's config, resolved.

    Raises:
        UserError: the folder holds no run's config, or what there is cannot be read.
    """
    content = records.read_config(run)
    if content is None:
        raise UserError(
            f"{run / 'config.yaml'} is not there, or is not the config of a run: give the folder "
            "of one."
        )
    return content


def config(content: dict[str, Any], target: Path) -> DictConfig:
    """Return a run's config with another folder in it."""
    content = _moved(content, content["run_dir"], str(target))
    # From the beginning, and not as a trial of a search that may have ended.
    content |= {"resume": None, "run_dir": str(target)}
    (content.get("callbacks") or {}).pop("study_pruning", None)
    cfg = OmegaConf.create(content)
    assert isinstance(cfg, DictConfig)
    return cfg


def changes(run: Path) -> list[str]:
    """Return what is not as it was when the run was made, a line each: code and versions."""
    from litvision.callbacks.provenance import git_state, versions

    then = records.read_object(run / "provenance.json")
    git, state = then.get("git") or {}, git_state(Path(__file__).parent) or {}
    lines = []
    if git.get("commit") != state.get("commit"):
        lines.append(f"commit {git.get('commit')}, now {state.get('commit')}")
    if git.get("diff") != state.get("diff"):
        lines.append("uncommitted changes")
    before, now = then.get("versions") or {}, versions()
    return lines + [
        f"{name} {version}, now {now.get(name)}"
        for name, version in before.items()
        if version != now.get(name)
    ]


def compare(run: Path, again: Path) -> str:
    """Return in words how the metrics of two runs differ, and whether their data did."""
    data = [
        records.read_object(folder / "provenance.json").get("data_sha256")
        for folder in (run, again)
    ]
    lines = ["the pictures are others, by their checksum"] if data[0] != data[1] else []
    before, now = records.read_result(run), records.read_result(again)
    own = [key for key in before if key.startswith(("train/", "val/", "test/"))]
    lines += [
        f"{name}: {before[name]} then, {now.get(name)} now"
        for name in dict.fromkeys([*METRICS, *own])
        if before.get(name) is not None and before[name] != now.get(name)
    ]
    if lines:
        return "\n".join(["", "Other than then:", *lines])
    return "\nEvery metric is the same as then, to the last digit."


def _moved(node: Any, before: str, target: str) -> Any:
    """Put one folder for another at the beginning of every string."""
    if isinstance(node, dict):
        return {key: _moved(value, before, target) for key, value in node.items()}
    if isinstance(node, list):
        return [_moved(value, before, target) for value in node]
    if isinstance(node, str) and (node == before or node.startswith(f"{before}/")):
        return target + node[len(before) :]
    return node


if __name__ == "__main__":
    main()
