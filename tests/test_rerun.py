"""What a run leaves in its folder is enough to repeat it, bit by bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from conftest import Run
from litvision import rerun

OPTIONS = [
    *("data=shapes", "data.train_size=60", "data.test_size=20", "data.batch_size=16"),
    *("model.network._target_=tiny.TinyDropout", "trainer.accelerator=cpu", "logger=csv"),
    *("callbacks.figures=null", "callbacks.model_summary=null", "optimizer.lr=0.1"),
]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_run_is_repeated_to_the_bit(run: Run, tmp_path: Path, precision: str) -> None:
    options = [*OPTIONS, f"trainer.precision={precision}", "trainer.max_epochs=2", "seed=5"]
    done = run("train", "--multirun", *options, "hydra.sweep.dir=sweep", "data.mix=mixup")
    assert done.returncode == 0, done.stderr
    provenance = tmp_path / "sweep" / "0" / "provenance.json"
    record = json.loads(provenance.read_text())
    record["versions"]["torch"] = "1.0"
    record["hardware"]["threads"] = 3  # too few pictures for any to be split among them
    provenance.write_text(json.dumps(record))
    done = run("rerun", "sweep/0")
    assert done.returncode == 0, done.stderr
    assert f"not as then: torch 1.0, now {torch.__version__.split('+')[0]}" in done.stdout
    assert done.stdout.endswith("\nEvery metric is the same as then, to the last digit.\n")
    (again,) = tmp_path.glob("logs/rerun/*")
    files = [folder / "checkpoints" / "last.ckpt" for folder in (tmp_path / "sweep" / "0", again)]
    before, now = (torch.load(file, weights_only=True)["state_dict"] for file in files)
    assert all(torch.equal(before[name], now[name]) for name in before)
    assert json.loads((again / "provenance.json").read_text())["hardware"]["threads"] == 3
    config = OmegaConf.load(again / "config.yaml")
    assert str(tmp_path / "sweep") not in OmegaConf.to_yaml(config)
    assert config.callbacks.best_checkpoint.dirpath == f"{again}/checkpoints"


def test_metrics_and_pictures_that_differ_are_named(tmp_path: Path) -> None:
    for name, accuracy in (("a", 0.5), ("b", 0.25)):
        (tmp_path / name).mkdir()
        result = {"state": "done", "val/acc": 0.5, "test/acc": accuracy, "val/f1": accuracy / 2}
        (tmp_path / name / "result.json").write_text(json.dumps(result))
        (tmp_path / name / "provenance.json").write_text(json.dumps({"data_sha256": name}))
    assert rerun.compare(tmp_path / "a", tmp_path / "b").splitlines() == [
        "",
        "Other than then:",
        "the pictures are others, by their checksum",
        "test/acc: 0.5 then, 0.25 now",
        "val/f1: 0.25 then, 0.125 now",
    ]


def test_a_metric_of_zero_and_one_that_is_missing_now_differ(tmp_path: Path) -> None:
    for name, result in (("a", {"val/acc": 0.0, "val/loss": 2.0}), ("b", {"val/acc": 0.5})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps(result))
    assert rerun.compare(tmp_path / "a", tmp_path / "b").splitlines()[2:] == [
        "val/loss: 2.0 then, None now",
        "val/acc: 0.0 then, 0.5 now",
    ]


@pytest.mark.parametrize(
    ("then", "lines"),
    [
        ({"git": {"commit": "b", "diff": "+x"}, "versions": {"torch": "2"}}, []),
        ({"git": {"commit": "a", "diff": "+x"}}, ["commit a, now b"]),
        ({"git": {"commit": "b", "diff": ""}}, ["uncommitted changes"]),
        ({}, ["commit None, now b", "uncommitted changes"]),
        (
            {"git": {"commit": "b", "diff": "+x"}, "versions": {"torch": "1", "timm": "1"}},
            ["torch 1, now 2", "timm 1, now None"],
        ),
    ],
)
def test_other_code_and_other_versions_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: dict[str, Any], lines: list[str]
) -> None:
    here = "litvision.callbacks.provenance"
    monkeypatch.setattr(f"{here}.git_state", lambda _: {"commit": "b", "diff": "+x"})
    monkeypatch.setattr(f"{here}.versions", lambda: {"torch": "2", "new": "1"})
    (tmp_path / "provenance.json").write_text(json.dumps(then))
    assert rerun.changes(tmp_path) == lines


def test_a_repeated_run_begins_anew_in_its_own_folder() -> None:
    callbacks = {
        "study_pruning": {"study": "a"},
        "last_checkpoint": {"dirpath": "/a/1/checkpoints"},
    }
    content = {
        "run_dir": "/a/1",
        "resume": "/a/1",
        "callbacks": callbacks,
        "data": {"roots": ["/a/1/data", "/a/10"]},
    }
    assert rerun.config(content, Path("/new")) == {
        "run_dir": "/new",
        "resume": None,
        "callbacks": {"last_checkpoint": {"dirpath": "/new/checkpoints"}},
        "data": {"roots": ["/new/data", "/a/10"]},
    }
    assert rerun.config({"run_dir": "a", "callbacks": None}, Path("b")).callbacks is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: give the folder of a run: make rerun RUN=logs/…\n"),
        (["no"], "error: no/config.yaml is not there, or is not the config of a run: give the "
                 "folder of one.\n"),
        (["bad"], "error: bad/config.yaml is not there, or is not the config of a run: give the "
                  "folder of one.\n"),
    ],
)  # fmt: skip
def test_a_folder_without_a_config_is_answered_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.yaml").write_text("{: not yaml")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        rerun.main(arguments)
    assert capsys.readouterr().err == message
    assert not (tmp_path / "logs").exists()
