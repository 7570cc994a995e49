"""Litvision: a PyTorch Lightning and Hydra template for training image classifiers."""

__version__ = "0.1.0"
