"""Checkpoints are written whole or not at all, and a damaged one is never taken for a good one."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from conftest import Run
from litvision import checkpoints
from litvision.checkpoint_io import WholeCheckpointIO
from litvision.errors import UserError
from test_checkpoints import content

OPTIONS = [
    *("data=shapes", "data.train_size=60", "data.test_size=20", "data.batch_size=16"),
    *("model.network._target_=tiny.TinyNet", "trainer.max_epochs=4", "trainer.accelerator=cpu"),
    *("trainer.precision=32-true", "optimizer.lr=0.3", "logger=csv"),
    *("callbacks.figures=null", "callbacks.model_summary=null"),
]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_is_saved_is_read_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    for epoch in (1, 2):
        WholeCheckpointIO().save_checkpoint({**content(), "epoch": epoch}, str(path))
        assert checkpoints.read(path)["epoch"] == epoch
    assert names(path.parent) == {"last.ckpt"}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_write_that_stops_half_way_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    WholeCheckpointIO().save_checkpoint({**content(), "epoch": 1}, path)
    before = path.read_bytes()

    def stops(what: Any, file: Any) -> None:
        file.write(before[:1000])
        raise error

    monkeypatch.setattr(torch, "save", stops)
    with pytest.raises((UserError, KeyboardInterrupt)) as raised:
        WholeCheckpointIO().save_checkpoint({**content(), "epoch": 2}, path)
    assert path.read_bytes() == before
    if raised.type is UserError:
        assert str(raised.value) == (
            f"cannot write the checkpoint {path} (No space left on device). The one before it is "
            f"untouched. Make room, then go on with the same command and resume={tmp_path}/run."
        )
        assert names(path.parent) == {"last.ckpt"}


@pytest.mark.parametrize(("path", "options"), [("s3://here/last.ckpt", None), ("a.ckpt", {})])
def test_what_has_another_address_is_lightnings_to_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, options: Any
) -> None:
    asked: list[Any] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TorchCheckpointIO, "save_checkpoint", lambda _, *given: asked.append(given))
    WholeCheckpointIO().save_checkpoint({"epoch": 1}, path, options)
    assert asked == [({"epoch": 1}, path, options)]
    assert not list(tmp_path.iterdir())


def test_what_is_no_fault_of_the_disk_is_not_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(what: Any, file: Any) -> None:
        raise RuntimeError("cannot pickle this")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(RuntimeError, match="cannot pickle this"):
        WholeCheckpointIO().save_checkpoint(content(), tmp_path / "last.ckpt")


def test_a_full_disk_ends_the_run_in_one_line_and_it_can_be_gone_on_with(
    run: Run, tmp_path: Path
) -> None:
    full = "+callbacks.disk={_target_: tiny.FillsDisk, epoch: 2, size: 12000}"
    done = run("train", *OPTIONS, full, "hydra.run.dir=run")
    assert done.returncode == 1
    folder = tmp_path / "run"
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: cannot write the checkpoint {folder}/checkpoints/")
    assert last.endswith(
        "(File too large). The one before it is untouched. Make room, then go on with the same "
        f"command and resume={folder}."
    )
    assert json.loads((folder / "result.json").read_text())["state"] == "failed"
    assert names(folder / "checkpoints") == {"best.ckpt", "last.ckpt"}
    assert checkpoints.read(folder / "checkpoints" / "last.ckpt")["epoch"] == 1
    done = run("train", *OPTIONS, "resume=run")
    assert done.returncode == 0, done.stderr
    assert checkpoints.read(folder / "checkpoints" / "last.ckpt")["epoch"] == 3


def test_one_flipped_bit_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    saved = content()
    path = tmp_path / "last.ckpt"
    WholeCheckpointIO().save_checkpoint(saved, path)
    good = path.read_bytes()
    rng = random.Random(0)
    refused = 0
    for _ in range(300):
        flipped = bytearray(good)
        flipped[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:
            found = checkpoints.read(path)
        except UserError:
            refused += 1
            continue
        assert found["litvision"] == saved["litvision"]
        for name, value in saved["state_dict"].items():
            assert torch.equal(found["state_dict"][name], value)
    assert refused > 150  # the others hit what aligns the tensors in the file


@pytest.mark.parametrize(
    "resume", ["resume=auto", pytest.param("resume=logs/default/run", marks=pytest.mark.slow)]
)
def test_a_damaged_last_checkpoint_gives_way_to_the_best(
    run: Run, tmp_path: Path, resume: str
) -> None:
    stop = "+callbacks.signal={_target_: tiny.Signal, step: 10}"
    done = run("train", *OPTIONS, stop, "hydra.run.dir=logs/default/run")
    assert done.returncode == 75, done.stderr
    folder = tmp_path / "logs" / "default" / "run"
    last, best = (folder / "checkpoints" / f"{name}.ckpt" for name in ("last", "best"))
    broken = bytearray(last.read_bytes())
    middle = len(broken) // 2
    for place in range(middle, middle + 200):  # more than what aligns tensors: that means nothing
        broken[place] ^= 255
    last.write_bytes(broken)
    step = checkpoints.read(best)["global_step"]
    done = run("train", *OPTIONS, resume)
    assert done.returncode == 0, done.stderr
    said = "logs/default/run/checkpoints/last.ckpt is damaged: going on from best.ckpt beside it"
    assert f"{said}, after step {step}" in done.stdout + done.stderr
    assert checkpoints.read(last)["epoch"] == 3
    # As if it had never been stopped.
    whole = run("train", *OPTIONS, "hydra.run.dir=whole")
    assert whole.returncode == 0, whole.stderr
    expected = checkpoints.read(tmp_path / "whole" / "checkpoints" / "last.ckpt")["state_dict"]
    found = checkpoints.read(last)["state_dict"]
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    best.write_bytes(broken)
    last.write_bytes(broken)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    done = run("train", *OPTIONS, "trainer.max_epochs=5", "resume=logs/default/run")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "error: logs/default/run/checkpoints/last.ckpt cannot be read as a checkpoint"
    )
    left_alone = ("checkpoints/", "result.json", "metrics.csv", "/config.yaml", "provenance.json")
    for path, content_before in before.items():
        if any(name in str(path) for name in left_alone) and ".hydra" not in str(path):
            assert path.read_bytes() == content_before, path
