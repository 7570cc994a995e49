"""What `experiment=speedrun` reaches and costs: python -m benchmarks speedrun.

Trains on all training pictures, SEEDS times, and reads the test split once for each, with and
without averaging over views. The cost is the time of `trainer.fit` times the rate of the fastest
matrix product in bfloat16, measured just before and after: operations that the machine could have
done meanwhile, so that machines compare. On one without bfloat16 it is the product in float32, in
which it trains. Where other guests change the machine's speed from minute to minute, two
measurements say little about ten minutes between them; a second cost takes the product's rate after
every EVERY steps too, with the clock stopped, and weighs it by the time around it; on a processor
alone.

READ=val trains on nine tenths and reads the validation split instead, for tuning; READ=none trains
on all and reads nothing, for the cost alone. OPTIONS are more overrides, EXPERIMENT another recipe.

The pictures are data/cifar10-jpeg where it is there, else the official archive.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from itertools import pairwise
from operator import mul

import torch

from benchmarks.measure import REAL, ProductPeak, Table, wait
from benchmarks.ours import Every, build
from litvision import hardware
from litvision.assemble import Run
from litvision.tta import average

SEEDS = [int(seed) for seed in os.environ.get("SEEDS", "0,1,2").split(",")]
READ = os.environ.get("READ", "test")
SPLITS = {"val": "validation split", "test": "test split", "none": "no split read"}
EXPERIMENT = os.environ.get("EXPERIMENT", "speedrun")
OPTIONS = os.environ.get("OPTIONS", "").split()
EVERY = 50
FIXED = [
    *("callbacks.figures=null", "callbacks.graph=null", "callbacks.early_stopping=null"),
    *([] if READ == "val" else ["data.val_fraction=0", "monitor=train/loss"]),
]
LIMITS = {
    "accuracy": "≥ 0.9",
    "accuracy, averaged over views": "≥ 0.91",
    "cost": "≤ 3.6e14",
    "cost, by products measured along the way": "≤ 3.6e14",
}


def once(options: list[str], peak: ProductPeak, device: str) -> dict[str, float]:
    """Train once, and return what it took and what it reached."""
    run = build(*options)
    first: list[float] = []
    rates = [peak()]
    stretches: list[float] = []  # seconds of training between two of the rates
    resumed = started = time.perf_counter()

    def note(step: int) -> None:
        nonlocal resumed
        if not first:
            wait(device)
            first.append(time.perf_counter() - started)
        # A GPU is not other people's too, and would have to wait for its step here.
        if device == "cpu" and run.trainer.global_step % EVERY == 0:
            stretches.append(time.perf_counter() - resumed)
            rates.append(peak())
            resumed = time.perf_counter()

    run.trainer.callbacks.append(Every(1, note))
    run.trainer.fit(run.classifier, run.datamodule)
    stretches.append(time.perf_counter() - resumed)
    rates.append(peak())
    seconds = sum(stretches)
    pictures = len(run.datamodule.subsets["train"]) * (run.trainer.max_epochs or 0)
    found = {
        "seconds": seconds,
        "of these, until the first step is done": first[0],
        "images/s": pictures / seconds,
        "cost": seconds * (rates[0] + rates[-1]) / 2,
    }
    if device == "cpu":
        around = [(before + after) / 2 for before, after in pairwise(rates)]
        found["cost, by products measured along the way"] = sum(map(mul, stretches, around))
    if READ != "none":
        run.datamodule.test_split = READ
        found["accuracy"] = accuracy(run)
        average(run.classifier, "flip_shift")
        found["accuracy, averaged over views"] = accuracy(run)
    return found


def accuracy(run: Run) -> float:
    """Return the accuracy of the weights that training ended with."""
    return float(run.trainer.test(run.classifier, run.datamodule, verbose=False)[0]["test/acc"])


def measure(name: str, experiment: str, options: list[str], limits: dict[str, str]) -> None:
    """Train with each seed and save a table."""
    if READ not in SPLITS:
        sys.exit(f"error: READ={READ}: it takes val, test or none.")
    device = hardware.accelerator("auto")
    peak = ProductPeak(device)
    common = [f"experiment={experiment}", *REAL, *FIXED, *options]
    found = []
    for seed in SEEDS:
        found.append(once([*common, f"seed={seed}"], peak, device))
        print(seed, found[-1], flush=True)
    table = Table(f"{name}: {SPLITS[READ]}, seeds {', '.join(map(str, SEEDS))}")
    for what in found[0]:
        values = [result[what] for result in found]
        mean = statistics.mean(values)
        table.add(what, " ".join(f"{v:.4g}" for v in values), "", mean, limits.get(what, ""))
    where = torch.cuda.get_device_name() if device == "cuda" else "the processor"
    table.notes.append(
        f"Ratio: the mean over the seeds. Trained on {where}; cost by the {peak.name} product."
    )
    table.save(name)


def main() -> None:
    bound = EXPERIMENT == "speedrun" and READ != "val"
    measure(EXPERIMENT, EXPERIMENT, OPTIONS, LIMITS if bound else {})


if __name__ == "__main__":
    main()
