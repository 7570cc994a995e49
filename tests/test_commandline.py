"""What a person reads who mistypes: run as a person runs it, in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from conftest import Run
from litvision import commandline
from litvision.commandline import new_folder
from litvision.configs import CONF, nearest

SOURCE = Path(__file__).parents[1] / "src"


MODELS = ", ".join(sorted({path.stem for path in (CONF / "model").glob("*.yaml")} - {"base"}))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "trainer.max_epoch=3",
            "error: There is no key or group 'trainer.max_epoch'. Nearest: trainer.max_epochs",
        ),
        (
            "callbacks.finetuning.unfreeze_at_epoch=1",
            "error: callbacks.finetuning.unfreeze_at_epoch: finetuning is not chosen. Add "
            "callbacks=[default,finetuning].",
        ),
        (
            "experiment=finetune callbacks=[ema,finetuning] callbacks.warmup.epochs=1",
            "error: callbacks.warmup.epochs: warmup is not chosen. Add "
            "callbacks=[ema,finetuning,warmup].",
        ),
        (
            "experiment=speedrun callbacks.ema.decay=0.5",
            "error: callbacks.ema.decay: ema is not chosen. Add callbacks=[warmup,whitening,ema].",
        ),
        (
            "callbacks.early_stopping.patienc=1",
            "error: There is no key or group 'callbacks.early_stopping.patienc'. Nearest: callb",
        ),
        ("modle=vgg16", "error: There is no key or group 'modle'. Nearest: mode, model"),
        (
            "model=resnet19",
            "error: model=resnet19: there is no 'resnet19' in model. Nearest: resnet18. "
            f"All of model: {MODELS}.",
        ),
        (
            "experiment=sead",
            "error: experiment=sead: there is no 'sead' in experiment. Nearest: se",
        ),
        (
            "data.classes=[a",
            "error: 'data.classes=[a' cannot be read: no viable alternative at input '[a'. Write ",
        ),
        (
            "data.classes=[ä]",
            "error: 'data.classes=[ä]' cannot be read: a character in it means nothing outside ",
        ),
        (
            "monitor=ä",
            "error: monitor='ä' does not fit: it takes train/loss or train/acc or ",
        ),
        ("model=true", f"error: model=true: name a choice. All of model: {MODELS}."),
        ("logger=3", "error: logger=3: name a choice, or take single parts out: callbacks.<name>"),
        (
            "callbacks.result=3",
            "error: callbacks.result=3 does not fit: it takes null, or options.",
        ),
        (
            "optimizer._partial_=false",
            "error: optimizer: torch.optim.SGD needs params: give optimizer.params, or _partial_: ",
        ),
        ("data=image_folder", "error: data.root has no value: give data.root=…"),
    ],
)
def test_a_mistake_gets_one_line_that_names_the_nearest(
    run: Run, argument: str, message: str
) -> None:
    done = run("train", *argument.split(" "))
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(message)


def test_help_and_misspelt_words_do_not_wait_for_torch(tmp_path: Path) -> None:
    block = tmp_path / "torch.py"
    block.write_text("raise SystemExit('torch was imported')")
    (tmp_path / "lightning.py").write_text("raise SystemExit('lightning was imported')")
    path = os.pathsep.join([str(tmp_path), str(SOURCE)])
    for arguments, code in ((["--help"], 0), (["--cfg", "job"], 0), (["modle=x"], 1)):
        for module in ("train", "evaluate"):
            done = subprocess.run(
                [sys.executable, "-m", f"litvision.{module}", *arguments],
                env={**os.environ, "PYTHONPATH": path},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == code, done.stderr
            assert "was imported" not in done.stderr + done.stdout


def test_a_value_that_does_not_fit_is_found_before_data_are_read(tmp_path: Path, run: Run) -> None:
    done = run("train", "data.batch_size=0", "data.root=data/nowhere")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: data.batch_size=0 does not fit: it takes an integer from 1."
    ]
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("data.root=data/größe", "data.root='data/größe'"),
        ("input=犬 und Katze.jpg", "input='犬 und Katze.jpg'"),
        ("data.root='größe'", "data.root='größe'"),
        ("data.classes=[bär,kuh]", "data.classes=[bär,kuh]"),
        ("data.root=größe,höhe", "data.root=größe,höhe"),
        ("data.root=plain", "data.root=plain"),
        ("--config-dir=größe", "--config-dir=größe"),
    ],
)
def test_letters_beyond_ascii_need_no_quotes(typed: str, read: str) -> None:
    assert commandline._quoted(typed) == read


def test_a_folder_with_an_umlaut_is_found(run: Run) -> None:
    done = run("train", "data=image_folder", "data.root=größe")
    assert done.returncode == 1
    assert "no folder größe/train" in done.stderr


def test_a_run_that_did_not_begin_leaves_no_folder_but_nothing_of_anybody_is_lost(
    run: Run, tmp_path: Path
) -> None:
    assert run("train", "data=shapes", "optimizer.lr=-1").returncode == 1
    assert list((tmp_path / "logs").glob("*/*")) == []
    notes = tmp_path / "own" / "train.txt"
    notes.parent.mkdir()
    notes.write_text("mine")
    run("train", "data=shapes", "optimizer.lr=-1", "hydra.run.dir=own")
    assert notes.read_text() == "mine"
    here = tmp_path / "here"
    run("train", "data=shapes", "optimizer.lr=-1", "hydra.run.dir=.", folder=here)
    assert here.is_dir()


def test_what_lightning_refuses_in_training_gets_one_line(run: Run) -> None:
    tiny = ["data=shapes", "data.train_size=100", "model.network._target_=tiny.TinyNet"]
    done = run("train", *tiny, "trainer.limit_train_batches=0.01", "logger=none")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "limit_train_batches" in line
    assert "Traceback" not in done.stderr


def test_a_bug_keeps_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "buggy.py").write_text(
        "from litvision.commandline import command\n"
        "@command('train')\n"
        "def main(cfg):\n"
        "    return 1 / 0\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "buggy.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError" in done.stderr


@pytest.mark.parametrize(
    ("command", "argument", "message"),
    [
        ("evaluate", "model=vgg16", "error: There is no key or group 'model'. There are: data, "),
        ("predict", "inputs=a", "error: There is no key or group 'inputs'. Nearest: input."),
        ("train", "resume=", "error: . is a folder without a checkpoint: it holds no checkpoints/"),
        ("train", "callbacks=finetuning", "error: callbacks.finetuning freezes what init_from has"),
    ],
)
def test_a_mistake_is_met_with_what_the_command_takes(
    run: Run, command: str, argument: str, message: str
) -> None:
    done = run(command, argument, "checkpoint=a" if command != "train" else "data=shapes")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(message)
    assert "+" not in done.stderr


def test_a_stop_before_anything_is_trained_is_one_line(tmp_path: Path) -> None:
    code = (
        "import os, signal, litvision.train as t;"
        "signal.signal(signal.SIGINT, signal.default_int_handler);"  # tests in the background
        "t.train = lambda cfg: os.kill(os.getpid(), signal.SIGINT);"
        "t.main()"
    )
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    done = subprocess.run(
        [sys.executable, "-c", code, "data=shapes"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr.splitlines()[-1]) == (130, "stopped by Ctrl-C")
    assert "Traceback" not in done.stderr


def test_nearest_looks_at_whole_keys_and_at_their_last_part() -> None:
    words = ["trainer.max_epochs", "optimizer.lr", "data.batch_size"]
    assert nearest("batch_siz", words) == ["data.batch_size"]
    assert nearest("trainer.epochs", words)[0] == "trainer.max_epochs"
    assert nearest("zzzzz", words) == []


def test_the_configs_are_found_beside_the_package() -> None:
    assert Path(__file__).parents[1] / "conf" == CONF


def test_runs_that_start_in_the_same_second_get_folders_of_their_own(tmp_path: Path) -> None:
    path = str(tmp_path / "logs" / "default" / "2026-01-31_12-00-00")
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(new_folder, [path] * 8))
    assert set(made) == {path, *(f"{path}_{number}" for number in range(2, 9))}
    cfg = OmegaConf.create({"dir": f"${{new_folder:{path}}}"})
    assert cfg.dir == cfg.dir == f"{path}_9"  # one config, one folder


def test_a_place_where_nothing_can_be_written_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file")
    done = run("train", "data=shapes")
    assert done.returncode == 1
    assert re.fullmatch(
        r"error: logs/default/\S+ cannot be made \((Not a directory|File exists)\): give another "
        r"place for what the run writes, hydra\.run\.dir=<folder>\.\n",
        done.stderr,
    )
