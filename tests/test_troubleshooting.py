"""docs/troubleshooting.md tells the truth: each mistake gets the answer that stands below it."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from commands import run_command

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "troubleshooting.md"
MISTAKES = re.findall(r"```text\n\$ (make .*)\n(.*)\n```", PAGE.read_text(encoding="utf-8"))
RUN = "logs/default/2026-01-31_12-00-00"  # what the docs call the run that came before
SMALL = ["data=shapes", "data.train_size=40", "data.test_size=20", "trainer.max_epochs=1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures as the page's reader has them, and a run with ResNet-18 that came before."""
    folder = tmp_path_factory.mktemp("place")
    for root in ("pets", "broken/train", "broken/test"):
        for name in ("cat", "dog"):
            (folder / root / name).mkdir(parents=True)
            for index in range(2):
                Image.new("RGB", (32, 32)).save(folder / root / name / f"{index}.jpg")
    (folder / "broken" / "train" / "cat" / "3.jpg").write_text("no picture")
    (folder / "notes.txt").write_text("no checkpoint")
    done = run_command(
        folder, "train", *SMALL, f"hydra.run.dir={RUN}", "logger=none", "test=false",
        "callbacks.figures=null", "callbacks.graph=null", "trainer.limit_train_batches=1",
        "trainer.limit_val_batches=1", "trainer.accelerator=cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_there_are_twenty() -> None:
    assert len(MISTAKES) >= 20
    assert len({command for command, _ in MISTAKES}) == len(MISTAKES)


@pytest.mark.parametrize(("command", "answer"), MISTAKES, ids=[c for c, _ in MISTAKES])
def test_a_mistake_gets_its_answer(command: str, answer: str, place: Path) -> None:
    _, target, *rest = shlex.split(command)
    if rest and not rest[0].startswith("ARGS="):  # make itself answers
        done = subprocess.run(
            ["make", target, *rest], cwd=ROOT, capture_output=True, text=True, check=False
        )
    else:
        arguments = shlex.split(rest[0].removeprefix("ARGS=")) if rest else []
        if "wandb" in command and importlib.util.find_spec("wandb"):
            pytest.skip("wandb is installed")
        before = set(place.rglob("*.ckpt"))
        done = run_command(place, target, *arguments)
        assert set(place.rglob("*.ckpt")) == before
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    expected = re.escape(answer).replace("…", ".+")
    assert re.fullmatch(expected, done.stderr.splitlines()[-1]), done.stderr
