"""What surrounds a command: Hydra composes its config, and mistakes get one clear line.

Nothing here imports torch, so help and misspelt words are answered at once.
"""

from __future__ import annotations

import atexit
import difflib
import errno
import functools
import gc
import itertools
import logging
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from litvision import records
from litvision.errors import UserError, os_error

# As Hydra's users know it. `command` sets it for Hydra, and keeps what was asked for beside it, for
# the processes that a run or a sweep starts.
_ASKED = "LITVISION_FULL_ERROR"
_NO_PLUGIN = "Unknown plugin class"
_NO_CHOICE = "Config group override must be"
_NO_NAME = re.compile(
    r"^\w+=(null|true|false|nan|[-+]?inf|[-+]?[0-9.]+(e[-+]?[0-9]+)?|\{.*)$", re.I
)
WANTS_TRACEBACKS = os.environ.get(_ASKED, os.environ.get("HYDRA_FULL_ERROR")) == "1"

_PACKAGE = Path(__file__).parent
# Beside the package in a clone, inside it in a wheel.
CONF = next(
    (c for c in (_PACKAGE.parents[1] / "conf", _PACKAGE / "conf") if c.is_dir()), _PACKAGE / "conf"
)


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
            try:
                if missing := sorted(OmegaConf.missing_keys(cfg)):
                    raise UserError(f"{missing[0]} has no value: give {missing[0]}=…")
                return function(cfg)
            except Exception as caught:
                error = _disk_error(caught, config_name)
                # In a sweep, the sweep and not the run ends the process.
                if HydraConfig.get().mode == RunMode.MULTIRUN:
                    from litvision import sweeps

                    sweeps.record_failure(error, bug=_is_bug(error))
                    raise
                if _is_bug(error):
                    raise
                stop(_message_of(error))

        app = hydra.main(
            config_path=str(CONF),
            config_name=config_name,
            execution_whitelist=("litvision.*",),  # wider only where `build` says so
        )(task)

        @functools.wraps(function)
        def main() -> None:
            atexit.register(gc.freeze)  # no last search for garbage, which takes apart all there is
            os.environ.setdefault(_ASKED, "1" if WANTS_TRACEBACKS else "0")
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands every exception on to us
            logging.raiseExceptions = WANTS_TRACEBACKS  # a log that cannot be written is no bug
            arguments = _named(sys.argv[1:])
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
                stop(_missing_option(error))
            except OverrideParseException as error:
                stop(f"{error.override!r} cannot be read: {_misread(error)}. {OVERRIDE_HELP}")
            except ConfigCompositionException as error:
                stop(_composition_error(error, config_name))

        return main

    return decorate


@contextmanager
def mistakes_in_one_line(command: str = "") -> Iterator[None]:
    """End the command with one line where a mistake or a full disk is the cause of an exception."""
    try:
        yield
    except Exception as caught:
        error = _disk_error(caught, command)
        if _is_bug(error):
            raise
        stop(_message_of(error))


def _named(arguments: list[str]) -> list[str]:
    """Return the arguments with `resume=auto` replaced by the run's folder, or by null.

    Replaced, since the processes of several devices are started with the same arguments: the run
    is then being trained, and each would look for another.
    """
    if "resume=auto" not in arguments:
        return arguments
    run = _latest(arguments)
    found = f"resume='{run}'" if run else "resume=null"
    return [found if argument == "resume=auto" else argument for argument in arguments]


def _implied(arguments: list[str]) -> list[str]:
    """Return overrides that others imply.

    A recipe or sweep with `hydra.mode: MULTIRUN` is a sweep, though Hydra reads the mode from the
    command line and the primary config alone; `sweep.resume` goes on in the sweep's folder, and
    `resume` in the run's.
    """
    implied: list[str] = []
    rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0)))
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


def _latest(arguments: list[str]) -> str | None:
    """Return the experiment's latest run that has saved where it was and has not ended.

    Nor is it being trained, but by the first of the processes that torchrun or SLURM has started
    with this one.
    """
    named = [a.partition("=")[2] for a in arguments if a.startswith("experiment=")]
    runs = Path("logs", named[-1] if named else "default").glob("*/checkpoints/last.ckpt")
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


def _misread(error: OverrideParseException) -> str:
    """Say why Hydra cannot read an override, of the several lines that it has for it."""
    if "=" not in error.override:
        return "it has no ="
    lines = [line.strip() for line in str(error).splitlines()]
    saying = [x for x in lines if x and not x.startswith(("Error when parsing", "Error parsing"))]
    if not saying or saying[0].startswith("LexerNoViableAltException"):
        return "a character in it means nothing outside quotes"
    return saying[0].rstrip(".")


OVERRIDE_HELP = "Write group=option or key=value, and quote values with spaces or brackets."


def stop(message: str) -> NoReturn:
    """Print one line on standard error and exit with status 1."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(1)


def nearest(word: str, words: Iterable[str], count: int = 3) -> list[str]:
    """Return the words most like `word`, best first; for a dotted key its last part counts too.

    Of keys with the same last part, one in a config group comes first: optimizer.lr for lr.
    """
    own = groups()
    words = sorted(set(words), key=lambda w: (w.partition(".")[0] not in own, w))
    last = word.rpartition(".")[2]
    found = [w for w in words if "." in w and w.endswith(f".{word}")]
    found += difflib.get_close_matches(word, words, n=count, cutoff=0.6)
    by_last = {w.rpartition(".")[2]: w for w in reversed(words)}
    found += [by_last[w] for w in difflib.get_close_matches(last, by_last, n=count, cutoff=0.7)]
    return list(dict.fromkeys(found))[:count]


def keys_of(cfg: Any, prefix: str = "") -> list[str]:
    """Return every dotted key of a config."""
    keys: list[str] = []
    for key in cfg:
        keys.append(f"{prefix}{key}")
        child = cfg._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
            keys += keys_of(child, f"{prefix}{key}.")
    return keys


def groups() -> list[str]:
    """Return the config groups, the folders of `conf/`."""
    return sorted(f.name for f in CONF.iterdir() if f.is_dir() and f.name != "hydra")


def _is_bug(error: Exception) -> bool:
    """Say whether a traceback helps: not where a person's mistake is the cause, unless wanted."""
    # By name, since importing Lightning would take seconds: its word for settings that do not fit.
    lightning = type(error).__name__ == "MisconfigurationException"
    # Hydra's own, a plain ValueError for `callbacks=null`, a RuntimeError for a missing plug-in.
    no_choice = str(error).startswith((_NO_CHOICE, _NO_PLUGIN))
    mistake = lightning or no_choice or isinstance(error, UserError | OmegaConfBaseException)
    return WANTS_TRACEBACKS or not mistake


def _disk_error(error: Exception, command: str) -> Exception:
    """Return a UserError for what a full or read-only disk raises; others as they are."""
    cause = os_error(error)
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if cause is None or cause.errno not in (*full, errno.EROFS):
        return error
    what = cause.strerror if cause.filename is None else f"{cause.strerror}: {cause.filename}"
    folder = HydraConfig.get().runtime.output_dir if HydraConfig.initialized() else None
    saved = command == "train" and folder and Path(folder, "checkpoints", "last.ckpt").is_file()
    then = f"go on with the same command and resume={folder}" if saved else "run it again"
    first = "Make room" if cause.errno in full else "Give another place, hydra.run.dir=<folder>"
    mistake = UserError(f"nothing more can be written ({what}). {first}, then {then}.")
    mistake.__cause__ = error
    return mistake


def _message_of(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error).partition("\nfull_key:")[0]  # Hydra adds it to what a class raises
    if str(error).startswith(_NO_CHOICE):
        chosen = next((a for a in sys.argv[1:] if _NO_NAME.search(a)), "a group")
        group = chosen.partition("=")[0]
        if group in ("callbacks", "logger", "scheduler", "a group"):
            return (
                f"{chosen}: name a choice, or take single parts out: callbacks.<name>=null, "
                "logger=none, scheduler=none."
            )
        names = sorted(file.stem for file in (CONF / group).glob("*.yaml") if file.stem != "base")
        return f"{chosen}: name a choice. All of {group}: {', '.join(names)}."
    if plugin := re.search(rf"^{_NO_PLUGIN}.*\.hydra_(\w+)_(launcher|sweeper)\.", str(error)):
        name, kind = plugin.groups()
        return (
            f"hydra/{kind}={name} needs hydra-{name}-{kind}, which is not installed: "
            f"make install EXTRAS={name}"
        )
    key = getattr(error, "full_key", None) or getattr(error, "key", None)
    line = first_line(error)
    if " raised while resolving interpolation: " in line:  # by one of ours
        return line.partition(" raised while resolving interpolation: ")[2]
    return f"{key}: {line}" if key and str(key) not in line else line


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's text that says anything, else its type's name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _missing_option(error: MissingConfigException) -> str:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    if not group or error.options is None:
        return first_line(error)
    options = [o for o in error.options if o != "base"]
    near = nearest(option, options) or options
    return (
        f"{group}={option}: there is no {option!r} in {group}. "
        f"Nearest: {', '.join(near)}. All of {group}: {', '.join(options)}."
    )


def _composition_error(error: ConfigCompositionException, config_name: str) -> str:
    found = re.search(r"Could not override '([^']+)'", str(error))
    if not found:
        cause = error.__cause__
        return first_line(error) + (f" ({first_line(cause)})" if cause else "")
    key = found.group(1).partition("@")[0]
    others = _groups_of(config_name) or [k for k in _valid_keys(config_name, key) if "." not in k]
    near = [word for word in nearest(key, _valid_keys(config_name, key)) if word != key]
    hint = f"Nearest: {', '.join(near)}." if near else f"There are: {', '.join(others)}."
    new = f" To add a new key, write +{key}=…" if config_name == "train" else ""
    return f"There is no key or group {key!r}. {hint}{new}"


def _groups_of(config_name: str) -> list[str]:
    """Return the config groups that a command chooses from."""
    primary: Any = OmegaConf.load(CONF / f"{config_name}.yaml")
    defaults = primary.get("defaults", [])
    named = {str(key) for entry in defaults if not isinstance(entry, str) for key in entry}
    return [group for group in groups() if group in named]


def _valid_keys(config_name: str, wrong: str) -> list[str]:
    """Return keys and groups of the config as the rest of the command line composes it."""
    chosen = [
        word
        for word in sys.argv[1:]
        if word.partition("=")[0] in groups() and word.partition("=")[0] != wrong
    ]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF)):
        try:
            cfg = compose(config_name, overrides=chosen)
        except (ConfigCompositionException, OmegaConfBaseException):
            cfg = compose(config_name)
    return [*keys_of(cfg), *_groups_of(config_name)]
