"""A terminal that is closed, a connection that is lost, a pipe that nobody reads any more."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch

from commands import environment_of, start_on_terminal
from conftest import Compose, Run
from litvision.callbacks import save_on_signal
from litvision.errors import Interrupted
from litvision.streams import outlive_readers
from test_going_on import OPTIONS, At, fit

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
    environment = {**environment_of(), "PYTHONIOENCODING": "utf-8"}
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


AT_ONCE = """
import sys
print("first", end=" ")
from litvision.streams import outlive_readers
outlive_readers()
print("seen at once")
print("\\udcff", file=sys.stderr)
sys.stdin.read()
print("more", file=sys.stderr, flush=True)
"""


@pytest.mark.parametrize("flags", [(), ("-u",)])
def test_what_is_printed_is_seen_at_once(flags: tuple[str, ...]) -> None:
    ours, theirs = pty.openpty()  # a line at a time, or all of it; strange letters as before
    process = subprocess.Popen(
        [sys.executable, *flags, "-c", AT_ONCE], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE if flags else theirs, stderr=subprocess.PIPE,
        env=environment_of(),
    )  # fmt: skip
    assert process.stdin
    assert process.stderr
    source = process.stdout.fileno() if process.stdout else ours
    seen = b""
    while not seen.endswith(b"\n"):
        seen += os.read(source, 100)
    assert seen.split() == [b"first", b"seen", b"at", b"once"]
    assert process.stderr.readline() == b"\\udcff\n"
    process.stderr.close()
    process.stdin.close()
    assert process.wait() == 0  # "more" went nowhere
    os.close(ours)
    os.close(theirs)


def test_streams_of_others_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (io.TextIOWrapper(io.BytesIO()), io.StringIO(), None):
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        outlive_readers()
        assert sys.stdout is stream
        assert sys.stderr is stream


@pytest.mark.parametrize(
    ("number", "more"), [(signal.SIGHUP, ""), (signal.SIGINT, "; once more ends it at once")]
)
def test_what_is_said_of_a_signal(
    compose_train: Compose,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    number: int,
    more: str,
) -> None:
    ask = At(2, lambda _: signal.raise_signal(number))
    with pytest.raises(Interrupted):
        fit(compose_train(*OPTIONS, f"run_dir={tmp_path}/part"), ask)
    told = f"{signal.Signals(number).name}: saving after this step{more}\n"
    assert told in capfd.readouterr().err


def test_a_line_that_cannot_be_written_keeps_nothing_from_being_saved(
    compose_train: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stderr", Gone())
    with pytest.raises(Interrupted):
        fit(compose_train(*OPTIONS, f"run_dir={tmp_path}/part"), At(2, hang_up_twice))
    assert (tmp_path / "part" / "checkpoints" / "last.ckpt").is_file()


def test_other_processes_than_the_first_end_without_an_alarm(tmp_path: Path) -> None:
    """Lightning's first one kills all, itself included, when one of them fails."""
    callback = save_on_signal.SaveOnSignal(str(tmp_path))
    for first, code in ((True, 75), (False, 0)):
        trainer: Any = SimpleNamespace(is_global_zero=first, global_step=1, default_root_dir="run")
        with pytest.raises(Interrupted) as raised:
            callback._stop(trainer)
        assert raised.value.code == code


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="Linux's file that answers EIO")
def test_a_failing_disk_is_no_closed_terminal() -> None:
    with Path("/proc/self/mem").open("r+b", buffering=0) as broken:
        done = subprocess.run(
            [sys.executable, "-c", PRINTS], stdin=subprocess.DEVNULL, stdout=broken,
            stderr=subprocess.PIPE, env=environment_of(),
        )  # fmt: skip
    assert done.returncode == 1
    assert b"Input/output error" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's disk that is always full")
def test_a_full_disk_still_is_an_error() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", PRINTS], stdin=subprocess.DEVNULL, stdout=full,
            stderr=subprocess.PIPE, env=environment_of(),
        )  # fmt: skip
    assert done.returncode == 1
    assert b"No space left on device" in done.stderr
