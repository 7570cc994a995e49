"""Write down what a run was made of: `provenance.json` in the run's folder."""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import lightning as L
import torch

from litvision import __version__, records

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "hydra-core", "omegaconf", "numpy")


class Provenance(L.Callback):
    """Write `provenance.json` before the first step.

    It holds the command line, the seed, the git commit and uncommitted changes of the project,
    versions, hardware, and a checksum of the data. A run that is resumed in its folder keeps what
    it began with, and adds the same of each further part to the list `resumed`.

    Args:
        seed: the run's seed.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the file, on the first process."""
        if not trainer.is_global_zero:
            return
        datamodule: Any = getattr(trainer, "datamodule", None)
        record = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": shlex.join([sys.executable, *sys.argv]),
            "seed": self.seed,
            "git": git_state(Path(__file__).parent),
            "versions": versions(),
            "hardware": {
                "platform": platform.platform(),
                "device": _device_name(trainer.strategy.root_device),
                "devices": trainer.world_size,
                "threads": torch.get_num_threads(),
                "cpu_capability": torch.backends.cpu.get_cpu_capability(),
                "precision": str(trainer.precision),
            },
            "data_sha256": datamodule.checksum() if hasattr(datamodule, "checksum") else None,
        }
        path = Path(trainer.default_root_dir) / "provenance.json"
        if trainer.ckpt_path is not None and (before := records.read_object(path)):
            record = before | {"resumed": [*before.get("resumed", []), record]}
        records.write_text(path, json.dumps(record, indent=2) + "\n")


def versions() -> dict[str, str | None]:
    """Return the versions of Python, this package and those that a run depends on."""
    ours = {"python": platform.python_version(), "litvision": __version__}
    return ours | {name: _version(name) for name in PACKAGES}


def git_state(folder: Path) -> dict[str, str] | None:
    """Return the commit, and the uncommitted changes as a diff, of the repository around `folder`.

    None where there is no git, no repository, or no commit. New files that git does not track yet
    are not in the diff; their names are.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout

    try:
        return {
            "commit": git("rev-parse", "HEAD").strip(),
            "diff": git("diff", "HEAD"),
            "untracked": git("ls-files", "--others", "--exclude-standard", "--full-name"),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        try:
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
        except (OSError, StopIteration):
            return platform.processor() or platform.machine()
    return str(device)
