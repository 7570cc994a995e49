"""Runs beside each other, and beside those who read them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import Run
from tiny_sweep import TINY, result


def test_tensorboard_reads_while_a_run_trains(tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "run"
    stop = "+callbacks.stop={_target_: tiny.StopsOnFile, file: stop}"
    options = [
        *(option for option in TINY if not option.startswith(("logger", "hydra"))),
        *("trainer.max_epochs=10000", "callbacks.early_stopping=null", "callbacks.graph=null"),
        *("logger=tensorboard", "hydra.run.dir=run", "test=false", stop),
    ]
    seen: list[int] = []  # how many epochs each look found
    with ThreadPoolExecutor() as pool:
        training = pool.submit(run, "train", *options)
        reader = EventAccumulator(str(folder))
        while len(set(seen)) < 5 and not training.done():
            if folder.exists():
                reader.Reload()
                if "val/loss" in reader.Tags()["scalars"]:
                    steps = [event.step for event in reader.Scalars("val/loss")]
                    assert steps == [4 * epoch + 3 for epoch in range(len(steps))]
                    seen.append(len(steps))
        ended_by_itself = training.done()
        (tmp_path / "stop").touch()
        done = training.result()
    assert done.returncode == 0, done.stderr
    assert not ended_by_itself
    assert seen == sorted(seen)


@pytest.mark.slow
def test_sixteen_runs_in_four_processes_leave_sixteen_results(tmp_path: Path, run: Run) -> None:
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=4"]
    seeds = ",".join(map(str, range(16)))
    done = run("train", "--multirun", *TINY, f"seed={seeds}", *launcher, fresh=True)
    assert done.returncode == 0, done.stderr
    results = [result(tmp_path, number) for number in range(16)]
    assert [found["state"] for found in results] == ["done"] * 16
    assert all(f"seed={number}" in found["overrides"] for number, found in enumerate(results))
    assert len({found["val/loss"] for found in results}) == 16  # each of its own seed
