"""What is said of a mistake: one line, and what to do."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from litvision.configs import CONF, groups, keys_of, nearest
from litvision.errors import FULL, UNWRITABLE, UserError, first_line, os_error

# As Hydra's users know it. `command` sets it for Hydra, and keeps what was asked for beside it, for
# the processes that a run or a sweep starts.
ASKED = "LITVISION_FULL_ERROR"
_NO_PLUGIN = "Unknown plugin class"
_NO_CHOICE = "Config group override must be"
_NO_NAME = re.compile(
    r"^\w+=(null|true|false|nan|[-+]?inf|[-+]?[0-9.]+(e[-+]?[0-9]+)?|\{.*)$", re.I
)
WANTS_TRACEBACKS = os.environ.get(ASKED, os.environ.get("HYDRA_FULL_ERROR")) == "1"


def stop(message: str) -> NoReturn:
    """Print one line on standard error and exit with status 1."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(1)


def is_bug(error: Exception) -> bool:
    """Say whether a traceback helps: not where a person's mistake is the cause, unless wanted."""
    # By name, since importing Lightning would take seconds: its word for settings that do not fit.
    lightning = type(error).__name__ == "MisconfigurationException"
    # Hydra's own, a plain ValueError for `callbacks=null`, a RuntimeError for a missing plug-in.
    no_choice = str(error).startswith((_NO_CHOICE, _NO_PLUGIN))
    mistake = lightning or no_choice or isinstance(error, UserError | OmegaConfBaseException)
    return WANTS_TRACEBACKS or not mistake


def disk_error(error: Exception, command: str) -> Exception:
    """Return a UserError for what a full or read-only disk raises; others as they are."""
    cause = os_error(error)
    if cause is None or cause.errno not in UNWRITABLE:
        return error
    what = cause.strerror if cause.filename is None else f"{cause.strerror}: {cause.filename}"
    folder = HydraConfig.get().runtime.output_dir if HydraConfig.initialized() else None
    saved = command == "train" and folder and Path(folder, "checkpoints", "last.ckpt").is_file()
    then = f"go on with the same command and resume={folder}" if saved else "run it again"
    first = "Make room" if cause.errno in FULL else "Give another place, hydra.run.dir=<folder>"
    mistake = UserError(f"nothing more can be written ({what}). {first}, then {then}.")
    mistake.__cause__ = error
    return mistake


def message_of(error: Exception) -> str:
    """Return the one line for a mistake that came up while a command ran."""
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


def unreadable(error: OverrideParseException) -> str:
    """Return the line for an override that is none, of the several that Hydra has for it."""
    lines = [line.strip() for line in str(error).splitlines()]
    saying = [x for x in lines if x and not x.startswith(("Error when parsing", "Error parsing"))]
    if "=" not in error.override:
        why = "it has no ="
    elif not saying or saying[0].startswith("LexerNoViableAltException"):
        why = "a character in it means nothing outside quotes"
    else:
        why = saying[0].rstrip(".")
    return (
        f"{error.override!r} cannot be read: {why}. Write group=option or key=value, and quote "
        "values with spaces or brackets."
    )


def missing_option(error: MissingConfigException) -> str:
    """Return the line for a choice that its group does not have."""
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    if not group or error.options is None:
        return first_line(error)
    options = [o for o in error.options if o != "base"]
    near = nearest(option, options) or options
    return (
        f"{group}={option}: there is no {option!r} in {group}. "
        f"Nearest: {', '.join(near)}. All of {group}: {', '.join(options)}."
    )


def composition_error(error: ConfigCompositionException, config_name: str) -> str:
    """Return the line for a config that cannot be composed, above all for a misspelt key."""
    found = re.search(r"Could not override '([^']+)'", str(error))
    if not found:
        cause = error.__cause__
        return first_line(error) + (f" ({first_line(cause)})" if cause else "")
    key = found.group(1).partition("@")[0]
    keys = _valid_keys(config_name, key)
    group, _, rest = key.partition(".")
    member = rest.partition(".")[0]
    beside = group == "callbacks" and (CONF / group / f"{member}.yaml").is_file()
    if config_name == "train" and beside and f"{group}.{member}" not in keys:
        names = ",".join([*(_beside_the_default(keys) or ["default"]), member])
        return f"{key}: {member} is not chosen. Add {group}=[{names}]."
    others = _groups_of(config_name) or [k for k in keys if "." not in k]
    near = [word for word in nearest(key, keys) if word != key]
    hint = f"Nearest: {', '.join(near)}." if near else f"There are: {', '.join(others)}."
    new = f" To add a new key, write +{key}=…" if config_name == "train" else ""
    return f"There is no key or group {key!r}. {hint}{new}"


def _groups_of(config_name: str) -> list[str]:
    """Return the config groups that a command chooses from."""
    primary: Any = OmegaConf.load(CONF / f"{config_name}.yaml")
    defaults = primary.get("defaults", [])
    named = {str(key) for entry in defaults if not isinstance(entry, str) for key in entry}
    return [group for group in groups() if group in named]


def _beside_the_default(keys: list[str]) -> list[str]:
    """Return the callbacks that are chosen beside the default ones, by the keys of a config."""
    chosen = {key.split(".")[1] for key in keys if key.startswith("callbacks.")}
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF)):
        default = set(compose("train").callbacks)
    files = {path.stem for path in (CONF / "callbacks").glob("*.yaml")}
    return sorted((chosen - default) & files)


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
