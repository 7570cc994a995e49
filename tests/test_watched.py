from __future__ import annotations

from typing import ClassVar

import lightning as L
import pytest

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


def test_what_bases_and_instances_list_counts() -> None:
    assert logged_by(Ranked, Scores("val/f1"), Logs()) == {
        "train/loss": "min",
        "train/acc": "max",
        "val/loss": "min",
        "val/acc": "max",
        "val/rank": "min",
        "val/f1": "max",
    }


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
