"""Commands in processes forked from one that has imported what takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from pathlib import Path
from typing import Any

_PROCESSES = multiprocessing.get_context("forkserver")
PRELOAD = ["hydra.main", "lightning", "pydantic", "torchvision"]


def start(arguments: list[str], log: Path) -> Any:
    """Start `python -m litvision.train <arguments>`, what it says appended to a file."""
    _PROCESSES.set_forkserver_preload(PRELOAD)  # not on import: the tests have a list of their own
    process = _PROCESSES.Process(target=_train, args=(arguments, str(log)))
    process.start()
    return process


def _train(arguments: list[str], log: str) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv[1:] = arguments
    runpy.run_module("litvision.train", run_name="__main__", alter_sys=True)
