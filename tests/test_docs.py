"""What README and docs tell people to type is true: it composes, and its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from litvision.commandline import CONF

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# In backticks, or on an indented line of its own.
COMMAND = re.compile(r"`(make [^`]+)`|^ {4}(make\b.*?)(?: {2,}.*)?$", re.MULTILINE)
COMMANDS = sorted(
    {
        (page.name, found.group(1) or found.group(2))
        for page in PAGES
        for found in COMMAND.finditer(page.read_text(encoding="utf-8"))
    }
)


def test_there_are_commands_to_check() -> None:
    assert ("README.md", "make demo") in COMMANDS
    assert len(COMMANDS) > 15


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_command_in_the_docs_can_be_typed(page: str, command: str) -> None:
    program, target, *variables = shlex.split(command, comments=True)
    assert program == "make"
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), f"no target {target}"
    arguments = next((v.removeprefix("ARGS=") for v in variables if v.startswith("ARGS=")), "")
    if target in ("train", "demo", "evaluate"):
        words = shlex.split(arguments)
        sweep = "--multirun" in words
        overrides = [word for word in words if word != "--multirun"]
        if target == "demo":
            overrides.append("experiment=demo")
        for override in OverridesParser.create().parse_overrides(overrides):
            assert not override.is_sweep_override() or sweep, f"{override.input_line} is a sweep"
            if override.is_sweep_override():
                first = next(iter(override.sweep_string_iterator()))
                overrides.remove(str(override.input_line))
                overrides.append(f"{override.get_key_element()}={first}")
        with initialize_config_dir(str(CONF)):
            compose("evaluate" if target == "evaluate" else "train", overrides)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    for link in links:
        assert link.startswith("https://") or (page.parent / link).exists(), link


def test_the_map_names_what_is_there() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    area = readme[readme.index("## The map") : readme.index("## Develop")]
    folder = ""
    for line in area.splitlines():
        if match := re.match(r" {4}([\w./]+(?: [\w./]+)*?)(?: {2,}|$)", line):
            for name in match.group(1).split():
                assert (ROOT / name).exists(), name
            folder = match.group(1)
        elif match := re.match(r" {6}([\w./]+(?: [\w./]+)*?)(?: {2,}|$)", line):
            for name in match.group(1).split():
                assert (ROOT / folder / name).exists(), f"{folder}{name}"
