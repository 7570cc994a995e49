"""A sweep goes on when a run fails, and can be gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from conftest import Run
from litvision import sweeps
from litvision.errors import UserError

TINY = [
    "data=shapes",
    "data.train_size=60",
    "data.test_size=20",
    "data.batch_size=16",
    "model.network._target_=tiny.TinyLinear",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=2",
    "trainer.precision=32-true",
    "callbacks.model_summary=null",
    "logger=csv",
    "hydra.sweep.dir=sweep",
]
DIVERGES = "optimizer.lr=0.01,1e30,0.1"


def result(folder: Path, run: int | str) -> dict[str, Any]:
    return json.loads((folder / "sweep" / str(run) / "result.json").read_text())


def test_a_failed_run_is_recorded_and_the_others_go_on(tmp_path: Path, run: Run) -> None:
    done = run("train", "--multirun", *TINY, DIVERGES)
    assert done.returncode == 1
    assert [result(tmp_path, n)["state"] for n in range(3)] == ["done", "failed", "done"]
    assert result(tmp_path, 1)["error"].startswith("The training loss is not finite at epoch 0")
    assert result(tmp_path, 1)["overrides"][-1] == "optimizer.lr=1e+30"
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
    with pytest.raises(KeyError):
        hparams(tmp_path / "alone")


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


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_runs_side_by_side_share_the_cores(tmp_path: Path, run: Run, launcher: str) -> None:
    done = run("train", "--multirun", *TINY, DIVERGES, f"hydra/launcher={launcher}", fresh=True)
    assert done.returncode == 1
    assert [result(tmp_path, n)["state"] for n in range(3)] == ["done", "failed", "done"]
    assert "1 of 3 runs failed: 1" in done.stderr
    provenance = json.loads((tmp_path / "sweep" / "0" / "provenance.json").read_text())
    runs = 2 if launcher == "joblib" else 3
    assert provenance["hardware"]["threads"] == max(1, sweeps.cores() // runs)


def test_the_folder_of_a_failed_run_is_never_written_over(tmp_path: Path) -> None:
    for expected in ("3_failed_1", "3_failed_2"):
        (tmp_path / "3").mkdir()
        sweeps.put_aside(tmp_path / "3")
        assert (tmp_path / expected).is_dir()
        assert not (tmp_path / "3").exists()
    sweeps.put_aside(tmp_path / "3")


def test_a_plan_is_compared_run_by_run(tmp_path: Path) -> None:
    sweeps.begin(tmp_path, [["a=1", "b=2"]], ["a"])
    sweeps.begin(tmp_path, [["a=1", "b=2"]], ["a"])
    with pytest.raises(UserError, match="holds another sweep: nothing there, a=1 b=3 here"):
        sweeps.begin(tmp_path, [["a=1", "b=2"], ["a=1", "b=3"]], ["a"])


# -------------------------------------------------------------------------------- by Optuna

SEARCH = ["sweep=optuna", *TINY, "hydra.sweeper.sampler.seed=0"]


def trials(folder: Path) -> list[Any]:
    import optuna

    from litvision import study

    stored = study.storage(folder / "sweep" / study.JOURNAL)
    return optuna.load_study(study_name=study.NAME, storage=stored).get_trials()


def test_a_search_asks_for_runs_and_tells_their_results(tmp_path: Path, run: Run) -> None:
    done = run("train", *SEARCH, "hydra.sweeper.n_trials=3")
    assert done.returncode == 0, done.stderr
    found = trials(tmp_path)
    assert [trial.state.name for trial in found] == ["COMPLETE"] * 3
    for trial in found:
        content = result(tmp_path, trial.number)
        assert trial.value == pytest.approx(content["best_val/loss"], rel=1e-6)
        assert f"optimizer.lr={trial.params['optimizer.lr']}" in content["overrides"]
        assert set(trial.intermediate_values) == {0, 1}  # one report an epoch
    best = min(found, key=lambda trial: trial.value)
    assert f"best: trial {best.number}, {best.value:.6g}, optimizer.lr=" in done.stdout

    # Gone on with: the total counts those before, and the seed does not ask for the same again.
    more = run("train", *SEARCH, "hydra.sweeper.n_trials=5", "sweep.resume=sweep")
    assert more.returncode == 0, more.stderr
    assert len(trials(tmp_path)) == 5
    assert len({trial.params["optimizer.lr"] for trial in trials(tmp_path)}) == 5
    assert "5 trials: 5 complete" in more.stdout


def test_a_run_that_diverges_or_fails_does_not_end_the_search(tmp_path: Path, run: Run) -> None:
    rates = "optimizer.lr=choice(1e30)"
    done = run("train", *SEARCH, rates, "hydra.sweeper.n_trials=2")
    assert done.returncode == 0, done.stderr
    assert [trial.state.name for trial in trials(tmp_path)] == ["PRUNED"] * 2
    assert result(tmp_path, 0)["state"] == "pruned"
    assert "not finite" in result(tmp_path, 0)["error"]

    options = ["optimizer.lr=choice(-1)", "hydra.sweep.dir=other/sweep", "hydra.sweeper.n_trials=2"]
    done = run("train", *SEARCH, *options)
    assert done.returncode == 1
    states = trials(tmp_path / "other")
    assert [trial.state.name for trial in states] == ["FAIL"] * 2
    assert "Invalid learning rate: -1" in states[0].user_attrs["error"]
    assert "error: 2 of 2 runs failed: 0, 1;" in done.stderr


@pytest.mark.parametrize(
    "pruner",
    [
        "median",
        pytest.param("asha", marks=pytest.mark.slow),
        pytest.param("hyperband", marks=pytest.mark.slow),
    ],
)
def test_a_hopeless_run_is_pruned(tmp_path: Path, run: Run, pruner: str) -> None:
    """With a learning rate that is far too high its loss is above all those before it."""
    options = "{n_startup_trials: 2}" if pruner == "median" else "null"
    rates = "optimizer.lr=choice(0.01,5)"
    search = [*SEARCH, rates, "hydra/sweeper/sampler=random", "hydra.sweeper.n_trials=12"]
    done = run(
        "train", *search, "trainer.max_epochs=8", f"callbacks.study_pruning.pruner={pruner}",
        f"callbacks.study_pruning.options={options}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = trials(tmp_path)
    pruned = [trial for trial in found if trial.state.name == "PRUNED"]
    assert pruned
    best = min((t for t in found if t.state.name == "COMPLETE"), key=lambda trial: trial.value)
    assert best.params["optimizer.lr"] == 0.01
    for trial in pruned:
        content = result(tmp_path, trial.number)
        assert content["state"] == "pruned"
        assert content["epochs"] < 8
        assert content["error"].startswith(f"stopped after epoch {content['epochs']}: val/loss")
    assert any(trial.params["optimizer.lr"] == 5 for trial in pruned)


def test_a_search_that_was_killed_goes_on_and_runs_the_lost_again(tmp_path: Path, run: Run) -> None:
    tests = Path(__file__).parent
    paths = os.pathsep.join([str(tests.parent / "src"), str(tests)])
    long = ["trainer.max_epochs=100000", "callbacks.early_stopping=null"]
    command = [sys.executable, "-m", "litvision.train", *SEARCH, "hydra.sweeper.n_trials=2"]
    search = subprocess.Popen(
        [*command, *long],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    metrics = tmp_path / "sweep" / "0" / "metrics.csv"
    for _ in range(600):
        if metrics.exists() and metrics.stat().st_size > 1000:
            break
        time.sleep(0.1)
    search.send_signal(signal.SIGKILL)
    search.wait()
    (lost,) = trials(tmp_path)
    assert lost.state.name == "RUNNING"
    # The same command, but for an end that a test can wait for.
    plan = tmp_path / "sweep" / "sweep.json"
    plan.write_text(plan.read_text().replace("max_epochs=100000", "max_epochs=2"))
    args = [*SEARCH, "hydra.sweeper.n_trials=2", *long[1:], "sweep.resume=sweep"]
    args.insert(-1, "trainer.max_epochs=2")
    done = run("train", *args)
    assert done.returncode == 0, done.stderr
    found = trials(tmp_path)
    assert [trial.state.name for trial in found] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert found[1].params == lost.params
    assert result(tmp_path, 0)["error"] == "lost when the search was stopped"
    assert "trial 0 was lost; its options run again" in done.stdout


# ---------------------------------------------------------------------------- on two devices

DDP = ["trainer=ddp", "trainer.devices=2", "data.batch_size=15"]


def left_behind(folder: Path) -> list[str]:
    """Return the command lines of processes that still run in a folder."""
    processes = psutil.process_iter(["cwd", "cmdline"])
    return [" ".join(p.info["cmdline"]) for p in processes if p.info["cwd"] == str(folder)]


@pytest.mark.slow
def test_each_run_of_a_sweep_may_have_two_processes(tmp_path: Path, run: Run) -> None:
    networks = "model.network._target_=tiny.TinyLinear,tiny.FailsOnSecondDevice"
    done = run("train", "--multirun", *TINY, *DDP, networks, fresh=True)
    assert done.returncode == 1
    assert [result(tmp_path, n)["state"] for n in range(2)] == ["done", "failed"], done.stderr
    assert "1 of 2 runs failed: 1" in done.stderr
    assert "the second device is broken" in done.stderr
    provenance = json.loads((tmp_path / "sweep" / "0" / "provenance.json").read_text())
    assert provenance["hardware"]["devices"] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["sweep"]  # no folder of a second process
    assert not left_behind(tmp_path)


@pytest.mark.slow
def test_torchrun_makes_one_folder_and_the_metrics_of_one_process(tmp_path: Path, run: Run) -> None:
    tests = Path(__file__).parent
    paths = os.pathsep.join([str(tests.parent / "src"), str(tests)])
    tiny = [option for option in TINY if not option.startswith("hydra.")]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "litvision.train"]
    done = subprocess.run(
        [sys.executable, *torchrun, *tiny, *DDP],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "logs" / "default").iterdir()
    assert sum(line.startswith("epoch 1/2") for line in done.stdout.splitlines()) == 1
    alone = run("train", *tiny, "data.batch_size=15", "hydra.run.dir=alone")
    assert alone.returncode == 0, alone.stderr
    results = [json.loads((f / "result.json").read_text()) for f in (folder, tmp_path / "alone")]
    for key in ("train/loss", "val/loss", "test/loss"):
        assert results[0][key] == pytest.approx(results[1][key], rel=1e-5)


# ---------------------------------------------------------------------------------- by SLURM

SLURM = {
    # Keeps what it is given and runs each job of the array, as the scheduler would.
    "sbatch": """
        cp "$1" sbatch.sh
        echo "Submitted batch job 42"
        for task in 0 1; do
            SLURM_JOB_ID=42 SLURM_ARRAY_JOB_ID=42 SLURM_ARRAY_TASK_ID=$task SLURM_NTASKS=1 \
            SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_JOB_NUM_NODES=1 SLURM_NNODES=1 \
            SLURM_JOB_NODELIST=localhost SLURM_TASKS_PER_NODE=1 sh "$1" >job.$task 2>&1 &
        done
    """,
    "srun": """
        while [ "${1#-}" != "$1" ]; do
            case $1 in --output|--error) shift;; esac
            shift
        done
        exec "$@"
    """,
    "sacct": 'echo "JobID|State|NodeList"; echo "42_0|RUNNING|here"; echo "42_1|RUNNING|here"',
    "scontrol": "echo localhost",
}


@pytest.mark.slow
def test_jobs_for_slurm_ask_for_what_the_launcher_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    """A dry run: what is submitted is looked at, and run by a scheduler of ten lines."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, script in SLURM.items():
        (programs / name).write_text(f"#!/bin/sh\n{textwrap.dedent(script)}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    slurm = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu"]
    slurm += ["hydra.launcher.gpus_per_node=1", "hydra.launcher.cpus_per_task=8"]
    slurm += ["hydra.launcher.mem_gb=32", "hydra.launcher.timeout_min=720"]
    tiny = [option for option in TINY if option != "hydra.sweep.dir=sweep"]
    folder = f"hydra.sweep.dir={tmp_path}/sweep"
    done = run("train", "--multirun", *tiny, folder, "optimizer.lr=0.01,1e30", *slurm, fresh=True)
    script = (tmp_path / "sbatch.sh").read_text()
    for line in (
        "--partition=gpu",
        "--gpus-per-node=1",
        "--cpus-per-task=8",
        "--mem=32GB",
        "--time=720",
        "--array=0-1%2",
        "--nodes=1",
    ):
        assert f"#SBATCH {line}" in script
    assert [result(tmp_path, n)["state"] for n in range(2)] == ["done", "failed"], done.stderr
    assert done.returncode == 1
    assert "1 of 2 runs failed: 1" in done.stderr
