"""Train one classifier: `python -m litvision.train experiment=NAME key=value …`."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from litvision import records, sweeps
from litvision.commandline import command
from litvision.errors import UserError
from litvision.importing import quick_imports


@command("train")
def main(cfg: DictConfig) -> float | None:
    """Train one classifier as `cfg` says and return the best value of the watched metric."""
    if sweeps.started_again(cfg):
        cfg.resume = cfg.run_dir
    if sweeps.runs_apart(cfg):
        return sweeps.run_apart("litvision.train", cfg)
    return train(cfg)


def train(cfg: DictConfig) -> float | None:
    """Do it, in this process."""
    with quick_imports():  # here, so that help need not wait for torch
        from litvision.assemble import assemble

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
    """Refuse to train where another run has saved: its weights would be replaced."""
    from litvision import checkpoints

    folder = Path(cfg.run_dir)
    saved = folder / "checkpoints"
    if records.is_further_process() or not any(saved.glob("*.ckpt")):
        return
    resumed = None if cfg.resume is None else checkpoints.find(cfg.resume, ["last", "best"])
    if resumed is None or resumed.resolve().parent != saved.resolve():
        raise UserError(
            f"{folder} holds a run already: give resume={folder} to go on with it, or another "
            "folder, hydra.run.dir=<folder>."
        )


if __name__ == "__main__":
    main()
