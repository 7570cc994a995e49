"""The moving average of the weights: what is validated, tested, saved, and gone on with."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from conftest import Compose, Run
from litvision.assemble import assemble

OPTIONS = ["callbacks=ema", "callbacks.ema.decay=0.5", "optimizer.lr=0.1", "logger=none"]
OPTIONS += ["trainer.precision=32-true", "data.padding=0"]


class Record(L.Callback):
    """Averages the weights by the formula, step by step."""

    def __init__(self) -> None:
        self.average: dict[str, torch.Tensor] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        for name, weight in pl_module.named_parameters():
            before = self.average.get(name, weight.detach())
            self.average[name] = 0.5 * before + 0.5 * weight.detach()


def test_the_average_is_saved_and_tested(compose_train: Compose) -> None:
    run = assemble(compose_train(*OPTIONS))
    record = Record()
    run.trainer.callbacks.append(record)
    run.trainer.fit(run.classifier, run.datamodule)
    path = Path(run.cfg.run_dir, "checkpoints", "last.ckpt")
    content = torch.load(path, weights_only=True)
    trained, saved = content["current_model_state"], content["state_dict"]
    for name, average in record.average.items():
        torch.testing.assert_close(saved[name], average)
        assert not torch.equal(saved[name], trained[name])
    # Tested in the process that saved it, Lightning's own callback takes the trained weights.
    run.trainer.test(run.classifier, run.datamodule, ckpt_path=path, verbose=False)
    for name, weight in run.classifier.named_parameters():
        assert torch.equal(weight.cpu(), saved[name])


@pytest.mark.parametrize("step", [1, 4])
def test_a_run_that_was_stopped_ends_with_the_same_average(
    run: Run, tmp_path: Path, step: int
) -> None:
    options = [
        *OPTIONS, "data=shapes", "data.train_size=40", "data.test_size=20", "data.batch_size=16",
        "model.network._target_=tiny.TinyNet", "trainer.accelerator=cpu", "trainer.max_epochs=3",
        "callbacks.figures=null", "callbacks.model_summary=null",
    ]  # fmt: skip
    assert run("train", *options, "hydra.run.dir=whole").returncode == 0
    stop = f"+callbacks.signal={{_target_: tiny.Signal, step: {step}, number: {signal.SIGTERM:d}}}"
    assert run("train", *options, stop, "hydra.run.dir=run").returncode == 75
    done = run("train", *options, "resume=run")
    assert done.returncode == 0, done.stderr
    whole, found = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)
        for name in ("whole", "run")
    )
    for kind in ("state_dict", "current_model_state", "averaging_state"):
        assert all(torch.equal(value, found[kind][name]) for name, value in whole[kind].items())
