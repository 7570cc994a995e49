"""Compute a network's first layer from the training pictures."""

from __future__ import annotations

from typing import Annotated, Any

import lightning as L
import torch
from pydantic import Field

from litvision.batches import normalize
from litvision.errors import UserError


class Whitening(L.Callback):
    """Call the network's `whiten` with training pictures, once, before the first step.

    Args:
        pictures: how many, spread evenly over the training subset, which may be sorted by class.
        bias_epochs: train the layer's bias for so many epochs; then it stays, and no gradient has
            to reach the first layer.
    """

    def __init__(
        self,
        pictures: Annotated[int, Field(ge=1)] = 5000,
        bias_epochs: Annotated[int, Field(ge=0)] = 2,
    ) -> None:
        self.pictures = pictures
        self.bias_epochs = bias_epochs

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compute the filters, but not where weights were loaded.

        Raises:
            UserError: the network has no such layer.
        """
        network: Any = pl_module.network
        if not hasattr(network, "whiten"):
            raise UserError(
                f"callbacks.whitening: {type(network).__name__} has no layer to whiten: choose "
                "model=speednet, or callbacks.whitening=null."
            )
        card: Any = pl_module.card
        if trainer.ckpt_path is not None or "whitening.weight" in card.get("loaded", ()):
            return
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        subset = datamodule.subsets["train"]
        count = min(self.pictures, len(subset))
        chosen = subset.indices[torch.arange(count) * len(subset) // count]
        pixels = subset.images.pixels[chosen]
        mean, std = torch.tensor(datamodule.mean), torch.tensor(datamodule.std)
        network.whiten(normalize(pixels, mean, std).to(network.whitening.weight.device))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop training the bias also where a resumed run is within a later epoch."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop training the bias."""
        network: Any = pl_module.network
        network.whitening.bias.requires_grad_(trainer.current_epoch < self.bias_epochs)
        network.whitening.bias.grad = None
