"""Whole runs of the train command, kept: a benchmark that was stopped goes on where it was."""

from __future__ import annotations

import os
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from benchmarks.measure import REAL, RESULTS, machine, run
from litvision import records
from litvision.configs import CONF

# How long, and how often, the ways of a comparison are trained.
EPOCHS = int(os.environ.get("EPOCHS", "8"))
SEEDS = [int(seed) for seed in os.environ.get("SEEDS", "0,1").split(",")]
# What a run writes into its config by itself.
FILLED_IN = {
    "image_size",
    "num_classes",
    "overrides",
    "precision",
    "resume",
    "run_dir",
    "total_steps",
}
Way = Callable[[int, Path], float]  # seed, folder for the run: the accuracy that it came to

PLAIN = [
    *("test=false", "callbacks.figures=null", "callbacks.graph=null"),
    *("callbacks.model_summary=null", "callbacks.progress_bar.kind=plain"),
]
# 10,000 of CIFAR-10's training pictures, and 5,000 others to validate.
FEWER = ["data.limit_per_class=1500", "data.val_fraction=0.3333333"]


def train(folder: Path, options: list[str]) -> dict[str, Any]:
    """Train on the real pictures, unless it was done before; return what `result.json` says.

    Raises:
        SystemExit: it was done with other settings, or the recipe has changed since.
    """
    options = [*options, *REAL, *PLAIN]
    done = records.read_result(folder).get("state") == "done"
    began = any((folder / "checkpoints").glob("*.ckpt"))
    if (done or began) and (key := difference(options, folder)):
        sys.exit(
            f"error: {folder} was trained with another {key} than is asked for now: move it away "
            "to train anew."
        )
    if not done:
        resume = [f"resume='{folder}'"] if began else []
        run("-m", "litvision.train", *options, *resume, f"hydra.run.dir={folder}")
    return records.read_result(folder)


def difference(options: list[str], folder: Path) -> str | None:
    """Return the first option in which a finished run differs from what `options` compose now."""
    with initialize_config_dir(str(CONF)):
        now = OmegaConf.to_container(compose("train", options))
    done = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    return _first_difference(now, done, "")


def _first_difference(now: Any, done: Any, key: str) -> str | None:
    if isinstance(now, dict) and isinstance(done, dict):
        for name in sorted(now.keys() | done.keys()):
            if name not in FILLED_IN:
                found = _first_difference(now.get(name), done.get(name), f"{key}.{name}")
                if found:
                    return found
        return None
    refers = isinstance(now, str) and "${" in now
    return None if refers or now == done else key.removeprefix(".")


def folder_name(name: str) -> str:
    """Return a name without what an override or a shell would take for its own."""
    return re.sub(r"[^\w.]+", "-", name).strip("-")


def training(*options: str) -> Way:
    """Return the way that trains with these options and takes the last validation accuracy."""
    return lambda seed, folder: float(train(folder, [*options, f"seed={seed}"])["val/acc"])


class Comparison:
    """The last validation accuracy of training in several ways, beside the first of them.

    Args:
        name: of the folder and the table in logs/benchmarks.
        title: what all have in common.
        seeds: each way is trained once with each.
    """

    def __init__(self, name: str, title: str, seeds: list[int]) -> None:
        self.name, self.title, self.seeds = name, title, seeds
        self.found: dict[str, dict[int, float]] = {}

    def measure(self, ways: dict[str, Way]) -> None:
        """Take each way with each seed; print and save the table after each."""
        self.found = {name: {} for name in ways}
        for seed in self.seeds:
            for name, way in ways.items():
                self.found[name][seed] = way(seed, self.folder(name, seed))
                self._report()

    def folder(self, name: str, seed: int) -> Path:
        """Return where a way's run is kept."""
        return RESULTS / self.name / f"{folder_name(name)}-{seed}"

    def _report(self) -> None:
        lines = [
            f"{machine()}; {self.title}, seeds {', '.join(map(str, self.seeds))}",
            "",
            "| | validation accuracy, last epoch | difference, seed by seed |",
            "| --- | ---: | ---: |",
        ]
        base = next(iter(self.found.values()))
        for name, runs in self.found.items():
            if runs:
                accuracy = statistics.mean(runs.values())
                differences = ", ".join(f"{100 * (runs[s] - base[s]):+.1f}" for s in runs)
                lines.append(f"| {name} | {accuracy:.1%} | {differences} |")
        text = "\n".join(lines)
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{self.name}.md").write_text(text + "\n")
        print(text, flush=True)
