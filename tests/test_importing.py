"""What `quick_imports` leaves to the garbage collector, and what not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import litvision.importing

SOURCE = Path(litvision.importing.__file__).parents[1]

# Stands in for Lightning: many objects, and something to be done at the end.
LIBRARY = """
import atexit
import sys

objects = [[] for _ in range(100_000)]
atexit.register(print, "its own end", file=sys.stderr)
"""


def python(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process that can import the library."""
    (folder / "lightning.py").write_text(LIBRARY)
    return subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{SOURCE}:{folder}"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_no_garbage_is_looked_for_while_importing_and_it_is_afterwards(tmp_path: Path) -> None:
    code = """
import gc
import weakref

from litvision.importing import quick_imports

rounds = []
gc.callbacks.append(lambda phase, info: rounds.append(phase))
with quick_imports():
    import lightning
print(len(rounds), gc.isenabled(), gc.get_freeze_count() > 100_000)


class Node:
    pass


node = Node()
node.itself = node
gone = weakref.ref(node)
del node
with quick_imports():  # of a second run in the same process: keeps nothing
    gc.collect()
print(gone() is None)
"""
    ended = python(tmp_path, code)
    assert (ended.returncode, ended.stdout) == (0, "0 True True\nTrue\n")


def test_a_failed_import_leaves_collecting_on(tmp_path: Path) -> None:
    code = """
import gc

from litvision.importing import quick_imports

try:
    with quick_imports():
        import no_such_package
except ImportError as error:
    print(error.name, gc.isenabled())
"""
    assert python(tmp_path, code).stdout == "no_such_package True\n"


def test_the_end_keeps_what_is_said_and_the_status_and_drops_what_comes_after(
    tmp_path: Path,
) -> None:
    code = """
import atexit
import sys

from litvision.importing import quick_imports

atexit.register(print, "leaked", file=sys.stderr)  # as the very last, like Triton's
with quick_imports():
    import lightning
print("result")
print("warning", file=sys.stderr)
raise SystemExit("one line")
"""
    ended = python(tmp_path, code)
    assert ended.returncode == 1
    assert ended.stdout == "result\n"
    assert ended.stderr == "warning\none line\nits own end\n"  # nothing is "leaked"
