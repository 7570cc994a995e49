"""Kill a run while it writes checkpoints, go on with it, and kill it again: KILLS times, 100 here.

Each time both checkpoints have to be whole, and the run has to come further than before.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

from benchmarks.forked import start
from benchmarks.measure import RESULTS, machine, scratch

KILLS = int(os.environ.get("KILLS", "100"))
# Hardly any training, and twice an epoch a checkpoint of 118 MB: it writes most of the time.
OPTIONS = [
    *("data=shapes", "data.train_size=40", "data.test_size=20", "data.batch_size=8"),
    *("model=vgg16", "trainer.accelerator=cpu", "trainer.max_epochs=1000000"),
    *("trainer.limit_train_batches=1", "callbacks.early_stopping=null", "optimizer.lr=1e-6"),
    *("callbacks.figures=null", "callbacks.graph=null", "callbacks.model_summary=null"),
    *("callbacks.progress_bar.kind=plain", "logger=csv", "test=false"),
]


def main() -> None:
    from litvision import checkpoints

    rng = random.Random(0)
    place = Path(scratch())
    folder, log = place / "run" / "checkpoints", place / "log"
    run = folder.parent
    counts = {
        "kills": 0,
        "while a file was half written": 0,
        "both checkpoints whole": 0,
        "gone on": 0,
    }
    step = 0
    for _ in range(KILLS + 1):
        resume = [f"resume={run}"] if step else []
        process = start([*OPTIONS, f"hydra.run.dir={run}", *resume], log)
        last = folder / "last.ckpt"
        before = last.stat().st_mtime_ns if last.exists() else 0
        while not last.exists() or last.stat().st_mtime_ns == before:  # until it has come further
            if not process.is_alive():
                sys.exit(f"error: the run ended by itself:\n{log.read_text()[-2000:]}")
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.5))
        process.kill()
        process.join()
        found = [checkpoints.read(folder / f"{name}.ckpt") for name in ("last", "best")]
        if step:
            counts["gone on"] += found[0]["global_step"] > step
        if counts["kills"] < KILLS:
            counts["kills"] += 1
            counts["while a file was half written"] += any(folder.glob(".*.part"))
            counts["both checkpoints whole"] += 1
            for part in folder.glob(".*.part"):
                part.unlink()
        step = found[0]["global_step"]
    rows = [f"| {name} | {count} |" for name, count in counts.items()]
    text = "\n".join([machine(), "", "| | |", "| --- | ---: |", *rows])
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "kills.md").write_text(text + "\n")
    print(text)
    if counts["gone on"] < KILLS:  # a checkpoint that is not whole has raised by now
        sys.exit("error: not every run could be gone on with.")


if __name__ == "__main__":
    main()
