"""Runs that are gone on with: cut within an epoch, moved, or with other options than at first."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import open_dict
from PIL import Image

from conftest import Compose, Run
from litvision import assemble
from litvision.callbacks import interval_checkpoint
from litvision.callbacks.early_stopping import EarlyStopping
from litvision.callbacks.provenance import Provenance
from litvision.callbacks.reduce_lr_on_plateau import ReduceLROnPlateau
from litvision.callbacks.save_on_signal import SaveOnSignal
from litvision.classifier import NonFiniteLossError
from litvision.errors import Interrupted, UserError
from litvision.resume import other_pictures, same_run

# 30 pictures to train on: 4 steps an epoch.
OPTIONS = [
    *("logger=csv", "callbacks.figures=null", "callbacks.progress_bar=null", "test=false"),
    *("callbacks.provenance=null", "data.batch_size=8", "optimizer.lr=0.1"),
    *("trainer.precision=32-true", "trainer.max_epochs=3"),
]


PRUNED = "callbacks.pruning.at_epochs=[1]"
SPARSE = "callbacks.sparsity_2_4.start_epoch=1;callbacks.sparsity_2_4.except_first_and_last=false"


class At(L.Callback):
    """Does something after a step."""

    def __init__(self, step: int, act: Any) -> None:
        self.step, self.act = step, act

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            self.act(trainer)


def fit(cfg: Any, *callbacks: L.Callback) -> assemble.Run:
    run = assemble.assemble(cfg)
    run.trainer.callbacks[:0] = callbacks
    run.trainer.fit(run.classifier, run.datamodule, ckpt_path=run.resume_from, weights_only=True)
    return run


def stop(trainer: L.Trainer) -> None:
    trainer.should_stop = True  # as Lightning's timer does for `max_time`


@pytest.mark.parametrize("cut", ["trainer.max_steps=6", "max_time"])
def test_a_run_cut_within_an_epoch_sees_the_rest_of_it(
    compose_train: Compose, tmp_path: Path, cut: str
) -> None:
    whole = fit(compose_train(*OPTIONS, f"run_dir={tmp_path}/whole"))
    part = [f"run_dir={tmp_path}/part", *([cut] if "=" in cut else [])]
    first = fit(compose_train(*OPTIONS, *part), *([] if "=" in cut else [At(6, stop)]))
    assert first.trainer.global_step == 6
    assert 0 < float(first.trainer.callback_metrics["train/loss"]) < 10
    rest = fit(compose_train(*OPTIONS, f"run_dir={tmp_path}/part", f"resume={tmp_path}/part"))
    assert rest.trainer.global_step == whole.trainer.global_step == 12
    expected = whole.classifier.state_dict()
    for name, value in rest.classifier.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert (rest.score, rest.checkpoint) == (
        whole.score,
        str(tmp_path / "part/checkpoints/best.ckpt"),
    )
    for name in ("train/loss", "val/loss"):
        assert rest.trainer.callback_metrics[name] == whole.trainer.callback_metrics[name]


def test_a_run_that_max_time_ended_says_so(run: Run, tmp_path: Path) -> None:
    options = ["data=shapes", "data.train_size=60", "data.test_size=20", "data.batch_size=2"]
    options += ["model.network._target_=tiny.TinyNet", "trainer.accelerator=cpu", "test=false"]
    options += ["+trainer.max_time={seconds: 1}", "trainer.max_epochs=100000"]
    options += ["callbacks.figures=null", "callbacks.early_stopping=null"]
    done = run("train", *options, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["state"], result["stopped"]) == ("done", "trainer.max_time was over")


def test_a_run_that_was_moved_is_tested_with_its_best_weights(
    compose_train: Compose, tmp_path: Path
) -> None:
    fit(compose_train(*OPTIONS, f"run_dir={tmp_path}/old"))
    moved = (tmp_path / "old").rename(tmp_path / "new")
    rest = fit(compose_train(*OPTIONS, f"run_dir={moved}", f"resume={moved}"))
    assert rest.checkpoint == str(moved / "checkpoints" / "best.ckpt")


def test_patience_and_factor_can_change_and_what_is_watched_cannot(
    compose_train: Compose, tmp_path: Path
) -> None:
    fit(compose_train(*OPTIONS))
    resume = f"resume={tmp_path}/run"
    other = ["callbacks.reduce_lr_on_plateau.factor=0.1", "callbacks.early_stopping.patience=77"]
    other += ["callbacks.reduce_lr_on_plateau.patience=3", "trainer.max_epochs=4"]
    rest = fit(compose_train(*OPTIONS, *other, resume))
    callbacks = {type(callback): callback for callback in rest.trainer.callbacks}
    plateau: Any = callbacks[ReduceLROnPlateau]
    stopping: Any = callbacks[EarlyStopping]
    assert (plateau.schedule.factor, plateau.schedule.patience) == (0.1, 2)
    assert stopping.patience == 77
    with pytest.raises(
        UserError, match="trained with monitor=val/loss, and this command says val/acc"
    ):
        fit(compose_train(*OPTIONS, "monitor=val/acc", "mode=max", resume))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("data.classes=[ring,star]", "data.classes=[star,ring]", "on the classes ring, star, and"),
        ("callbacks=ema", "callbacks=default", "trained with callbacks.ema, and this command"),
        (f"callbacks=pruning;{PRUNED}", "callbacks=default", "trained with callbacks.pruning, and"),
        (
            "callbacks=default",
            "callbacks=finetuning",
            "trained without callbacks.finetuning, which",
        ),
        (
            f"callbacks=sparsity_2_4;{SPARSE};callbacks.sparsity_2_4.exclude=[x]",
            f"callbacks=sparsity_2_4;{SPARSE}",
            "trained with callbacks.sparsity_2_4.exclude.*, and this command says",
        ),
    ],
)
def test_what_the_weights_depend_on_cannot_change(
    compose_train: Compose, tmp_path: Path, before: str, after: str, message: str
) -> None:
    fit(compose_train(*OPTIONS, *before.split(";")))
    with pytest.raises(UserError, match=message):
        fit(compose_train(*OPTIONS, *after.split(";"), f"resume={tmp_path}/run"))


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        ({}, {}, None),
        *[
            ({"callbacks": {name: {"a": 1}}}, {"callbacks": None}, f"with callbacks.{name}, and")
            for name in ("ema", "finetuning", "pruning", "sparsity_2_4", "warmup", "whitening")
        ],
        *[
            ({}, {"callbacks": {name: {"a": 1}}}, f"without callbacks.{name}, which is for a whole")
            for name in ("finetuning", "whitening")
        ],
        ({}, {"callbacks": {"ema": {"a": 1}}}, None),
        ({"callbacks": {"ema": None}}, {"callbacks": {"whitening": None}}, None),
        ({"scheduler": {"x": 1}}, {"scheduler": None}, "with scheduler.x=1, and this command says"),
        ({"data": {"batch_size": 8}}, {"data": {"batch_size": 9}}, "with data.batch_size=8, and"),
        ({}, {"data": {"mix": "cutmix"}}, "with data.mix=None, and this command says cutmix"),
        ({"optimizer": {"lr": 1}}, {"optimizer": {"lr": 2}}, "with optimizer.lr=1, and"),
        ({"model": {"x": {"y": 1}}}, {"model": {"x": {"y": 2}}}, "with model.x.y=1, and this"),
        ({"mode": "min"}, {"mode": "max"}, "with mode=min, and this command says max"),
        ({"data": {"eval_batch_size": 1}}, {"data": {"eval_batch_size": 2}}, None),
        ({"data": {"source": {"root": "a"}}}, {"data": {"source": {"root": "b"}}}, None),
        ({"model": {"compile": True}}, {"model": {"compile": False}}, None),
        ({"trainer": {"max_epochs": 1}}, {"trainer": {"max_epochs": 2}}, None),
    ],
)
def test_what_may_change_and_what_may_not(
    before: dict[str, Any], now: dict[str, Any], message: str | None
) -> None:
    datamodule: Any = SimpleNamespace(classes=("a", "b"))
    then = {"classes": ["a", "b"], "config": before}  # without pictures, as in an older file
    if message is None:
        same_run(then, now, datamodule)
    else:
        with pytest.raises(UserError, match=re.escape(message)):
            same_run(then, now, datamodule)


def test_pictures_that_have_come_since_are_noticed(compose_train: Compose, tmp_path: Path) -> None:
    def add(names: range) -> None:
        for folder in ("train/a", "train/b", "test/a", "test/b"):
            (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
            for name in names:
                pixels = np.full((8, 8, 3), 20 * name, np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / folder / f"{name}.png")

    def own(*overrides: str) -> Any:
        cfg = compose_train(*OPTIONS, "trainer.max_epochs=1", *overrides)
        with open_dict(cfg.data):
            for key in ("train_size", "test_size", "image_size"):
                cfg.data.pop(key, None)
            cfg.data.source._target_ = "litvision.sources.image_folder.ImageFolder"
            cfg.data |= {"root": f"{tmp_path}/data", "image_size": 8}
        return cfg

    add(range(10))
    run = fit(own())
    card = run.classifier.card
    (tmp_path / "data/train/a/0.png").rename(tmp_path / "data/train/a/99.png")
    with pytest.raises(UserError, match="the pictures have changed, files of other names, and"):
        fit(own(f"resume={tmp_path}/run"))
    today = {**card["pictures"], "files": ""}
    assert other_pictures(card["pictures"], today) == "files of other names"
    assert other_pictures({"train": 18, "val": 2}, today) is None  # of a checkpoint from before
    (tmp_path / "data/train/a/99.png").rename(tmp_path / "data/train/a/0.png")
    add(range(10, 12))
    told = "18 to train on and 2 to validate then and 22 to train on and 2 to validate now"
    with pytest.raises(UserError, match=f"resume: the pictures have changed, {told}"):
        fit(own(f"resume={tmp_path}/run"))


def test_pruning_that_should_have_been_is_not_passed_over(
    compose_train: Compose, tmp_path: Path
) -> None:
    fit(compose_train(*OPTIONS))
    late = ["callbacks=pruning", PRUNED, "trainer.max_epochs=5", f"resume={tmp_path}/run"]
    with pytest.raises(UserError, match=r"at_epochs=\[1\]: the run goes on with epoch 3, counted"):
        fit(compose_train(*OPTIONS, *late))
    late[1] = "callbacks.pruning.at_epochs=[4]"
    rest = fit(compose_train(*OPTIONS, *late))
    assert float(rest.trainer.callback_metrics["sparsity"]) > 0.4


@pytest.mark.parametrize(("devices", "saves"), [(1, 6), (2, 3)])
def test_devices_agree_on_saving_now_and_then_through_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: int, saves: int
) -> None:
    asked = []
    monkeypatch.setattr(interval_checkpoint, "EVERY", 2)
    monkeypatch.setattr(ModelCheckpoint, "on_train_batch_end", lambda *a: asked.append(a[-1]))
    callback = interval_checkpoint.IntervalCheckpoint(str(tmp_path), 1e-9)
    never = interval_checkpoint.IntervalCheckpoint(str(tmp_path), None)
    for batch in [0, 1] * 6:  # epochs of two batches, of which the last is none to save after
        loop = SimpleNamespace(_should_accumulate=lambda: False, _data_fetcher=None)
        trainer: Any = SimpleNamespace(is_last_batch=batch == 1, fit_loop=loop, world_size=devices)
        for one in (callback, never):
            one.on_train_batch_end(trainer, trainer, None, None, batch)
    assert len(asked) == saves


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_run_goes_on_alike_in_another_memory_layout(
    compose_train: Compose, tmp_path: Path, optimizer: str
) -> None:
    options = [*OPTIONS, f"optimizer={optimizer}", "trainer.max_epochs=1", "optimizer.lr=0.01"]
    options.append("model.network.norm=none")  # before which a bias has a gradient of rounding
    fit(compose_train(*options, "model.channels_last=false"))
    ends = []
    for layout in ("false", "true"):
        more = [f"model.channels_last={layout}", f"run_dir={tmp_path}/{layout}"]
        more += ["trainer.max_epochs=2", f"resume={tmp_path}/run"]
        rest = fit(compose_train(*options, *more))
        ends.append(torch.cat([p.flatten() for p in rest.classifier.network.parameters()]))
        (kept,) = rest.trainer.optimizers
        assert all(value.any() for value in kept.state[next(iter(kept.state))].values())
    torch.testing.assert_close(*ends, atol=1e-5, rtol=1e-4)


def test_the_best_epoch_of_training_is_known_by_its_own_loss(
    compose_train: Compose, tmp_path: Path
) -> None:
    options = ["monitor=train/loss", "trainer.check_val_every_n_epoch=2", "trainer.max_epochs=4"]
    run = fit(compose_train(*OPTIONS, *options))
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    losses = [float(row["train/loss"]) for row in rows if row.get("train/loss")]
    assert len(losses) == 4
    best = min(losses)
    assert run.score == pytest.approx(best, rel=1e-6)
    content = torch.load(str(run.checkpoint), weights_only=True)
    assert content["epoch"] == losses.index(best)


def test_a_run_that_stopped_early_is_not_trained_further(
    compose_train: Compose, tmp_path: Path
) -> None:
    early = ["trainer.max_epochs=9", "callbacks.early_stopping.patience=1", "optimizer.lr=1e-9"]
    early.append("callbacks.early_stopping.min_delta=0.1")
    first = fit(compose_train(*OPTIONS, *early))
    assert first.trainer.global_step == 8
    for _ in range(2):
        again = fit(compose_train(*OPTIONS, *early, f"resume={tmp_path}/run"))
        assert again.trainer.global_step == 8
        result = json.loads((tmp_path / "run" / "result.json").read_text())
        assert result["stopped"] == "val/loss did not improve for 1 epochs"
    patient = [*early, "callbacks.early_stopping.patience=3"]
    rest = fit(compose_train(*OPTIONS, *patient, "trainer.max_epochs=3", f"resume={tmp_path}/run"))
    assert rest.trainer.global_step == 12
    assert "stopped" not in json.loads((tmp_path / "run" / "result.json").read_text())


def test_the_best_checkpoint_will_do_where_the_last_is_missing(
    compose_train: Compose, tmp_path: Path
) -> None:
    first = fit(compose_train(*OPTIONS, "callbacks.last_checkpoint=null"))
    folder = tmp_path / "run" / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["best.ckpt"]
    rest = fit(compose_train(*OPTIONS, "trainer.max_epochs=4", f"resume={tmp_path}/run"))
    assert rest.trainer.global_step == first.trainer.global_step + 4


def test_what_a_run_began_with_is_kept(compose_train: Compose, tmp_path: Path) -> None:
    options = [option for option in OPTIONS if "provenance" not in option]
    fit(compose_train(*options))
    path = tmp_path / "run" / "provenance.json"
    first = json.loads(path.read_text())
    path.write_text(json.dumps(first | {"command": "the first"}))
    for parts in (1, 2):
        epochs = f"trainer.max_epochs={3 + parts}"
        rest = fit(compose_train(*options, epochs, f"resume={tmp_path}/run"))
        assert any(isinstance(callback, Provenance) for callback in rest.trainer.callbacks)
        record = json.loads(path.read_text())
        assert record["command"] == "the first"
        assert [part.keys() for part in record["resumed"]] == [first.keys()] * parts


def test_a_signal_between_epochs_waits_for_a_step_where_nothing_was_saved(
    compose_train: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def ask(trainer: L.Trainer) -> None:
        (saver,) = (c for c in trainer.callbacks if isinstance(c, SaveOnSignal))
        saver.received = 15

    # The last step of the second epoch: a step later is within the third.
    with pytest.raises(Interrupted):
        fit(compose_train(*OPTIONS, "+callbacks.last_checkpoint.every_n_epochs=5"), At(8, ask))
    assert "saved at step 9" in capsys.readouterr().err
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 9


def test_weights_that_are_not_finite_overwrite_nothing(
    compose_train: Compose, tmp_path: Path
) -> None:
    class Ruined(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
            if trainer.global_step == 6:  # what a GPU notes and has not looked at yet
                pl_module._unchecked[1] = (5, 0.1, torch.tensor(torch.nan))
                trainer.save_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")

    with pytest.raises(NonFiniteLossError, match="epoch 1, step 5, batch 1 of that epoch"):
        fit(compose_train(*OPTIONS), Ruined())
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 4


def test_a_full_disk_leaves_the_log_of_the_first_part(
    compose_train: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(compose_train(*OPTIONS))
    path = tmp_path / "run" / "metrics.csv"
    before = path.read_text()

    def full(self: Any) -> None:
        path.write_text("cut sh")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lightning.fabric.loggers.csv_logs._ExperimentWriter.save", full)
    with pytest.raises(OSError, match="No space left"):
        fit(compose_train(*OPTIONS, "trainer.max_epochs=4", f"resume={tmp_path}/run"))
    assert path.read_text() == before
    assert list(path.parent.glob("*.part")) == []
