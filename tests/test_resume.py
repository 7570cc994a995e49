"""A run that was stopped, at any moment and by any means, ends as if it had not been."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from commands import run_command
from conftest import Run
from litvision.commandline import _named
from litvision.records import alone, read_result, write_result

# 50 pictures to train on: 7 steps an epoch, 28 in all; the rate is halved and the run nearly stops.
OPTIONS = [
    "data=shapes",
    "data.train_size=60",
    "data.test_size=20",
    "data.batch_size=8",
    "model.network._target_=tiny.TinyDropout",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.max_epochs=4",
    "optimizer.lr=0.5",
    "callbacks.reduce_lr_on_plateau.patience=1",
    "callbacks.early_stopping.patience=4",
    "callbacks.model_summary=null",
    "callbacks.figures=null",
]
STEPS = 28
SIGNAL = "+callbacks.signal={_target_: tiny.Signal, step: %d, number: %d}"


def weights(folder: Path) -> dict[str, Any]:
    content = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    momenta = content["optimizer_states"][0]["state"]
    return {**content["state_dict"], **{f"m{k}": s["momentum_buffer"] for k, s in momenta.items()}}


def same_end(run: Path, whole: Path, killed: bool = False) -> None:
    """Bit by bit: weights, momenta, counters, and what was logged.

    Lightning writes an epoch's row after its checkpoint: a kill between the two costs that row.
    """
    expected, found = weights(whole), weights(run)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    kept = [
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        for folder in (whole, run)
    ]
    assert kept[0]["lr_schedulers"] == kept[1]["lr_schedulers"]
    stopping = [next(v for k, v in c["callbacks"].items() if "EarlyStopping" in k) for c in kept]
    assert stopping[0] == stopping[1]
    logged = []
    for folder in (whole, run):
        rows = list(csv.DictReader((folder / "metrics.csv").open()))
        logged.append([{k: v for k, v in r.items() if k != "images_per_second"} for r in rows])
    lost = [row for row in logged[0] if row not in logged[1]]
    assert [row for row in logged[0] if row not in lost] == logged[1]
    assert len(lost) <= killed
    results = [json.loads((folder / "result.json").read_text()) for folder in (whole, run)]
    for key in ("train/loss", "train/acc", "val/loss", "best_val/loss", "best_epoch", "test/acc"):
        assert results[0][key] == results[1][key], key


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    done = run_command(folder, "train", *OPTIONS, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    rates = {row["lr"] for row in csv.DictReader((folder / "run" / "metrics.csv").open())}
    assert len(rates - {""}) > 1  # the plateau rule has counted
    return folder / "run"


@pytest.mark.parametrize(
    ("step", "number", "workers"),
    [
        (0, signal.SIGTERM, 0),
        (3, signal.SIGINT, 0),
        (6, signal.SIGTERM, 0),  # an epoch's last step: saved with the epoch
        (7, signal.SIGTERM, 0),  # and its first
        pytest.param(17, signal.SIGTERM, 2, marks=pytest.mark.slow),
    ],
)
def test_stopped_by_a_signal_and_gone_on_with(
    tmp_path: Path, run: Run, whole: Path, step: int, number: int, workers: int
) -> None:
    options = [*OPTIONS, f"data.num_workers={workers}"]
    done = run("train", *options, SIGNAL % (step, number), "hydra.run.dir=run")
    assert done.returncode == 75, done.stderr
    content = json.loads((tmp_path / "run" / "result.json").read_text())
    assert content["state"] == "interrupted"
    # SIGINT and SIGTERM stop after the step in which they come.
    saved = f"saved at step {step + 1}; to go on: the same command with resume={tmp_path}/run"
    assert done.stderr.splitlines()[-1] == saved
    done = run("train", *options, "resume=run")
    assert done.returncode == 0, done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    same_end(tmp_path / "run", whole)
    events = EventAccumulator(str(tmp_path / "run"), {"scalars": 0}).Reload()
    assert [e.step for e in events.Scalars("val/loss")] == [6, 13, 20, 27]


def test_the_latest_run_that_has_not_ended_is_found(tmp_path: Path, run: Run, whole: Path) -> None:
    done = run("train", *OPTIONS, "resume=auto", SIGNAL % (9, signal.SIGTERM))
    assert done.returncode == 75
    none = "resume=auto: no run in logs/default waits to go on; a new one begins"
    assert done.stderr.splitlines()[0] == none
    (stopped,) = (tmp_path / "logs" / "default").iterdir()
    done = run("train", *OPTIONS, "resume=auto")
    assert done.returncode == 0, done.stderr
    assert "resume=auto" not in done.stderr
    same_end(stopped, whole)
    # It has ended now: the same command begins another.
    again = run("train", *OPTIONS, "resume=auto", "trainer.max_epochs=1")
    assert again.returncode == 0, again.stderr
    assert len(list((tmp_path / "logs" / "default").iterdir())) == 2


@pytest.mark.slow
def test_two_devices_go_on_with_the_latest_run_together(tmp_path: Path, run: Run) -> None:
    two = [*OPTIONS, "trainer=ddp", "trainer.devices=2", "resume=auto"]
    done = run("train", *two, "trainer.max_epochs=1", SIGNAL % (3, signal.SIGTERM))
    assert done.returncode == 75, done.stderr
    done = run("train", *two, "trainer.max_epochs=2")
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "logs" / "default").iterdir()
    result = read_result(folder)
    assert (result["state"], result["epochs"]) == ("done", 2)
    assert result["overrides"].count(f"resume='logs/default/{folder.name}'") == 1


def test_processes_of_one_launch_agree_on_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [Path("logs/default", name) for name in ("a", "b")]
    for number, folder in enumerate(folders):
        last = folder / "checkpoints" / "last.ckpt"
        last.parent.mkdir(parents=True)
        last.touch()
        os.utime(last, (number, number))  # b is the later one
    monkeypatch.setenv("MASTER_PORT", "1")
    with alone(folders[1]):  # by another launch
        monkeypatch.setenv("MASTER_PORT", "2")
        assert _named(["resume=auto"]) == ["resume='logs/default/a'"]
        with alone(folders[0]):
            monkeypatch.setenv("RANK", "1")
            assert _named(["resume=auto"]) == ["resume='logs/default/a'"]
            monkeypatch.delenv("RANK")
            assert _named(["resume=auto"]) == ["resume=null"]


def test_a_run_that_is_being_trained_is_left_alone(tmp_path: Path, run: Run, whole: Path) -> None:
    folder = tmp_path / "logs" / "default" / "a"
    shutil.copytree(whole, folder)
    write_result(folder, {"state": "running"})
    with alone(folder):
        done = run("train", *OPTIONS, "resume=logs/default/a")
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith(f"error: {folder} is being trained in by")
        assert run("train", *OPTIONS, "resume=auto", "trainer.max_epochs=1").returncode == 0
        (other,) = {path.name for path in folder.parent.iterdir()} - {"a"}
    assert not (folder / ".lock").exists()
    assert read_result(folder) == {"state": "running"}
    assert read_result(folder.parent / other)["state"] == "done"


def test_more_epochs_can_be_added_to_a_run_that_has_ended(
    tmp_path: Path, run: Run, whole: Path
) -> None:
    done = run("train", *OPTIONS, "trainer.max_epochs=2", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    done = run("train", *OPTIONS, "resume=run/checkpoints/last.ckpt")
    assert done.returncode == 0, done.stderr
    same_end(tmp_path / "run", whole)


EVERY_STEP = "checkpoint.every_n_minutes=1e-9"


def start(tmp_path: Path) -> subprocess.Popen[bytes]:
    """Start a run that saves at every step, and return when it has saved for the first time."""
    tests = Path(__file__).parent
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests.parent / "src"), str(tests)])}
    command = [sys.executable, "-m", "litvision.train", *OPTIONS, EVERY_STEP, "hydra.run.dir=run"]
    started = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    while not last.exists() and started.poll() is None:
        time.sleep(0.001)
    return started


def kill_and_resume(tmp_path: Path, seconds: float) -> tuple[bool, int]:
    """Kill a run after so many seconds of training, resume it; return whether it was killed."""
    killed = start(tmp_path)
    time.sleep(seconds)
    killed.send_signal(signal.SIGKILL)
    code = killed.wait()
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    step = torch.load(last, weights_only=True)["global_step"]
    done = run_command(tmp_path, "train", *OPTIONS, EVERY_STEP, "resume=run")
    assert done.returncode == 0, done.stderr
    return code == -signal.SIGKILL, step


def test_killed_and_gone_on_with(tmp_path: Path, whole: Path) -> None:
    was_killed, step = kill_and_resume(tmp_path, 0.05)
    assert was_killed
    assert 0 < step < STEPS
    same_end(tmp_path / "run", whole, killed=True)


@pytest.mark.slow
def test_killed_at_twenty_random_moments_and_gone_on_with(tmp_path: Path, whole: Path) -> None:
    undisturbed, since = start(tmp_path), time.monotonic()
    while read_result(tmp_path / "run").get("epochs") != 4 and undisturbed.poll() is None:
        time.sleep(0.001)
    length = time.monotonic() - since  # of training: testing and the end come after it
    undisturbed.wait()
    moments = random.Random(0)
    steps = set()
    for number in range(20):
        folder = tmp_path / str(number)
        folder.mkdir()
        _, step = kill_and_resume(folder, moments.uniform(0, length))
        steps.add(step)
        same_end(folder / "run", whole, killed=True)
    assert len(steps) > 5
    assert any(step % 7 for step in steps)
