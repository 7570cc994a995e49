"""Runs of a sweep side by side, on several devices, and on SLURM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from conftest import Run
from litvision import sweeps
from tiny_sweep import DIVERGES, TINY, result


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "ray"])
def test_runs_side_by_side_share_the_cores(tmp_path: Path, run: Run, launcher: str) -> None:
    if launcher == "ray":
        pytest.importorskip("ray", reason="make install EXTRAS=ray")
    done = run("train", "--multirun", *TINY, DIVERGES, f"hydra/launcher={launcher}", fresh=True)
    assert done.returncode == 1
    assert [result(tmp_path, n)["state"] for n in range(3)] == ["done", "failed", "done"]
    assert "1 of 3 runs failed: 1" in done.stderr
    provenance = json.loads((tmp_path / "sweep" / "0" / "provenance.json").read_text())
    cores = sweeps.cores()
    shares = {"joblib": cores // 2, "submitit_local": cores // 3, "ray": 1}
    assert provenance["hardware"]["threads"] == max(1, shares[launcher])


def test_a_launcher_that_is_not_installed_is_named(run: Run) -> None:
    missing = "hydra_plugins.hydra_nowhere_launcher.launcher.NowhereLauncher"
    done = run("train", "--multirun", *TINY, "seed=0,1", f"hydra.launcher._target_={missing}")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: hydra/launcher=nowhere needs hydra-nowhere-launcher, which is not installed: "
        "make install EXTRAS=nowhere"
    ]


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
def test_a_sweep_that_is_stopped_stops_its_runs_processes(tmp_path: Path, run: Run) -> None:
    options = [*TINY, *DDP, "optimizer.lr=0.01,0.1", "callbacks.early_stopping=null"]
    tests = Path(__file__).parent
    paths = os.pathsep.join([str(tests.parent / "src"), str(tests)])
    sweep = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "litvision.train",
            "--multirun",
            *options,
            "trainer.max_epochs=2000",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "sweep" / "0" / "metrics.csv"
    for _ in range(600):
        if metrics.exists() and metrics.stat().st_size > 1000:
            break
        time.sleep(0.1)
    sweep.send_signal(signal.SIGTERM)
    _, stderr = sweep.communicate(timeout=60)
    assert sweep.returncode == 75, stderr
    assert result(tmp_path, 0)["state"] == "interrupted"
    assert not (tmp_path / "sweep" / "1").exists()
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
            SLURM_JOB_NODELIST=localhost SLURM_TASKS_PER_NODE=1 sh sbatch.sh >job.$task 2>&1 &
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
