"""The curves of runs, from the `metrics.csv` that each leaves."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

TRAIN, VAL, PLAIN = "#9aa0a6", "#4c78a8", "#222222"

Curve = list[tuple[float, float]]  # (epoch or step, value), in that order


def read(run: Path) -> dict[str, Curve]:
    """Return each metric of a run against the epoch, counted from 1, but the rate by step.

    `lr` is logged within epochs too: each of its points is (step, value). Empty where the run has
    logged nothing. A metric that an epoch has twice, as a resumed one may, counts as it was last.
    """
    path = run / "metrics.csv"
    if not path.is_file():
        return {}
    curves: dict[str, dict[float, float]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            for name, text in row.items():
                if name in ("epoch", "step") or not text:
                    continue
                if name == "lr":
                    x = float(row["step"])
                elif row.get("epoch"):
                    x = float(row["epoch"]) + 1
                else:
                    continue
                curves.setdefault(name, {})[x] = float(text)
    return {name: sorted(points.items()) for name, points in curves.items()}


def draw_run(curves: Mapping[str, Curve]) -> Figure:
    """Draw loss, accuracy, learning rate and speed of one run, side by side."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    panels = figure.subplots(2, 2).flat
    for axes, name, title in zip(panels, ("loss", "acc"), ("loss", "accuracy"), strict=False):
        for split, colour in (("train", TRAIN), ("val", VAL)):
            _line(axes, curves.get(f"{split}/{name}", []), colour, split)
        axes.set(title=title, xlabel="epoch")
        axes.legend()
    rate, speed = figure.axes[2:]
    _line(rate, curves.get("lr", []), PLAIN)
    rate.set(title="learning rate", xlabel="step")
    _line(speed, curves.get("images_per_second", []), PLAIN)
    speed.set(title="images/s", xlabel="epoch", ylim=(0, None))
    return figure


def draw_runs(runs: Sequence[tuple[str, Mapping[str, Curve]]], monitor: str) -> Figure:
    """Draw the watched metric and the accuracy of validation, a line a run, the best run on top.

    Args:
        runs: (name, curves), the best first.
        monitor: the watched metric.
    """
    names = list(dict.fromkeys([monitor, "val/acc"]))
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    colours = colormaps["viridis"]
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False).flat, names, strict=True):
        for index, (label, curves) in reversed(list(enumerate(runs))):
            colour = colours(0.95 * index / max(1, len(runs) - 1))
            _line(axes, curves.get(name, []), colour, label)
        axes.set(title=name, xlabel="epoch")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right upper", fontsize=8)
    return figure


def to_svg(figure: Figure) -> bytes:
    """Render a figure as SVG, the same bytes each time."""
    file = io.BytesIO()
    with rc_context({"svg.hashsalt": __package__}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _line(axes: Any, points: Curve, colour: Any, label: str = "") -> None:
    x, y = [x for x, _ in points], [y for _, y in points]
    marker = "o" if len(points) <= 30 else ""
    axes.plot(x, y, color=colour, label=label, marker=marker, markersize=3)
    axes.grid(alpha=0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
