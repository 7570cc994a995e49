from __future__ import annotations

import pytest

from conftest import Compose
from litvision.assemble import assemble
from litvision.determinism import obstacles


@pytest.mark.parametrize(
    ("device", "overrides", "words"),
    [
        ("cpu", [], []),
        ("cpu", ["model.compile=true", "data.num_workers=2", "+trainer.benchmark=true"], []),
        ("cuda", [], ["a GPU adds in any order"]),
        ("cuda", ["+trainer.benchmark=true"], ["a GPU adds", "trainer.benchmark"]),
        ("cuda", ["+trainer.benchmark=true", "+trainer.deterministic=true"], []),
        ("cuda", ["+trainer.deterministic=false"], ["a GPU adds in any order"]),
        ("cuda", ["+trainer.deterministic=warn"], ["a GPU adds in any order"]),
        ("mps", [], ["Apple's"]),
        ("cpu", ["+trainer.max_time='00:00:10:00'"], ["trainer.max_time"]),
        ("cpu", ["model.compile=max-autotune"], ["model.compile=max-autotune"]),
        ("cpu", ["callbacks=[default,batch_size_finder]"], []),
        (
            "cpu",
            ["callbacks=[default,batch_size_finder]", "callbacks.batch_size_finder.apply=true"],
            ["callbacks.batch_size_finder.apply"],
        ),
    ],
)
def test_what_is_not_repeatable_is_named(
    compose_train: Compose, device: str, overrides: list[str], words: list[str]
) -> None:
    found = obstacles(compose_train(*overrides), device)
    assert len(found) == len(words)
    for word, reason in zip(words, found, strict=True):
        assert reason.startswith(word)


def test_it_is_said_before_training(
    compose_train: Compose, caplog: pytest.LogCaptureFixture
) -> None:
    quiet = ("logger=none", "callbacks.progress_bar=null")
    with caplog.at_level("INFO"):
        assemble(compose_train(*quiet))
        assert "may end otherwise" not in caplog.text
        assemble(compose_train(*quiet, "+trainer.max_time='00:00:10:00'"))
    assert "Another run of it may end otherwise: trainer.max_time ends it by the clock" in (
        caplog.messages
    )
