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
from lightning.pytorch.callbacks import EarlyStopping
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
