"""Runs that end otherwise than at their last epoch: what is counted, said, and gone on with."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch

from conftest import Compose, Run
from litvision.assemble import assemble
from litvision.callbacks import save_on_signal
from litvision.callbacks.early_stopping import EarlyStopping
from litvision.errors import Interrupted, UserError
from test_going_on import OPTIONS, At, fit

TINY = [
    *("data=shapes", "data.train_size=60", "data.test_size=20", "data.batch_size=16"),
    *("model.network._target_=tiny.TinyNet", "trainer.accelerator=cpu", "trainer.max_epochs=2"),
    *("callbacks.figures=null", "logger=csv", "hydra.run.dir=run"),
]


def interrupt(trainer: L.Trainer) -> None:
    raise Interrupted


def rows(run: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((run / "metrics.csv").open(encoding="utf-8")))


def same_end(whole: Any, rest: Any, tmp_path: Path) -> None:
    assert rest.trainer.global_step == whole.trainer.global_step
    for name, value in rest.classifier.state_dict().items():
        assert torch.equal(value, whole.classifier.state_dict()[name]), name
    losses = [
        [row[name] for row in rows(tmp_path / run) for name in ("train/loss", "val/loss")]
        for run in ("whole", "part")
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("stop", [4, 8])
def test_with_max_steps_a_run_goes_on_from_an_epochs_end(
    compose_train: Compose, tmp_path: Path, stop: int
) -> None:
    options = [*OPTIONS, "trainer.max_steps=10"]  # epochs of four
    whole = fit(compose_train(*options, f"run_dir={tmp_path}/whole"))
    part = [*OPTIONS, f"run_dir={tmp_path}/part"]
    fit(compose_train(*part, f"trainer.max_steps={stop}"))
    rest = fit(compose_train(*part, "trainer.max_steps=10", f"resume={tmp_path}/part"))
    same_end(whole, rest, tmp_path)


def test_with_max_steps_a_run_goes_on_after_a_crash(compose_train: Compose, tmp_path: Path) -> None:
    options = [*OPTIONS, "trainer.max_steps=10"]
    whole = fit(compose_train(*options, f"run_dir={tmp_path}/whole"))
    with pytest.raises(Interrupted):
        fit(compose_train(*options, f"run_dir={tmp_path}/part"), At(6, interrupt))
    rest = fit(compose_train(*options, f"run_dir={tmp_path}/part", f"resume={tmp_path}/part"))
    same_end(whole, rest, tmp_path)


@pytest.mark.parametrize("step", [1, 2])  # a validation follows on the second of every two
def test_a_run_is_not_stopped_between_a_step_and_its_validation(
    compose_train: Compose, tmp_path: Path, step: int
) -> None:
    options = [*OPTIONS, "+trainer.val_check_interval=2"]
    whole = fit(compose_train(*options, f"run_dir={tmp_path}/whole"))
    ask = At(step, lambda trainer: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted):
        fit(compose_train(*options, f"run_dir={tmp_path}/part"), ask)
    rest = fit(compose_train(*options, f"run_dir={tmp_path}/part", f"resume={tmp_path}/part"))
    assert rest.score == whole.score
    same_end(whole, rest, tmp_path)


@pytest.mark.parametrize(
    "callback",
    [
        "{_target_: tiny.SignalIn, hook: on_test_batch_start}",
        "{_target_: tiny.SignalIn, hook: on_validation_batch_start, times: 2}",
    ],
)
def test_a_run_that_sigterm_ends_at_once_has_the_status_of_that(
    run: Run, tmp_path: Path, callback: str
) -> None:
    options = ["data.eval_batch_size=5", f"+callbacks.signal={callback}"]
    done = run("train", *TINY, *options)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert done.stderr.splitlines()[-1] == "stopped by SIGTERM"
    assert json.loads((tmp_path / "run" / "result.json").read_text())["state"] == "interrupted"


def test_epochs_are_counted_however_often_one_is_validated(compose_train: Compose) -> None:
    options = ["callbacks.early_stopping.patience=3", "callbacks.early_stopping.min_delta=9"]
    options += ["trainer.max_epochs=9", "+trainer.val_check_interval=2"]
    run = fit(compose_train(*OPTIONS, *options))
    assert run.trainer.current_epoch == 4  # the first, and three that were no better
    assert "val/loss did not improve for 3 epochs" in run.summary()


def test_epochs_without_a_validation_do_not_count(compose_train: Compose) -> None:
    options = ["callbacks.early_stopping.patience=1", "callbacks.early_stopping.min_delta=9"]
    options += ["trainer.max_epochs=9", "trainer.check_val_every_n_epoch=2"]
    run = fit(compose_train(*OPTIONS, *options))
    assert run.trainer.current_epoch == 4
    assert "val/loss did not improve for 1 validations" in run.summary()


def test_a_threshold_ends_a_run_and_says_so(compose_train: Compose, tmp_path: Path) -> None:
    reached = [*OPTIONS, "+callbacks.early_stopping.stopping_threshold=99"]
    run = fit(compose_train(*reached))
    assert run.trainer.global_step == 4  # of its first epoch
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["stopped"].startswith("Stopping threshold reached: val/loss = ")
    resume = f"resume={tmp_path}/run"
    assert fit(compose_train(*reached, resume)).trainer.global_step == 4
    lower = [*OPTIONS, "+callbacks.early_stopping.stopping_threshold=0", resume]
    assert fit(compose_train(*lower)).trainer.global_step == 12


def test_what_early_stopping_watches_has_to_be_there(compose_train: Compose) -> None:
    run = assemble(compose_train(*OPTIONS))
    stopping: Any = run.trainer.early_stopping_callback
    stopping.monitor = "val/f1"  # as if a callback that says that it logs it did not
    with pytest.raises(
        UserError, match=r"callbacks.early_stopping.monitor=val/f1 was not logged. Logged: .*val/"
    ):
        run.trainer.fit(run.classifier, run.datamodule)


def test_training_is_watched_where_epochs_are_validated_within(
    compose_train: Compose, tmp_path: Path
) -> None:
    run = fit(compose_train(*OPTIONS, "monitor=train/loss", "+trainer.val_check_interval=2"))
    losses = [float(row["train/loss"]) for row in rows(tmp_path / "run") if row["train/loss"]]
    assert len(losses) == 3
    assert run.score == pytest.approx(min(losses), rel=1e-6)


def test_lightnings_averaging_takes_the_schedule_over(compose_train: Compose) -> None:
    cfg = compose_train(
        *OPTIONS,
        "trainer.max_epochs=8",
        "callbacks.reduce_lr_on_plateau.patience=1",
        "+callbacks.swa={_target_: lightning.pytorch.callbacks.StochasticWeightAveraging, "
        "swa_lrs: 0.04, swa_epoch_start: 2, annealing_epochs: 1}",
    )
    run = fit(cfg)
    assert run.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.04)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("+trainer.val_check_interval=0", "trainer.val_check_interval=0 does not fit"),
        ("+trainer.val_check_interval=100", "=100 is more than an epoch's batches, 4: give fewer"),
        ("trainer.check_val_every_n_epoch=0", "trainer.check_val_every_n_epoch=0 does not fit"),
        ("trainer.gradient_clip_val=-1", "trainer.gradient_clip_val=-1 does not fit"),
        ("callbacks.early_stopping.patience=0", "callbacks.early_stopping.patience=0 does not fit"),
        ("trainer.precision=bf16-true", "weights, their updates and .* give bf16-mixed"),
        ("trainer.precision=16-true", "weights, their updates and .* give 16-mixed"),
        ("+trainer.enable_progress_bar=false", "or give callbacks.progress_bar=null for none"),
        ("+trainer.enable_checkpointing=false", "or give callbacks.last_checkpoint=null and"),
        ("+trainer.logger=false", "or choose with logger=none"),
    ],
)
def test_options_of_the_trainer_that_would_fail_late_or_do_nothing(
    compose_train: Compose, option: str, message: str
) -> None:
    with pytest.raises(UserError, match=message.replace("+", r"\+")):
        assemble(compose_train(*OPTIONS, option))


@pytest.mark.parametrize("without", ["+trainer.fast_dev_run=true", "trainer.limit_val_batches=0"])
def test_an_interval_that_is_not_used_is_not_checked(compose_train: Compose, without: str) -> None:
    options = [without, "monitor=train/loss", "+trainer.val_check_interval=100"]
    assert fit(compose_train(*OPTIONS, *options)).trainer.global_step > 0


def test_a_run_that_is_validated_after_each_step_can_still_be_stopped(
    compose_train: Compose,
) -> None:
    ask = At(2, lambda trainer: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted):
        fit(compose_train(*OPTIONS, "+trainer.val_check_interval=1"), ask)


def test_a_validation_by_the_clock(compose_train: Compose) -> None:
    run = fit(compose_train(*OPTIONS, "+trainer.val_check_interval='00:00:00:01'"))
    assert run.trainer.global_step == 12


def test_warm_up_comes_before_what_logs_the_rate(compose_train: Compose, tmp_path: Path) -> None:
    fit(compose_train(*OPTIONS, "callbacks=[ema,warmup]"))
    rates = [float(row["lr"]) for row in rows(tmp_path / "run") if row["lr"]]
    assert rates[0] < rates[1] == pytest.approx(0.1)


def test_early_stopping_takes_what_lightnings_takes() -> None:
    ours, theirs = EarlyStopping("val/loss"), L.pytorch.callbacks.EarlyStopping("val/loss")
    assert set(vars(theirs)) <= set(vars(ours))


def test_several_devices_ask_each_other_about_once_a_second(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seconds, asked = [0.0], []
    monkeypatch.setattr(save_on_signal.time, "perf_counter", lambda: seconds[0])
    strategy = SimpleNamespace(
        broadcast=lambda value: value,
        reduce_boolean_decision=lambda *a, **k: asked.append(round(10 * seconds[0])),
    )
    loop = SimpleNamespace(_should_accumulate=lambda: False, _data_fetcher=None)
    trainer: Any = SimpleNamespace(
        is_last_batch=False, world_size=2, fit_loop=loop, strategy=strategy
    )
    callback = save_on_signal.SaveOnSignal(str(tmp_path))
    for _ in range(60):
        seconds[0] += 0.1
        callback.on_train_batch_end(trainer, trainer)
    assert asked == [*range(1, 21), 30, 40, 50, 60]
