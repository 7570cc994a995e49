"""What a sweep costs beside its runs, and whether two runs side by side are as fast as in a row."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from benchmarks.measure import Table, in_turn, ratios, run, scratch

COMMON = (
    "data=shapes", "data.test_size=100", "test=false", "trainer.accelerator=cpu",
    "callbacks.model_summary=null",
)  # fmt: skip
TINY = (
    *COMMON,
    "trainer.max_epochs=1",
    "data.train_size=600",
    "model=two_layer",
    "data.classes=[disk,square]",
)
REAL = (*COMMON, "trainer.max_epochs=2", "data.train_size=6000", "model=vgg16")
ROUNDS = 3


def sweep(*options: str) -> Path:
    """Run a sweep and return its folder."""
    folder = Path(scratch())
    run("-m", "litvision.train", "--multirun", *options, f"hydra.sweep.dir={folder}")
    return folder


def overhead(runs: int = 6) -> list[float]:
    """Return the seconds from the end of each run's training to the end of the next one's.

    Less what training itself took: config, folder, data, model, loggers and everything else.
    """
    folder = sweep(*TINY, f"seed=range({runs})")
    results = [folder / str(number) / "result.json" for number in range(runs)]
    ends = [path.stat().st_mtime for path in results]
    trained = [json.loads(path.read_text())["seconds"] for path in results]
    return [ends[i] - ends[i - 1] - trained[i] for i in range(1, runs)]


def main() -> None:
    table = Table("Sweeps")
    cost = statistics.median(overhead())
    table.add(
        "seconds a run beside its training, from the second on", f"{cost:.2f}", "", cost, "≤ 1"
    )
    two = (*REAL, "seed=0,1")
    seconds = in_turn(
        {
            "joblib": lambda: sweep(*two, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
            "basic": lambda: sweep(*two),
        },
        ROUNDS,
    )
    table.add(
        "seconds of two runs side by side, beside the same in a row",
        f"{statistics.median(seconds['joblib']):.1f}",
        f"{statistics.median(seconds['basic']):.1f}",
        ratios(seconds["joblib"], seconds["basic"]),
        "≤ 1",
    )
    table.notes.append(
        "Two-layer network; VGG-16 on 5,400 drawn pictures. The whole command, imports included. "
        f"Medians of {ROUNDS} in turn (first row: of 5 runs)."
    )
    table.save("sweeps")


if __name__ == "__main__":
    main()
