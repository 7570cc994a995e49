"""Unstructured pruning by Lightning's `ModelPruning`, chosen by one override."""

from __future__ import annotations

import logging
from typing import Annotated, Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelPruning, WeightAveraging
from pydantic import Field
from torch import nn

from litvision.callbacks.forget import forget_the_best
from litvision.errors import UserError

log = logging.getLogger(__name__)


class Pruning(ModelPruning):
    """Lightning's `ModelPruning` over the weights of all convolutions and linear layers together.

    At the start of each of `at_epochs` a share of the weights that are left is masked; a masked
    weight counts as zero from then on. (Lightning's own prunes at an epoch's end, after its
    validation, so that a checkpoint would hold other weights than its metric was measured with; and
    biases and normalisations too.) Checkpoints hold plain weights with zeros. Logs `sparsity`, the
    share of zeros. The best checkpoint is looked for anew after each; the one before the first is
    kept as `best_dense.ckpt`.

    Args:
        pruning_fn: "l1_unstructured" masks the smallest magnitudes, "random_unstructured" any.
        amount: the share masked each time.
        at_epochs: counted from 0.
        lottery_ticket: set what is left back to its initial values each time (Frankle & Carbin
            2018, arXiv 1803.03635).

    Raises:
        UserError: the run ends before one of `at_epochs`; the weights are averaged; or it is
            resumed, which the masks, that no checkpoint holds, would not survive.
    """

    def __init__(
        self,
        pruning_fn: Literal["l1_unstructured", "random_unstructured"] = "l1_unstructured",
        amount: Annotated[float, Field(gt=0, lt=1)] = 0.5,
        at_epochs: list[Annotated[int, Field(ge=0)]] | None = None,
        lottery_ticket: bool = False,
    ) -> None:
        super().__init__(
            pruning_fn,
            parameter_names=["weight"],
            amount=amount,
            use_lottery_ticket_hypothesis=lottery_ticket,
        )
        self.at_epochs = sorted(set(at_epochs or [20]))
        self._weights: list[tuple[nn.Module, str]] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Choose the layers."""
        if stage != "fit":
            return
        callbacks: list[L.Callback] = getattr(trainer, "callbacks", [])
        if any(isinstance(callback, WeightAveraging) for callback in callbacks):
            raise UserError(
                "callbacks.pruning masks weights, and callbacks.ema averages them without their "
                "masks: leave one out, or use callbacks=[sparsity_2_4,ema]."
            )
        network: Any = pl_module.network
        layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        self._weights = [(layer, "weight") for layer in layers]
        self._parameters_to_prune = self._weights
        super().setup(trainer, pl_module, stage)
        epochs = trainer.max_epochs
        if epochs is not None and epochs != -1 and self.at_epochs[-1] >= epochs:
            raise UserError(
                f"callbacks.pruning.at_epochs={self.at_epochs} is never reached: the run ends "
                f"after epoch {epochs - 1}, counted from 0. Give smaller ones, or more "
                "trainer.max_epochs."
            )

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse to resume."""
        if trainer.ckpt_path is not None:
            raise UserError(
                "callbacks.pruning cannot be resumed: checkpoints hold the pruned weights but not "
                "which they are, and training would move them. Start afresh, or use "
                "callbacks=sparsity_2_4."
            )

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prune, if it is time."""
        epoch = trainer.current_epoch
        if epoch in self.at_epochs:
            first = epoch == self.at_epochs[0]
            forget_the_best(trainer, keep_as="best_dense" if first else "best_before")
            module: Any = pl_module
            # Torch flattens the weights by a view, which channels-last ones do not allow.
            module.network.to(memory_format=torch.contiguous_format)
            for layer, name in self._weights:
                if f"{name}_mask" in dict(layer.named_buffers()):  # pruned before: no parameter
                    setattr(layer, name, getattr(layer, name).contiguous())
            self._run_pruning(epoch)
            module.network.to(memory_format=module.memory_layout)
            log.info(f"epoch {epoch + 1}: {self.sparsity:.1%} of the weights are zero from now on")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the share of zeros; pruning itself is for the start of an epoch."""
        pl_module.log("sparsity", self.sparsity)

    @property
    def sparsity(self) -> float:
        """The share of zeros among the weights."""
        weights = [getattr(layer, name) for layer, name in self._weights]
        zeros = sum(int((weight == 0).sum()) for weight in weights)
        return zeros / sum(weight.numel() for weight in weights)
