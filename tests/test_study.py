"""A search by Optuna: it goes on, prunes, and keeps its study in the sweep's folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.utils import JobReturn, JobStatus
from hydra.utils import instantiate
from omegaconf import OmegaConf

from conftest import Run
from litvision import study
from litvision.classifier import NonFiniteLossError
from litvision.configs import CONF
from litvision.errors import PrunedError, UserError
from tiny_sweep import TINY, result

SEARCH = ["sweep=optuna", *TINY, "hydra.sweeper.sampler.seed=0"]


def trials(folder: Path) -> list[Any]:
    import optuna

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


def test_a_search_by_accuracy_looks_for_the_highest(tmp_path: Path, run: Run) -> None:
    accuracy = ["monitor=val/acc", "mode=max", "trainer.max_epochs=1"]
    done = run("train", *SEARCH, *accuracy, "hydra.sweeper.n_trials=3")
    assert done.returncode == 0, done.stderr
    best = max(trials(tmp_path), key=lambda trial: (trial.value, -trial.number))
    assert f"best: trial {best.number}, {best.value:.6g}, optimizer.lr=" in done.stdout

    wrong = run("train", *SEARCH, "hydra.sweeper.direction=maximize", "hydra.sweep.dir=other")
    assert wrong.returncode == 1
    assert wrong.stderr.splitlines()[-1] == (
        "error: hydra.sweeper.direction=maximize with mode=min searches for the worst: leave "
        "hydra.sweeper.direction out."
    )


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
    trials_needed = 6 if pruner == "median" else 12  # the others compare in rounds
    search = [*SEARCH, rates, "hydra/sweeper/sampler=random"]
    search.append(f"hydra.sweeper.n_trials={trials_needed}")
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


@pytest.mark.slow
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


@pytest.mark.parametrize(
    "name",
    ["random", "cmaes", "nsgaii", "qmc", pytest.param("gp", marks=pytest.mark.slow)],
)
def test_a_sampler_suggests(name: str) -> None:
    import optuna

    with initialize_config_dir(str(CONF)):
        overrides = ["sweep=optuna", f"hydra/sweeper/sampler={name}"]
        cfg = compose("train", overrides=overrides, return_hydra_config=True)
    trusted = ("hydra_plugins.hydra_optuna_sweeper.*", "optuna.samplers.*")
    built = instantiate(cfg.hydra.sweeper.sampler, _execution_whitelist_=trusted)
    search = optuna.create_study(sampler=built)
    # Twelve, for gp begins with ten at random.
    search.optimize(lambda trial: trial.suggest_float("x", 0, 1) ** 2, n_trials=12)
    assert all(0 <= trial.params["x"] <= 1 for trial in search.trials)


def test_what_was_lost_runs_again_and_does_not_count(tmp_path: Path) -> None:
    import optuna
    from optuna.trial import TrialState

    stored = study.storage(tmp_path / study.JOURNAL)
    search = optuna.create_study(study_name=study.NAME, storage=stored)
    space: Any = {"x": optuna.distributions.FloatDistribution(0, 1)}
    lost = search.ask(space)
    for state in (TrialState.FAIL, TrialState.PRUNED):
        search.tell(search.ask(space), state=state)
    search.tell(search.ask(space), 0.5)
    assert study.run_lost_again(search, stored) == [0]
    assert study.ended(search) == 3
    assert study.failed(search) == [1]
    assert search.ask(space).params == lost.params
    assert study.ended(search) == 3


@pytest.mark.parametrize(
    ("outcome", "diverged"),
    [
        (0.5, False),
        (float("nan"), True),
        (float("inf"), True),
        (NonFiniteLossError("the loss"), True),
        (ValueError("bad"), False),
        (None, False),
    ],
)
def test_a_run_without_a_finite_result_has_diverged(outcome: Any, diverged: bool) -> None:
    job = JobReturn()
    job._return_value = outcome
    assert study.diverged(job) == diverged


@pytest.mark.parametrize(
    ("outcome", "status", "state"),
    [
        (0.5, JobStatus.COMPLETED, "COMPLETE"),
        (float("inf"), JobStatus.COMPLETED, "PRUNED"),
        (PrunedError("slow"), JobStatus.FAILED, "PRUNED"),
        (ValueError("bad"), JobStatus.FAILED, "FAIL"),
        (None, JobStatus.COMPLETED, "FAIL"),
    ],
)
def test_a_trial_ends_as_its_run_did(outcome: Any, status: JobStatus, state: str) -> None:
    import optuna

    search = optuna.create_study()
    job = JobReturn(status=status)
    job._return_value = outcome
    study.StudySweeper(None)._tell(search, search.ask(), job)
    (trial,) = search.trials
    assert trial.state.name == state
    errors = {ValueError: {"error": "bad"}, type(None): {"error": "the run has no watched metric"}}
    assert trial.user_attrs == errors.get(type(outcome), {})


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_search_goes_where_the_run_does(mode: str) -> None:
    for given in (None, f"{mode}imize"):
        sweeper = study.StudySweeper(None, direction=given)
        sweeper.config = OmegaConf.create({"mode": mode})
        assert sweeper._direction() == f"{mode}imize"


def test_every_combination_is_no_search() -> None:
    grid = {"_target_": "optuna.samplers.GridSampler", "_partial_": True}
    with pytest.raises(UserError, match="for that, give sweep=grid"):
        study.StudySweeper(grid)._build_sampler()


def test_no_more_runs_start_than_were_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launched: list[list[list[str]]] = []
    results = iter([0.5, 0.25, 0.75])

    def launch(jobs: list[list[str]], initial_job_idx: int) -> list[JobReturn]:
        launched.append(jobs)
        returns = [JobReturn(status=JobStatus.COMPLETED) for _ in jobs]
        for job in returns:
            job.return_value = next(results)
        return returns

    sampler = {"_target_": "optuna.samplers.RandomSampler", "seed": 0}
    params = OmegaConf.create({"optimizer.lr": "interval(0.5,1)", "seed": "choice(1,2)"})
    sweeper = study.StudySweeper(sampler, n_trials=3, n_jobs=2, params=params)
    hydra = {"sweep": {"dir": str(tmp_path)}}
    sweeper.config = OmegaConf.create({"mode": "min", "hydra": hydra})
    sweeper.launcher = SimpleNamespace(launch=launch)
    sweeper.sweep(["seed=1"])
    assert [len(jobs) for jobs in launched] == [2, 1]
    for number, job in enumerate([job for jobs in launched for job in jobs]):
        assert [option.partition("=")[0] for option in job] == [
            "optimizer.lr", "sweep.trial", "hydra.sweep.subdir", "seed",
        ]  # fmt: skip
        assert job[1:] == [f"sweep.trial={number}", f"hydra.sweep.subdir={number}", "seed=1"]
    assert "3 trials: 3 complete\nbest: trial 1, 0.25, optimizer.lr=0." in capsys.readouterr().out
