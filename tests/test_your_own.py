"""The pages about one's own data, model and callback: their files, written; their commands, run."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from commands import run_command
from conftest import write_image_folder

ROOT = Path(__file__).parents[1]
PAGES = {
    name: (ROOT / "docs" / f"your-{name}.md").read_text()
    for name in ("data", "model", "optimizer", "callback")
}
BLOCK = re.compile(r"```(?:python|yaml)\n(.*?)```", re.DOTALL)
FILE = re.compile(r"`((?:src|conf)/[\w/]+\.(?:py|yaml))`")
SHORT = (
    "trainer.accelerator=cpu",
    "trainer.max_epochs=1",
    "callbacks.figures=null",
    "callbacks.graph=null",
    "callbacks.model_summary=null",
)
LITTLE = ("data=shapes", "data.train_size=60", "data.test_size=20", "data.batch_size=16")


def files(page: str) -> dict[str, str]:
    """The files that a page has its reader write: each block, by the path named last before it."""
    found, end = {}, 0
    for block in BLOCK.finditer(page):
        named = FILE.findall(page[end : block.start()])
        assert named, block[1]
        found[named[-1]] = block[1]
        end = block.end()
    return found


# ResNet-18 on a folder takes ten seconds; `experiment=pictures` trains on the same one sooner.
COMMANDS = [
    pytest.param(name, command, marks=pytest.mark.slow if "data.root" in command else ())
    for name, page in PAGES.items()
    for command in re.findall(r"^ {4}make train ARGS=(.*)$", page, re.MULTILINE)
]


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the files of all four pages, and pictures."""
    copy = tmp_path_factory.mktemp("mine")
    for folder in ("src", "conf"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for page in PAGES.values():
        for path, text in files(page).items():
            (copy / path).write_text(text)
    pictures = write_image_folder(tmp_path_factory.mktemp("pictures"))
    shutil.copytree(pictures / "train", copy / "data" / "pictures")
    listed = copy / "data" / "listed"
    for split in ("train", "test"):
        shutil.copytree(pictures / split, listed / split)
        paths = sorted(path for path in (listed / split).rglob("*") if path.is_file())
        rows = [f"{path.relative_to(listed)},{path.parent.name}\n" for path in paths]
        (listed / f"{split}.csv").write_text("".join(["path,label\n", *rows]))
    return copy


def test_each_page_has_files_and_commands() -> None:
    assert {name: len(files(page)) for name, page in PAGES.items()} == {
        "data": 3, "model": 3, "optimizer": 6, "callback": 5,
    }  # fmt: skip
    assert {command.values[0] for command in COMMANDS} == set(PAGES)


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_command_of_a_page_trains(mine: Path, page: str, command: str) -> None:
    (arguments,) = shlex.split(command)
    options = [*shlex.split(arguments), *SHORT]
    if page != "data":
        options = [*LITTLE, *options]
    if page != "model" and "model=" not in arguments:
        options.append("model.network._target_=tiny.TinyNet")
    if "timm" in command:
        pytest.importorskip("timm")
    if "lr_finder" in command:
        options.append("callbacks.lr_finder.num_training_steps=15")
    shutil.rmtree(mine / "logs", ignore_errors=True)
    if found := re.search(r"model\.teacher=(\S+)", arguments):
        learned = ["model=speednet", "model.network.widths=[8,8,8]", f"hydra.run.dir={found[1]}"]
        teaching = run_command(mine, "train", *LITTLE, *SHORT, *learned, root=mine)
        assert teaching.returncode == 0, teaching.stderr
        (mine / found[1] / "result.json").unlink()
    done = run_command(mine, "train", *options, root=mine)
    assert done.returncode == 0, done.stderr
    (path,) = mine.glob("logs/*/*/result.json")
    assert json.loads(path.read_text())["state"] == "done"
    saved = torch.load(path.parent / "checkpoints" / "last.ckpt", weights_only=True)
    kept = {name.partition(".")[0] for name in saved["state_dict"]}
    assert kept <= {"network", "metrics"}  # and no teacher
    if "macro_f1" in command:
        last = json.loads(path.read_text())
        assert last["best_val/f1"] == last["val/f1"]
        assert f"val/f1 {last['val/f1']:.4g}  lr" in done.stdout
    if "gradient_norm" in command:
        rows = csv.DictReader((path.parent / "metrics.csv").open())
        norms = [float(row["gradient_norm"]) for row in rows if row.get("gradient_norm")]
        assert norms
        assert min(norms) > 0


def test_their_options_are_checked_like_those_of_any_other(mine: Path) -> None:
    options = [*LITTLE, *SHORT, "model=three_layer"]
    done = run_command(mine, "train", *options, "model.network.width=0", root=mine)
    assert done.returncode == 1
    assert done.stderr == "error: model.network.width=0 does not fit: it takes an integer from 1.\n"


def test_what_they_write_is_formatted_and_linted_as_here(mine: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", mine)
    written = [path for page in PAGES.values() for path in files(page) if path.endswith(".py")]
    for tool in (["ruff", "check"], ["ruff", "format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", *tool, *written], cwd=mine, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout
