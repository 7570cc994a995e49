"""The figures of a run, as matplotlib draws them: what TensorBoard shows and `figures/` keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

DPI = 100
WRONG, PLAIN = "#b3261e", "#222222"
NAMED = 20  # classes up to which a confusion matrix has a number in each cell


def pictures(
    pixels: Sequence[np.ndarray] | np.ndarray, titles: Sequence[str], columns: int = 8
) -> Figure:
    """Draw pictures in rows, each below its title.

    Args:
        pixels: each uint8 `[H, W, 3]`.
        titles: of up to two lines.
        columns: pictures a row.
    """
    columns = min(columns, len(pixels)) or 1
    rows = math.ceil(len(pixels) / columns) or 1
    # One pair of axes for all: as many as there are pictures would take half a second.
    across, down = 1.06, 1.36  # of a picture's side: what it takes with its margin and its title
    figure = Figure(figsize=(1.35 * across * columns, 1.35 * down * rows))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for index, (picture, title) in enumerate(zip(pixels, titles, strict=True)):
        left, top = index % columns * across + 0.03, index // columns * down + 0.33
        axes.imshow(picture, extent=(left, left + 1, top + 1, top))
        place = (left + 0.5, top - 0.03)
        axes.text(*place, title, ha="center", va="bottom", fontsize=8, parse_math=False)
    axes.set(xlim=(0, across * columns), ylim=(down * rows, 0))
    return figure


def confusion(matrix: Tensor, classes: Sequence[str]) -> Figure:
    """Draw which class was taken for which; a row's shares make 100 %.

    Args:
        matrix: int64 `[true class, predicted class]`.
        classes: names, in the order of the matrix.
    """
    counts = matrix.double()
    shares = (counts / counts.sum(1, keepdim=True).clamp(min=1)).numpy()
    side = max(4.0, min(0.55 * len(classes), 14.0)) + 1.5
    figure = Figure(figsize=(side, side - 0.7), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the true class")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(classes) <= NAMED:
        places = range(len(classes))
        axes.set_xticks(places, classes, rotation=45, ha="right", parse_math=False)
        axes.set_yticks(places, classes, parse_math=False)
        for row in places:
            for column in places:
                if count := int(matrix[row, column]):
                    colour = "white" if shares[row, column] > 0.5 else PLAIN
                    axes.text(
                        column, row, f"{count}", ha="center", va="center", color=colour,
                        fontsize=8, in_layout=False,  # else each is measured, for nothing
                    )  # fmt: skip
    return figure


def class_accuracy(matrix: Tensor, classes: Sequence[str]) -> Figure:
    """Draw the accuracy on each class, the best first; at most 40: the 20 best and 20 worst.

    A class without pictures has none and is left out.
    """
    counts = matrix.double()
    shares = (counts.diag() / counts.sum(1)).tolist()
    present = counts.sum(1).nonzero().flatten().tolist()
    order = sorted(present, key=lambda label: -shares[label])
    if len(order) > 40:
        order = order[:20] + order[-20:]
    figure = Figure(figsize=(6, 1 + 0.25 * len(order)), layout="constrained")
    axes = figure.subplots()
    places = range(len(order))
    bars = axes.barh(places, [100 * shares[label] for label in order], color="#4c78a8")
    axes.set_yticks(places, [classes[label] for label in order], parse_math=False)
    axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 108)
    axes.set_xlabel("accuracy, %")
    return figure


def reliability(bins: Tensor) -> Figure:
    """Draw how often answers are right against how sure the classifier was of them.

    A perfectly calibrated one lies on the diagonal (Guo et al. 2017, "On calibration of modern
    neural networks", arXiv 1706.04599). The title has the expected calibration error.

    Args:
        bins: float64 `[n, 3]`, as `calibration_bins` counts them.
    """
    count, sure, right = bins.double().T
    filled = (count > 0).numpy()
    edges = np.linspace(0, 1, len(bins) + 1)
    figure = Figure(figsize=(5, 5.4), layout="constrained")
    top, axes = figure.subplots(2, 1, height_ratios=(1, 4), sharex=True)
    share = (count / count.sum().clamp(min=1)).numpy()
    width = edges[1]
    top.bar(edges[:-1], 100 * share, width, align="edge", color="#9aa0a6", edgecolor="white")
    top.set_ylabel("% of all")
    accuracy = (right / count.clamp(min=1)).numpy()
    axes.bar(
        edges[:-1][filled], accuracy[filled], width, align="edge", color="#4c78a8",
        edgecolor="white", label="accuracy",
    )  # fmt: skip
    confidence = (sure / count.clamp(min=1)).numpy()
    axes.plot(confidence[filled], accuracy[filled], "o", color=WRONG, markersize=4)
    axes.plot([0, 1], [0, 1], "--", color=PLAIN, linewidth=1, label="perfectly calibrated")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability of the answer", ylabel="share right")
    axes.legend(loc="upper left")
    top.set_title(f"expected calibration error {calibration_error(bins):.4f}", fontsize=10)
    return figure


def calibration_bins(probability: Tensor, right: Tensor, bins: int = 15) -> Tensor:
    """Count answers by how sure the classifier was of them.

    Args:
        probability: float `[B]`, of the predicted class.
        right: bool `[B]`.
        bins: of equal width between 0 and 1; each includes its upper edge.

    Returns:
        float64 (float32 on Apple's GPUs) `[bins, 3]`: how many, the sum of their probabilities,
        how many are right. Counts of batches and devices add up.
    """
    probability = probability.float() if probability.device.type == "mps" else probability.double()
    place = (probability * bins).ceil().long().clamp(1, bins) - 1
    rows = probability.new_zeros(bins, 3)
    values = [probability.new_ones(len(probability)), probability, right.to(probability)]
    return rows.index_add_(0, place, torch.stack(values, dim=1))


def calibration_error(bins: Tensor) -> float:
    """Return the expected calibration error (Naeini et al. 2015; Guo et al. 2017, equation 3).

    The distance between accuracy and mean probability in each bin, weighted by its answers.
    """
    count, sure, right = bins.double().T
    return float((sure - right).abs().sum() / count.sum().clamp(min=1))


def to_pixels(figure: Figure) -> np.ndarray:
    """Render a figure: uint8 `[height, width, 3]`."""
    canvas: Any = FigureCanvasAgg(figure)
    figure.set_dpi(DPI)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
