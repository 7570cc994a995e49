"""What keeps a run from giving the same weights, to the bit, when it is made again."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf


def obstacles(cfg: DictConfig, device: str) -> list[str]:
    """Return why a run's config is not repeatable on the same machine, a few words each.

    On a processor everything is, but for what goes by the clock or by free memory.

    Args:
        cfg: a composed training config.
        device: "cuda", "mps" or "cpu", that it trains on.
    """
    found = []
    deterministic = cfg.trainer.get("deterministic") is True  # "warn" takes what there is
    if device == "cuda" and not deterministic:
        found.append("a GPU adds in any order (trainer.deterministic=true: in one, slower)")
    if device == "cuda" and cfg.trainer.get("benchmark") and not deterministic:
        found.append("trainer.benchmark=true takes the algorithm that was fastest this time")
    if device == "mps":
        found.append("Apple's GPUs promise nothing")
    if cfg.trainer.get("max_time") is not None:
        found.append("trainer.max_time ends it by the clock")
    if OmegaConf.select(cfg, "model.compile") == "max-autotune":
        found.append("model.compile=max-autotune takes what was fastest this time")
    if OmegaConf.select(cfg, "callbacks.batch_size_finder.apply"):
        found.append("callbacks.batch_size_finder.apply=true goes by the memory that is free")
    return found
