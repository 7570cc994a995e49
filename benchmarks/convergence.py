"""Accuracy by epoch and by second: seed, fast and speedrun: python -m benchmarks convergence.

On 45,000 of CIFAR-10's training pictures, validated on the other 5,000 after each epoch. RUNS
chooses among the runs below; those done before are in the table and the picture too.
About two hours on two cores.
"""

from __future__ import annotations

import os
import sys
from itertools import accumulate
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.measure import RESULTS, machine
from benchmarks.trained import folder_name, train
from litvision import curves, records

# The seed recipe has a constant rate: its first epochs are the same, whatever follows.
RUNS = {
    "speedrun": ["experiment=speedrun"],
    "vgg16_fast": ["experiment=vgg16_fast"],
    "resnet18_fast": ["experiment=resnet18_fast"],
    "seed, vgg16": ["experiment=seed", "model=vgg16", "trainer.max_epochs=8"],
    "seed, resnet18": ["experiment=seed", "model=resnet18", "trainer.max_epochs=8"],
}
PICTURES = 45_000
Points = list[tuple[float, float]]  # (seconds of training, validation accuracy)


def folder(name: str) -> Path:
    """Return where a run is kept."""
    return RESULTS / "convergence" / folder_name(name)


def points(accuracy: curves.Curve, rate: curves.Curve) -> Points:
    """Return the accuracy after each epoch against the seconds spent training until then."""
    seconds = accumulate(PICTURES / value for _, value in rate)
    return [(s, value) for s, (_, value) in zip(seconds, accuracy, strict=True)]


def draw(found: dict[str, Points]) -> Figure:
    """Draw each run as a line, seconds on a logarithmic axis."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for (name, run), marker in zip(found.items(), "osd^v", strict=False):
        axes.plot(*zip(*run, strict=True), marker=marker, markersize=4, label=name)
    axes.set(xscale="log", xlabel="seconds of training", ylabel="validation accuracy")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    return figure


def table(found: dict[str, Points]) -> str:
    """Return accuracy and seconds, a row an epoch, as Markdown."""
    lines = ["| epoch | " + " | ".join(found) + " |", "| --- |" + " ---: |" * len(found)]
    for epoch in range(max(map(len, found.values()))):
        cells = [
            f"{run[epoch][1]:.1%}, {run[epoch][0]:,.0f} s" if epoch < len(run) else ""
            for run in found.values()
        ]
        lines.append(f"| {epoch + 1} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    chosen = [name for name in os.environ.get("RUNS", "").split(";") if name] or [*RUNS]
    if unknown := set(chosen) - set(RUNS):
        sys.exit(f"error: no run {', '.join(unknown)}: RUNS takes {'; '.join(RUNS)}.")
    for name in chosen:
        train(folder(name), RUNS[name])
    found = {}
    for name in RUNS:
        if records.read_result(folder(name)).get("state") == "done":
            metrics = curves.read(folder(name))
            found[name] = points(metrics["val/acc"], metrics["images_per_second"])
    text = f"{machine()}; validation accuracy, seconds of training, seed 0\n\n{table(found)}"
    (RESULTS / "convergence.md").write_text(text + "\n")
    draw(found).savefig(RESULTS / "convergence.svg", metadata={"Date": None})
    print(text)


if __name__ == "__main__":
    main()
