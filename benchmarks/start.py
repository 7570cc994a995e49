"""How long a command takes to answer, and to take its first step."""

from __future__ import annotations

import statistics
import subprocess
import time
from typing import Any

import lightning as L

from benchmarks.measure import ROOT, Table, in_turn, ratios, run, scratch

ROUNDS = 5
TRAIN = ("-m", "litvision.train")
ONE_BATCH = ("experiment=demo", "debug=fast", "data.train_size=200", "data.test_size=100")
# The same command, with garbage collected while it imports and when it ends.
COLLECTING = """
import atexit, contextlib, gc, runpy, litvision.importing
litvision.importing.quick_imports = contextlib.nullcontext
atexit.register(gc.unfreeze)
runpy.run_module("litvision.train", run_name="__main__", alter_sys=True)
"""


class FirstStep(L.Callback):
    """Say when the first step has been taken, and end."""

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        print(f"\nfirst step {time.time()}", flush=True)
        trainer.should_stop = True


def first_step() -> float:
    """Return the seconds from the command to the end of its first training step."""
    folder = scratch()
    started = time.time()
    output = run(
        *TRAIN, "experiment=demo", "test=false", "trainer.max_steps=1",
        "+callbacks.first_step._target_=benchmarks.start.FirstStep", f"hydra.run.dir={folder}",
    )  # fmt: skip
    [line] = [line for line in output.splitlines() if line.startswith("first step")]
    return float(line.split()[-1]) - started


def main() -> None:
    table = Table("Start: seconds until a command answers")
    quiet = {"stderr": subprocess.STDOUT}
    commands: dict[str, Any] = {
        "python -m litvision.train --help": lambda: run(*TRAIN, "--help", **quiet),
        "… --cfg job": lambda: run(*TRAIN, "--cfg", "job", **quiet),
        "… optimzer.lr=1 (misspelt)": lambda: run(*TRAIN, "optimzer.lr=1", fails=True, **quiet),
        "import": lambda: run("-c", "import lightning, torchvision", **quiet),
    }
    seconds = in_turn(commands, ROUNDS)
    imports = seconds.pop("import")
    for name, values in seconds.items():
        table.add(
            f"`{name}`, beside `import lightning, torchvision`",
            f"{statistics.median(values):.2f}",
            f"{statistics.median(imports):.2f}",
            ratios(values, imports),
            "≤ 0.125",
        )
    if (ROOT / ".venv" / ".installed").exists():
        make = {"make": lambda: subprocess.run(["make", "install"], cwd=ROOT, check=True)}
        nothing = statistics.median(in_turn(make, ROUNDS)["make"])
        table.add("`make` with nothing to install", f"{nothing:.3f}", "", nothing, "≤ 0.2")
    else:
        table.notes.append("`make` with nothing to install: not measured, .venv is not installed.")
    firsts = [first_step() for _ in range(4)][1:]
    table.add(
        "command to first training step, built-in shapes",
        f"{statistics.median(firsts):.2f}",
        f"{statistics.median(imports):.2f}",
        statistics.median(firsts) / statistics.median(imports),
    )
    ends = in_turn(
        {
            "ours": lambda: run(*TRAIN, *ONE_BATCH, **quiet),
            "collecting": lambda: run("-c", COLLECTING, *ONE_BATCH, **quiet),
        },
        ROUNDS,
    )
    table.add(
        "a run of one batch to its end, beside the same with garbage collected while importing",
        f"{statistics.median(ends['ours']):.2f}",
        f"{statistics.median(ends['collecting']):.2f}",
        ratios(ends["ours"], ends["collecting"]),
    )
    table.notes.append(
        f"Medians of {ROUNDS} (first step: 3) after one that warms the disk's cache."
    )
    table.save("start")


if __name__ == "__main__":
    main()
