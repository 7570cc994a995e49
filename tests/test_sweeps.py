"""A sweep goes on when a run fails, and can be gone on with."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from conftest import Run
from litvision import records, sweeps
from litvision.errors import PrunedError, UserError
from tiny_sweep import DIVERGES, TINY, result


def test_a_failed_run_is_recorded_and_the_others_go_on(tmp_path: Path, run: Run) -> None:
    done = run("train", "--multirun", *TINY, DIVERGES)
    assert done.returncode == 1
    assert [result(tmp_path, n)["state"] for n in range(3)] == ["done", "failed", "done"]
    assert result(tmp_path, 1)["error"].startswith("The training loss is not finite at epoch 0")
    assert result(tmp_path, 1)["overrides"][-1] == "optimizer.lr=1e+30"
    header, *rows = [line.split() for line in done.stdout.splitlines()[-4:]]
    assert header[:5] == ["run", "state", "options", "best", "val/loss"]
    assert [row[1] for row in rows] == ["done", "done", "failed"]
    assert float(rows[0][3]) <= float(rows[1][3])
    assert rows[2][0] == "sweep/1"
    lines = done.stderr.splitlines()
    assert sum(line.startswith("run 1 failed: The training loss is not") for line in lines) == 1
    assert lines[-1] == (
        "error: 1 of 3 runs failed: 1; each one's result.json in sweep says why. To run them "
        "again: the same command with sweep.resume=sweep"
    )
    assert "Traceback" not in done.stderr


def test_a_mistake_that_ends_a_run_before_it_begins_is_recorded_too(
    tmp_path: Path, run: Run
) -> None:
    done = run("train", "--multirun", *TINY, "data.batch_size=16,0")
    assert done.returncode == 1
    assert result(tmp_path, 0)["state"] == "done"
    found = result(tmp_path, 1)
    assert found["state"] == "failed"
    assert found["error"].startswith("data.batch_size=0 does not fit")
    assert "data.batch_size=0" in found["overrides"]


def test_only_what_is_missing_or_failed_runs_again(tmp_path: Path, run: Run) -> None:
    assert run("train", "--multirun", *TINY, "optimizer.lr=0.01,0.02,0.03").returncode == 0
    before = (tmp_path / "sweep" / "0" / "result.json").stat().st_mtime_ns
    (tmp_path / "sweep" / "2" / "result.json").unlink()  # as if it had never ended
    sweeps.set_state(tmp_path / "sweep" / "1", "failed")
    resume = [*TINY, "optimizer.lr=0.01,0.02,0.03", "sweep.resume=sweep"]
    done = run("train", "--multirun", *resume)
    assert done.returncode == 0, done.stderr
    assert "1 of 3 runs have ended before" in done.stdout
    assert (tmp_path / "sweep" / "0" / "result.json").stat().st_mtime_ns == before
    assert [result(tmp_path, n)["state"] for n in range(3)] == ["done"] * 3
    # What the first tries left is kept beside them.
    assert result(tmp_path, "1_failed_1")["state"] == "failed"
    assert (tmp_path / "sweep" / "2_failed_1" / "checkpoints" / "last.ckpt").exists()
    for number, rate in enumerate(["0.01", "0.02", "0.03"]):
        assert f"optimizer.lr={rate}" in result(tmp_path, number)["overrides"]

    done = run("train", "--multirun", *TINY, "optimizer.lr=0.01,0.02,0.5", "sweep.resume=sweep")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "error: sweep.resume=sweep holds another sweep: optimizer.lr=0.03 there, optimizer.lr=0.5 "
        "here. Give the same options as then, or leave sweep.resume out."
    )


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path: Path, run: Run) -> None:
    stop = f"+callbacks.signal={{_target_: tiny.Signal, step: 2, number: {signal.SIGTERM:d}}}"
    sweep = ["--multirun", *TINY, "optimizer.lr=0.01,0.02"]
    assert run("train", *sweep, stop).returncode == 75
    assert result(tmp_path, 0)["state"] == "interrupted"
    assert not (tmp_path / "sweep" / "1").exists()  # the sweep stops, not one run of it
    assert run("train", *sweep, stop, "sweep.resume=sweep").returncode == 75
    assert result(tmp_path, 0)["state"] == "done"
    assert result(tmp_path, 1)["state"] == "interrupted"
    done = run("train", *sweep, stop, "sweep.resume=sweep")
    assert done.returncode == 0, done.stderr
    assert result(tmp_path, 1)["state"] == "done"
    assert sorted(p.name for p in (tmp_path / "sweep").iterdir() if p.is_dir()) == ["0", "1"]
    whole = run("train", *TINY, "optimizer.lr=0.02", "hydra.run.dir=whole")
    assert whole.returncode == 0, whole.stderr
    expected = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert result(tmp_path, 1)["val/loss"] == expected["val/loss"]


def hparams(folder: Path) -> dict[str, Any]:
    """Return what TensorBoard's HParams tab shows of a run: its options."""
    content = EventAccumulator(str(folder)).Reload().PluginTagToContent("hparams")
    data = HParamsPluginData.FromString(content["_hparams_/session_start_info"])
    values = data.session_start_info.hparams
    return {k: v.number_value or v.string_value for k, v in values.items()}


def test_tensorboard_shows_the_swept_options_alone(tmp_path: Path, run: Run) -> None:
    logged = [option for option in TINY if not option.startswith("logger=")]
    done = run("train", "--multirun", *logged, "optimizer.lr=0.01,1e30", "model=resnet18,vgg16")
    assert done.returncode == 1
    shown = [hparams(tmp_path / "sweep" / str(number)) for number in range(4)]
    assert shown == [
        {"optimizer.lr": rate, "model": model}
        for rate in (0.01, 1e30)  # a run that failed belongs in the table too
        for model in ("resnet18", "vgg16")
    ]
    alone = run("train", *logged, "hydra.run.dir=alone")
    assert alone.returncode == 0, alone.stderr
    by_itself = hparams(tmp_path / "alone")  # what is looked at first, and what was changed
    assert by_itself["network"] == "TinyLinear"
    assert by_itself["optimizer"] == "SGD"
    assert by_itself["optimizer.lr"] == 0.01
    assert by_itself["trainer.max_epochs"] == 2


def test_there_has_to_be_a_sweep_to_go_on_with(run: Run) -> None:
    done = run("train", "sweep=grid", "sweep.resume=nowhere")
    assert done.returncode == 1
    assert done.stderr == (
        "error: sweep.resume=nowhere: no sweep has run there. Give the folder that one printed.\n"
    )


def test_the_grid_recipe_is_every_combination(tmp_path: Path, run: Run) -> None:
    done = run("train", "sweep=grid", *TINY)
    assert done.returncode == 0, done.stderr
    plan = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert plan["keys"] == ["model", "optimizer.lr"]
    swept = [o[:2] for o in plan["runs"]]
    assert swept == [
        [f"model={model}", f"optimizer.lr={rate}"]
        for model in ("resnet18", "vgg16")
        for rate in ("0.01", "0.05", "0.1")
    ]
    for number in range(6):
        assert result(tmp_path, number)["state"] == "done"
        assert "test/acc" not in result(tmp_path, number)


def test_the_folder_of_a_failed_run_is_never_written_over(tmp_path: Path) -> None:
    for expected in ("3_failed_1", "3_failed_2"):
        (tmp_path / "3").mkdir()
        sweeps.put_aside(tmp_path / "3")
        assert (tmp_path / expected).is_dir()
        assert not (tmp_path / "3").exists()
    sweeps.put_aside(tmp_path / "3")


def test_a_try_that_was_deleted_leaves_a_gap(tmp_path: Path) -> None:
    for name in ("3", "3_failed_2"):
        (tmp_path / name).mkdir()
    (tmp_path / "3_failed_2" / "result.json").touch()
    sweeps.put_aside(tmp_path / "3")
    assert {path.name for path in tmp_path.iterdir()} == {"3_failed_2", "3_failed_3"}


def test_a_plan_is_compared_run_by_run(tmp_path: Path) -> None:
    sweeps.begin(tmp_path, [["a=1", "b=2"]], ["a"])
    sweeps.begin(tmp_path, [["a=1", "b=2"]], ["a"])
    with pytest.raises(UserError, match="holds another sweep: nothing there, a=1 b=3 here"):
        sweeps.begin(tmp_path, [["a=1", "b=2"], ["a=1", "b=3"]], ["a"])


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("word", ["running", "interrupted", "failed", "done", None])
def test_only_a_run_that_was_stopped_and_saved_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str | None, saved: bool
) -> None:
    folder = tmp_path / "0"
    (folder / "checkpoints").mkdir(parents=True)
    if saved:
        (folder / "checkpoints" / "last.ckpt").touch()
    if word is not None:
        sweeps.set_state(folder, word)
    goes_on = saved and word in ("running", "interrupted")
    monkeypatch.setattr(sweeps, "sweeping", lambda: True)
    for resume in (None, "elsewhere"):
        cfg = OmegaConf.create({"run_dir": str(folder), "resume": resume})
        assert sweeps.started_again(cfg) == (goes_on and resume is None)
    assert sweeps.again(folder) == ([f"resume='{folder}'"] if goes_on else [])
    assert (tmp_path / "0_failed_1").is_dir() == (not goes_on)


def test_a_pruned_run_has_not_failed() -> None:
    for error, failed in ((PrunedError("too slow"), False), (ValueError("bad"), True)):
        job = JobReturn(status=JobStatus.FAILED)
        job.return_value = error
        assert sweeps.failed(job) == failed
    assert not sweeps.failed(JobReturn(status=JobStatus.COMPLETED))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("\n first.\nsecond"), "first"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
)
def test_the_reason_of_a_failure_is_its_first_line(error: BaseException, reason: str) -> None:
    assert sweeps._reason(error) == reason


@pytest.mark.parametrize(
    ("trainer", "environment", "apart"),
    [
        ({"devices": 1}, {}, False),
        ({"devices": "1"}, {"SLURM_NTASKS": "1"}, False),
        ({"devices": None}, {}, False),
        ({"devices": [3]}, {}, False),
        ({"devices": [0, 1]}, {}, True),
        ({"devices": 2}, {}, True),
        ({"devices": "auto"}, {}, True),
        ({"devices": 1, "num_nodes": 2}, {}, True),
        ({"devices": 1, "strategy": "ddp"}, {}, True),
        ({"devices": 2}, {"LOCAL_RANK": "0"}, False),  # a scheduler has started the processes
        ({"devices": 2}, {"SLURM_NTASKS": "2"}, False),
    ],
)
def test_a_run_on_several_devices_has_a_process_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
    trainer: dict[str, Any],
    environment: dict[str, str],
    apart: bool,
) -> None:
    for name in ("LOCAL_RANK", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    cfg = OmegaConf.create({"trainer": trainer})
    for sweeping in (True, False):
        monkeypatch.setattr(sweeps, "sweeping", lambda answer=sweeping: answer)
        assert sweeps.runs_apart(cfg) == (apart and sweeping)


@pytest.mark.parametrize(
    ("launcher", "sweeper", "runs"),
    [
        ({"_target_": "x.JoblibLauncher", "n_jobs": 3}, {}, 3),
        ({"_target_": "x.JoblibLauncher", "n_jobs": -1}, {}, 8),
        ({"_target_": "x.JoblibLauncher", "n_jobs": -7}, {}, 2),
        ({"_target_": "x.JoblibLauncher", "n_jobs": -99}, {}, 1),
        ({"_target_": "x.LocalLauncher"}, {"max_batch_size": 2}, 2),
        ({"_target_": "x.LocalLauncher"}, {"n_jobs": 4}, 4),
        ({"_target_": "x.LocalLauncher"}, {"max_batch_size": None}, 5),
        ({"_target_": "x.BasicLauncher"}, {"max_batch_size": 2}, 1),
    ],
)
def test_a_run_knows_how_many_share_the_machine(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    launcher: dict[str, Any],
    sweeper: dict[str, Any],
    runs: int,
) -> None:
    sweeps.begin(tmp_path, [[f"a={number}"] for number in range(5)], ["a"])
    config = {"launcher": launcher, "sweeper": sweeper, "sweep": {"dir": str(tmp_path)}}
    hydra = OmegaConf.create({**config, "job": {"num": 7}})
    monkeypatch.setattr(sweeps, "HydraConfig", SimpleNamespace(get=lambda: hydra))
    monkeypatch.setattr(sweeps, "sweeping", lambda: True)
    monkeypatch.setattr(sweeps, "cores", lambda: 8)
    assert sweeps.side_by_side() == (runs, 7)


def test_a_run_in_a_process_of_its_own_returns_its_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    start = subprocess.Popen

    def popen(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        commands.append(command)
        return start(["true"], **options)

    given = ["seed=1", "resume=old", "sweep.resume=sweep"]
    overrides = {"overrides": {"task": given}, "runtime": {"output_dir": str(tmp_path)}}
    hydra = OmegaConf.create(overrides)
    monkeypatch.setattr(sweeps, "HydraConfig", SimpleNamespace(get=lambda: hydra))
    monkeypatch.setattr(sweeps.subprocess, "Popen", popen)
    cfg = OmegaConf.create({"monitor": "val/loss", "resume": str(tmp_path)})
    content = {"state": "done", "val/loss": 0.5, "best_val/loss": 0.25}
    records.write_result(tmp_path, content)
    assert sweeps.run_apart("litvision.train", cfg) == 0.25
    assert commands[0][1:] == [
        "-m", "litvision.train", "seed=1", "hydra.mode=RUN", f"hydra.run.dir='{tmp_path}'",
        f"resume='{tmp_path}'",
    ]  # fmt: skip
    for word, error in (("pruned", PrunedError), ("failed", UserError)):
        records.write_result(tmp_path, {**content, "state": word, "error": "because"})
        with pytest.raises(error, match="because"):
            sweeps.run_apart("litvision.train", cfg)
    records.write_result(tmp_path, {**content, "state": "running"})  # it was killed, say
    with pytest.raises(UserError, match="its process ended with exit code 0; the lines above"):
        sweeps.run_apart("litvision.train", cfg)


def test_another_state_leaves_the_rest_of_a_result_as_it_is(tmp_path: Path) -> None:
    records.write_result(tmp_path, {"state": "running", "overrides": ["a=1"], "val/loss": 0.5})
    sweeps.set_state(tmp_path, "failed", "why")
    expected = {"state": "failed", "overrides": ["a=1"], "val/loss": 0.5, "error": "why"}
    assert records.read_result(tmp_path) == expected


@pytest.mark.parametrize(
    ("error", "word", "bug"),
    [(ValueError("bad\nmore"), "failed", True), (PrunedError("bad"), "pruned", False)],
)
def test_a_failure_is_printed_and_written_where_the_run_had_begun(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    word: str,
    bug: bool,
) -> None:
    places = {"runtime": {"output_dir": str(tmp_path / "3")}, "overrides": {"task": ["b=2"]}}
    hydra = OmegaConf.create(places)
    monkeypatch.setattr(sweeps, "HydraConfig", SimpleNamespace(get=lambda: hydra))
    for before in ({}, {"overrides": ["a=1"], "epochs": 2}):
        records.write_result(tmp_path / "3", before)
        sweeps.record_failure(error, bug)
        begun = before or {"overrides": ["b=2"]}
        expected = {**begun, "state": word, "error": "bad"}
        assert records.read_result(tmp_path / "3") == expected
        told = capsys.readouterr().err
        assert told.endswith(f"run 3 {word}: bad\n")
        assert ("Error: bad" in told) == bug
