"""A terminal that is closed, a connection that is lost, a pipe that nobody reads any more."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch

from commands import start_on_terminal
from conftest import Compose, Run
from litvision.errors import Interrupted
from test_going_on import OPTIONS, At, fit

ROOT = Path(__file__).parents[1]
TINY = [
    *("data=shapes", "data.train_size=60", "data.test_size=20", "data.batch_size=16"),
    *("model.network._target_=tiny.TinyNet", "trainer.accelerator=cpu", "logger=csv"),
    *("callbacks.figures=null", "callbacks.graph=null"),
]


def test_a_run_whose_terminal_is_closed_is_saved_and_goes_on(tmp_path: Path, run: Run) -> None:
    ours, theirs = pty.openpty()
    options = [*TINY, "hydra.run.dir=run", "callbacks.early_stopping=null"]
    process = start_on_terminal(
        tmp_path, os.ttyname(theirs), "train", *options, "trainer.max_epochs=100000"
    )
    shown = b""
    while b"epoch 3" not in shown:  # the test's own time limit is what ends this if none comes
        shown += os.read(ours, 65536)
    os.close(theirs)
    os.close(ours)
    process.join(60)
    process.kill()
    assert process.exitcode == 75, shown.decode()
    assert json.loads((tmp_path / "run" / "result.json").read_text())["state"] == "interrupted"
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] >= 12
    done = run("train", *options, "resume=run", f"trainer.max_epochs={saved['epoch'] + 2}")
    assert done.returncode == 0, done.stderr


def hang_up_twice(trainer: L.Trainer) -> None:
    """As a shell and then the system do."""
    signal.raise_signal(signal.SIGHUP)
    signal.raise_signal(signal.SIGHUP)


def test_a_second_hangup_does_not_cut_the_saving_short(
    compose_train: Compose, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        fit(compose_train(*OPTIONS, f"run_dir={tmp_path}/part"), At(2, hang_up_twice))
    saved = torch.load(tmp_path / "part" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


def test_a_hangup_after_ctrl_c_does_not_cut_the_saving_short(
    compose_train: Compose, tmp_path: Path
) -> None:
    def stop(trainer: L.Trainer) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGHUP)

    with pytest.raises(Interrupted):
        fit(compose_train(*OPTIONS, f"run_dir={tmp_path}/part"), At(2, stop))
    assert (tmp_path / "part" / "checkpoints" / "last.ckpt").is_file()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


def test_with_nohup_a_run_goes_on(compose_train: Compose, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run = fit(compose_train(*OPTIONS, f"run_dir={tmp_path}/whole"), At(2, hang_up_twice))
        assert run.trainer.current_epoch == run.trainer.max_epochs
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


PRINTS = """
import sys
from litvision.streams import outlive_readers
outlive_readers()
print("before", flush=True)
sys.stdin.read()  # until the other end has been closed
for number in range(3):
    print("after", number, flush=True)
print("at the end")
print("grüße", file=sys.stderr)
"""


def prints(*flags: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONIOENCODING": "utf-8"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, *flags, "-c", PRINTS], stdin=pipe, stdout=pipe, stderr=pipe,
        env=environment,
    )  # fmt: skip


@pytest.mark.parametrize("flags", [(), ("-u",)])
def test_what_nobody_reads_goes_nowhere(flags: tuple[str, ...]) -> None:
    process = prints(*flags)
    assert process.stdin
    assert process.stdout
    assert process.stderr
    assert process.stdout.readline() == b"before\n"
    process.stdout.close()
    process.stdin.close()
    assert process.stderr.read().decode() == "grüße\n"
    assert process.wait() == 0


@pytest.mark.parametrize("flags", [(), ("-u",)])
def test_what_is_read_arrives(flags: tuple[str, ...]) -> None:
    printed, said = prints(*flags).communicate()
    assert printed == b"before\nafter 0\nafter 1\nafter 2\nat the end\n"
    assert said.decode() == "grüße\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's disk that is always full")
def test_a_full_disk_still_is_an_error() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", PRINTS], stdin=subprocess.DEVNULL, stdout=full,
            stderr=subprocess.PIPE, env=environment,
        )  # fmt: skip
    assert done.returncode == 1
    assert b"No space left on device" in done.stderr
