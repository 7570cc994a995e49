"""Disks that fill up, folders that vanish, servers that misbehave: one line, and nothing lost."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from conftest import FileServer, Run
from litvision import export
from litvision.classifier import ImageClassifier
from litvision.errors import UserError, os_error
from litvision.sources.cifar import CIFAR10
from litvision.sources.image_folder import ImageFolder
from test_checkpoints import content
from tiny import TinyNet

OPTIONS = [
    *("data=shapes", "data.train_size=40", "data.test_size=20", "data.batch_size=8"),
    *("model.network._target_=tiny.TinyNet", "trainer.accelerator=cpu", "trainer.max_epochs=4"),
    *("callbacks.figures=null", "callbacks.graph=null", "callbacks.model_summary=null"),
]
NO_CHECKPOINTS = [
    f"callbacks.{name}=null"
    for name in ("best_checkpoint", "last_checkpoint", "interval_checkpoint", "save_on_signal")
]


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestFullDisk:
    @pytest.mark.parametrize("logger", ["tensorboard", pytest.param("csv", marks=pytest.mark.slow)])
    def test_while_logging(self, run: Run, tmp_path: Path, logger: str) -> None:
        disk = "+callbacks.disk={_target_: tiny.FillsDisk, epoch: 2, size: 0}"
        options = [*OPTIONS, *NO_CHECKPOINTS, f"logger={logger}", disk, "hydra.run.dir=run"]
        done = run("train", *options, fresh=True)  # its output is no file then
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert done.stderr.splitlines()[-1] == (
            "error: nothing more can be written (File too large). Make room, then run it again."
        )
        assert json.loads((tmp_path / "run" / "result.json").read_text())["epochs"] == 2
        assert list((tmp_path / "run").glob("*.part")) == []

    @pytest.mark.slow
    def test_in_a_sweep(self, run: Run, tmp_path: Path) -> None:
        disk = "+callbacks.disk={_target_: tiny.FillsDisk, epoch: 1, size: 0}"
        options = [*OPTIONS, *NO_CHECKPOINTS, "logger=csv", disk, "hydra.sweep.dir=sweep"]
        done = run("train", "--multirun", *options, "seed=0,1", fresh=True)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert "run 0 failed: nothing more can be written" in done.stderr

    @pytest.mark.parametrize("form", ["onnx", "torch_export"])
    def test_while_exporting(
        self, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("onnxscript")
        classifier = ImageClassifier(TinyNet(3, width=64))
        card = content()["litvision"]
        classifier.card = card
        write, _ = export.FORMATS[form]
        path = tmp_path / f"a{export.SUFFIX[form]}"
        with full_disk(2000), pytest.raises((OSError, RuntimeError)) as caught:
            write(export.deployable(classifier), card, path)
        assert os_error(caught.value) is not None

    def test_a_row_of_metrics_that_was_cut_short_goes_when_the_run_goes_on(
        self, run: Run, tmp_path: Path
    ) -> None:
        stop = "+callbacks.signal={_target_: tiny.Signal, step: 10}"
        done = run("train", *OPTIONS, "logger=csv", stop, "hydra.run.dir=run")
        assert done.returncode == 75, done.stderr
        path = tmp_path / "run" / "metrics.csv"
        with path.open("a") as file:
            file.write("1,")
        done = run("train", *OPTIONS, "logger=csv", "resume=run")
        assert done.returncode == 0, done.stderr
        with path.open() as file:
            steps = [int(row["step"]) for row in csv.DictReader(file)]
        assert steps == sorted(steps)
        assert set(steps) == {3, 7, 11, 15, 16}  # the last of each epoch, and the test

    def test_while_decoding(self, image_folder: Path) -> None:
        source = ImageFolder(image_folder)
        with full_disk(5000), pytest.raises(UserError, match=r"cannot write the decoded pictures"):
            source.prepare()
        assert [p.name for p in (image_folder / ".litvision").iterdir()] == [".lock"]
        assert len(source.read()["train"]) == 24

    @pytest.mark.parametrize("size", [1000, 9000])  # in the download; in what is unpacked
    def test_while_downloading(self, cifar10_source: CIFAR10, size: int) -> None:
        source = cifar10_source
        with full_disk(size), pytest.raises(UserError, match="File too large") as caught:
            source.prepare()
        assert "\n" not in str(caught.value)
        assert list(source.root.glob("*.part")) == []
        source.prepare()
        assert len(source.read()["train"]) == 40


def own_pictures(root: Path) -> list[str]:
    return [
        *("data=image_folder", f"data.root={root}", "data.val_fraction=0.25", "data.batch_size=6"),
        *OPTIONS[4:],
    ]


def test_pictures_that_vanish_while_they_are_trained_on_are_still_there(
    run: Run, tmp_path: Path, image_folder: Path
) -> None:
    delete = f"+callbacks.delete={{_target_: tiny.DeletesFolder, folder: {image_folder}, step: 2}}"
    done = run("train", *own_pictures(image_folder), delete, "hydra.run.dir=run")
    assert not image_folder.exists()
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["epochs"] == 4


def test_pictures_that_vanished_before_a_run_is_gone_on_with_are_one_line(
    run: Run, tmp_path: Path, image_folder: Path
) -> None:
    options = own_pictures(image_folder)
    stop = "+callbacks.signal={_target_: tiny.Signal, step: 5}"
    assert run("train", *options, stop, "hydra.run.dir=run").returncode == 75
    shutil.move(image_folder, tmp_path / "elsewhere")
    before = (tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes()
    done = run("train", *options, "resume=run")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: no folder {image_folder}/train; ")
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes() == before
    shutil.move(tmp_path / "elsewhere", image_folder)
    assert run("train", *options, "resume=run").returncode == 0


class TestServer:
    @pytest.fixture
    def source(self, cifar10_source: CIFAR10) -> CIFAR10:
        return cifar10_source

    @pytest.mark.parametrize("fault", ["slow", "redirect"])
    def test_what_arrives_late_or_from_elsewhere_is_taken(
        self, source: CIFAR10, file_server: FileServer, fault: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The whole takes half a second: what counts is the silence between two pieces.
        monkeypatch.setattr("litvision.sources.cifar._TIMEOUT_SECONDS", 0.4)
        file_server.fault = fault
        source.prepare()
        assert len(source.read()["train"]) == 40

    @pytest.mark.parametrize(("fault", "reason"), [("stall", "timed out"), ("loop", "redirect")])
    def test_what_does_not_arrive_leaves_nothing(
        self,
        source: CIFAR10,
        file_server: FileServer,
        fault: str,
        reason: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("litvision.sources.cifar._TIMEOUT_SECONDS", 0.4)
        file_server.fault = fault
        with pytest.raises(UserError, match="cannot download") as caught:
            source.prepare()
        assert "\n" not in str(caught.value)
        assert reason in str(caught.value)
        assert [path for path in source.root.iterdir() if path.suffix != ".lock"] == []
        with FileLock(next(source.root.glob(".*.lock")), timeout=0):
            pass  # the next one does not wait
        file_server.fault = None
        source.prepare()
        assert len(source.read()["train"]) == 40
