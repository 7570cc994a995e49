"""Whole runs, as a person starts them."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra.types import RunMode
from omegaconf import OmegaConf

from conftest import Compose, Run, write_image_folder
from litvision import checkpoints
from litvision.assemble import assemble
from litvision.batches import Batch
from litvision.classifier import ImageClassifier
from litvision.errors import UserError
from litvision.records import write_result
from litvision.train import main, refuse_to_overwrite

# A run of a few seconds: tiny pictures, tiny network, float32, so that it is exact.
TINY = (
    "data=shapes",
    "data.train_size=100",
    "data.test_size=30",
    "data.batch_size=16",
    "model.network._target_=tiny.TinyNet",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.max_epochs=2",
)


def only_run(folder: Path, experiment: str = "default") -> Path:
    (run,) = (folder / "logs" / experiment).iterdir()
    return run


def test_a_run_leaves_everything_that_it_promises(tmp_path: Path, run: Run) -> None:
    done = run("train", *TINY)
    assert done.returncode == 0, done.stderr
    folder = only_run(tmp_path)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", folder.name)
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "provenance.json", "result.json", "metrics.csv", "checkpoints"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert {f.name for f in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}

    result = json.loads((folder / "result.json").read_text())
    assert result["state"] == "done"
    assert result["epochs"] == 2
    assert result["data"] == "Shapes"
    assert result["overrides"] == list(TINY)
    metrics = {f"{s}/{m}" for s in ("train", "val", "test") for m in ("loss", "acc")}
    assert metrics | {"lr", "images_per_second", "seconds", "best_epoch"} <= set(result)

    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert metrics <= set(rows[0])
    assert sum(bool(row["val/loss"]) for row in rows) == 2

    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["seed"] == 0
    assert re.fullmatch("[0-9a-f]{64}", provenance["data_sha256"])

    lines = done.stdout.splitlines()
    assert sum(line.startswith("epoch ") for line in lines) == 2
    assert f"test accuracy  {result['test/acc']:.2%}" in lines
    assert f"run            {folder.relative_to(tmp_path)}" in lines
    assert "Traceback" not in done.stderr


class Bare(ImageClassifier):
    """Has a `training_step` of its own, which keeps no sums."""

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self(batch.images).float(), batch.labels)


def test_a_training_step_of_ones_own_needs_nothing_of_ours(
    compose_train: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    made = assemble(compose_train("model._target_=test_train.Bare"))
    made.trainer.fit(made.classifier, made.datamodule)
    assert "val/loss" in made.trainer.callback_metrics
    assert not {"train/loss", "train/acc"} & set(made.trainer.callback_metrics)
    assert re.search(r"epoch 2/2  val/loss \S+  val/acc ", capsys.readouterr().out)
    assert made.checkpoint is not None


def test_a_run_that_ends_before_it_validates_says_so_and_counts_its_own_epochs(
    compose_train: Compose, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "Nothing will be validated, and no checkpoint be the best: trainer.max_steps=1 ends the "
    made = assemble(compose_train("trainer.max_steps=1", "trainer.max_epochs=30"))
    assert said in caplog.text
    made.trainer.fit(made.classifier, made.datamodule)
    assert made.checkpoint is None
    assert "epoch 1/1  train/loss" in capsys.readouterr().out
    caplog.clear()
    for enough in (
        ["trainer.max_steps=2"],
        ["trainer.max_steps=1", "trainer.accumulate_grad_batches=2"],
        ["trainer.max_steps=1", "+trainer.val_check_interval=1"],
        ["trainer.max_steps=1", "+trainer.val_check_interval=0.5"],
    ):
        assemble(compose_train(*enough))
    assert "Nothing will be validated" not in caplog.text
    assemble(compose_train("trainer.max_steps=3", "trainer.check_val_every_n_epoch=2"))
    assert "Nothing will be validated" in caplog.text


def test_a_run_is_the_same_again_and_another_with_another_seed(
    compose_train: Compose, tmp_path: Path
) -> None:
    def weights(*overrides: str) -> dict[str, torch.Tensor]:
        made = assemble(compose_train("logger=none", "callbacks.progress_bar=null", *overrides))
        made.trainer.fit(made.classifier, made.datamodule)
        return {name: value.clone() for name, value in made.classifier.state_dict().items()}

    first, again = weights(), weights("data.num_workers=1")
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = weights("seed=1")
    assert not torch.equal(first["network.fc.weight"], other["network.fc.weight"])


def test_the_tested_weights_are_those_of_the_best_epoch(compose_train: Compose) -> None:
    made = assemble(compose_train("logger=none", "trainer.max_epochs=3", "optimizer.lr=2"))
    made.trainer.fit(made.classifier, made.datamodule)
    assert made.checkpoint is not None
    made.trainer.test(made.classifier, made.datamodule, ckpt_path=made.checkpoint, verbose=False)
    content = checkpoints.read(made.checkpoint)
    for name, value in made.classifier.state_dict().items():
        assert torch.equal(value, content["state_dict"][name])
    assert made.score == min(
        float(value)
        for state in content["callbacks"].values()
        if "best_model_score" in state and (value := state["best_model_score"]) is not None
    )


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(compose_train: Compose) -> None:
    def fit(*overrides: str) -> dict[str, torch.Tensor]:
        made = assemble(compose_train("logger=none", "callbacks.progress_bar=null", *overrides))
        made.trainer.fit(
            made.classifier, made.datamodule, ckpt_path=made.resume_from, weights_only=True
        )
        return {name: value.clone() for name, value in made.classifier.state_dict().items()}

    options = ("optimizer.lr=0.3", "callbacks.reduce_lr_on_plateau.patience=1")
    whole = fit(*options, "trainer.max_epochs=4")
    cfg = compose_train()
    fit(*options, "trainer.max_epochs=2")
    resumed = fit(*options, "trainer.max_epochs=4", f"resume={cfg.run_dir}")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_debug_fast_runs_one_batch_and_saves_no_checkpoint(tmp_path: Path, run: Run) -> None:
    done = run("train", *TINY[:-1], "debug=fast")
    assert done.returncode == 0, done.stderr
    assert not (only_run(tmp_path) / "checkpoints").exists()


def test_debug_profile_reports_where_the_time_went(compose_train: Compose) -> None:
    made = assemble(compose_train("debug=profile", "logger=none"))
    made.trainer.fit(made.classifier, made.datamodule)
    summary = made.trainer.profiler.summary()
    assert "run_training_batch" in summary


def test_debug_overfit_learns_its_pictures_by_heart(compose_train: Compose) -> None:
    network = "model.network._target_=tiny.TinyLinear"
    options = ["logger=none", "callbacks.progress_bar=null", "optimizer.lr=0.1"]
    cfg = compose_train("debug=overfit", network, *options, "data.train_size=200")
    cfg.trainer.max_epochs = 200  # a network this small takes longer than a real one
    made = assemble(cfg)
    made.trainer.fit(made.classifier, made.datamodule)
    assert made.trainer.callback_metrics["train/acc"] == 1.0


def test_overfitting_takes_away_what_a_recipe_varies(compose_train: Compose) -> None:
    cfg = compose_train("experiment=speedrun", "debug=overfit")
    assert (cfg.data.brightness, cfg.data.contrast) == (0, 0)
    assert (cfg.data.padding, cfg.data.flip, cfg.data.mix) == (0, False, None)


def test_a_run_that_tests_nothing_needs_nothing_to_test(tmp_path: Path, run: Run) -> None:
    pictures = write_image_folder(tmp_path / "pictures")
    shutil.rmtree(pictures / "test")
    options = ["data=image_folder", f"data.root={pictures}", "data.val_fraction=0.25"]
    options += [option for option in TINY if "data" not in option]
    options += ["data.splits=[train]", "data.batch_size=6", "callbacks.figures=null"]
    done = run("train", *options)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "error: There is no test split, only train: choose a source, or data.splits, that has it, "
        "or test=false."
    )
    done = run("train", *options, "test=false", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["state"] == "done"
    assert "test/acc" not in result


def test_a_folder_that_holds_a_run_is_not_trained_in_again(tmp_path: Path, run: Run) -> None:
    options = [*TINY, "hydra.run.dir=run", "test=false", "callbacks.figures=null"]
    assert run("train", *options).returncode == 0
    before = {p: p.read_bytes() for p in (tmp_path / "run").glob("**/*.*") if p.is_file()}
    done = run("train", *options, "seed=1")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line == (
        f"error: {tmp_path}/run holds a run already: give resume={tmp_path}/run to go on with it, "
        "or another folder, hydra.run.dir=<folder>."
    )
    assert run("train", *options, "hydra.run.dir=other").returncode == 0
    done = run("train", *options, "trainer.max_epochs=3", "resume=other")  # into the first
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path}/run holds a run already")
    kept = {path: path.read_bytes() for path in before}
    changed = {path.name for path in before if kept[path] != before[path]}
    assert changed <= {"train.log", "hydra.yaml", "config.yaml", "overrides.yaml"}
    assert kept[tmp_path / "run" / "config.yaml"] == before[tmp_path / "run" / "config.yaml"]


def test_a_sweeps_job_that_a_scheduler_starts_again_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    hydra = SimpleNamespace(
        initialized=lambda: True, get=lambda: SimpleNamespace(mode=RunMode.MULTIRUN)
    )
    monkeypatch.setattr("litvision.sweeps.HydraConfig", hydra)
    monkeypatch.setattr("litvision.sweeps.runs_apart", lambda cfg: False)
    monkeypatch.setattr("litvision.train.train", refuse_to_overwrite)
    begin: Any = main
    for state, resume in (("running", str(tmp_path)), ("failed", None)):
        write_result(tmp_path, {"state": state})
        cfg = OmegaConf.create({"run_dir": str(tmp_path), "resume": None})
        if resume is None:
            with pytest.raises(UserError, match="holds a run already"):
                begin.__wrapped__(cfg)
        else:
            begin.__wrapped__(cfg)
        assert cfg.resume == resume
    write_result(tmp_path, {"state": "running"})
    monkeypatch.setenv("SLURM_PROCID", "1")  # all devices go on, or none
    cfg = OmegaConf.create({"run_dir": str(tmp_path), "resume": None})
    begin.__wrapped__(cfg)
    assert cfg.resume == str(tmp_path)


def test_a_run_whose_test_is_left_out_is_done(tmp_path: Path, run: Run) -> None:
    options = [*TINY, "trainer.limit_test_batches=0", "callbacks.figures=null"]
    assert run("train", *options, "hydra.run.dir=run").returncode == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["state"] == "done"


def test_a_loss_that_is_not_finite_ends_the_run_with_one_line_and_keeps_the_checkpoint(
    tmp_path: Path, run: Run
) -> None:
    network = ["model.network._target_=tiny.Explodes", "+model.network.bad=9"]
    done = run(
        "train", *TINY, *network, "callbacks.figures=null"
    )  # 90 pictures in batches of 16: 6 steps an epoch
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith(
        "error: The training loss is not finite at epoch 1, step 8, batch 2 of that epoch, "
        "learning rate 0.01. What was saved before is kept."
    )
    assert "Traceback" not in done.stderr
    folder = only_run(tmp_path)
    result = json.loads((folder / "result.json").read_text())
    assert result["state"] == "failed"
    assert f"error: {result['error']}" == line
    assert result["epochs"] == 1
    for name in ("best", "last"):
        content = checkpoints.read(folder / "checkpoints" / f"{name}.ckpt")
        assert content["epoch"] == 0
        assert all(torch.isfinite(value).all() for value in content["state_dict"].values())


def test_multirun_gives_every_job_its_own_numbered_folder(tmp_path: Path, run: Run) -> None:
    done = run("train", "--multirun", *TINY, "optimizer.lr=0.01,0.1", "trainer.max_epochs=1")
    assert done.returncode == 0, done.stderr
    sweep = only_run(tmp_path)
    results = [json.loads((sweep / str(k) / "result.json").read_text()) for k in range(2)]
    rates = [o for r in results for o in r["overrides"] if o.startswith("optimizer.lr")]
    assert rates == ["optimizer.lr=0.01", "optimizer.lr=0.1"]
    assert [r["state"] for r in results] == ["done", "done"]


def test_two_devices_give_the_metrics_of_one(tmp_path: Path, run: Run) -> None:
    """Without batch norm, whose statistics are each device's own, and with uneven last batches."""
    options = [*TINY, "model.network._target_=tiny.TinyLinear", "data.val_fraction=0.15"]
    options += ["data.batch_size=13", "data.eval_batch_size=4", "callbacks.figures=null"]
    alone = run("train", *options, "experiment=default", folder=tmp_path / "one")
    ddp = ["trainer=ddp", "trainer.devices=2"]
    both = run("train", *options, *ddp, folder=tmp_path / "two")
    assert alone.returncode == 0, alone.stderr
    assert both.returncode == 0, both.stderr
    first, second = (
        json.loads((only_run(tmp_path / name) / "result.json").read_text())
        for name in ("one", "two")
    )
    for name in ("train/loss", "train/acc", "val/loss", "val/acc", "test/loss", "test/acc"):
        assert second[name] == pytest.approx(first[name], rel=1e-5), name
    assert both.stdout.count("epoch 1/2") == 1
    provenance = json.loads((only_run(tmp_path / "two") / "provenance.json").read_text())
    assert provenance["hardware"]["devices"] == 2


def test_the_real_cifar_path_from_download_to_result(
    tmp_path: Path, cifar10_archive, file_server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The official code path on a small archive of the same format, from a server on this host."""
    archive = cifar10_archive
    (file_server.folder / archive.path.name).write_bytes(archive.path.read_bytes())
    monkeypatch.setattr("litvision.sources.cifar.CIFAR10.dataset", archive.dataset)
    from hydra import compose, initialize_config_dir

    from litvision.configs import CONF

    with initialize_config_dir(str(CONF)):
        cfg = compose(
            "train",
            [
                f"run_dir={tmp_path}/run", "overrides=[]", "logger=csv",
                f"data.root={tmp_path}/data", f"data.url={file_server.url}/{archive.path.name}",
                "model=vgg16", "data.val_fraction=0.3", "trainer.max_epochs=1",
                "trainer.accelerator=cpu",
            ],
        )  # fmt: skip
    made = assemble(cfg)
    assert len(made.datamodule.subsets["train"]) + len(made.datamodule.subsets["val"]) == 40
    assert made.datamodule.mean == pytest.approx([0.4914, 0.4822, 0.4465])
    made.trainer.fit(made.classifier, made.datamodule)
    made.trainer.test(made.classifier, made.datamodule, ckpt_path=made.checkpoint, verbose=False)
    assert 0 <= made.trainer.callback_metrics["test/acc"] <= 1
    assert len(file_server.requests) >= 1


def test_pictures_of_ones_own(tmp_path: Path, image_folder: Path, run: Run) -> None:
    options = [option for option in TINY[3:] if "size" not in option]
    done = run(
        "train", "data=image_folder", f"data.root={image_folder}", "data.val_fraction=0.25",
        "data.batch_size=6", "optimizer.lr=0.1", *options, "trainer.max_epochs=20",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((only_run(tmp_path) / "result.json").read_text())
    assert result["test/acc"] == 1.0  # red, green and blue are easy to tell apart
    assert "3 classes" in done.stderr + done.stdout


def test_the_package_runs_from_its_source_folder_alone(tmp_path: Path) -> None:
    source = Path(__file__).parents[1] / "src"
    environment = {**os.environ, "PYTHONPATH": str(source)}
    done = subprocess.run(
        [sys.executable, "-c", "import litvision; print(litvision.__file__)"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(done.stdout.strip()).is_relative_to(source)


@pytest.mark.slow
def test_the_demo_learns_the_shapes(tmp_path: Path, run: Run) -> None:
    done = run("train", "experiment=demo", "logger=none", timeout=600)
    assert done.returncode == 0, done.stderr
    result = json.loads((only_run(tmp_path, "demo") / "result.json").read_text())
    assert result["test/acc"] > 0.95
    assert "Next, try:" in done.stdout


@pytest.mark.slow
def test_a_compiled_network_trains_as_the_plain_one(compose_train: Compose) -> None:
    def fit(*overrides: str) -> dict[str, float]:
        options = ("logger=none", "callbacks.progress_bar=null", "trainer.precision=32-true")
        made = assemble(compose_train(*options, *overrides))
        made.trainer.fit(made.classifier, made.datamodule)
        return {k: float(v) for k, v in made.trainer.callback_metrics.items() if "/" in k}

    assert fit("model.compile=true") == pytest.approx(fit(), rel=1e-4)
