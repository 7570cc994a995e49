"""The finders of learning rate and batch size say what they found, and training is as before."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from conftest import Compose
from litvision import hardware
from litvision.assemble import Run, assemble
from litvision.callbacks.batch_size_finder import LargestBatch
from litvision.callbacks.lr_finder import smoothed, steepest
from litvision.classifier import ImageClassifier
from litvision.errors import UserError
from tiny import TinyLinear

QUIET = ["logger=none", "callbacks.progress_bar=null", "callbacks.provenance=null", "test=false"]
LR = ["callbacks=lr_finder", "callbacks.lr_finder.num_training_steps=30"]
BATCH = ["callbacks=batch_size_finder", "callbacks.batch_size_finder.init_val=2"]


class Full(TinyLinear):
    """Has memory for 8 pictures and no more."""

    def forward(self, images: Tensor) -> Tensor:
        if self.training and len(images) > 8:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return super().forward(images)


class Deaf(TinyLinear):
    """Gives every picture the same loss."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * 0


def trained(cfg: Any) -> Run:
    cfg.trainer.precision = "32-true"
    run = assemble(cfg)
    run.trainer.fit(run.classifier, run.datamodule, ckpt_path=run.resume_from, weights_only=True)
    return run


def weights(run: Run) -> list[Tensor]:
    return [p.detach().clone() for p in run.classifier.network.parameters()]


BOTH = ["callbacks=[lr_finder,batch_size_finder]", LR[1], BATCH[1]]


@pytest.mark.parametrize("names", ["lr_finder,batch_size_finder", "batch_size_finder,lr_finder"])
@pytest.mark.parametrize(("apply", "expected"), [("true", 30), ("false", 16)])
def test_a_rate_is_found_for_the_batch_of_training(
    compose_train: Compose, monkeypatch: pytest.MonkeyPatch, names: str, apply: str, expected: int
) -> None:
    by_rate: dict[float, int] = {}
    step = ImageClassifier.training_step

    def noted(self: ImageClassifier, batch: Any, batch_idx: int) -> Tensor:
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        by_rate[rate] = max(len(batch.labels), by_rate.get(rate, 0))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(ImageClassifier, "training_step", noted)
    both = [f"callbacks=[{names}]", LR[1], BATCH[1]]
    trained(compose_train(*both, *QUIET, f"callbacks.batch_size_finder.apply={apply}"))
    assert by_rate[min(by_rate)] == expected


@pytest.mark.parametrize("finder", [LR, BATCH, BOTH], ids=["lr", "batch size", "both"])
def test_training_is_what_it_would_have_been(compose_train: Compose, finder: list[str]) -> None:
    plain = trained(compose_train(*QUIET))
    found = trained(compose_train(*finder, *QUIET))
    for expected, weight in zip(weights(plain), weights(found), strict=True):
        assert torch.equal(weight, expected)
    assert found.trainer.global_step == plain.trainer.global_step == 4
    assert found.score == plain.score


def test_a_resumed_run_goes_on_where_it_was(compose_train: Compose, tmp_path: Path) -> None:
    whole = trained(compose_train(*BOTH, *QUIET, "trainer.max_epochs=3"))
    epochs = ["trainer.max_epochs=2", f"run_dir={tmp_path}/half"]
    trained(compose_train(*BOTH, *QUIET, *epochs))
    rest = trained(compose_train(*BOTH, *QUIET, "trainer.max_epochs=3", f"resume={tmp_path}/half"))
    for expected, weight in zip(weights(whole), weights(rest), strict=True):
        assert torch.equal(weight, expected)
    assert rest.trainer.global_step == whole.trainer.global_step == 6


def test_a_resumed_run_goes_on_with_the_batch_that_was_applied(
    compose_train: Compose, tmp_path: Path
) -> None:
    options = [*BATCH, *QUIET, "callbacks.batch_size_finder.apply=true"]
    trained(compose_train(*options, f"run_dir={tmp_path}/half"))
    options += ["callbacks.batch_size_finder.max_val=2"]  # all that another search could find
    rest = trained(compose_train(*options, "trainer.max_epochs=3", f"resume={tmp_path}/half"))
    assert rest.datamodule.batch_size == 30
    assert rest.trainer.global_step == 3  # of all pictures each
    given = [*QUIET, "trainer.max_epochs=3", f"resume={tmp_path}/half"]
    for other in ([], [*BATCH]):
        with pytest.raises(UserError, match=r"trained with callbacks\.batch_size_finder\.apply="):
            trained(compose_train(*given, *other))


def test_pruning_does_not_take_what_a_finder_restores_for_a_resumed_run(
    compose_train: Compose,
) -> None:
    pruning = ["callbacks=[lr_finder,pruning]", LR[1], "callbacks.pruning.at_epochs=[1]"]
    network = "model.network._target_=callbacks.test_sparsity.Small"
    run = trained(compose_train(*pruning, *QUIET, network))
    assert run.trainer.global_step == 4


def test_a_learning_rate_is_suggested_and_drawn(
    compose_train: Compose, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.INFO)
    run = trained(compose_train(*LR, *QUIET, "callbacks.lr_finder.max_lr=10"))
    (finder,) = [c for c in run.trainer.callbacks if type(c).__name__ == "LRFinder"]
    assert finder.rates[0] == pytest.approx(1e-6, rel=1)
    assert finder.rates == sorted(finder.rates)
    # At the lowest rates nothing is learned yet: the loss is that of a guess among ten classes.
    assert finder.losses[0] == pytest.approx(math.log(10), rel=0.2)
    rate = steepest(finder.rates, finder.losses)
    assert rate in finder.rates
    picture = tmp_path / "run" / "figures" / "lr_finder.png"
    assert Image.open(picture).size == (720, 480)
    line = f"suggested learning rate {rate:.2g}, to train with it: optimizer.lr={rate:.2g}; "
    assert f"{line}picture: {picture}" in caplog.messages
    assert run.trainer.optimizers[0].param_groups[0]["lr"] == 0.01
    assert not list((tmp_path / "run").glob(".lr_find*"))


def test_the_suggestion_is_applied_where_asked_for(compose_train: Compose) -> None:
    apply = ["callbacks.lr_finder.apply=true", "callbacks.lr_finder.early_stop_threshold=null"]
    run = trained(compose_train(*LR, *QUIET, *apply))
    (finder,) = [c for c in run.trainer.callbacks if type(c).__name__ == "LRFinder"]
    assert (
        run.trainer.optimizers[0].param_groups[0]["lr"]
        == steepest(finder.rates, finder.losses)
        != 0.01
    )
    assert len(finder.rates) == len(finder.losses) == 30  # though an epoch has 2 iterations


def test_a_loss_that_is_not_finite_ends_neither_the_search_nor_the_run(
    compose_train: Compose,
) -> None:
    network = ["model.network._target_=tiny.TinyLinear"]
    options = ["callbacks.lr_finder.max_lr=1e30", "callbacks.lr_finder.early_stop_threshold=null"]
    run = trained(compose_train(*LR, *QUIET, *network, *options))
    assert run.classifier.stop_if_not_finite
    (finder,) = [c for c in run.trainer.callbacks if type(c).__name__ == "LRFinder"]
    assert not all(map(torch.isfinite, torch.tensor(finder.losses)))
    assert all(torch.isfinite(weight).all() for weight in weights(run))


def test_the_smoothed_curve_neither_lags_nor_goes_on_behind_what_is_not_finite() -> None:
    line = [float(i) for i in range(100)]
    assert smoothed(line) == pytest.approx(line)
    losses = [2.0] * 20 + [7.0] + [2.0] * 20
    assert smoothed(losses)[20] == pytest.approx((4 * 2 + 7) / 5)  # a twentieth to either side
    assert smoothed([1.0, 2.0, 6.0, float("inf"), 0.0]) == [1.0, 3.0, 6.0]


@pytest.mark.parametrize("log_scale", [True, False])
def test_the_suggestion_is_where_the_loss_falls_most_steeply(log_scale: bool) -> None:
    """Falls by a logistic curve around 1e-3 (or 0.5), then runs away."""
    where = torch.linspace(-6, 0, 100) if log_scale else torch.linspace(0.01, 1, 100)
    middle, width = (-3, 0.3) if log_scale else (0.5, 0.03)
    losses = 2.3 - torch.sigmoid((where - middle) / width)
    losses[80:] += torch.arange(1, 21) ** 2
    rates = (10**where if log_scale else where).tolist()
    rate = steepest(rates, losses.tolist(), log_scale)
    assert rate == pytest.approx(1e-3 if log_scale else 0.5, rel=0.15)
    assert steepest(rates, [float(i) for i in range(100)], log_scale) is None


def test_where_the_loss_never_falls_nothing_is_suggested(
    compose_train: Compose, caplog: pytest.LogCaptureFixture
) -> None:
    network = ["model.network._target_=callbacks.test_finders.Deaf"]
    trained(compose_train(*LR, *QUIET, *network))
    assert any("suggests no rate: the loss fell at none" in line for line in caplog.messages)


@pytest.mark.parametrize(
    ("overrides", "line", "batch"),
    [
        ([], "largest batch that fits: 8; training goes on with data.batch_size=16", 16),
        (
            ["callbacks.batch_size_finder.apply=true"],
            "largest batch that fits: 8; training with it: 4 iterations an epoch",
            8,
        ),
        (
            ["callbacks.batch_size_finder.max_val=7"],
            "batch_size_finder.max_val allows no larger batch, and this one fits: 4; "
            "training goes on with data.batch_size=16",
            16,
        ),
    ],
)
def test_the_largest_batch_is_found(
    compose_train: Compose, caplog: pytest.LogCaptureFixture, overrides: list[str], line: str,
    batch: int,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO)
    network = "model.network._target_=callbacks.test_finders.Full"
    cfg = compose_train(*BATCH, *QUIET, *overrides, network)
    if batch == 8:
        run = trained(cfg)
        assert run.trainer.global_step == 8
    else:  # the run itself has batches of 16, which do not fit
        with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
            trained(cfg)
    assert line in caplog.messages


class FullOfWhole(TinyLinear):
    """Has memory for 4 pictures of 32x32 pixels, and for twice as many windows of half of them."""

    def forward(self, images: Tensor) -> Tensor:
        if self.training and images[:, 0].numel() > 4 * 32 * 32:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return super().forward(images)


@pytest.mark.parametrize(("epochs", "found"), [("1", 4), ("null", 8)])
def test_the_largest_batch_is_that_of_whole_pictures_where_these_come_later(
    compose_train: Compose, caplog: pytest.LogCaptureFixture, epochs: str, found: int
) -> None:
    caplog.set_level(logging.INFO)
    network = "model.network._target_=callbacks.test_finders.FullOfWhole"
    crop = ["data.crop=22", f"data.crop_epochs={epochs}", "data.batch_size=4"]
    run = trained(compose_train(*BATCH, *QUIET, *crop, network, "trainer.max_epochs=2"))
    line = f"largest batch that fits: {found}; training goes on with data.batch_size=4"
    assert line in caplog.messages
    assert run.datamodule.crop == 22


def test_all_pictures_may_fit_into_one_batch(
    compose_train: Compose, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    trained(compose_train(*BATCH, *QUIET))
    line = "all pictures fit into one batch: 30; training goes on with data.batch_size=16"
    assert line in caplog.messages


@pytest.mark.skipif(hardware.free_memory() is None, reason="only Linux can limit memory like this")
def test_more_memory_than_there_is_becomes_an_error_and_the_limit_goes_again() -> None:
    floats = hardware.free_memory() // 4
    with hardware.limited_memory("cpu"), pytest.raises(RuntimeError, match="can't allocate memory"):
        torch.empty(floats)
    assert torch.empty(floats // 10).shape == (floats // 10,)
    with hardware.limited_memory("cuda"):
        assert torch.empty(floats).shape == (floats,)  # not filled, so never really there


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [*LR, "callbacks.lr_finder.min_lr=2"],
            r"callbacks\.lr_finder\.min_lr=2 is not below max_lr=1",
        ),
        (
            [*LR, "callbacks.lr_finder.apply=true", "scheduler=cosine"],
            r"callbacks\.lr_finder\.apply=true and the scheduler group would both set the learning",
        ),
        (
            [*BATCH, "callbacks.batch_size_finder.apply=true", "scheduler=cosine"],
            r"callbacks\.batch_size_finder\.apply=true changes how many steps an epoch has",
        ),
        (
            [*BATCH, "callbacks.batch_size_finder.max_val=1"],
            r"callbacks\.batch_size_finder\.init_val=2 exceeds max_val=1",
        ),
        ([*LR, "callbacks.lr_finder.num_training_steps=3"], "it takes an integer from 15"),
    ],
)
def test_what_cannot_be_is_refused(
    compose_train: Compose, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        trained(compose_train(*overrides, *QUIET))


@pytest.mark.parametrize("steps", [1, 3], ids=["found", "tried"])
def test_a_size_that_leaves_one_picture_alone_is_one_line(
    compose_train: Compose, steps: int
) -> None:
    options = ["callbacks=batch_size_finder", "callbacks.batch_size_finder.init_val=16"]
    options += ["callbacks.batch_size_finder.max_val=16", "callbacks.batch_size_finder.apply=true"]
    options += [f"callbacks.batch_size_finder.steps_per_trial={steps}", "data.batch_size=11"]
    options += ["data.train_size=33", "data.val_fraction=0.0", "monitor=train/loss"]
    cfg = compose_train(*options, *QUIET, "model.network._target_=tiny.TinyFlat")
    with pytest.raises(UserError) as caught:
        trained(cfg)
    message = str(caught.value)
    assert message.startswith("data.batch_size=16 and 33 pictures make a batch of one, which the")
    assert message.endswith(
        ": give callbacks.batch_size_finder.max_val below that, or model.network.norm=layer where "
        "the network has it."
    )


def test_several_devices_are_refused() -> None:
    with pytest.raises(UserError, match="works on one device: give"):
        LargestBatch().setup(SimpleNamespace(world_size=2), None, "fit")  # type: ignore[arg-type]
