from __future__ import annotations

import subprocess
import sys

import pytest

from litvision import hardware

FAULTS = """
import resource, sys, torch
from litvision.hardware import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    print("not glibc")
    sys.exit()
def touch():
    torch.ones(16 << 20)  # 64 MB
for _ in range(30):
    touch()  # the heap finds its shape
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(what: str) -> str:
    command = [sys.executable, "-c", FAULTS, what]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_freed_memory_is_used_again_without_a_page_fault() -> None:
    kept = faults("keep")
    if kept != "not glibc":
        assert int(kept) < 100
        # Without it, each of five times 64 MB is mapped anew, in pages of 4 kB to 2 MB.
        assert int(faults("give back")) > int(kept)


def test_where_the_c_library_has_no_such_setting_nothing_happens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert hardware.keep_freed_memory() is False
