"""What this machine does well: precision, memory layout, memory that stays."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path

import torch


def accelerator(requested: str) -> str:
    """Return "cuda", "mps" or "cpu" for one of Lightning's accelerator names, "auto" included."""
    if requested in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "cuda"
    if requested in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return "mps"
    return "cpu" if requested == "auto" else requested


def runs_bf16(device: str) -> bool:
    """Say whether `device` multiplies bfloat16 matrices natively.

    True for CUDA from compute capability 8.0 (Ampere) on, and for CPUs with AVX512-BF16 or AMX;
    elsewhere bfloat16 is emulated and slower than float32.
    """
    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    if device == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or has_amx()
    return False


@cache
def has_amx() -> bool:
    """Say whether products of bfloat16 matrices run as tiles (Intel AMX).

    The processor has to have it, and oneDNN's variable ONEDNN_MAX_CPU_ISA must not leave it out.
    """
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    left_out = allowed not in ("", "ALL", "DEFAULT") and "AMX" not in allowed
    return torch.cpu._is_amx_tile_supported() and not left_out


@cache
def has_avx2() -> bool:
    """Say whether torch runs on an x86 processor with AVX2 or AVX512, through oneDNN and MKL."""
    libraries = torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()
    return libraries and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def precision(requested: str) -> str:
    """Return Lightning's name of the precision that trains fastest on an accelerator.

    Weights stay float32 in both: at lr 0.01 a bfloat16 weight, with its 8 significant bits, would
    round most updates away.
    """
    return "bf16-mixed" if runs_bf16(accelerator(requested)) else "32-true"


def prefers_channels_last(device: str) -> bool:
    """Say whether convolutions are faster with channels last in memory.

    They are on tensor cores, and on x86 processors, where oneDNN takes such maps as they lie and
    turns others around for each layer, in float32 too. Other processors were not measured.

    Args:
        device: "cuda", "mps" or "cpu".
    """
    return runs_bf16(device) or (device == "cpu" and has_avx2())


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed for the next allocation of this process.

    glibc gives large blocks back to the kernel at once, and every step then waits for the same
    activations to be mapped and zeroed again, page by page. Nothing is lost but that memory, once
    used, counts as this process's until it ends. GPU memory is not concerned: torch keeps that.

    Returns:
        Whether the C library has that setting: glibc has, macOS, Windows and musl do not.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    trim_threshold, mmap_max = -1, -4  # as <malloc.h> numbers them
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, 2**31 - 1))


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return the tensor on `device`, without waiting for a GPU.

    CUDA copies ordinary memory only once all that it was asked for before is done; page-locked
    memory it copies in its turn. Apple's GPUs are waited for: torch lets them read what may have
    been freed meanwhile (https://github.com/pytorch/pytorch/issues/139550).
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # already so: the tensor itself
    return tensor.to(device, non_blocking=device.type == "cuda")


def in_layout_of(other: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in the memory layout of another of its shape: itself where it lies so."""
    if tensor.stride() == other.stride():
        return tensor
    return torch.empty_like(other, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def free_memory() -> int | None:
    """Return the bytes of main memory that this process can still use; None if not known.

    The system's own estimate on Linux, or what a container's limit leaves if that is less.
    """
    try:
        meminfo = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    sizes = dict(line.split(":") for line in meminfo.splitlines())
    free = int(sizes["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")  # version 2
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = int((group / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return free
    return free if limit == "max" else min(free, int(limit) - used)


@contextmanager
def limited_memory(device: str, share: float = 0.9) -> Iterator[None]:
    """Let torch fail with an error, within this context, where it would use up main memory.

    Else the system ends the program, and what it was doing is lost. Does nothing for a GPU, whose
    memory has an error of its own, and where the system cannot do it (macOS, Windows).

    Args:
        device: "cuda", "mps" or "cpu".
        share: of what is free, that may be used.
    """
    free = free_memory() if device == "cpu" else None
    with at_most(int(share * free)) if free is not None else nullcontext():
        yield


@contextmanager
def at_most(more: int) -> Iterator[None]:
    """Let this process take so many bytes more than it has; elsewhere than on Linux, any.

    Within it, torch raises a RuntimeError and Python a MemoryError where they would take more, in
    every thread. A second thread waits until the first is done with it.

    Args:
        more: bytes of address space, used or not.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    with _ONE_LIMIT:
        yield from _limit(more)


# Two at once would each put back what it found, and the last one the other's limit.
_ONE_LIMIT = threading.RLock()


def _limit(more: int) -> Iterator[None]:
    import resource

    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = used * resource.getpagesize() + more
    limits = [limit for limit in (wanted, soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
