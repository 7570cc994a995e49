"""A learning rate that follows the batch size, and the warm-up that comes with it."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from omegaconf import open_dict

from conftest import Compose
from litvision.assemble import assemble
from litvision.errors import UserError
from litvision.scaling import scale_learning_rate

QUIET = [
    "logger=none",
    "callbacks.figures=null",
    "callbacks.progress_bar=null",
    "callbacks.provenance=null",
    "test=false",
]


class Recorder(L.Callback):
    """Remembers the learning rate of every batch's step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_before_zero_grad(self, trainer: L.Trainer, *args: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def rates(cfg: Any, *callbacks: L.Callback, resume: Path | None = None) -> list[float]:
    run, recorder = assemble(cfg), Recorder()
    run.trainer.callbacks += [*callbacks, recorder]
    run.trainer.fit(run.classifier, run.datamodule, ckpt_path=resume, weights_only=True)
    return recorder.rates


@pytest.mark.parametrize(
    ("overrides", "rate", "line"),
    [
        (["data.batch_size=128"], 0.01, "learning rate 0.01 = 0.01 x 128 / 128"),
        (["data.batch_size=16"], 0.00125, "learning rate 0.00125 = 0.01 x 16 / 128"),
        (
            ["data.batch_size=256", "trainer.accumulate_grad_batches=2"],
            0.04,
            "learning rate 0.04 = 0.01 x 512 / 128, after 5 epochs of warm-up",
        ),
        (
            ["data.batch_size=1000"],
            0.078125,
            "learning rate 0.078125 = 0.01 x 1000 / 128, after 5 epochs of warm-up",
        ),
        (
            ["data.batch_size=64", "auto_scaled={lr: 0.1, batch_size: 32, warmup_epochs: 2}"],
            0.2,
            "learning rate 0.2 = 0.1 x 64 / 32, after 2 epochs of warm-up",
        ),
        (
            ["data.batch_size=1024", "auto_scaled.warmup_epochs=0"],
            0.08,
            "learning rate 0.08 = 0.01 x 1024 / 128",
        ),
        (
            ["data.batch_size=1024", "scheduler=cosine"],
            0.08,
            "learning rate 0.08 = 0.01 x 1024 / 128",
        ),
        (
            ["data.batch_size=1024", "+callbacks.warmup=null"],
            0.08,
            "learning rate 0.08 = 0.01 x 1024 / 128",
        ),
        (
            ["callbacks=batch_size_finder", "callbacks.batch_size_finder.apply=false"],
            0.00125,
            "learning rate 0.00125 = 0.01 x 16 / 128",
        ),
    ],
)
def test_the_rate_is_the_base_times_the_batch_over_the_bases_batch(
    compose_train: Compose, overrides: list[str], rate: float, line: str
) -> None:
    cfg = compose_train("optimizer.lr=auto_scaled", *overrides)
    assert scale_learning_rate(cfg) == line
    assert cfg.optimizer.lr == rate
    assert bool(cfg.callbacks.get("warmup")) == ("warm-up" in line)


def test_a_number_stays_what_it_is(compose_train: Compose) -> None:
    cfg = compose_train("optimizer.lr=0.3", "data.batch_size=1024")
    assert scale_learning_rate(cfg) is None
    assert cfg.optimizer.lr == 0.3


def test_without_callbacks_the_warm_up_is_the_only_one(compose_train: Compose) -> None:
    cfg = compose_train("optimizer.lr=auto_scaled", "data.batch_size=256")
    cfg.callbacks = None
    assert str(scale_learning_rate(cfg)).endswith("after 5 epochs of warm-up")
    assert list(cfg.callbacks) == ["warmup"]


def test_a_schedule_follows_the_scaled_rate(compose_train: Compose) -> None:
    cfg = compose_train("optimizer.lr=auto_scaled", "scheduler=one_cycle", "data.batch_size=256")
    scale_learning_rate(cfg)
    assert cfg.scheduler.max_lr == 0.02


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["auto_scaled.lr=0"], r"auto_scaled\.lr=0 does not fit: it takes a number above 0\."),
        (["auto_scaled.batch_size=0"], r"auto_scaled\.batch_size=0 does not fit: it takes an int"),
        (["auto_scaled.warmup_epochs=-1"], r"auto_scaled\.warmup_epochs=-1 does not fit: it takes"),
        (["data.batch_size=big"], r"data\.batch_size='big' does not fit: it takes an integer"),
        (
            ["callbacks=batch_size_finder", "callbacks.batch_size_finder.apply=true"],
            r"changes the batch that optimizer\.lr=auto_scaled follows: give optimizer\.lr",
        ),
        (["optimizer.lr=auto_scale"], r"optimizer\.lr='auto_scale' does not fit"),
        (
            ["optimizer=muon", "optimizer.lr=auto_scaled", "data.batch_size=256"],
            r"one learning rate, and the optimizer would have 0\.01, 0\.02: give optimizer\.lr a",
        ),
    ],
)
def test_what_cannot_be_scaled_is_refused(
    compose_train: Compose, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        assemble(compose_train("optimizer.lr=auto_scaled", *overrides))


def test_the_rate_rises_linearly_from_the_base_to_the_scaled_rate(compose_train: Compose) -> None:
    # 30 pictures in batches of 8: 4 iterations an epoch; 4 times the base's batch.
    scaled = "auto_scaled={lr: 0.01, batch_size: 2, warmup_epochs: 2}"
    options = ["optimizer.lr=auto_scaled", scaled, "data.batch_size=8", "trainer.max_epochs=3"]
    found = rates(compose_train(*options, *QUIET))
    expected = [0.01 + 0.03 * step / 8 for step in range(8)] + [0.04] * 4
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("accumulated", [2, 3])  # of 4 batches: 2 and 2, or 3 and the last one
def test_accumulated_batches_are_one_step_of_the_warm_up(
    compose_train: Compose, accumulated: int
) -> None:
    scaled = f"auto_scaled={{lr: 0.01, batch_size: {2 * accumulated}, warmup_epochs: 1}}"
    options = ["optimizer.lr=auto_scaled", scaled, "data.batch_size=8"]
    options += [f"trainer.accumulate_grad_batches={accumulated}", "trainer.max_epochs=2"]
    found = rates(compose_train(*options, *QUIET))
    steps = [0.01 + 0.03 * step / 2 for step in range(2)] + [0.04] * 2
    assert found == pytest.approx(steps, rel=1e-9)


def test_every_kind_of_weights_warms_up_from_its_own_rate(compose_train: Compose) -> None:
    found = []

    class Groups(L.Callback):
        def on_before_optimizer_step(self, trainer: L.Trainer, *args: Any) -> None:
            groups = trainer.optimizers[0].param_groups
            found.append({group["kind"]: group["lr"] for group in groups})

    options = ["optimizer=muon", "optimizer.lr=0.04", "optimizer.lr_linear=0.02"]
    options += ["optimizer.lr_vector=0.3", "callbacks=warmup", "callbacks.warmup.start=0.5"]
    rates(compose_train(*options, "trainer.max_epochs=1", *QUIET), Groups())
    whole = {"filter": 0.04, "linear": 0.02, "vector": 0.3}
    expected = [{kind: rate * share for kind, rate in whole.items()} for share in (0.5, 0.75)]
    assert found == [pytest.approx(step, rel=1e-9) for step in expected]


def test_the_logged_rate_is_that_of_the_step(compose_train: Compose, tmp_path: Path) -> None:
    scaled = "auto_scaled={lr: 0.01, batch_size: 4, warmup_epochs: 1}"
    options = ["optimizer.lr=auto_scaled", scaled, *QUIET, "logger=csv", "trainer.max_epochs=2"]
    rates(compose_train(*options))
    rows = csv.DictReader((tmp_path / "run" / "metrics.csv").open())
    # Of the last of two steps an epoch.
    assert [float(row["lr"]) for row in rows if row["lr"]] == pytest.approx([0.025, 0.04])


def test_a_resumed_run_warms_up_where_it_left_off(compose_train: Compose, tmp_path: Path) -> None:
    scaled = "auto_scaled={lr: 0.01, batch_size: 2, warmup_epochs: 3}"
    options = ["optimizer.lr=auto_scaled", scaled, "data.batch_size=8", *QUIET]
    whole = rates(compose_train(*options, "trainer.max_epochs=3"))
    first = rates(compose_train(*options, "trainer.max_epochs=1", f"run_dir={tmp_path}/one"))
    last = tmp_path / "one" / "checkpoints" / "last.ckpt"
    rest = rates(compose_train(*options, "trainer.max_epochs=3"), resume=last)
    assert torch.equal(torch.tensor(first + rest), torch.tensor(whole))


class Halving(L.Callback):
    """What a plateau rule does, at the end of every epoch."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.optimizers[0].param_groups[0]["lr"] *= 0.5


def test_what_lowers_the_rate_during_the_warm_up_keeps_its_effect(compose_train: Compose) -> None:
    scaled = "auto_scaled={lr: 0.01, batch_size: 2, warmup_epochs: 2}"
    options = ["optimizer.lr=auto_scaled", scaled, "data.batch_size=8", "trainer.max_epochs=2"]
    found = rates(compose_train(*options, *QUIET), Halving())
    expected = [(0.01 + 0.03 * step / 8) * (0.5 if step >= 4 else 1) for step in range(8)]
    assert found == pytest.approx(expected, rel=1e-9)


def test_warm_up_and_the_linear_schedule_multiply(compose_train: Compose) -> None:
    options = ["callbacks=warmup", "callbacks.warmup.start=0.1", "scheduler=linear"]
    options += ["optimizer.lr=0.04", "data.batch_size=8", "trainer.max_epochs=2"]
    found = rates(compose_train(*options, *QUIET))
    rising = [0.1 + 0.9 * step / 4 for step in range(4)] + [1.0] * 4
    expected = [0.04 * (1 - step / 8) * share for step, share in enumerate(rising)]
    assert found == pytest.approx(expected, rel=1e-6)


CYCLE = {"base_lr": 0.01, "max_lr": 0.04, "step_size_up": 3, "cycle_momentum": False}


@pytest.mark.parametrize(
    ("name", "options", "factors"),
    [
        (
            "CosineAnnealingWarmRestarts",
            {"T_0": 8},
            [(1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)],
        ),
        (
            "PolynomialLR",
            {"total_iters": 8, "power": 2},
            [(1 - step / 8) ** 2 for step in range(8)],
        ),
        ("CyclicLR", CYCLE, [0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25, 0.5]),
    ],
)
def test_warm_up_multiplies_whatever_the_schedule_says(
    compose_train: Compose, name: str, options: dict[str, Any], factors: list[float]
) -> None:
    overrides = ["callbacks=warmup", "callbacks.warmup.start=0.1", "callbacks.warmup.epochs=1.5"]
    overrides += ["optimizer.lr=0.04", "data.batch_size=8", "trainer.max_epochs=2"]
    cfg = compose_train(*overrides, *QUIET)
    with open_dict(cfg):
        target = f"torch.optim.lr_scheduler.{name}"
        cfg.scheduler = {"_target_": target, "_partial_": True, **options}
        cfg.callbacks.reduce_lr_on_plateau = None
    shares = [min(1, 0.1 + 0.9 * step / 6) for step in range(8)]
    expected = [0.04 * factor * share for factor, share in zip(factors, shares, strict=True)]
    assert rates(cfg) == pytest.approx(expected, rel=1e-9)


def test_a_warm_up_of_less_than_an_epoch_reaches_the_whole_rate(compose_train: Compose) -> None:
    options = ["callbacks=warmup", "callbacks.warmup.start=0.1", "callbacks.warmup.epochs=0.3"]
    options += ["optimizer.lr=0.04", "data.batch_size=8", "trainer.max_epochs=2"]
    found = rates(compose_train(*options, *QUIET))
    assert found == pytest.approx([0.004, 0.04 * (0.1 + 0.9 / 1.2), *[0.04] * 6], rel=1e-9)


def test_a_warm_up_of_ones_own_counts(compose_train: Compose) -> None:
    scaled = "auto_scaled={lr: 0.01, batch_size: 2, warmup_epochs: 3}"
    own = ["callbacks=warmup", "callbacks.warmup.epochs=2", "callbacks.warmup.start=0.5"]
    cfg = compose_train("optimizer.lr=auto_scaled", scaled, "data.batch_size=8", *own, *QUIET)
    assert scale_learning_rate(cfg) == "learning rate 0.04 = 0.01 x 8 / 2"
    assert (cfg.callbacks.warmup.epochs, cfg.callbacks.warmup.start) == (2, 0.5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("auto_scaled=null", r"^auto_scaled=null does not fit: it takes the lr, batch_size and"),
        ("+callbacks.batch_size_finder=true", r"^callbacks\.batch_size_finder=True does not fit"),
    ],
)
def test_what_is_no_group_of_options_is_one_line(
    compose_train: Compose, override: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        rates(compose_train("optimizer.lr=auto_scaled", override, *QUIET))


def test_warm_up_and_one_cycle_are_refused(compose_train: Compose) -> None:
    cfg = compose_train("callbacks=warmup", "scheduler=one_cycle", "trainer.max_epochs=3", *QUIET)
    with pytest.raises(UserError, match=r"^callbacks\.warmup: scheduler=one_cycle raises the rate"):
        rates(cfg)
