from __future__ import annotations

from typing import Any, ClassVar

import lightning as L
import pytest
import torch

from conftest import Compose
from litvision.assemble import assemble
from litvision.classifier import ImageClassifier
from litvision.errors import UserError
from litvision.watched import logged_by


class Ranked(ImageClassifier):
    logs: ClassVar = {"val/rank": "min"}


class Scores(L.Callback):
    def __init__(self, name: str = "val/score") -> None:
        self.logs = {name: "max"}


class Watcher(L.Callback):
    def __init__(self, monitor: str, mode: str = "max") -> None:
        self.monitor, self.mode = monitor, mode


SCORES = "+callbacks.scores={_target_: test_watched.Scores, name: val/f1}"
RANKED = "model._target_=test_watched.Ranked"


class Logs(L.Callback):
    logs = ("a list of somebody else's",)


class Ours(L.Callback):
    """Of this project, as its module says."""


def model(**options: Any) -> ImageClassifier:
    return Ranked(**options)


@pytest.mark.parametrize("logs", [["val/f1"], {"val/f1": "maximum"}])
def test_a_list_of_another_kind_is_refused(logs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ours, "logs", logs, raising=False)
    assert logged_by(Ours) == {}  # another package's may mean something else
    monkeypatch.setattr(Ours, "__module__", "litvision.callbacks.ours")
    with pytest.raises(UserError) as caught:
        logged_by(Ours())
    assert str(caught.value) == (
        f"Ours.logs = {logs!r} does not fit: it takes each metric's name, and min or max, as "
        "{'val/f1': 'max'}."
    )


def test_a_function_that_gives_a_model_is_no_way_round(compose_train: Compose) -> None:
    function = "model._target_=test_watched.model"
    assemble(compose_train(function, "monitor=val/own"))  # which it may well log
    with pytest.raises(UserError, match=r"^monitor=val/acc with mode=min keeps the worst: give "):
        assemble(compose_train(function, "monitor=val/acc"))


def test_a_metric_of_training_is_named_only_where_there_is_one(compose_train: Compose) -> None:
    for options, instead in (
        (["monitor=val/acc", "mode=max"], "monitor=train/acc"),
        ([SCORES, "monitor=val/f1", "mode=max"], "monitor=train/loss mode=min"),
        ([RANKED, "monitor=val/rank"], "monitor=train/loss"),
    ):
        with pytest.raises(UserError, match=rf"leaves none: give {instead} too, or leave "):
            assemble(compose_train(*options, "data.val_fraction=0"))


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        # 30 pictures are four batches of 8, and two steps of three and one of them.
        (["trainer.max_steps=3", "trainer.check_val_every_n_epoch=2"], True),
        (["trainer.max_steps=4", "trainer.check_val_every_n_epoch=2"], False),
        (
            [
                *("trainer.max_steps=3", "trainer.check_val_every_n_epoch=null"),
                "+trainer.val_check_interval=2",
            ],
            False,
        ),
    ],
)
def test_batches_are_counted_as_steps_join_them(
    compose_train: Compose, caplog: pytest.LogCaptureFixture, options: list[str], warned: bool
) -> None:
    joined = ["data.batch_size=8", "trainer.accumulate_grad_batches=3", "trainer.max_epochs=9"]
    run = assemble(compose_train(*joined, *options))
    assert run.datamodule.steps_per_epoch == 4
    assert ("Nothing will be validated" in caplog.text) == warned


def test_what_bases_and_instances_list_counts() -> None:
    assert logged_by(Ranked, Scores("val/f1"), Logs()) == {
        "train/loss": "min",
        "train/acc": "max",
        "val/loss": "min",
        "val/acc": "max",
        "val/rank": "min",
        "val/f1": "max",
    }


class Falls(L.Callback):
    """Logs 1 after the first epoch, and half of it after each further one."""

    logs: ClassVar = {"train/own": "min", "val/own": "max"}

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.log("val/own", 0.5**trainer.current_epoch)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.log("train/own", 0.5**trainer.current_epoch)


def test_the_best_by_a_metric_of_ones_own_is_kept_and_each_epoch_shows_it(
    compose_train: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["+callbacks.falls={_target_: test_watched.Falls}", "monitor=val/own", "mode=max"]
    run = assemble(compose_train(*own))
    run.trainer.fit(run.classifier, run.datamodule)
    assert (run.score, run.trainer.current_epoch) == (1.0, 2)
    assert torch.load(str(run.checkpoint), weights_only=True)["epoch"] == 0
    first, second = [x for x in capsys.readouterr().out.splitlines() if x.startswith("epoch ")]
    assert "  val/own 1  lr" in first
    assert "  train/own 1  val/own 0.5  lr" in second  # its own is logged after the line


@pytest.mark.parametrize(
    "options",
    [
        [RANKED, "monitor=val/rank"],
        [RANKED],
        [SCORES, "monitor=val/f1", "mode=max"],
        [SCORES, "callbacks.best_checkpoint.monitor=val/f1", "callbacks.best_checkpoint.mode=max"],
        # Another package's callback may watch what Lightning's own log.
        ["+callbacks.other={_target_: test_watched.Watcher, monitor: lr-SGD}"],
    ],
    ids=["model", "its base", "callback", "one callback's", "another package's"],
)
def test_what_is_listed_can_be_watched(compose_train: Compose, options: list[str]) -> None:
    assemble(compose_train(*options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["monitor=val/f1"],
            "monitor='val/f1' does not fit: it takes train/loss or train/acc or val/loss or "
            "val/acc. What a callback or model of your own logs, let its class list: "
            "logs = {'val/f1': 'max'}.",
        ),
        (
            [SCORES, "monitor=val/f2"],
            "monitor='val/f2' does not fit: it takes train/loss or train/acc or val/loss or "
            "val/acc or val/f1. What",
        ),
        (
            [SCORES, "monitor=val/f1"],
            "monitor=val/f1 with mode=min keeps the worst: give mode=max too.",
        ),
        (
            [SCORES, "callbacks.early_stopping.monitor=val/f1"],
            "callbacks.early_stopping.monitor=val/f1 with callbacks.early_stopping.mode=min keeps "
            "the worst: give callbacks.early_stopping.mode=max too.",
        ),
        (
            ["+callbacks.other={_target_: test_watched.Watcher, monitor: val/acc, mode: min}"],
            "callbacks.other.monitor=val/acc with callbacks.other.mode=min keeps the worst",
        ),
    ],
    ids=["not listed", "another", "mode", "one callback's mode", "another package's mode"],
)
def test_what_is_not_or_the_wrong_way_round_is_refused(
    compose_train: Compose, options: list[str], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        assemble(compose_train(*options))
    assert str(caught.value).startswith(message)
