"""How cost grows with the batch, the data set and the files: a table and a picture of each."""

from __future__ import annotations

import io
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.measure import RESULTS, Table
from benchmarks.ours import Every, build
from litvision.callbacks.throughput import Throughput
from litvision.sources.image_folder import ImageFolder

BATCHES = (32, 64, 128, 256, 512, 1024)
PICTURES = (2_000, 4_000, 6_000, 8_000, 10_000)
FILES = (1_000, 2_000, 4_000, 8_000)
WORKERS = (0, 1, 2)
SIDE = 512  # of a picture file, in pixels
Curve = tuple[list[float], list[float]]


def rate(network: str, batch: int) -> float:
    """Return images/s in steps of `batch` pictures: the median step after two."""
    stamps: list[float] = []
    steps = max(8, 1024 // batch)
    run = build(
        f"model={network}",
        f"data.batch_size={batch}",
        f"trainer.limit_train_batches={steps}",
        "trainer.max_epochs=1",
        "trainer.limit_val_batches=1",
        "callbacks.model_summary=null",
        pictures=20_000,
    )
    run.trainer.callbacks.append(Every(1, lambda step: stamps.append(time.perf_counter())))
    run.trainer.fit(run.classifier, run.datamodule)
    return batch / statistics.median(np.diff(stamps[1:]))


def epoch(size: int) -> float:
    """Return the seconds of VGG-16's second epoch on `size` pictures."""
    seconds: list[float] = []

    class Clock(Throughput):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            super().on_train_epoch_end(trainer, pl_module)
            seconds.append(self.seconds)

    run = build(
        "model=vgg16",
        f"data.val_fraction={200 / (size + 200)}",
        "trainer.max_epochs=2",
        "callbacks.model_summary=null",
        pictures=size + 200,
    )
    run.trainer.callbacks.append(Clock())
    run.trainer.fit(run.classifier, run.datamodule)
    return seconds[1]


def decode(root: Path, workers: int) -> float:
    """Return the seconds to decode the folder of pictures with `workers` processes."""
    with tempfile.TemporaryDirectory() as cache:
        source = ImageFolder(root, image_size=32, decode_workers=workers, cache_dir=cache)
        started = time.perf_counter()
        source.prepare()
        return time.perf_counter() - started


def write_pictures(root: Path, count: int) -> None:
    """Write `count` JPEG files of ten classes, and one to test on."""
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (16, SIDE // 16, SIDE // 16, 3), np.uint8)
    pictures = []
    for pixels in small:
        Image.fromarray(pixels).resize((SIDE, SIDE)).save(file := io.BytesIO(), "JPEG", quality=90)
        pictures.append(file.getvalue())
    for number in range(count + 10):
        split = "train" if number < count else "test"
        folder = root / split / str(number % 10)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(pictures[number % 16])


def draw(name: str, curves: dict[str, Curve], x: str, y: str, log: bool = False) -> None:
    """Save one picture of the curves as logs/benchmarks/NAME.svg."""
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for (label, (xs, ys)), marker in zip(curves.items(), "osd^", strict=False):
        axes.plot(xs, ys, marker=marker, label=label)
    if log:
        axes.set_xscale("log", base=2)
    ticks = next(iter(curves.values()))[0]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel=x, ylabel=y, ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    RESULTS.mkdir(parents=True, exist_ok=True)
    figure.savefig(RESULTS / f"{name}.svg", metadata={"Date": None})


def apart_from_line(xs: list[float], ys: list[float]) -> float:
    """Return the largest distance from the best line, as a share of the line's value there."""
    line = np.polynomial.Polynomial.fit(xs, ys, 1)(np.array(xs))
    return float(np.max(np.abs(np.array(ys) / line - 1)))


def by_batch(table: Table) -> None:
    """Measure training by batch size."""
    curves: dict[str, Curve] = {}
    for network in ("resnet18", "vgg16"):
        rates = [rate(network, batch) for batch in BATCHES]
        curves[network] = [*BATCHES], rates
        at_128 = rates[BATCHES.index(128)]
        for batch, value in zip(BATCHES, rates, strict=True):
            what = f"{network}, images/s at batch {batch}, beside batch 128"
            table.add(what, f"{value:.0f}", f"{at_128:.0f}", value / at_128)
    draw("batch-size", curves, "batch size", "images/s trained on", log=True)


def by_pictures(table: Table) -> None:
    """Measure an epoch by number of pictures."""
    seconds = [epoch(size) for size in PICTURES]
    draw("pictures", {"vgg16": ([*PICTURES], seconds)}, "pictures", "seconds an epoch")
    sizes = " ".join(f"{size:,}" for size in PICTURES)
    table.add(
        f"vgg16, seconds an epoch of {sizes} pictures; distance from a line",
        " ".join(f"{value:.1f}" for value in seconds),
        ratio=apart_from_line([*PICTURES], seconds),
        limit="≤ 0.05",
    )


def by_files(table: Table) -> None:
    """Measure decoding by number of files and processes."""
    found: dict[int, list[float]] = {workers: [] for workers in WORKERS}
    for count in FILES:
        with tempfile.TemporaryDirectory() as root:
            write_pictures(Path(root), count)
            decode(Path(root), 0)  # fills the disk's cache
            for workers in WORKERS:
                times = [decode(Path(root), workers) for _ in range(3)]
                found[workers].append(statistics.median(times))
    named = {0: "in this process", 1: "1 process", 2: "2 processes"}
    draw(
        "decoding",
        {named[workers]: ([*FILES], times) for workers, times in found.items()},
        f"files ({SIDE}x{SIDE} JPEG)",
        "seconds to build the cache",
    )
    for workers, times in found.items():
        table.add(
            f"decoding {FILES[-1]:,} files, files/s, {named[workers]}, beside in this process",
            f"{FILES[-1] / times[-1]:,.0f}",
            f"{FILES[-1] / found[0][-1]:,.0f}",
            found[0][-1] / times[-1],
        )


def main() -> None:
    table = Table("How cost grows")
    by_batch(table)
    by_pictures(table)
    by_files(table)
    table.notes.append("Pictures: batch-size.svg, pictures.svg, decoding.svg beside this table.")
    table.save("growth")


if __name__ == "__main__":
    main()
