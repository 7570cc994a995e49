"""Show the network in TensorBoard's Graphs tab."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger


class Graph(L.Callback):
    """Log the network's graph once, before training: a quarter of a second for ResNet-18.

    A network that cannot be traced, because what it does depends on the picture's values, has none.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Trace a copy of the network, while it is whole and on the CPU."""
        picture: Any = pl_module.example_input_array
        whole: Any = pl_module.network
        loggers = [x for x in trainer.loggers if isinstance(x, TensorBoardLogger)]
        resumed = trainer.ckpt_path is not None  # its graph is there
        if stage != "fit" or picture is None or resumed or not trainer.is_global_zero:
            return
        for logger in loggers:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")  # torch's about values that a trace takes as fixed
                try:
                    # A copy: tracing would put layers that are held in evaluation mode in training.
                    network = copy.deepcopy(whole).eval()
                    logger.experiment.add_graph(network, picture)
                except Exception:  # whatever a network's own code raises when it is traced
                    return
