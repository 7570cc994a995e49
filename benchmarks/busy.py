"""Training beside other programs that keep the processor busy, on Linux.

Threads that wait for each other at the end of an operation spin, for some milliseconds, before they
let others have the core (GNU OpenMP, https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html).
Alone that is the fastest; where there are more programs than cores, they spin while the thread that
they wait for has none.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

from benchmarks.measure import Table, in_turn, ratios, run, scratch, start

ROUNDS = 3
SPINS = "1000"
OPTIONS = [
    *("data=shapes", "data.train_size=400", "data.test_size=20", "trainer.max_epochs=2"),
    *("data.batch_size=64", "test=false", "callbacks.figures=null", "trainer.accelerator=cpu"),
]


def training(beside: int, spins: str | None, speeds: list[float]) -> Callable[[], None]:
    """Return what trains ResNet-18 beside so many busy programs, and notes its images/s."""

    def train() -> None:
        folder = scratch()
        with patch.dict(os.environ), ExitStack() as stack:
            os.environ.pop("GOMP_SPINCOUNT", None)
            if spins is not None:
                os.environ["GOMP_SPINCOUNT"] = spins
            for _ in range(beside):
                stack.callback(start("-c", "while True: pass").kill)
            run("-m", "litvision.train", *OPTIONS, f"hydra.run.dir={folder}")
        speeds.append(json.loads(Path(folder, "result.json").read_text())["images_per_second"])

    return train


def main() -> None:
    if not sys.platform.startswith("linux"):
        print("How threads wait is measured on Linux, whose torch has GNU OpenMP.")
        return
    table = Table("Beside busy programs: ResNet-18, images/s")
    cores = os.cpu_count() or 1
    for beside in dict.fromkeys((0, (cores + 1) // 2, cores)):
        speeds: dict[str | None, list[float]] = {SPINS: [], None: []}
        in_turn(
            {str(spins): training(beside, spins, found) for spins, found in speeds.items()}, ROUNDS
        )
        ours, default = (found[1:] for found in speeds.values())
        table.add(
            f"busy programs beside, on {cores} cores: {beside}; `GOMP_SPINCOUNT={SPINS}` and none",
            f"{statistics.median(ours):.1f}",
            f"{statistics.median(default):.1f}",
            ratios(ours, default),
        )
    table.notes.append(f"400 drawn pictures, batches of 64; medians of {ROUNDS} in turn.")
    table.save("busy")


if __name__ == "__main__":
    main()
