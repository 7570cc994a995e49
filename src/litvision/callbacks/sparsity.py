"""Train only two of every four weights, for sparse tensor cores."""

from __future__ import annotations

import logging
from typing import Annotated, Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelPruning
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from litvision.callbacks.ema import EMA
from litvision.callbacks.forget import forget_the_best
from litvision.errors import UserError
from litvision.hardware import in_layout_of
from litvision.position import refuse_unreached
from litvision.sparsity import Covered, covered, mask_2_4

log = logging.getLogger(__name__)


class Sparsity24(L.Callback):
    """From `start_epoch` on, train with 2:4 structured sparsity.

    At its start two of every four weights along the reduction dimension are set to zero, those of
    the smallest magnitude, with their momentum and whatever else the optimizer keeps of them. From
    then on they get no gradient, so that neither momentum nor weight decay moves them: they stay
    zero to the bit, in a moving average of the weights too. Which ones they are does not change
    again (Mishra et al. 2021, arXiv 2104.08378). The best checkpoint is looked for anew; the dense
    one is kept as `best_dense.ckpt`.

    Logs `sparsity`, the share of zeros among the weights of the layers that take part.

    Args:
        start_epoch: counted from 0.
        except_first_and_last: leave the first convolution and the last layer dense.
        exclude: patterns of layer names to leave dense, such as "layer1.*".

    Raises:
        UserError: the run ends before `start_epoch`, no layer can take part, or the weights are
            pruned too.
    """

    def __init__(
        self,
        start_epoch: Annotated[int, Field(ge=0)] = 20,
        except_first_and_last: bool = True,
        exclude: list[str] | None = None,
    ) -> None:
        self.start_epoch = start_epoch
        self.except_first_and_last = except_first_and_last
        self.exclude = exclude or []
        self.masks: dict[str, Tensor] = {}  # layer: which of its weights stay
        self._factors: list[tuple[Tensor, Tensor]] = []
        self._covered = Covered()
        self._hooks: list[RemovableHandle] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Choose the layers, and say which."""
        if stage != "fit":
            return
        callbacks: list[L.Callback] = getattr(trainer, "callbacks", [])
        if any(isinstance(callback, ModelPruning) for callback in callbacks):
            raise UserError(
                "callbacks.pruning computes weights anew from masks of its own at each step, where "
                "callbacks.sparsity_2_4 does not reach them: leave one out."
            )
        network: Any = pl_module.network
        self._covered = covered(network, self.except_first_and_last, self.exclude)
        key = f"callbacks.sparsity_2_4.start_epoch={self.start_epoch}"
        refuse_unreached(key, self.start_epoch, trainer)
        dense = "; ".join(f"{name} ({why})" for name, why in self._covered.dense.items())
        log.info(
            f"2:4 sparsity from epoch {self.start_epoch + 1} on, in {len(self._covered.layers)} "
            f"layers with {self._covered.weights:,} weights; dense: {dense or 'none'}"
        )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Bring restored masks to the weights' device, and listen for the end of a step."""
        for name, mask in self.masks.items():
            self.masks[name] = mask.to(self._covered.layers[name].weight.device)
        self._set_factors()
        self._hooks = [o.register_step_post_hook(self._mask_again) for o in trainer.optimizers]

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prune when it is time."""
        if trainer.current_epoch < self.start_epoch or self.masks:
            return
        forget_the_best(trainer, keep_as="best_dense")
        callbacks: list[L.Callback] = getattr(trainer, "callbacks", [])
        averages: list[Any] = [c.average_of(pl_module) for c in callbacks if isinstance(c, EMA)]
        for name, layer in self._covered.layers.items():
            weight: Any = layer.weight
            mask = self.masks[name] = mask_2_4(weight)
            with torch.no_grad():
                weight.mul_(mask)
                for average in averages:
                    average.network.get_submodule(name).weight.mul_(mask)
                for optimizer in trainer.optimizers:
                    for value in optimizer.state.get(weight, {}).values():
                        if isinstance(value, Tensor) and value.shape == weight.shape:
                            value.mul_(mask)
        self._set_factors()
        log.info(f"epoch {trainer.current_epoch + 1}: half of their weights are zero from now on")

    def _set_factors(self) -> None:
        """Note what weights are multiplied by at each step, in their type and layout."""
        self._factors = []
        for name, mask in self.masks.items():
            weight: Any = self._covered.layers[name].weight
            self._factors.append((weight, in_layout_of(weight, mask.to(weight.dtype))))

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        """Take the gradient away from what is zero, before gradients are clipped."""
        _mask([(w.grad, factor) for w, factor in self._factors if w.grad is not None])

    def _mask_again(self, optimizer: Optimizer, *args: Any) -> None:
        """Set to zero again what an optimizer moves that does not go entry by entry, as Muon.

        Before any callback sees the step's weights, a moving average, say.
        """
        if getattr(optimizer, "mixes_entries", False):
            _mask(self._factors)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Listen no more."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the share of zeros."""
        weights = [layer.weight for layer in self._covered.layers.values()]
        zeros = sum(int((weight == 0).sum()) for weight in weights)
        pl_module.log("sparsity", zeros / self._covered.weights)

    def state_dict(self) -> dict[str, Any]:
        """Return the masks."""
        return {"masks": dict(self.masks)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self.masks = dict(state_dict["masks"])


@torch.no_grad()
def _mask(pairs: list[tuple[Any, Tensor]]) -> None:
    """Multiply tensors by their factors, all together: one operation for a GPU to launch."""
    if pairs:
        tensors, factors = map(list, zip(*pairs, strict=True))
        torch._foreach_mul_(tensors, factors)
