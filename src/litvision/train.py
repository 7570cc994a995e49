"""Train one classifier: `python -m litvision.train experiment=NAME key=value …`."""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from litvision import records, sweeps
from litvision.commandline import command
from litvision.errors import UserError


@command("train")
def main(cfg: DictConfig) -> float | None:
    """Train one classifier as `cfg` says and return the best value of the watched metric."""
    if sweeps.runs_apart(cfg):
        return sweeps.run_apart("litvision.train", cfg.monitor)
    return train(cfg)


def train(cfg: DictConfig) -> float | None:
    """Do it, in this process."""
    from litvision.assemble import assemble  # torch comes in here, so that help need not wait

    with records.alone(Path(cfg.run_dir)):
        refuse_to_overwrite(cfg)
        run = assemble(cfg)
        trainer, parts = run.trainer, (run.classifier, run.datamodule)
        trainer.fit(*parts, ckpt_path=run.resume_from, weights_only=True)
        score = run.score
        if cfg.test:
            trainer.test(*parts, ckpt_path=run.checkpoint, verbose=False)
        if trainer.is_global_zero:
            print(run.summary(), flush=True)
    return score


def refuse_to_overwrite(cfg: DictConfig) -> None:
    """Refuse to train where another run has saved: its weights would be replaced.

    A sweep's run that was stopped goes on: a scheduler that takes the machine away starts the same
    job again, as it was.
    """
    from litvision import checkpoints

    folder = Path(cfg.run_dir)
    saved = folder / "checkpoints"
    if records.is_further_process() or not any(saved.glob("*.ckpt")):
        return
    if cfg.resume is None:
        sweeping = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
        if sweeping and sweeps.can_go_on(folder):
            cfg.resume = str(folder)
            return
    elif checkpoints.find(cfg.resume, ["last", "best"]).resolve().parent == saved.resolve():
        return
    raise UserError(
        f"{folder} holds a run already: give resume={folder} to go on with it, or another "
        "folder, hydra.run.dir=<folder>."
    )


if __name__ == "__main__":
    main()
