"""Compute a network's first layer from the training pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import lightning as L
import torch
from pydantic import Field
from torch.optim import Optimizer

from litvision.errors import UserError
from litvision.transforms import normalize

VALUES = 2_000_000  # of pictures in a batch; the network needs about 70 bytes for each


class Whitening(L.Callback):
    """Call the network's `whiten` with training pictures, once, before the first step.

    Args:
        pictures: how many, spread evenly over the training subset, which may be sorted by class.
        bias_epochs: train the layer's bias for so many epochs; then it stays, and no gradient has
            to reach the first layer.
        gate_epochs: the same for the gate behind the layer, where there is one, and for the
            gradient of what the next layer takes; None: train it to the end.
    """

    def __init__(
        self,
        pictures: Annotated[int, Field(ge=1)] = 5000,
        bias_epochs: Annotated[int, Field(ge=0)] = 2,
        gate_epochs: Annotated[int, Field(ge=0)] | None = None,
    ) -> None:
        self.pictures = pictures
        self.bias_epochs = bias_epochs
        self.gate_epochs = gate_epochs

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Compute the filters, but not where weights were loaded.

        Before the weights go to their device, to other processes or into a finder's copy. A run
        that is resumed takes the filters that it has saved, later.

        Raises:
            UserError: the network has no such layer.
        """
        if stage != "fit":
            return
        network: Any = pl_module.network
        if not hasattr(network, "whiten"):
            raise UserError(
                f"callbacks.whitening: {type(network).__name__} has no layer to whiten: choose "
                "model=speednet, or callbacks.whitening=null."
            )
        card: Any = pl_module.card
        if "whitening.weight" in card.get("loaded", ()):
            return
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        subset = datamodule.subsets["train"]
        count = min(self.pictures, len(subset))
        chosen = subset.indices[torch.arange(count) * len(subset) // count]
        pixels = subset.images.pixels
        mean, std = torch.tensor(datamodule.mean), torch.tensor(datamodule.std)
        batches = chosen.split(max(1, VALUES // pixels[0].numel()))
        network.whiten(normalize(pixels[batch], mean, std) for batch in batches)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop training what has settled also where a resumed run is within a later epoch."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop training bias and gate. Several devices wait for their gradients, and go on."""
        if trainer.world_size == 1:
            for weight in self._settled(trainer, pl_module):
                weight.requires_grad_(False)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        """Keep from the optimizer what several devices computed."""
        for weight in self._settled(trainer, pl_module):
            weight.grad = None

    def _settled(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> Iterator[torch.nn.Parameter]:
        """Yield the first layers' weights that are trained no more."""
        network: Any = pl_module.network
        if trainer.current_epoch >= self.bias_epochs:
            yield network.whitening.bias
        if self.gate_epochs is not None and trainer.current_epoch >= self.gate_epochs:
            yield from network.gate.parameters()
