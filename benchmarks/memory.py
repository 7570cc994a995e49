"""How much memory training holds: one copy of the pictures, whatever the number of processes."""

from __future__ import annotations

import json
import resource
import sys

import psutil

from benchmarks.measure import Table, run

FULL, FEW, STEPS = 50_000, 2_000, 6
LINEAR = (
    "model.network._target_=benchmarks.overhead.Linear",
    "~model.network.in_channels",
    "~model.network.norm",
)
COPY = FULL * 32 * 32 * 3  # bytes


def held() -> int:
    """Return the bytes that this process and its children hold.

    A page that several processes share counts once (proportional set size).
    """
    me = psutil.Process()
    family = [me, *me.children(recursive=True)]
    return sum(process.memory_full_info().pss for process in family)


def peak() -> int:
    """Return the most bytes that this process, without its children, has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def ours(size: int, workers: int, *more: str) -> int:
    """Take STEPS steps on `size` pictures, and return what is held by then."""
    from benchmarks.ours import Every, build

    found: list[int] = []
    training = build(
        f"data.num_workers={workers}",
        "data.val_fraction=0.002",
        f"trainer.limit_train_batches={STEPS}",
        "trainer.max_epochs=1",
        "callbacks.model_summary=null",
        *more,
        pictures=size,
    )
    training.trainer.callbacks.append(Every(STEPS - 1, lambda step: found.append(held())))
    training.trainer.fit(training.classifier, training.datamodule)
    return found[-1]


def plain(size: int) -> int:
    """Do the same in the plain loop, with its two loader processes."""
    from benchmarks.plain import steps

    training = steps("resnet18", 128, size)
    for _ in range(STEPS):
        next(training)
    return held()


def measure(*what: str) -> tuple[float, float]:
    """Run this file in a process of its own and return what is held and the peak, in MB."""
    found = json.loads(run("-m", "benchmarks.memory", *what).splitlines()[-1])
    return found["held"] / 1e6, found["peak"] / 1e6


def main() -> None:
    if sys.argv[1:]:
        name, size, *more = sys.argv[1:]
        memory = ours(int(size), int(more[0]), *more[1:]) if name == "ours" else plain(int(size))
        print(json.dumps({"held": memory, "peak": peak()}))
        return
    table = Table(f"Memory: {FULL:,} pictures, batch 128, in MB")
    copy = COPY / 1e6
    theirs, their_peak = measure("plain", str(FULL))
    for workers in (0, 2, 4):
        # A linear model: what a large one's activations leave on the heap varies by 100 MB.
        full, few = (measure("ours", str(size), str(workers), *LINEAR)[0] for size in (FULL, FEW))
        more = (full - few) / (1 - FEW / FULL)
        table.add(
            f"held for the pictures, num_workers={workers}, beside one uint8 copy",
            f"{more:.0f}",
            f"{copy:.0f}",
            more / copy,
            "≤ 1.1",
        )
    for workers in (0, 2):
        now, most = measure("ours", str(FULL), str(workers))
        table.add(
            f"ResNet-18, held by all processes, num_workers={workers}, beside the plain loop",
            f"{now:.0f}",
            f"{theirs:.0f}",
            now / theirs,
        )
        table.add(
            f"ResNet-18, peak of the main process, num_workers={workers}, beside the plain loop's",
            f"{most:.0f}",
            f"{their_peak:.0f}",
            most / their_peak,
        )
    table.notes.append(
        f"After {STEPS} steps. Held for the pictures: what a linear model's training on {FULL:,} "
        f"holds more than on {FEW:,}. A page that several processes share counts once."
    )
    table.save("memory")


if __name__ == "__main__":
    main()
