"""What 3,000 epochs on tiny data do to memory, open files, threads, logs and pace."""

from __future__ import annotations

import os
import statistics
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import psutil

from benchmarks.measure import Table
from benchmarks.ours import build

EPOCHS = int(os.environ.get("EPOCHS", "3000"))
WARM_UP = EPOCHS // 6


class Watch(L.Callback):
    """Note, as each epoch begins: the time, and what the process and the run's folder hold."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = psutil.Process()
        self.rows: list[tuple[float, ...]] = []

    def on_train_epoch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.current_epoch < WARM_UP:
            return
        logs = [*self.folder.glob("metrics.csv"), *self.folder.rglob("events.out.*")]
        self.rows.append(
            (
                time.perf_counter(),
                self.process.memory_info().rss / 1024,
                self.process.num_fds(),
                self.process.num_threads(),
                sum(path.stat().st_size for path in logs),
            )
        )


def main() -> None:
    run = build(
        *("data=shapes", "data.train_size=320", "data.test_size=160", "data.batch_size=16"),
        *("data.classes=[disk,square]", "model=two_layer", "trainer.accelerator=cpu"),
        *(f"trainer.max_epochs={EPOCHS}", "callbacks.progress_bar.kind=plain", "test=false"),
        "callbacks.early_stopping=null",
    )
    watch = Watch(Path(run.cfg.run_dir))
    run.trainer.callbacks.append(watch)
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):  # a line an epoch
        run.trainer.fit(run.classifier, run.datamodule)
    seconds, kilobytes, files, threads, size = np.array(watch.rows).T
    epochs = np.arange(len(seconds))
    slope = float(np.polyfit(epochs, kilobytes, 1)[0])
    pace, growth = np.diff(seconds), np.diff(size)
    tenth = max(1, len(pace) // 10)
    first, last = (statistics.median(part) for part in (pace[:tenth], pace[-tenth:]))
    before, after = (float(half.mean()) for half in np.array_split(growth, 2))

    table = Table(f"{EPOCHS:,} epochs of four steps, the first {WARM_UP:,} not counted")
    table.add("resident memory: kB more an epoch", f"{slope:.2f}", "1", slope, "≤ 1")
    table.add("resident memory at the end, and after the warm-up, MB",
              f"{kilobytes[-1] / 1024:.0f}", f"{kilobytes[0] / 1024:.0f}")  # fmt: skip
    for name, values in (("open files", files), ("threads", threads)):
        table.add(f"{name}, at most and at least", f"{values.max():.0f}", f"{values.min():.0f}",
                  values.max() / values.min(), "≤ 1")  # fmt: skip
    table.add("bytes of logs an epoch, second half and first", f"{after:.0f}", f"{before:.0f}",
              after / before, "≤ 1.05")  # fmt: skip
    table.add("ms an epoch, last tenth and first", f"{last * 1e3:.1f}", f"{first * 1e3:.1f}",
              last / first, "≤ 1.1")  # fmt: skip
    table.save("long_run")


if __name__ == "__main__":
    main()
