"""MLflow and Weights & Biases: a run in them is the run in its folder, also when it is resumed.

Neither package is imported, or needed, unless its logger is chosen.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from litvision.errors import UserError


class MLflow(MLFlowLogger):
    """Lightning's logger for MLflow, with the run's id kept in the run's folder.

    Runs that start at the same time share one new database, which one of them makes.

    Args:
        run_dir: the run's folder; the last parts of its path name the run.
        tracking_uri: a database (`sqlite:///<path>`), a server, or a folder (`file:<path>`).
        experiment_name: groups runs; null: the folder that the run or its sweep is in.
        artifact_location: the folder for pictures, for a database of this machine; a server knows
            its own.
        options: more of `lightning.pytorch.loggers.MLFlowLogger`.

    Raises:
        UserError: MLflow is not installed.
    """

    def __init__(
        self,
        run_dir: str,
        tracking_uri: str,
        experiment_name: str | None = None,
        artifact_location: str | None = None,
        **options: Any,
    ) -> None:
        _need("mlflow")
        import mlflow  # noqa: F401 # it sets up its own logging, once

        # Alembic and MLflow tell of every table of a new database.
        for name in ("mlflow", "alembic", "lightning.pytorch.loggers.mlflow"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self._kept = Path(run_dir, "mlflow_run_id")
        self._resumed = self._kept.is_file()
        self._lock: AbstractContextManager[Any] = nullcontext()
        if tracking_uri.startswith("sqlite:///"):
            database = Path(tracking_uri.removeprefix("sqlite:///"))
            database.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(database.with_name(f"{database.name}.lock"))
        elif tracking_uri.startswith("file:"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # it was asked for
        else:
            artifact_location = None
        options = {"run_name": name_of(run_dir), **options}
        if self._resumed:
            options["run_id"] = self._kept.read_text(encoding="utf-8").strip()
        with self._lock:
            super().__init__(
                experiment_name or group_of(run_dir),
                tracking_uri=tracking_uri,
                artifact_location=artifact_location and str(Path(artifact_location).absolute()),
                tags={"run_dir": run_dir},
                **options,
            )

    @property
    def experiment(self) -> Any:
        """The client, with a run begun, or gone on with, at the first use."""
        if self._initialized:
            return super().experiment
        with self._lock:
            client = super().experiment
        if self._run_id is not None and not self._resumed:
            self._kept.parent.mkdir(parents=True, exist_ok=True)
            self._kept.write_text(f"{self._run_id}\n", encoding="utf-8")
        return client

    def log_hyperparams(self, params: Any) -> None:
        """Log them once: MLflow refuses to change what it has."""
        if not self._resumed:
            super().log_hyperparams(params)


class WandB(WandbLogger):
    """Lightning's logger for Weights & Biases, with the run's id kept in the run's folder.

    Args:
        run_dir: the run's folder, where its files go too.
        project: groups runs; null: the folder that the run or its sweep is in.
        offline: write files only, for `wandb sync`.
        options: more of `lightning.pytorch.loggers.WandbLogger`.

    Raises:
        UserError: the package is not installed.
    """

    def __init__(
        self, run_dir: str, project: str | None = None, offline: bool = False, **options: Any
    ) -> None:
        _need("wandb")
        import wandb

        # The run that came before in this process: of a sweep. Lightning would go on with it.
        if wandb.run is not None:
            wandb.finish()
        kept = Path(run_dir, "wandb_run_id")
        if getattr(rank_zero_only, "rank", 0) == 0 and not kept.is_file():
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(f"{secrets.token_hex(8)}\n", encoding="utf-8")
        options = {"name": name_of(run_dir), **options}
        if kept.is_file():
            options["id"] = kept.read_text(encoding="utf-8").strip()
        super().__init__(
            project=project or group_of(run_dir), save_dir=run_dir, offline=offline, **options
        )


def name_of(run_dir: str) -> str:
    """Return a run's name: its folder's, and for one of a sweep by number, the sweep's too."""
    path = Path(run_dir)
    return f"{path.parent.name}/{path.name}" if path.name.isdigit() else path.name


def group_of(run_dir: str) -> str:
    """Return the name of the folder that a run, or the sweep that it belongs to, is in."""
    path = Path(run_dir)
    return (path.parents[1] if path.name.isdigit() else path.parent).name or "runs"


def _need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"logger={package} needs {package}, which is not installed: "
            f"make install EXTRAS={package}"
        )
