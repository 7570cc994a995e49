"""The callbacks that tell people and files how a run goes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console
from torch.utils.data import DataLoader

import litvision.callbacks.throughput as throughput_module
from litvision import __version__
from litvision.batches import Batch
from litvision.callbacks.best_checkpoint import BestCheckpoint
from litvision.callbacks.learning_rate import LearningRate
from litvision.callbacks.progress import BarProgress, PlainProgress, progress
from litvision.callbacks.provenance import Provenance, git_state
from litvision.callbacks.result import Result
from litvision.callbacks.throughput import Throughput
from litvision.classifier import ImageClassifier
from litvision.errors import Interrupted, PrunedError
from tiny import TinyNet

SGD = partial(torch.optim.SGD, lr=0.4)


def data(sizes: tuple[int, ...] = (6, 6, 2)) -> DataLoader:
    random = torch.Generator().manual_seed(0)
    content = [
        Batch(
            torch.randn(n, 3, 8, 8, generator=random), torch.randint(0, 4, (n,), generator=random)
        )
        for n in sizes
    ]
    return DataLoader(content, batch_size=None)


def fit(folder: Path, *callbacks: L.Callback, **options: Any) -> L.Trainer:
    fixed = {"accelerator": "cpu", "max_epochs": 2, "logger": False, "num_sanity_val_steps": 0}
    trainer = L.Trainer(
        callbacks=list(callbacks),
        default_root_dir=folder,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, BestCheckpoint) for c in callbacks),
        **{**fixed, **options},
    )
    scheduler = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    trainer.fit(ImageClassifier(TinyNet(4), SGD, scheduler), data(), data((5,)))
    return trainer


def test_learning_rate_is_logged_as_lr_by_step_and_by_epoch(tmp_path: Path) -> None:
    logger = L.pytorch.loggers.CSVLogger(tmp_path, name="", version="")
    fit(
        tmp_path, LearningRate(), logger=logger, log_every_n_steps=2, enable_progress_bar=False
    )  # fmt: skip
    header, *rows = (tmp_path / "metrics.csv").read_text().splitlines()
    table = [dict(zip(header.split(","), row.split(","), strict=True)) for row in rows]
    by_step = {int(r["step"]): float(r["lr"]) for r in table if r["lr"] and not r["epoch"]}
    assert by_step == pytest.approx({0: 0.4, 2: 0.1, 4: 0.025})
    by_epoch = {int(r["epoch"]): float(r["lr"]) for r in table if r["lr"] and r["epoch"]}
    assert by_epoch == pytest.approx({0: 0.1, 1: 0.0125})


def test_throughput_counts_pictures_and_not_validation_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(throughput_module.time, "perf_counter", lambda: now[0])

    class Clock(L.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            now[0] += 2.0

        def on_validation_epoch_end(self, *args: Any) -> None:
            now[0] += 100.0

    trainer = fit(tmp_path, Clock(), Throughput(), enable_progress_bar=False)
    assert float(trainer.callback_metrics["images_per_second"]) == pytest.approx(14 / 6)


def test_all_devices_count_also_where_a_run_goes_on_within_an_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [50.0]
    monkeypatch.setattr(throughput_module.time, "perf_counter", lambda: now[0])
    logged: list[tuple[str, float]] = []
    model: Any = SimpleNamespace(device=torch.device("cpu"), log=lambda *a: logged.append(a))
    two = SimpleNamespace(reduce=lambda mine, reduce_op: mine * (2 if reduce_op == "sum" else 1))
    trainer: Any = SimpleNamespace(strategy=two)
    throughput = Throughput()
    throughput.on_train_start(trainer, model)
    throughput.on_train_batch_end(trainer, model, None, Batch(torch.ones(6), torch.ones(6)), 3)
    now[0] += 4
    throughput.on_train_epoch_end(trainer, model)
    assert logged == [("images_per_second", 3.0)]


def test_plain_progress_prints_one_line_an_epoch(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    trainer = fit(tmp_path, LearningRate(), Throughput(), progress("plain"))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("epoch 1/2  train/loss ")
    metrics = trainer.callback_metrics
    for name, form in (
        ("train/loss", "{:.4f}"), ("val/loss", "{:.4f}"), ("val/acc", "{:.2%}"), ("lr", "{:.4g}"),
    ):  # fmt: skip
        assert f"{name} {form.format(float(metrics[name]))}" in lines[1]
    assert "images/s" in lines[1]


def test_an_epoch_without_validation_shows_no_old_validation_metrics(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    fit(tmp_path, progress("plain"), max_epochs=3, check_val_every_n_epoch=2)
    lines = capsys.readouterr().out.splitlines()
    assert ["val/loss" in line for line in lines] == [False, True, False]


def test_progress_is_a_bar_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(progress(), PlainProgress)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert isinstance(progress(), BarProgress)


def test_the_bar_leaves_a_line_for_each_epoch_above_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(
        "lightning.pytorch.callbacks.progress.rich_progress.get_console",
        lambda **_: Console(file=terminal, force_terminal=True, width=160),
        raising=False,
    )
    monkeypatch.setattr("rich.reconfigure", lambda **_: None)
    fit(tmp_path, progress("bar", refresh_rate=1))
    text = terminal.getvalue()
    assert text.count("epoch 1/2  train/loss") == 1
    assert text.count("epoch 2/2  train/loss") == 1


def test_result_holds_final_metrics_and_how_the_run_ended(tmp_path: Path) -> None:
    best = BestCheckpoint(
        dirpath=tmp_path / "checkpoints", filename="best", monitor="val/loss",
        save_on_train_epoch_end=True,
    )  # fmt: skip
    result = Result(overrides=["a=1"], test=True)
    trainer = fit(
        tmp_path, LearningRate(), Throughput(), result, best, enable_progress_bar=False
    )  # fmt: skip
    content = json.loads((tmp_path / "result.json").read_text())
    assert content["state"] == "running"  # its test is to come
    assert content["overrides"] == ["a=1"]
    assert content["epochs"] == 2
    assert content["best_epoch"] == best.best_epoch + 1
    assert content["best_val/loss"] == pytest.approx(float(best.best_model_score))
    assert content["mode"] == "min"
    assert content["seconds"] > 0
    assert content["lr"] == 0.0125
    for name in ("train/loss", "train/acc", "val/loss", "val/acc", "lr"):
        assert content[name] == pytest.approx(float(trainer.callback_metrics[name]))
    trainer.test(trainer.lightning_module, data((3,)), verbose=False)
    tested = json.loads((tmp_path / "result.json").read_text())
    assert tested == content | {"state": "done"} | {
        name: pytest.approx(float(trainer.callback_metrics[name]))
        for name in ("test/loss", "test/acc")
    }
    assert f"{tested['test/acc']:.2%}" in result.summary(tmp_path, "c.ckpt")


def test_summary_fills_in_the_commands_to_try_next() -> None:
    result = Result(try_next=["evaluate {checkpoint}", "look {run}"])
    lines = result.summary(Path("r"), "c.ckpt").splitlines()
    assert lines[-3:] == ["Next, try:", "  evaluate c.ckpt", "  look r"]
    assert result.summary(Path("r"), "").splitlines()[-2:] == ["Next, try:", "  look r"]


def test_result_says_why_a_run_stopped_early(tmp_path: Path) -> None:
    stopping = EarlyStopping("train/acc", mode="max", patience=2, min_delta=1.0)
    result = Result()
    fit(tmp_path, result, stopping, enable_progress_bar=False, max_epochs=9)
    content = json.loads((tmp_path / "result.json").read_text())
    assert content["epochs"] == 3
    assert content["stopped"] == "train/acc did not improve for 2 epochs"
    assert "stopped early  train/acc did not" in result.summary(tmp_path, "")


def test_result_of_a_run_that_fails_says_so(tmp_path: Path) -> None:
    class Fails(L.Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, *args: Any) -> None:
            state = json.loads((tmp_path / "result.json").read_text())["state"]
            assert state == "running"
            if trainer.current_epoch == 1:
                raise RuntimeError("out of luck\nmore")

    with pytest.raises(RuntimeError):
        fit(tmp_path, Fails(), Result(), enable_progress_bar=False)
    content = json.loads((tmp_path / "result.json").read_text())
    assert (content["state"], content["error"]) == ("failed", "out of luck")
    assert content["epochs"] == 1
    assert "train/loss" in content


def test_result_of_a_run_that_was_stopped_has_the_best_so_far(tmp_path: Path) -> None:
    class Stops(L.Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.current_epoch == 1:
                raise Interrupted

    best = BestCheckpoint(dirpath=str(tmp_path), monitor="train/loss")
    with pytest.raises(SystemExit):
        fit(tmp_path, Stops(), best, Result(), enable_progress_bar=False)
    content = json.loads((tmp_path / "result.json").read_text())
    assert content["state"] == "interrupted"
    assert content["best_train/loss"] == pytest.approx(float(best.best_model_score))
    assert (content["best_epoch"], content["mode"]) == (best.best_epoch + 1, "min")


def test_provenance_says_what_the_run_was_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "model=vgg16"])
    fit(tmp_path, Provenance(seed=5), enable_progress_bar=False)
    content = json.loads((tmp_path / "provenance.json").read_text())
    assert content["seed"] == 5
    assert content["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert content["versions"]["litvision"] == __version__
    assert content["hardware"]["precision"] == "32-true"
    assert content["hardware"]["devices"] == 1
    assert content["command"] == f"{sys.executable} train.py model=vgg16"


def test_git_state_is_commit_and_uncommitted_changes(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert git_state(tmp_path) is None
    git("init", "-q")
    assert git_state(tmp_path) is None  # no commit yet
    (tmp_path / "a.txt").write_text("old\n")
    git("add", ".")
    git("commit", "-qm", "first")
    assert git_state(tmp_path) == {
        "commit": git("rev-parse", "HEAD").strip(), "diff": "", "untracked": "",
    }  # fmt: skip
    (tmp_path / "a.txt").write_text("new\n")
    (tmp_path / "b.txt").write_text("untracked\n")
    state = git_state(tmp_path)
    assert state is not None
    assert "-old\n+new\n" in state["diff"]
    assert state["untracked"] == "b.txt\n"


def test_a_runs_speed_is_that_of_its_median_epoch_those_before_a_resume_included() -> None:
    result = Result()
    result.load_state_dict({"content": {}, "seconds": 0.0, "rates": [1.0, 9.0, 3.0, 2.0, 8.0]})
    trainer: Any = SimpleNamespace(callback_metrics={}, is_global_zero=False)
    result.on_fit_end(trainer, TinyNet())
    assert result.content["images_per_second"] == 3.0


def writes(folder: Path, *callbacks: L.Callback, **metrics: float) -> Any:
    """Return as much of a trainer as `Result` looks at."""
    found = {name.replace("_", "/"): torch.tensor(value) for name, value in metrics.items()}
    return SimpleNamespace(
        callback_metrics=found, is_global_zero=True, default_root_dir=folder, callbacks=callbacks
    )


def test_a_run_that_goes_on_counts_its_seconds_and_forgets_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("litvision.callbacks.result.time.perf_counter", lambda: now[0])
    first, second = Result(["a=1"], test=True), Result(["b=2"], test=True)
    first.setup(writes(tmp_path), TinyNet(), "fit")
    for rate in (2.0, 1.0):
        trainer = writes(tmp_path, val_loss=0.5)
        trainer.current_epoch, trainer.callback_metrics["images_per_second"] = 0, torch.tensor(rate)
        first.on_train_epoch_end(trainer, TinyNet())
    first.on_exception(trainer, TinyNet(), Interrupted())
    now[0] = 5
    state = first.state_dict()
    now[0] = 100
    second.setup(writes(tmp_path), TinyNet(), "fit")
    second.load_state_dict(state)
    now[0] = 103
    assert second.state_dict()["seconds"] == 8
    second.on_fit_end(writes(tmp_path), TinyNet())
    assert json.loads((tmp_path / "result.json").read_text()) == {
        "state": "running", "overrides": ["b=2"], "val/loss": 0.5, "images_per_second": 1.5,
        "epochs": 1, "seconds": 8,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("exception", "state", "error"),
    [
        (ValueError(), "failed", "ValueError"),
        (PrunedError("stopped after epoch 2"), "pruned", "stopped after epoch 2"),
        (Interrupted(), "interrupted", "stopped from outside"),
        (KeyboardInterrupt(), "interrupted", "stopped from outside"),
        (SIGTERMException(), "interrupted", "stopped from outside"),
    ],
)
def test_result_says_how_a_run_ended(
    tmp_path: Path, exception: BaseException, state: str, error: str
) -> None:
    Result().on_exception(writes(tmp_path), TinyNet(), exception)
    content = json.loads((tmp_path / "result.json").read_text())
    assert content == {"state": state, "error": error}


def test_a_result_that_cannot_be_written_hides_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = Result()
    result.on_exception(writes(tmp_path / "file"), TinyNet(), OSError(28, "No space left"))
    assert result.content["state"] == "failed"


def test_a_test_adds_its_own_metrics_alone(tmp_path: Path) -> None:
    result = Result()
    result.content["val/loss"] = 0.5
    result.on_test_end(writes(tmp_path, val_loss=9.0, test_acc=0.0), TinyNet())
    assert result.content == {"val/loss": 0.5, "test/acc": 0.0, "state": "done"}
    assert result.summary(Path("r"), "").splitlines() == [
        "test accuracy  0.00%",
        "run            r",
    ]


@pytest.mark.parametrize(("seconds", "stopped"), [(9.0, None), (11.0, "trainer.max_time was over")])
def test_a_run_that_had_time_left_was_not_stopped_by_it(
    tmp_path: Path, seconds: float, stopped: str | None
) -> None:
    timer, result = Timer("00:00:00:10"), Result()
    timer.load_state_dict({"time_elapsed": {"train": seconds}})
    result.on_fit_end(writes(tmp_path, timer), TinyNet())
    assert result.content.get("stopped") == stopped


def test_the_best_of_a_metric_that_rises_says_so(tmp_path: Path) -> None:
    best, result = BestCheckpoint(monitor="val/acc", mode="max"), Result()
    best._best_epoch, best.best_model_score = 0, torch.tensor(0.25)
    result.on_fit_end(writes(tmp_path, best), TinyNet())
    found = {key: result.content[key] for key in ("best_val/acc", "best_epoch", "mode")}
    assert found == {"best_val/acc": 0.25, "best_epoch": 1, "mode": "max"}
