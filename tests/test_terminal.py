"""Colours and bars are for terminals: not for files, and not where NO_COLOR is set."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from commands import environment_of

ROOT = Path(__file__).parents[1]
TINY = [
    *("data=shapes", "data.train_size=40", "data.test_size=20", "data.batch_size=16"),
    *("model.network._target_=tiny.TinyNet", "trainer.max_epochs=1", "trainer.accelerator=cpu"),
    *("callbacks.figures=null", "hydra.run.dir=run"),
]
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-7]|9[0-7]|38)(?:;\d+)*m")


def on_a_terminal(folder: Path, **variables: str) -> str:
    """Train on a pseudo-terminal and return all that it shows."""
    folder.mkdir()
    ours, theirs = pty.openpty()
    inherited = {k: v for k, v in environment_of().items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    environment = {**inherited, "TERM": "xterm-256color", **variables}
    process = subprocess.Popen(
        [sys.executable, "-m", "litvision.train", *TINY],
        cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end has closed
        while piece := os.read(ours, 65536):
            shown += piece
    os.close(ours)
    assert process.wait() == 0, shown.decode()
    return shown.decode()


@pytest.mark.slow
def test_a_terminal_has_colours_unless_no_color_says_otherwise(tmp_path: Path) -> None:
    shown = on_a_terminal(tmp_path / "colours")
    assert COLOUR.search(shown)
    assert "test accuracy" in shown
    plain = on_a_terminal(tmp_path / "plain", NO_COLOR="1")
    assert not COLOUR.search(plain)
    assert "test accuracy" in plain


@pytest.mark.slow
def test_the_tab_key_completes_choices_and_keys(tmp_path: Path) -> None:
    # As pip writes it: completion is for the name that a program is called by.
    (tmp_path / "litvision-train").write_text(
        f"#!{sys.executable}\nfrom litvision.train import main\nmain()\n"
    )
    (tmp_path / "litvision-train").chmod(0o755)
    script = """
        eval "$(litvision-train -sc install=bash)"
        complete -p litvision-train > /dev/null || exit 1
        for words in "$@"; do
            COMP_LINE="litvision-train $words"; COMP_POINT=${#COMP_LINE}; COMP_CWORD=1
            hydra_bash_completion; echo "${COMPREPLY[@]}"
        done
    """
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT / "src"), "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }  # fmt: skip
    command = ["bash", "-c", script, "bash", "optimizer=a", "callbacks.ear", "optimizer.l"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [
        "optimizer=adamw", "callbacks.early_stopping.", "optimizer.lr=",
    ], done.stderr  # fmt: skip


def test_a_file_gets_no_escape_codes(run: object, tmp_path: Path) -> None:
    done = run("train", *TINY)  # type: ignore[operator]
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert "\x1b" not in (tmp_path / "run" / "train.log").read_text()
