"""Whole runs of the train command, kept: a benchmark that was stopped goes on where it was."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measure import REAL, RESULTS, machine, run
from litvision import records

Way = Callable[[int, Path], float]  # seed, folder for the run: the accuracy that it came to

PLAIN = [
    *("test=false", "callbacks.figures=null", "callbacks.graph=null"),
    *("callbacks.model_summary=null", "callbacks.progress_bar.kind=plain"),
]
# 10,000 of CIFAR-10's training pictures, and 5,000 others to validate.
FEWER = ["data.limit_per_class=1500", "data.val_fraction=0.3333333"]


def train(folder: Path, options: list[str]) -> dict[str, Any]:
    """Train on the real pictures, unless it was done before; return what `result.json` says."""
    if records.read_result(folder).get("state") != "done":
        run("-m", "litvision.train", *options, *REAL, *PLAIN, f"hydra.run.dir={folder}")
    return records.read_result(folder)


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
