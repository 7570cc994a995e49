"""Import what takes seconds, in less of them."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Look for no garbage while Lightning and torch are imported, nor ever in what they leave.

    Half a million objects come to be, which stay for as long as the process. Python's collector
    goes through them again and again meanwhile, in each of its full rounds later, and at the
    process's end, when it also takes them apart one by one: together a quarter of a short command's
    time. What is made after the block is collected as ever; where Lightning has been imported
    already, the block does nothing.

    For commands alone, since all that a process has made before is kept as well.
    """
    if "lightning" in sys.modules or not gc.isenabled():
        yield
        return
    atexit.register(_end_quietly)  # before what others register meanwhile, so that it runs after
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def _end_quietly() -> None:
    """Drop what is said on standard error after all else has been done.

    Libraries built with nanobind, Triton for one, list what the process did not take apart.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
