from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from litvision import hardware

FAULTS = """
import resource, torch
from litvision.hardware import keep_freed_memory
def faults():
    for _ in range(30):
        touch()  # the heap finds its shape
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        touch()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def touch():
    torch.ones(16 << 20)  # 64 MB
given_back = faults()
if keep_freed_memory():
    print(given_back, faults())
"""


def test_freed_memory_is_used_again_without_a_page_fault() -> None:
    command = [sys.executable, "-c", FAULTS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    if done.stdout:  # the C library is glibc
        given_back, kept = map(int, done.stdout.split())
        # Without it, each of five times 64 MB is mapped anew, in pages of 4 kB to 2 MB.
        assert given_back > 100
        assert kept < 100


def test_where_the_c_library_has_no_such_setting_nothing_happens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert hardware.keep_freed_memory() is False


@pytest.mark.parametrize(("device", "waits"), [("cpu", True), ("mps", True), ("cuda", False)])
def test_only_cuda_copies_what_may_be_gone_when_it_does(
    monkeypatch: pytest.MonkeyPatch, device: str, waits: bool
) -> None:
    asked = []
    monkeypatch.setattr(torch.Tensor, "to", lambda *a, **options: asked.append(options) or a[0])
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    hardware.send(torch.zeros(1), torch.device(device))
    assert asked == [{"non_blocking": not waits}]


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [(None, True), ("AVX512_CORE_AMX", True), ("default", True), ("AVX512_CORE_BF16", False)],
)
def test_amx_that_onednn_is_told_to_leave_out(
    monkeypatch: pytest.MonkeyPatch, allowed: str | None, expected: bool
) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if allowed:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", allowed)
    for there in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda there=there: there)
        assert hardware.has_amx.__wrapped__() == (expected and there)


@pytest.mark.parametrize(
    ("capability", "libraries", "expected"),
    [
        ("AVX2", True, True),
        ("AVX512", True, True),
        ("DEFAULT", True, False),
        ("AVX2", False, False),
    ],
)
def test_channels_last_on_x86_processors(
    monkeypatch: pytest.MonkeyPatch, capability: str, libraries: bool, expected: bool
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: libraries)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(hardware, "runs_bf16", lambda device: False)
    asked = hardware.has_avx2.__wrapped__
    found = asked()
    monkeypatch.setattr(hardware, "has_avx2", lambda: found)
    assert hardware.prefers_channels_last("cpu") is expected
    assert hardware.prefers_channels_last("mps") is False
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not asked()
    monkeypatch.setattr(hardware, "runs_bf16", lambda device: True)
    assert hardware.prefers_channels_last("cpu") is True
