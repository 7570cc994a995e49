"""Show how the weights are distributed, epoch by epoch."""

from __future__ import annotations

from typing import Annotated, Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from pydantic import Field

from litvision.errors import UserError


class Histograms(L.Callback):
    """Log a histogram of each parameter of the network, as `weights/<name>`.

    Args:
        every_n_epochs: how often; the last epoch is always among them.

    Raises:
        UserError: no logger shows histograms.
    """

    def __init__(self, every_n_epochs: Annotated[int, Field(ge=1)] = 1) -> None:
        self.every_n_epochs = every_n_epochs

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Look for a logger that can show them."""
        shown = any(isinstance(x, TensorBoardLogger | WandbLogger) for x in trainer.loggers)
        fast = getattr(trainer, "fast_dev_run", False)  # which takes loggers away
        if stage == "fit" and not shown and not fast:
            raise UserError(
                "callbacks.histograms needs a logger that shows histograms: add "
                "logger=[csv,tensorboard] or logger=[csv,wandb]."
            )

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log them, if it is time."""
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._log(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the last ones, if that epoch was not one of those."""
        if trainer.current_epoch % self.every_n_epochs:
            self._log(trainer, pl_module)

    def _log(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        network: Any = pl_module.network
        for name, parameter in network.named_parameters():
            values = parameter.detach().float().cpu()
            if hasattr(values, "to_local"):  # shared out over devices: this one's part
                values = values.to_local()
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_histogram(f"weights/{name}", values, trainer.global_step)
                elif isinstance(logger, WandbLogger):
                    import wandb

                    histogram: Any = wandb.Histogram(values.numpy())
                    logger.log_metrics({f"weights/{name}": histogram}, trainer.global_step)
