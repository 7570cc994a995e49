"""Train one classifier: `python -m litvision.train experiment=NAME key=value …`."""

from __future__ import annotations

from omegaconf import DictConfig

from litvision import sweeps
from litvision.commandline import command


@command("train")
def main(cfg: DictConfig) -> float | None:
    """Train one classifier as `cfg` says and return the best value of the watched metric."""
    if sweeps.runs_apart(cfg):
        return sweeps.run_apart("litvision.train", cfg.monitor)
    return train(cfg)


def train(cfg: DictConfig) -> float | None:
    """Do it, in this process."""
    from litvision.assemble import assemble  # torch comes in here, so that help need not wait

    run = assemble(cfg)
    run.trainer.fit(run.classifier, run.datamodule, ckpt_path=run.resume_from, weights_only=True)
    score = run.score
    if cfg.test:
        run.trainer.test(run.classifier, run.datamodule, ckpt_path=run.checkpoint, verbose=False)
    if run.trainer.is_global_zero:
        print(run.summary(), flush=True)
    return score


if __name__ == "__main__":
    main()
