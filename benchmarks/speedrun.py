"""What `experiment=speedrun` reaches and costs: python -m benchmarks speedrun.

Trains on all training pictures, SEEDS times, and reads the test split once for each, with and
without averaging over views. The cost is the time of `trainer.fit` times the rate of the fastest
matrix product in bfloat16, measured just before and after: operations that the machine could have
done meanwhile, so that machines compare. VALIDATE=1 trains on nine tenths and reads the validation
split instead, for tuning; OPTIONS are more overrides.

The pictures are data/cifar10-jpeg where it is there, else the official archive.
"""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

import torch

from benchmarks.measure import REAL, ProductPeak, Table
from benchmarks.ours import build
from litvision import hardware
from litvision.tta import average

SEEDS = [int(seed) for seed in os.environ.get("SEEDS", "0,1,2").split(",")]
VALIDATE = os.environ.get("VALIDATE") == "1"
EXPERIMENT = os.environ.get("EXPERIMENT", "speedrun")
OPTIONS = [
    *REAL,
    *("callbacks.figures=null", "callbacks.graph=null", "callbacks.early_stopping=null"),
    *([] if VALIDATE else ["data.val_fraction=0", "monitor=train/loss"]),
    *os.environ.get("OPTIONS", "").split(),
]


def once(seed: int, peak: ProductPeak) -> dict[str, float]:
    run = build(f"experiment={EXPERIMENT}", *OPTIONS, f"seed={seed}")
    run.datamodule.test_split = "val" if VALIDATE else "test"
    before = peak()
    started = time.perf_counter()
    run.trainer.fit(run.classifier, run.datamodule)
    seconds = time.perf_counter() - started
    flops = (before + peak()) / 2
    pictures = len(run.datamodule.subsets["train"]) * (run.trainer.max_epochs or 0)
    found = {
        "seconds": seconds,
        "images/s": pictures / seconds,
        "cost": seconds * flops,
        "accuracy": accuracy(run),
    }
    average(run.classifier, "flip_shift")
    return found | {"accuracy, averaged over views": accuracy(run)}


def accuracy(run: Any) -> float:
    return float(run.trainer.test(run.classifier, run.datamodule, verbose=False)[0]["test/acc"])


def main() -> None:
    device = hardware.accelerator("auto")
    peak = ProductPeak(device)
    found = []
    for seed in SEEDS:
        found.append(once(seed, peak))
        print(seed, found[-1], flush=True)
    split = "validation" if VALIDATE else "test"
    table = Table(f"{EXPERIMENT}: {split} split, seeds {', '.join(map(str, SEEDS))}")
    limits = {} if VALIDATE or EXPERIMENT != "speedrun" else {
        "accuracy": "≥ 0.9", "accuracy, averaged over views": "≥ 0.91", "cost": "≤ 3.6e14"
    }  # fmt: skip
    for name in found[0]:
        values = [result[name] for result in found]
        mean = statistics.mean(values)
        table.add(name, " ".join(f"{v:.4g}" for v in values), "", mean, limits.get(name, ""))
    where = torch.cuda.get_device_name() if device == "cuda" else "the processor"
    table.notes.append(f"Ratio: the mean over the seeds. Trained on {where}.")
    table.save(EXPERIMENT)


if __name__ == "__main__":
    main()
