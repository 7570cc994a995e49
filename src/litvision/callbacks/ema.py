"""Validate, test and save a moving average of the weights."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EMAWeightAveraging


class EMA(EMAWeightAveraging):
    """Lightning's exponential moving average, but the test after training measures it too.

    Lightning loads the weights that were trained, and not their average, from a checkpoint that is
    tested in the process that saved it. Options are those of `EMAWeightAveraging`.

    Polyak and Juditsky 1992; Tarvainen and Valpola 2017, arXiv 1703.01780.
    """

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on with average and trained weights where training does; else leave the average."""
        if trainer.state.fn == "fit":
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
