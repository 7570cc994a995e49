"""Sweeps that go on when a run fails, and that can be gone on with.

Nothing here imports torch: a sweep's own process may only be waiting for runs elsewhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf

from litvision import leaderboard, records
from litvision.errors import Interrupted, PrunedError, UserError, asking

ENDED = ("done", "pruned")  # what a sweep that is gone on with does not run again


class GridSweeper(BasicSweeper):
    """Hydra's basic sweeper, every combination of the values, made for runs that take hours.

    A run that fails is recorded, the others go on, and the sweep fails at its end. Which run has
    which options is written down in `sweep.json`; with `sweep.resume=<folder>` only those run that
    have not ended there, each in its old number's folder. One that was stopped or killed goes on
    from its last checkpoint; one that failed begins anew, and what it left is kept beside it as
    `<number>_failed_<n>`.

    Args:
        max_batch_size: give the launcher so many runs at a time; None: all at once.
        params: option -> values, as on the command line.
    """

    def sweep(self, arguments: list[str]) -> Sequence[JobReturn]:
        """Run what has not ended yet.

        Raises:
            UserError: runs failed; or the folder to go on in holds another sweep.
        """
        assert self.config is not None
        assert self.launcher is not None
        runs, keys = self._runs(arguments)
        folder = Path(self.config.hydra.sweep.dir)
        begin(folder, runs, keys)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        missing = [
            number for number in range(len(runs)) if state(folder / str(number)) not in ENDED
        ]
        if len(missing) < len(runs):
            print(f"{len(runs) - len(missing)} of {len(runs)} runs have ended before")
        self.validate_batch_is_legal([runs[number] for number in missing])
        returns: list[JobReturn] = []
        size = self.max_batch_size or len(missing) or 1
        for start in range(0, len(missing), size):
            batch = missing[start : start + size]
            # The launcher counts from 0; the folder is the run's own.
            jobs = [
                [*runs[number], f"hydra.sweep.subdir={number}", *again(folder / str(number))]
                for number in batch
            ]
            returns += self.launcher.launch(jobs, initial_job_idx=len(returns))
        failures = [n for n, job in zip(missing, returns, strict=True) if failed(job)]
        if "comparison" not in (self.config.hydra.callbacks or {}):  # which has a table of its own
            leaderboard.tell(folder)
        again_with = f"To run them again: the same command with sweep.resume={folder}"
        finish(folder, failures, len(runs), again_with)
        return returns

    def _runs(self, arguments: list[str]) -> tuple[list[list[str]], list[str]]:
        """Return the overrides of each run, and the options in which the runs differ."""
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        given = [a for a in arguments if not a.startswith("sweep.resume=")]
        overrides = parser.parse_overrides([*self._parse_config(), *given])
        swept = {o.get_key_element() for o in overrides if o.is_sweep_override()}
        (runs,) = self.split_arguments(overrides, None)
        return runs, sorted(key.lstrip("+") for key in swept)


def begin(folder: Path, runs: list[list[str]], keys: list[str]) -> None:
    """Write `sweep.json`, or compare with the one that is there.

    Args:
        folder: of the sweep.
        runs: the overrides of each; of a search, one list with the ranges in it.
        keys: the options in which the runs differ.

    Raises:
        UserError: the folder holds another sweep.
    """
    before = records.read_plan(folder)
    if before and before["runs"] != runs:
        nothing: list[str] = []
        pairs: Any = zip_longest(before["runs"], runs, fillvalue=nothing)
        old, new = next((old, new) for old, new in pairs if old != new)
        gone, come = [o for o in old if o not in new], [o for o in new if o not in old]
        raise UserError(
            f"sweep.resume={folder} holds another sweep: {' '.join(gone) or 'nothing'} there, "
            f"{' '.join(come) or 'nothing'} here. Give the same options as then, or leave "
            "sweep.resume out."
        )
    text = json.dumps({"keys": keys, "runs": runs}, indent=2) + "\n"
    records.write_text(folder / "sweep.json", text)


def finish(folder: Path, failures: list[int], total: int, then: str) -> None:
    """Fail if runs have.

    Args:
        folder: the sweep's.
        failures: their numbers; the reasons have been printed.
        total: how many there are.
        then: what to do about them.
    """
    if failures:
        numbers = ", ".join(map(str, failures))
        raise UserError(
            f"{len(failures)} of {total} runs failed: {numbers}; each one's result.json in "
            f"{folder} says why. {then}"
        )


def failed(job: JobReturn) -> bool:
    """Say whether a run ended by an error."""
    return job.status == JobStatus.FAILED and not isinstance(job._return_value, PrunedError)


def state(run: Path) -> str | None:
    """Return how a run stands, as its `result.json` says; None if there is none."""
    return records.read_result(run).get("state")


def set_state(run: Path, word: str, error: str | None = None) -> None:
    """Change how a run stands in its `result.json`, and why."""
    why = {} if error is None else {"error": error}
    records.write_result(run, {**records.read_result(run), "state": word, **why})


def can_go_on(run: Path) -> bool:
    """Say whether a run was stopped, and has saved where."""
    stopped = state(run) in ("running", "interrupted")
    return stopped and (run / "checkpoints" / "last.ckpt").exists()


def again(run: Path) -> list[str]:
    """Return the overrides by which a run goes on; where it cannot, put aside what it left."""
    if can_go_on(run):
        return [f"resume='{run}'"]
    put_aside(run)
    return []


def put_aside(run: Path) -> None:
    """Rename the folder of a run that failed or was lost, so that it can run again."""
    if run.exists():
        taken = [re.fullmatch(rf"{run.name}_failed_(\d+)", p.name) for p in run.parent.iterdir()]
        number = max((int(match.group(1)) for match in taken if match), default=0) + 1
        run.rename(run.with_name(f"{run.name}_failed_{number}"))


def record_failure(error: Exception, bug: bool) -> None:
    """Write the error of the run of a sweep that is running into its `result.json`, and print it.

    Args:
        error: what ended it.
        bug: print the traceback too.
    """
    config = HydraConfig.get()
    run = Path(config.runtime.output_dir)
    word = "pruned" if isinstance(error, PrunedError) else "failed"
    with contextlib.suppress(OSError):  # of a full disk, say, which may be why it failed
        if not records.read_result(run):  # it ended before it began to write one
            records.write_result(run, {"overrides": list(config.overrides.task)})
        set_state(run, word, _reason(error))
    if bug:
        traceback.print_exception(error)
    print(f"run {run.name} {word}: {_reason(error)}", file=sys.stderr, flush=True)


def _reason(error: Any) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def sweeping() -> bool:
    """Say whether this is a run of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def started_again(cfg: DictConfig) -> bool:
    """Say whether a scheduler that took the machine away has started this job of a sweep again.

    It does so with the arguments that the job had at first, on each of several devices.
    """
    return sweeping() and cfg.resume is None and can_go_on(Path(cfg.run_dir))


def runs_apart(cfg: DictConfig) -> bool:
    """Say whether this is a run of a sweep that needs a process for each of several devices.

    Lightning starts these by repeating the command line, which is the whole sweep's (its issue
    11300), and kills the process that it runs in when one of them fails. Where a scheduler has
    started the processes, Lightning starts none.
    """
    if not sweeping():
        return False
    if "LOCAL_RANK" in os.environ or int(os.environ.get("SLURM_NTASKS", 1)) > 1:
        return False
    trainer = cfg.trainer
    devices = trainer.devices
    one = len(devices) == 1 if isinstance(devices, ListConfig) else devices in (None, 1, "1")
    return not one or trainer.get("num_nodes", 1) != 1 or trainer.get("strategy") is not None


def run_apart(module: str, cfg: DictConfig) -> float | None:
    """Run the running job of a sweep by a command of its own; return its best watched metric.

    Args:
        module: of the command.
        cfg: of the job.

    Raises:
        PrunedError: the run was pruned.
        UserError: it failed.
        Interrupted: a signal came, which was passed on to the run, and it was saved.
        KeyboardInterrupt: a signal came, and it was not.
    """
    config = HydraConfig.get()
    folder = Path(config.runtime.output_dir)
    given = [o for o in config.overrides.task if not o.startswith(("resume=", "sweep.resume="))]
    command = [sys.executable, "-m", module, *given]
    command += ["hydra.mode=RUN", f"hydra.run.dir='{folder}'"]
    command += [] if cfg.resume is None else [f"resume='{cfg.resume}'"]
    received: list[int] = []
    process = subprocess.Popen(command, start_new_session=True)

    def pass_on(number: int, frame: Any) -> None:
        received.append(number)
        process.send_signal(number)  # it is the run's to save and to end

    before: dict[int, Any] = {}
    with contextlib.suppress(ValueError):  # not in the main thread, where signals do not arrive
        before = {n: signal.signal(n, pass_on) for n in asking()}
    try:
        process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # nothing shall be left of a run that has ended
    if received:  # the sweep was asked to stop, not this run alone
        raise Interrupted if process.returncode == Interrupted.CODE else KeyboardInterrupt
    result = records.read_result(folder)
    if result.get("state") == "pruned":
        raise PrunedError(result["error"])
    if process.returncode or result.get("state") != "done":
        ended = f"its process ended with exit code {process.returncode}; the lines above say why"
        raise UserError(result.get("error", ended))
    return result.get(f"best_{cfg.monitor}", result.get(cfg.monitor))


def side_by_side() -> tuple[int, int]:
    """Return how many runs of this sweep share the machine, and the number of the one asking."""
    if not sweeping():
        return 1, 0
    config = HydraConfig.get()
    launcher = str(config.launcher.get("_target_", "")).rpartition(".")[2]
    if launcher == "JoblibLauncher":
        runs = int(config.launcher.n_jobs)
        runs = runs if runs > 0 else max(1, cores() + 1 + runs)
    elif launcher == "LocalLauncher":  # submitit's: starts at once whatever it is given
        sweeper = config.sweeper
        runs = sweeper.get("max_batch_size") or sweeper.get("n_jobs")
        runs = runs or len(records.read_plan(Path(config.sweep.dir))["runs"])
    else:  # one after the other, or shared out by a scheduler
        runs = 1
    return runs, int(config.job.num)


def cores() -> int:
    """Return how many processor cores this process may use."""
    available = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(available(0)) if available else os.cpu_count() or 1
