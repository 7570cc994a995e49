"""Class folders alone: what is set aside of them is tested on, and never trained on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from conftest import run_command, write_image_folder
from litvision import checkpoints
from litvision.errors import UserError
from litvision.sources.layout import Layout
from litvision.tested_data import data_config
from test_evaluate import EVALUATE, TRAIN
from test_tested_data import of_run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `flat/<class>/`, `other/test/<class>/`, and a run trained on the first."""
    folder = tmp_path_factory.mktemp("place")
    write_image_folder(folder / "both")
    (folder / "both" / "train").rename(folder / "flat")
    (folder / "both").rename(folder / "other")
    shutil.copytree(folder / "flat", folder / "moved" / "train")
    shutil.copytree(folder / "flat", folder / "strange")
    for path in (folder / "strange").rglob("*.*"):
        path.rename(path.with_stem(f"{path.stem}x"))
    options = [*TRAIN, "data.root=flat", "data.test_fraction=0.3", "hydra.run.dir=run"]
    done = run_command(folder, "train", *options)
    assert done.returncode == 0, done.stderr
    return folder


def aside(root: Path) -> int:
    """How many pictures of the flat folder are tested on."""
    layout = Layout(root, 0.3, root / ".litvision")
    return sum(len(layout.files("test", name)) for name in ("blue", "green", "red"))


def test_a_run_tests_on_what_is_set_aside(place: Path) -> None:
    tested = aside(place / "flat")
    assert 3 <= tested < 12
    card = checkpoints.read(place / "run" / "checkpoints" / "best.ckpt")["litvision"]
    assert card["pictures"]["train"] + card["pictures"]["val"] == 24 - tested
    accuracy = json.loads((place / "run" / "result.json").read_text())["test/acc"]
    assert accuracy * tested == pytest.approx(round(accuracy * tested), abs=1e-5)


@pytest.mark.parametrize(
    ("data", "count"),
    [
        ((), None),
        (("data=image_folder", "data.root=flat"), None),  # of the same folder, the same pictures
        (("data=image_folder", "data.root=moved"), None),  # nor of the same names elsewhere
        (("data=image_folder", "data.root=moved", "data.test_fraction=0.3"), None),
        (("data=image_folder", "data.root=moved", "data.test_fraction=1"), 24),
        (("data.root=moved", "data.test_fraction=1"), 24),
        (("data=image_folder", "data.root=strange", "data.test_fraction=1"), 24),
        (("data=image_folder", "data.root=other"), 12),
        (("data.root=other",), 12),
    ],
)
def test_evaluate_knows_what_was_set_aside(
    place: Path, tmp_path: Path, data: tuple[str, ...], count: int | None
) -> None:
    options = ["checkpoint=run", f"hydra.run.dir={tmp_path}", *data, *EVALUATE]
    done = run_command(place, "evaluate", *options)
    assert done.returncode == 0, done.stderr
    told = f"pictures  {aside(place / 'flat') if count is None else count:>8,}"
    assert told in done.stdout
    seen = "data.root=moved" in data and count == 24
    warned = "Some of these pictures were trained on, which set data.test_fraction=0.3 of them "
    assert (f"{warned}aside: leave it out to test on those alone." in done.stdout) == seen


def test_class_folders_of_others_ask_which_share(place: Path) -> None:
    options = ["checkpoint=run", "data=image_folder", "data.root=strange", *EVALUATE]
    done = run_command(place, "evaluate", *options)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        1,
        "error: no folder strange/test, but blue, green, red: if these are the classes, give "
        "data.test_fraction=1 to test on all of them, or move them into strange/test",
    )


def test_a_fraction_that_is_typed_is_never_dropped(place: Path) -> None:
    options = ["checkpoint=run", "data.root=other", "data.test_fraction=0.5", *EVALUATE]
    done = run_command(place, "evaluate", *options)
    assert done.stderr.splitlines()[-1] == (
        "error: data.test_fraction=0.5, but there is other/test to test on: leave "
        "data.test_fraction out, or move its pictures to the others"
    )


@pytest.mark.parametrize("value", ["abc", "true", "[1]", "-0.5", "2"])
def test_a_fraction_that_is_none_is_one_line(place: Path, value: str) -> None:
    data = ["data=image_folder", "data.root=flat", f"data.test_fraction={value}"]
    done = run_command(place, "evaluate", "checkpoint=run", *data, *EVALUATE)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: data.test_fraction=")
    assert line.endswith(" does not fit: it takes a number above 0 up to 1 or null.")


def test_a_strange_fraction_in_a_file_is_one_line(place: Path, tmp_path: Path) -> None:
    content = torch.load(place / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    content["litvision"]["config"]["data"]["test_fraction"] = "abc"
    torch.save(content, tmp_path / "strange.ckpt")
    for data in ([], ["data=image_folder", "data.root=flat", "data.test_fraction=1"]):
        options = [f"checkpoint={tmp_path}/strange.ckpt", *data, *EVALUATE]
        done = run_command(place, "evaluate", *options)
        assert (done.returncode == 0) == bool(data), done.stderr
        assert "Traceback" not in done.stderr


def test_the_same_folder_by_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trained").mkdir()
    card = of_run(tmp_path / "trained", test_fraction=0.3)
    monkeypatch.chdir(tmp_path)
    chosen = {"_target_": "any", "image_size": 32, "test_fraction": None, "root": "trained"}
    chosen |= {"eval_batch_size": None, "num_workers": None}
    assert data_config(OmegaConf.create(chosen), card, "test").test_fraction == 0.3


def test_a_checkpoint_from_before_the_fraction_takes_one(tmp_path: Path) -> None:
    source = {"_target_": "litvision.sources.image_folder.ImageFolder", "_partial_": True}
    given = OmegaConf.create({"test_fraction": 1})
    assert data_config(given, of_run(tmp_path, source=source), "test").test_fraction == 1
    with pytest.raises(UserError, match=r"^data\.test_fraction: the data that the checkpoint was "):
        data_config(given, of_run(tmp_path), "test")


@pytest.mark.parametrize(("split", "fraction"), [("val", 0.3), ("train", 0.3), ("test", None)])
def test_validation_pictures_are_set_aside_after_those_to_test_on(
    tmp_path: Path, split: str, fraction: float | None
) -> None:
    trained, other = tmp_path / "trained", tmp_path / "other"
    for folder in (trained, other):
        folder.mkdir()
    card = of_run(trained, test_fraction=0.3)
    chosen: dict[str, Any] = {"_target_": "any", "image_size": 32, "test_fraction": None}
    chosen |= {"eval_batch_size": None, "num_workers": None}
    for root, expected in ((trained, 0.3), (other, fraction)):
        node = data_config(OmegaConf.create({**chosen, "root": str(root)}), card, split)
        assert node.get("test_fraction") == expected
    (other / "test").mkdir()
    node = data_config(OmegaConf.create({**chosen, "root": str(other)}), card, split)
    assert node.get("test_fraction") is None
    # Pictures of another kind know no such option.
    drawn = {**chosen, "root": None, "source": {"_target_": "litvision.sources.shapes.Shapes"}}
    assert "test_fraction" not in data_config(OmegaConf.create(drawn), card, split)
