"""A search by Optuna that survives being stopped: `sweep=optuna`.

Builds on hydra-optuna-sweeper: its samplers, and its reading of Hydra's sweep syntax as search
space. The study lies in the sweep's folder, so that runs in other processes can report to it, and
so that the search can go on after any end.
"""

from __future__ import annotations

import logging
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from litvision import sweeps
from litvision.errors import PrunedError, UserError

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)

NAME = "litvision"
JOURNAL = "study.journal"  # appended to and never rewritten: a kill at any moment leaves it whole


class StudySweeper(Sweeper):
    """Ask Optuna for the next runs until `n_trials` have ended.

    A run that Optuna's pruner stops counts as pruned, and so does one whose loss was not finite; a
    run that fails is recorded, and the search goes on. With `sweep.resume=<folder>` the search goes
    on there: what has ended is kept, what was lost runs again with the same options, as a new trial
    in a new folder.

    Args:
        sampler: Optuna's, as `hydra/sweeper/sampler=tpe|random|cmaes|gp|…` gives it.
        direction: "minimize" or "maximize"; None: what the run's `mode` says.
        n_trials: how many runs in all, those before `sweep.resume` counted.
        n_jobs: how many at a time; more than one with a launcher that runs them side by side.
        params: option -> range, as on the command line: `interval(0,1)`, `choice(a,b)`, and
            `tag(log,interval(1e-3,1))` where factors count.
        options: of the plug-in that the search does not use.
    """

    def __init__(
        self,
        sampler: Any,
        direction: Any = None,
        n_trials: int = 20,
        n_jobs: int = 1,
        params: DictConfig | None = None,
        **options: Any,
    ) -> None:
        self.sampler = sampler
        self.direction = direction
        self.n_trials = n_trials
        self.n_jobs = n_jobs
        self.params = {str(key): value for key, value in (params or {}).items()}
        self.config: DictConfig | None = None
        self.launcher: Any = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take what Hydra gives every sweeper."""
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Search.

        Raises:
            UserError: a run failed; or the folder to go on in holds another search.
        """
        import optuna
        from hydra_plugins.hydra_optuna_sweeper._impl import create_params_from_overrides

        assert self.config is not None
        folder = Path(self.config.hydra.sweep.dir)
        given = [a for a in arguments if not a.startswith("sweep.resume=")]
        space, fixed, deleted = create_params_from_overrides(
            [*(f"{key}={value}" for key, value in self.params.items()), *given]
        )
        space = {key: value for key, value in space.items() if key not in fixed}
        if not space:
            raise UserError("sweep=optuna has nothing to search: give an option a range of values.")
        always = [*(f"{key}={value}" for key, value in fixed.items()), *deleted]
        ranges = [f"{key}: {value}" for key, value in sorted(space.items())]
        sweeps.begin(folder, [sorted([*always, *ranges])], sorted(k.lstrip("+") for k in space))
        OmegaConf.save(self.config, folder / "multirun.yaml")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        stored = storage(folder / JOURNAL)
        study = optuna.create_study(
            study_name=NAME,
            storage=stored,
            sampler=self._build_sampler(),
            direction=self._direction(),
            load_if_exists=True,
        )
        if study.get_trials(deepcopy=False):
            study.sampler.reseed_rng()  # a sampler's seed would ask for the same runs again
        for number in run_lost_again(study, stored):
            if sweeps.state(folder / str(number)) is not None:
                sweeps.set_state(folder / str(number), "failed", "lost when the search was stopped")
        while (left := self.n_trials - ended(study)) > 0:
            trials = [study.ask(space) for _ in range(min(left, self.n_jobs))]
            jobs = [[*_overrides(trial), *always] for trial in trials]
            for trial in trials:
                sweeps.put_aside(folder / str(trial.number))
            returns = self.launcher.launch(jobs, initial_job_idx=trials[0].number)
            for trial, job in zip(trials, returns, strict=True):
                self._tell(study, trial, job)
                if diverged(job):
                    sweeps.set_state(folder / str(trial.number), "pruned")
        self._report(study, folder)
        failures = failed(study)
        then = "The search goes on without them; to run one again, give its options to make train"
        sweeps.finish(folder, failures, ended(study), then)

    def _direction(self) -> Any:
        assert self.config is not None
        mode = f"{self.config.mode}imize"
        given = getattr(self.direction, "name", self.direction) or mode
        if given != mode:
            raise UserError(
                f"hydra.sweeper.direction={given} with mode={self.config.mode} searches for the "
                "worst: leave hydra.sweeper.direction out."
            )
        return given

    def _build_sampler(self) -> optuna.samplers.BaseSampler:
        trusted = ("hydra_plugins.hydra_optuna_sweeper.*", "optuna.samplers.*")
        sampler = instantiate(self.sampler, _execution_whitelist_=trusted)
        if isinstance(sampler, partial):
            raise UserError(
                "hydra/sweeper/sampler=grid tries every combination: for that, give sweep=grid."
            )
        return sampler

    def _tell(self, study: optuna.Study, trial: optuna.Trial, job: JobReturn) -> None:
        from optuna.trial import TrialState

        outcome = job._return_value
        if isinstance(outcome, PrunedError) or diverged(job):
            study.tell(trial, state=TrialState.PRUNED)
        elif sweeps.failed(job) or outcome is None:
            trial.set_user_attr("error", str(outcome or "the run has no watched metric"))
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, float(outcome))

    def _report(self, study: optuna.Study, folder: Path) -> None:
        states = [trial.state.name.lower() for trial in study.get_trials(deepcopy=False)]
        counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
        print(f"\n{len(states)} trials: {counts}")
        if "complete" in states:
            best = study.best_trial
            options = " ".join(f"{key}={value}" for key, value in best.params.items())
            print(f"best: trial {best.number}, {best.value:.6g}, {options}")
        print(f"study: {folder / JOURNAL}", flush=True)


def storage(path: Path) -> optuna.storages.BaseStorage:
    """Open the study's file, made where there is none."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(path)))


def ended(study: optuna.Study) -> int:
    """Return how many trials count: those that came to an end of their own."""
    trials = study.get_trials(deepcopy=False)
    return sum(trial.state.is_finished() and "lost" not in trial.user_attrs for trial in trials)


def failed(study: optuna.Study) -> list[int]:
    """Return the numbers of the trials that failed, in earlier parts of the search too."""
    from optuna.trial import TrialState

    fails = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    return [trial.number for trial in fails if "lost" not in trial.user_attrs]


def run_lost_again(study: optuna.Study, stored: optuna.storages.BaseStorage) -> list[int]:
    """Queue again the trials that were running when an earlier search was stopped; return them."""
    from optuna.trial import TrialState

    lost = study.get_trials(states=(TrialState.RUNNING,))
    for trial in lost:
        stored.set_trial_user_attr(trial._trial_id, "lost", True)
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)
        log.info(f"trial {trial.number} was lost; its options run again")
    return [trial.number for trial in lost]


def diverged(job: JobReturn) -> bool:
    """Say whether a run ended because its loss was not finite, or came to a result that is not."""
    outcome = job._return_value
    if isinstance(outcome, float):
        return not math.isfinite(outcome)
    # By name, since importing it would import torch.
    return type(outcome).__name__ == "NonFiniteLossError"


def _overrides(trial: optuna.Trial) -> list[str]:
    options = [f"{key}={value}" for key, value in trial.params.items()]
    return [*options, f"sweep.trial={trial.number}", f"hydra.sweep.subdir={trial.number}"]
