"""MLflow and Weights & Biases: what they get of a run, once, and what is said without them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import Logger

from conftest import Compose, Run
from litvision.assemble import assemble, build_all
from litvision.errors import UserError
from litvision.loggers import group_of, name_of

TINY = (
    "data=shapes", "data.train_size=60", "data.test_size=20", "data.batch_size=16",
    "model.network._target_=tiny.TinyNet", "trainer.accelerator=cpu",
)  # fmt: skip
FIGURES = {f"{s}_{n}.png" for s in ("val", "test") for n in ("class_accuracy", "reliability")}


def runs(store: str) -> tuple[Any, dict[str, Any]]:
    """MLflow's client of a store, and every run in it by its name."""
    from mlflow import MlflowClient  # takes seconds to import

    client = MlflowClient(store)
    numbers = [e.experiment_id for e in client.search_experiments()]
    return client, {run.info.run_name: run for run in client.search_runs(numbers)}


def test_mlflow_has_a_run_with_its_config_metrics_and_figures(
    compose_train: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder, store = tmp_path / "run", f"file:{tmp_path}/store"
    options = ["logger=[csv,mlflow]", f"logger.mlflow.tracking_uri={store}"]
    for epochs, more in ((1, []), (2, [f"resume={folder}"])):
        cfg = compose_train(*options, f"trainer.max_epochs={epochs}", *more)
        figures = {"_target_": "litvision.callbacks.figures.Figures"}
        cfg.callbacks.figures = {**figures, "dirpath": str(folder / "figures")}
        built = assemble(cfg)
        built.trainer.fit(
            built.classifier, built.datamodule, ckpt_path=built.resume_from, weights_only=True
        )
        built.trainer.test(built.classifier, built.datamodule, verbose=False)
    client, found = runs(store)
    assert set(found) == {"run"}  # the resumed run went on in the same one
    data, info = found["run"].data, found["run"].info
    assert info.status == "FINISHED"
    assert data.tags["run_dir"] == str(folder)
    assert data.params["model.network._target_"] == "tiny.TinyNet"
    assert data.params["optimizer.lr"] == "0.01"
    assert data.params["trainer.max_epochs"] == "1"  # of the start
    assert not any("dir" in key.split(".")[-1] for key in data.params)
    result = json.loads((folder / "result.json").read_text())
    for key in ("train/loss", "val/loss", "test/acc"):
        assert data.metrics[key] == pytest.approx(result[key])
    history = client.get_metric_history(info.run_id, "val/loss")
    assert [entry.step for entry in history] == [1, 3]
    artifacts = {Path(file.path).name for file in client.list_artifacts(info.run_id, "figures")}
    assert artifacts >= FIGURES


@pytest.mark.slow
def test_two_runs_at_once_share_a_new_sqlite_database(run: Run, tmp_path: Path) -> None:
    options = [*TINY, "logger=[csv,mlflow]", "trainer.max_epochs=1", "hydra.sweep.dir=sweep"]
    joblib = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    done = run("train", *options, "--multirun", "seed=0,1,2", *joblib, fresh=True)
    assert done.returncode == 0, done.stderr
    _, found = runs(f"sqlite:///{tmp_path}/logs/mlflow.db")
    assert set(found) == {"sweep/0", "sweep/1", "sweep/2"}
    assert {found[name].data.params["seed"] for name in found} == {"0", "1", "2"}
    for logged in found.values():
        folder = tmp_path / "logs" / "mlflow" / logged.info.run_id / "artifacts" / "figures"
        assert {file.name for file in folder.iterdir()} >= FIGURES


def test_wandb_writes_a_run_of_its_own_for_each_of_a_sweep(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="make install EXTRAS=wandb")
    options = [*TINY, "logger=[csv,wandb]", "logger.wandb.offline=true", "trainer.max_epochs=1"]
    histograms = ["callbacks=histograms", "hydra.sweep.dir=sweep"]
    done = run("train", *options, *histograms, "--multirun", "seed=0,1", fresh=True)
    assert done.returncode == 0, done.stderr
    numbers = []
    for index in "01":
        folder = tmp_path / "sweep" / index
        numbers.append((folder / "wandb_run_id").read_text().strip())
        (files,) = folder.glob(f"wandb/offline-run-*-{numbers[-1]}/files")
        pictures = {file.parent.name for file in files.glob("media/images/*/*.png")}
        assert pictures == {"train", "val", "test"}
        (kept,) = folder.glob("wandb/offline-run-*/*.wandb")
        content = kept.read_bytes()
        for word in (b"model.network._target_", b"weights/fc.weight", b"test/acc"):
            assert word in content
    assert len(set(numbers)) == 2


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_logger_that_is_not_installed_is_named_with_its_command(
    compose_train: Compose, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    cfg = compose_train(f"logger={name}")
    message = f"logger={name} needs {name}, which is not installed: make install EXTRAS={name}"
    with pytest.raises(UserError, match=f"^{message}"):
        build_all(cfg, "logger", Logger)


def test_a_run_is_named_by_its_folder() -> None:
    assert name_of("/logs/default/2026-01-31_12-00-00") == "2026-01-31_12-00-00"
    assert group_of("/logs/default/2026-01-31_12-00-00") == "default"
    assert group_of("/logs/grid/2026-01-31_12-00-00/7") == "grid"
    assert name_of("/logs/grid/2026-01-31_12-00-00/7") == "2026-01-31_12-00-00/7"
