"""What README and docs tell people to type is true: it composes, and its links lead somewhere."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image

from commands import run_command
from litvision.configs import CONF

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# In backticks, or on an indented line of its own. Not in the pages about files that a reader is to
# write, which tests/test_your_own.py does, nor about mistakes: tests/test_troubleshooting.py.
COMMAND = re.compile(r"`(make [^`]+)`|^ {4}(make\b.*?)(?: {2,}.*)?$", re.MULTILINE)
COMMANDS = sorted(
    {
        (page.name, found.group(1) or found.group(2))
        for page in PAGES
        if not page.name.startswith(("your-", "troubleshooting"))
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
    if target in ("train", "demo", "evaluate", "predict", "export", "sweep"):
        words = shlex.split(arguments)
        sweep = "--multirun" in words
        overrides = [word for word in words if word != "--multirun"]
        if target == "demo":
            overrides.append("experiment=demo")
        if target == "sweep" and not any(o.startswith("sweep=") for o in overrides):
            overrides.append("sweep=grid")
        for override in OverridesParser.create().parse_overrides(overrides):
            assert not override.is_sweep_override() or sweep, f"{override.input_line} is a sweep"
            if override.is_sweep_override():
                first = next(iter(override.sweep_string_iterator()))
                overrides.remove(str(override.input_line))
                overrides.append(f"{override.get_key_element()}={first}")
        with initialize_config_dir(str(CONF)):
            own = target if target in ("evaluate", "predict", "export") else "train"
            compose(own, overrides)


# A sweep is several runs.
SWEEPS = ("--multirun", "experiment=batch_size", "experiment=normalization")
RUN = [
    pytest.param(
        page,
        command,
        marks=pytest.mark.slow if any(sweep in command for sweep in SWEEPS) else (),
    )
    for page, command in COMMANDS
    if page != "README.md"
    and command.split()[1] in ("train", "demo", "evaluate", "predict", "export")
    # These start processes of their own: tests/test_launchers.py runs them.
    and not any(option in command for option in ("trainer=ddp", "hydra/launcher="))
]
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
FOLDER = "logs/default/2026-01-31_12-00-00"  # what the docs call the run that came before
SHORT = [
    *("callbacks.figures=null", "callbacks.graph=null", "callbacks.model_summary=null"),
    "trainer.accelerator=cpu",
    "trainer.limit_train_batches=1",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
    "trainer.max_epochs=2",
]
TINY = "model.network._target_=tiny.TinyNet"
# What else makes a command short: where it says the first, or says nothing of it, the rest follows.
SHORTER = {
    "experiment=batch_size": ["data.batch_size=8,16"],
    "experiment=normalization": ["data.batch_size=8"],
    "callbacks=lr_finder": ["callbacks.lr_finder.num_training_steps=15", TINY],
    "callbacks=batch_size_finder": ["callbacks.batch_size_finder.max_val=16", TINY],
    "callbacks=histograms": [TINY],
    "optimizer.lr=auto_scaled": [TINY],
    "callbacks.finetuning.unfreeze_at_epoch=5": ["callbacks.finetuning.unfreeze_at_epoch=1"],
    "callbacks=sparsity_2_4": ["callbacks.sparsity_2_4.start_epoch=1"],
    "callbacks=pruning": ["callbacks.pruning.at_epochs=[1]"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the docs' commands can be typed: pictures, and a run that came before."""
    folder = tmp_path_factory.mktemp("place")
    rng = np.random.default_rng(0)
    for split, count in (("train", 10), ("test", 2)):
        for name in CLASSES:
            target = folder / "data" / "cifar10-jpeg" / split / name
            target.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(target / f"{index}.png")
    weights = torchvision.models.MobileNet_V3_Small_Weights.DEFAULT
    cache = folder / "torch" / "hub" / "checkpoints" / Path(weights.url).name
    cache.parent.mkdir(parents=True)
    torch.save(torchvision.models.mobilenet_v3_small().state_dict(), cache)
    done = run_command(folder, "train", *shortened(["model=vgg16"]), f"hydra.run.dir={FOLDER}")
    assert done.returncode == 0, done.stderr
    return folder


def shortened(arguments: list[str], target: str = "train") -> list[str]:
    """The same command on little data and for two steps; what it says is not left out."""
    if target == "evaluate":
        return [*arguments, "trainer.accelerator=cpu"]
    if target in ("predict", "export"):
        return arguments
    if target == "demo":
        arguments = [*arguments, "data.train_size=40", "data.test_size=20"]
    elif not any(argument.startswith("data=") for argument in arguments):
        arguments = ["data=image_folder", "data.root=data/cifar10-jpeg", *arguments]
    more = [extra for key, extras in SHORTER.items() if key in arguments for extra in extras]
    if not any("batch_size=" in argument for argument in [*more, *arguments]):
        more.append("data.batch_size=16")
    return [*arguments, *SHORT, *more]


@pytest.mark.parametrize(("page", "command"), RUN)
def test_a_command_in_the_docs_does_what_it_is_there_for(
    place: Path, page: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(place / "torch"))
    _, target, *variables = shlex.split(command, comments=True)
    arguments = shlex.split(variables[0].removeprefix("ARGS=")) if variables else []
    module = "train" if target == "demo" else target
    recipe = ["experiment=demo"] if target == "demo" else []
    before = set(place.glob("logs/*/*/"))
    done = run_command(place, module, *recipe, *shortened(arguments, target))
    assert done.returncode == 0, done.stderr
    made = set(place.glob("logs/*/*/")) - before
    if f"resume={FOLDER}" in arguments:  # a run goes on in its own folder
        assert not made
        assert "test accuracy" in done.stdout
        return
    (folder,) = made
    if target == "evaluate":
        accuracy = json.loads((folder / "evaluation.json").read_text())["test/acc"]
        assert re.search(rf"^pictures +20\n.*\naccuracy +{accuracy:.2%}$", done.stdout, re.M)
    elif target == "predict":
        assert len((folder / "predictions.csv").read_text().splitlines()) == 1 + 20
    elif target == "export":
        assert "largest difference from the classifier on 20 pictures: " in done.stdout
    else:
        results = [*folder.glob("result.json"), *folder.glob("*/result.json")]
        assert results
        for result in results:
            assert json.loads(result.read_text())["state"] == "done"
    if (folder / "comparison.md").exists() or "experiment=batch_size" in arguments:
        assert (folder / "comparison.md").read_text() in done.stdout
        assert Image.open(folder / "comparison.png").size[0] > 500
    shutil.rmtree(folder)


def test_tests_that_the_docs_name_are_there() -> None:
    named = [
        re.findall(r"tests/[\w/.]+", command) for _, command in COMMANDS if "tests/" in command
    ]
    assert named
    for (path,) in named:
        assert (ROOT / path).exists(), path


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
