"""Run a command of the package in a process of its own, without importing torch each time."""

from __future__ import annotations

import gc
import multiprocessing
import os
import runpy
import subprocess
import sys
from pathlib import Path

# Forked from a process that has imported what takes seconds, and nothing of the package itself.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(
    [
        *("PIL.Image", "annotated_types", "filelock", "hydra.main", "lightning"),
        *(
            "hydra_plugins.hydra_joblib_launcher.config",
            "hydra_plugins.hydra_optuna_sweeper.config",
        ),
        *("hydra_plugins.hydra_submitit_launcher.config", "matplotlib.backends.backend_agg"),
        *("matplotlib.figure", "pydantic.fields", "pydantic.main", "pydantic.type_adapter"),
        *("rich.console", "rich.table", "torch.utils.tensorboard", "torchvision"),
    ]
)


def run_command(
    folder: Path,
    module: str,
    *arguments: str,
    timeout: float = 120,
    fresh: bool = False,
    root: Path = Path(__file__).parents[1],
) -> subprocess.CompletedProcess[str]:
    """Run `python -m litvision.<module> <arguments>` in `folder`, as a person does.

    Args:
        folder: to run it in.
        module, arguments: what a person types.
        timeout: in seconds.
        fresh: import everything anew: for a command that starts processes of its own, which some
            libraries cannot from within a forked one.
        root: of the project, if it is a copy.

    Raises:
        subprocess.TimeoutExpired: it took longer than `timeout` seconds, and was killed.
    """
    folder.mkdir(exist_ok=True)
    environment = environment_of(root)
    if fresh:
        command = [sys.executable, "-m", f"litvision.{module}", *arguments]
        return subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
    streams = folder / ".stdout", folder / ".stderr"
    process = _PROCESSES.Process(
        target=_run,
        args=(folder, module, arguments, environment, streams),
    )
    process.start()
    process.join(timeout)
    texts = [stream.read_text(encoding="utf-8") for stream in streams]
    for stream in streams:
        stream.unlink()
    if process.exitcode is None:
        process.kill()
        raise subprocess.TimeoutExpired([module, *arguments], timeout, *texts)
    return subprocess.CompletedProcess([module, *arguments], process.exitcode, *texts)


def start_on_terminal(
    folder: Path, terminal: str, module: str, *arguments: str
) -> multiprocessing.process.BaseProcess:
    """Start a command whose controlling terminal, and standard output and error, is `terminal`."""
    streams = Path(terminal), Path(terminal)
    environment = environment_of()
    process = _PROCESSES.Process(
        target=_run, args=(folder, module, arguments, environment, streams, True)
    )
    process.start()
    return process


def environment_of(root: Path = Path(__file__).parents[1]) -> dict[str, str]:
    """The environment in which a command finds the package at `root`, and the tests' networks."""
    paths = os.pathsep.join([str(root / "src"), str(root / "tests")])
    return {**os.environ, "PYTHONPATH": paths}


def _run(
    folder: Path,
    module: str,
    arguments: tuple[str, ...],
    environment: dict[str, str],
    streams: tuple[Path, Path],
    terminal: bool = False,
) -> None:
    gc.freeze()  # what was imported before the fork: else the first full collection goes through it
    if terminal:
        os.setsid()  # the first terminal that is opened from here on is the one to be hung up by
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, stream in enumerate(streams, start=1):
        # A terminal that is only written to would not be the process's own.
        opened = os.open(stream, os.O_RDWR if terminal else os.O_WRONLY | os.O_CREAT)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.path[:0] = environment["PYTHONPATH"].split(os.pathsep)
    sys.argv[1:] = arguments
    runpy.run_module(f"litvision.{module}", run_name="__main__", alter_sys=True)
