"""What this machine does well: precision, memory layout, memory that stays."""

from __future__ import annotations

import ctypes
import sys

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
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def precision(requested: str) -> str:
    """Return Lightning's name of the precision that trains fastest on an accelerator.

    Weights stay float32 in both: at lr 0.01 a bfloat16 weight, with its 8 significant bits, would
    round most updates away.
    """
    return "bf16-mixed" if runs_bf16(accelerator(requested)) else "32-true"


def prefers_channels_last(device: str, precision: str) -> bool:
    """Say whether convolutions are faster with channels last in memory.

    They are on tensor cores, and on a processor that multiplies bfloat16 natively if it is given
    bfloat16; a processor's float32 is faster on torch's default.

    Args:
        device: "cuda", "mps" or "cpu".
        precision: as Lightning names it.
    """
    return runs_bf16(device) and (device == "cuda" or "bf16" in precision)


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
