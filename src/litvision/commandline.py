"""What surrounds a command: Hydra composes its config, and mistakes get one clear line.

Nothing here imports torch, so help and misspelt words are answered at once.
"""

from __future__ import annotations

import atexit
import functools
import gc
import itertools
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from litvision import mistakes, records
from litvision.configs import CONF
from litvision.errors import UserError
from litvision.mistakes import ASKED, WANTS_TRACEBACKS, stop
from litvision.streams import outlive_readers


def new_folder(path: str) -> str:
    """Make a folder that was not there and return its name: `path`, else `path_2` and so on.

    For configs: `${new_folder:logs/…}`. Two runs that start in the same second get two folders.
    """
    for number in itertools.count(1):
        folder = Path(path if number == 1 else f"{path}_{number}")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            break
        except FileExistsError:
            if not folder.is_dir():  # a file is in the way
                raise UserError(f"{folder} cannot be made: a file has that name.") from None
        except OSError as error:
            raise UserError(
                f"{folder} cannot be made ({error.strerror}): give another place for what the run "
                "writes, hydra.run.dir=<folder>."
            ) from error
    return str(folder)


# Cached with the config, as Hydra's own `now` is: each run asks for its folder several times.
OmegaConf.register_resolver("new_folder", new_folder, use_cache=True, replace=True)


def command(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Make a function of a config into a command: `@hydra.main` with errors that a person can read.

    A `UserError`, a misspelt word or a broken config ends the command with one line on standard
    error and exit status 1. Any other exception keeps its traceback, and with the environment
    variable HYDRA_FULL_ERROR=1 a `UserError` does too.

    Args:
        config_name: the primary config in `conf/`, without `.yaml`.
    """

    def decorate(function: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @functools.wraps(function)
        def task(cfg: DictConfig) -> Any:
            outlive_readers()  # in a worker process, too
            try:
                if missing := sorted(OmegaConf.missing_keys(cfg)):
                    raise UserError(f"{missing[0]} has no value: give {missing[0]}=…")
                return function(cfg)
            except Exception as caught:
                error = mistakes.disk_error(caught, config_name)
                # In a sweep, the sweep and not the run ends the process.
                if HydraConfig.get().mode == RunMode.MULTIRUN:
                    from litvision import sweeps

                    sweeps.record_failure(error, bug=mistakes.is_bug(error))
                    raise
                if mistakes.is_bug(error):
                    raise
                _remove_if_bare(Path(HydraConfig.get().runtime.output_dir))
                stop(mistakes.message_of(error))

        app = hydra.main(
            config_path=str(CONF),
            config_name=config_name,
            execution_whitelist=("litvision.*",),  # wider only where `build` says so
        )(task)

        @functools.wraps(function)
        def main() -> None:
            outlive_readers()
            atexit.register(gc.freeze)  # no last search for garbage, which takes apart all there is
            os.environ.setdefault(ASKED, "1" if WANTS_TRACEBACKS else "0")
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands every exception on to us
            logging.raiseExceptions = WANTS_TRACEBACKS  # a log that cannot be written is no bug
            arguments = _named([_quoted(argument) for argument in sys.argv[1:]])
            sys.argv[1:] = [*arguments, *_implied(arguments)]
            if _sweeps(sys.argv[1:]):
                from litvision.study import StudySweeper
                from litvision.sweeps import GridSweeper

                Plugins.instance().register(GridSweeper)
                Plugins.instance().register(StudySweeper)
            try:
                with mistakes_in_one_line(config_name):
                    app()
            except KeyboardInterrupt:
                print("stopped by Ctrl-C", file=sys.stderr)
                raise SystemExit(128 + signal.SIGINT) from None
            except SystemExit as ended:
                # Its status would be 0. By name, since importing it would import torch.
                if type(ended).__name__ != "SIGTERMException":
                    raise
                print("stopped by SIGTERM", file=sys.stderr)
                raise SystemExit(128 + signal.SIGTERM) from None
            except MissingConfigException as error:
                stop(mistakes.missing_option(error))
            except OverrideParseException as error:
                stop(mistakes.unreadable(error))
            except ConfigCompositionException as error:
                stop(mistakes.composition_error(error, config_name))

        return main

    return decorate


def _remove_if_bare(folder: Path) -> None:
    """Remove the folder of a run that did not begin: it holds what Hydra writes first, no more."""
    config = folder / ".hydra"
    first = {folder / f"{HydraConfig.get().job.name}.log", config, *config.glob("*.yaml")}
    if folder != Path.cwd() and all(path in first for path in folder.rglob("*")):
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def mistakes_in_one_line(command: str = "") -> Iterator[None]:
    """End the command with one line where a mistake or a full disk is the cause of an exception."""
    try:
        yield
    except Exception as caught:
        error = mistakes.disk_error(caught, command)
        if mistakes.is_bug(error):
            raise
        stop(mistakes.message_of(error))


def _quoted(argument: str) -> str:
    """Return an override whose value has letters beyond ASCII as Hydra's grammar takes it."""
    key, equals, value = argument.partition("=")
    plain = value.isascii() or any(sign in value for sign in "'\"[]{}(),$\\")
    return argument if plain or key.startswith("-") else f"{key}{equals}'{value}'"


def _named(arguments: list[str]) -> list[str]:
    """Return the arguments with `resume=auto` replaced by the run's folder, or by null.

    Replaced, since the processes of several devices are started with the same arguments: the run
    is then being trained, and each would look for another.
    """
    if "resume=auto" not in arguments:
        return arguments
    named = [a.partition("=")[2] for a in arguments if a.startswith("experiment=")]
    folder = Path("logs", named[-1] if named else "default")
    run = _latest(folder)
    if run is None and not _rank():
        print(f"resume=auto: no run in {folder} waits to go on; a new one begins", file=sys.stderr)
    found = f"resume='{run}'" if run else "resume=null"
    return [found if argument == "resume=auto" else argument for argument in arguments]


def _implied(arguments: list[str]) -> list[str]:
    """Return overrides that others imply.

    A recipe or sweep with `hydra.mode: MULTIRUN` is a sweep, though Hydra reads the mode from the
    command line and the primary config alone; `sweep.resume` goes on in the sweep's folder, and
    `resume` in the run's.
    """
    implied: list[str] = []
    rank = _rank()
    if rank and not any(argument.startswith("hydra.run.dir=") for argument in arguments):
        # Started by torchrun or SLURM a moment after the first, it would name a folder by its time.
        aside = Path(tempfile.gettempdir(), f"litvision-rank-{rank}")
        implied += ["hydra.output_subdir=null", f"hydra.run.dir='{aside}'"]
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "sweep.resume" and value not in ("", "null"):
            folder = value.strip("'\"").rstrip("/")
            if not Path(folder, "sweep.json").is_file():
                stop(f"{argument}: no sweep has run there. Give the folder that one printed.")
            implied.append(f"hydra.sweep.dir='{folder}'")
        if key == "resume" and value not in ("", "null"):
            run = _run_of(value)
            if run and not any(a.startswith("hydra.run.dir=") for a in arguments):
                implied.append(f"hydra.run.dir='{run}'")
        file = CONF / key / f"{value}.yaml"
        own = any(a.startswith("hydra.mode=") for a in arguments) or _sweeps(arguments)
        if key in ("experiment", "sweep") and file.is_file() and not own:
            mode = OmegaConf.select(OmegaConf.load(file), "hydra.mode")
            implied += ["hydra.mode=MULTIRUN"] if mode == "MULTIRUN" else []
    return list(dict.fromkeys(implied))


def _rank() -> int:
    """Return which of the processes that torchrun or SLURM has started this is, from 0."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0)))


def _latest(folder: Path) -> str | None:
    """Return the experiment's latest run that has saved where it was and has not ended.

    Nor is it being trained, but by the first of the processes that torchrun or SLURM has started
    with this one.
    """
    runs = folder.glob("*/checkpoints/last.ckpt")
    for path in sorted(runs, key=lambda path: path.stat().st_mtime, reverse=True):
        run = path.parents[1]
        ended = records.read_result(run).get("state") == "done"
        if not ended and not records.is_taken(run):
            return str(run)
    return None


def _run_of(value: str) -> str | None:
    """Return the folder of the run that `resume=<value>` goes on with; None if it is in none."""
    path = Path(value.strip("'\""))
    folder = path.parents[1] if path.is_file() and path.parent.name == "checkpoints" else path
    saved = any((folder / "checkpoints" / f"{name}.ckpt").is_file() for name in ("last", "best"))
    return str(folder) if saved else None


def _sweeps(arguments: list[str]) -> bool:
    return bool({"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(arguments))
