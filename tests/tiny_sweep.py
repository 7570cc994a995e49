"""The options of a sweep of runs that take no time, and what one leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TINY = [
    "data=shapes",
    "data.train_size=60",
    "data.test_size=20",
    "data.batch_size=16",
    "model.network._target_=tiny.TinyLinear",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=2",
    "trainer.precision=32-true",
    "callbacks.model_summary=null",
    "callbacks.figures=null",
    "logger=csv",
    "hydra.sweep.dir=sweep",
]
DIVERGES = "optimizer.lr=0.01,1e30,0.1"  # the second of three


def result(folder: Path, run: int | str) -> dict[str, Any]:
    return json.loads((folder / "sweep" / str(run) / "result.json").read_text())
