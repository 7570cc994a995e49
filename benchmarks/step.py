"""A training step through the real Trainer, beside the plain loop and the matrix product's peak."""

from __future__ import annotations

import statistics
import time
from itertools import pairwise

from benchmarks.measure import ProductPeak, Table, ratios
from benchmarks.ours import Every, build
from benchmarks.plain import Elsewhere

# Multiply-adds a picture in the convolutions and the last layer, padding counted.
MULTIPLY_ADDS = {"resnet18": 0.556e9, "vgg16": 0.314e9}
BATCH, ROUNDS, STEPS, PLAIN_STEPS = 128, 7, 12, 4


def measure(name: str, table: Table) -> None:
    """Pause our training every STEPS steps, and let the plain loop and the product run."""
    peak, plain = ProductPeak(), Elsewhere(name, BATCH)
    plain.run(3)  # its warm-up
    ours: list[float] = []
    theirs: list[float] = []
    peaks: list[float] = [peak()]
    resumed = [0.0]

    def turn(step: int) -> None:
        now = time.perf_counter()
        if step >= 2 * STEPS:  # the first two turns warm up
            ours.append((now - resumed[0]) / STEPS)
            theirs.append(plain.run(PLAIN_STEPS))
            peaks.append(peak())
        resumed[0] = time.perf_counter()

    run = build(
        f"model={name}",
        "data=shapes",
        f"data.train_size={BATCH * STEPS * (ROUNDS + 3)}",
        "data.test_size=10",
        "trainer.max_epochs=1",
        "trainer.limit_val_batches=1",
    )
    run.trainer.callbacks.append(Every(STEPS, turn))
    run.trainer.fit(run.classifier, run.datamodule)
    plain.close()
    rate = statistics.median(BATCH / s for s in ours)
    table.add(
        f"{name}, images/s, beside the plain loop",
        f"{rate:.0f} ({run.trainer.precision})",
        f"{statistics.median(BATCH / s for s in theirs):.0f}",
        ratios(theirs, ours),
        "≥ 2.5",
    )
    # Each turn lies between two measurements of the peak.
    around = [(a + b) / 2 for a, b in pairwise(peaks)]
    work = 6 * MULTIPLY_ADDS[name] * BATCH
    table.add(
        f"{name}, GFLOP/s, beside the {peak.name} product",
        f"{work / statistics.median(ours) / 1e9:.0f}",
        f"{statistics.median(around) / 1e9:.0f} ({peak.size}x{peak.size})",
        ratios([work / s for s in ours], around),
        "≥ 0.85",
    )


def main() -> None:
    table = Table(f"Training step, batch {BATCH}, through Trainer.fit with default settings")
    for name in MULTIPLY_ADDS:
        measure(name, table)
    table.notes.append(
        "Plain loop: float32, default layout, torchvision data set with PIL transforms, DataLoader "
        "with 2 processes, in its own process. GFLOP/s: 6 x multiply-adds x images/s. Medians of "
        f"{ROUNDS} turns; each turn {STEPS} steps of ours, {PLAIN_STEPS} of the plain loop."
    )
    table.save("step")


if __name__ == "__main__":
    main()
