"""Litvision: a PyTorch Lightning and Hydra template for training image classifiers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from litvision.predictor import load as load


def __getattr__(name: str) -> Any:
    if name == "load":  # only then torch is imported, which commands like --help do without
        from litvision.predictor import load

        return load
    raise AttributeError(f"module 'litvision' has no attribute {name!r}")
