"""What every benchmark needs: timing in turn, the machine's peak, a table."""

from __future__ import annotations

import atexit
import datetime
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "logs" / "benchmarks"
_JPEG = ROOT / "data" / "cifar10-jpeg"
# CIFAR-10: as JPEG where that is there, else the official archive.
REAL = [f"data.root={_JPEG}", "data=image_folder"] if _JPEG.is_dir() else ["data=cifar10"]


@dataclass
class Row:
    """One line of a table: ours beside the reference, and the limit that the ratio has to meet."""

    what: str
    ours: str
    reference: str = ""
    ratio: float | None = None
    limit: str = ""  # such as "≥ 2.5" or "≤ 0.25"

    @property
    def met(self) -> str:
        """ "yes" or "no"; empty where there is no limit."""
        if not self.limit or self.ratio is None:
            return ""
        sign, _, bound = self.limit.partition(" ")
        fits = self.ratio >= float(bound) if sign == "≥" else self.ratio <= float(bound)
        return "yes" if fits else "no"


@dataclass
class Table:
    """Rows under a title, printed and kept in logs/benchmarks/ as Markdown."""

    title: str
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, what: str, ours: str, reference: str = "", ratio: float | None = None,
            limit: str = "") -> None:  # fmt: skip
        self.rows.append(Row(what, ours, reference, ratio, limit))

    def compare(
        self, what: str, ours: Callable[[], object], theirs: Callable[[], object], rounds: int
    ) -> None:
        """Time both in turn, and add a row in milliseconds: ours takes no longer."""
        seconds = in_turn({"ours": ours, "theirs": theirs}, rounds)
        ms = {way: f"{1e3 * statistics.median(values):.1f}" for way, values in seconds.items()}
        ratio = ratios(seconds["ours"], seconds["theirs"])
        self.add(what, ms["ours"], ms["theirs"], ratio, "≤ 1")

    def markdown(self) -> str:
        lines = [f"## {self.title}", "", "| | ours | reference | ratio | limit | met |"]
        lines.append("| --- | --- | --- | --- | --- | --- |")
        for r in self.rows:
            ratio = "" if r.ratio is None else f"{r.ratio:.3g}"
            lines.append(f"| {r.what} | {r.ours} | {r.reference} | {ratio} | {r.limit} | {r.met} |")
        return "\n".join([*lines, "", *(f"{note}\n" for note in self.notes)])

    def save(self, name: str) -> None:
        text = self.markdown()
        print(text, flush=True)
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{name}.md").write_text(f"{text}\n{machine()}\n")


def in_turn(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Run the functions one after the other, `rounds` times, and return each one's seconds.

    In turn, because a shared machine is faster in one minute than in the next; a round before
    those that count warms everything up.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratios(numerators: list[float], denominators: list[float]) -> float:
    """Return the median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def wait(device: str) -> None:
    """Wait until the device has done all that it was asked to."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def need_gpu() -> None:
    """Stop where torch can use no GPU."""
    import torch

    if not torch.cuda.is_available():
        sys.exit("error: this benchmark needs a GPU that torch can use, and there is none.")


class ProductPeak:
    """The machine's fastest matrix product in the precision that it trains in by itself.

    Measured anew at every call.
    """

    SIZES = (1024, 2048, 4096)

    def __init__(self, device: str = "cpu") -> None:
        import torch

        from litvision import hardware

        self.torch, self.device = torch, device
        self.dtype = torch.bfloat16 if hardware.runs_bf16(device) else torch.float32
        self.name = str(self.dtype).removeprefix("torch.")
        sizes = self.SIZES if device == "cpu" else (*self.SIZES, 2 * self.SIZES[-1])
        self.size = max(sizes, key=lambda n: statistics.median(map(self._rate, [n] * 7)))

    def __call__(self) -> float:
        """Return FLOP/s, two operations to a multiply-add: the median of 7 products."""
        return statistics.median(self._rate(self.size) for _ in range(7))

    def _rate(self, n: int) -> float:
        # A GPU multiplies ones faster than numbers that differ: it draws less power.
        a = self.torch.randn(n, n, device=self.device).to(self.dtype)
        a @ a
        wait(self.device)
        repeats = max(1, round(2e10 / n**3)) if self.device == "cpu" else 20
        started = time.perf_counter()
        for _ in range(repeats):
            a @ a
        wait(self.device)
        return 2 * n**3 * repeats / (time.perf_counter() - started)


def copy_bandwidth() -> float:
    """Return the bytes a second that a copy of 256 MB, too much for a cache, reads and writes."""
    import torch

    source = torch.ones(1 << 28, dtype=torch.uint8)  # zeros would be one page, mapped often
    target = torch.empty_like(source)
    seconds = in_turn({"copy": lambda: target.copy_(source)}, rounds=5)["copy"]
    return 2 * source.numel() / statistics.median(seconds)


def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start this Python with arguments, in the project's folder, with this project's code."""
    paths = [str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in paths if p)}
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **options)


def run(*arguments: str, fails: bool = False, **options: Any) -> str:
    """Run `start` to its end and return what it printed; stop if it did or did not fail."""
    process = start(*arguments, stdout=subprocess.PIPE, **options)
    output, _ = process.communicate()
    if (process.returncode != 0) != fails:
        sys.exit(f"error: {' '.join(arguments)} ended with {process.returncode}:\n{output}")
    return output


def scratch() -> str:
    """Return a new folder for a run, which goes when this process ends: checkpoints are large."""
    folder = tempfile.mkdtemp(prefix="litvision-benchmark-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def machine() -> str:
    """Return one line: processor, memory, GPU, versions, date."""
    import lightning
    import torch
    import torchvision

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    parts = [
        f"{cpu}, {os.cpu_count()} processors, {memory:.0f} GiB",
        *([torch.cuda.get_device_name()] if torch.cuda.is_available() else []),
        f"Python {platform.python_version()}, torch {torch.__version__}, torchvision "
        f"{torchvision.__version__}, lightning {lightning.__version__}",
        f"{datetime.date.today():%Y-%m-%d}",
    ]
    return "; ".join(parts)
