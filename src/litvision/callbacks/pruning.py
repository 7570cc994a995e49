"""Unstructured pruning by Lightning's `ModelPruning`, chosen by one override."""

from __future__ import annotations

import logging
from typing import Annotated, Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelPruning, WeightAveraging
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.prune import custom_from_mask

from litvision.callbacks.forget import forget_the_best
from litvision.errors import UserError
from litvision.position import refuse_unreached

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
        UserError: the run ends before one of `at_epochs`, or the weights are averaged.
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
        self._names: list[str] = []  # of their layers
        self._done: list[int] = []  # epochs, of `at_epochs`
        self._restored: dict[str, dict[str, Tensor]] = {}

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
        kinds = (nn.Conv2d, nn.Linear)
        layers = {name: m for name, m in network.named_modules() if isinstance(m, kinds)}
        self._names, self._weights = list(layers), [(m, "weight") for m in layers.values()]
        self._parameters_to_prune = self._weights
        super().setup(trainer, pl_module, stage)
        key = f"callbacks.pruning.at_epochs={self.at_epochs}"
        refuse_unreached(key, self.at_epochs[-1], trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Where a run is resumed, mask again what was masked.

        Raises:
            UserError: what should have been is not known, or `at_epochs` are over.
        """
        past = [e for e in self.at_epochs if e < trainer.current_epoch and e not in self._done]
        if past:
            raise UserError(
                f"callbacks.pruning.at_epochs={self.at_epochs}: the run goes on with epoch "
                f"{trainer.current_epoch}, counted from 0, and was not pruned at {past[0]}: give "
                "later ones, or begin a run with init_from=<this one's folder>."
            )
        for name, (layer, key) in zip(self._names, self._weights, strict=True):
            if name not in self._restored:
                continue
            kept = self._restored[name]
            weight: Any = layer.get_parameter(key)
            mask = kept["mask"].to(weight.device)
            with torch.no_grad():
                weight[~mask] = kept["masked"].to(weight.device)
            custom_from_mask(layer, key, mask)
            if "initial" in kept:
                assert self._original_layers is not None
                self._original_layers[id(layer)]["data"].get_parameter(key).data = kept["initial"]
        self._restored = {}

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prune, if it is time."""
        epoch = trainer.current_epoch
        if epoch in self.at_epochs and epoch not in self._done:  # or resumed within it
            self._done.append(epoch)
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

    def state_dict(self) -> dict[str, Any]:
        """Return of each pruned layer what the pruned weights do not tell.

        `mask`, bool, of the weights' shape: which stay; `masked`: the others as they were, which
        come to bear where the optimizer looks at the whole filter; and for a lottery ticket
        `initial`: all of them, as they were at first.
        """
        state: dict[str, dict[str, Tensor]] = {}
        for name, (layer, key) in zip(self._names, self._weights, strict=True):
            if f"{key}_mask" in dict(layer.named_buffers(recurse=False)):
                mask = layer.get_buffer(f"{key}_mask").bool()
                weight = layer.get_parameter(f"{key}_orig").detach()
                state[name] = {"mask": mask, "masked": weight[~mask]}
                if self._original_layers:
                    first = self._original_layers[id(layer)]["data"]
                    state[name]["initial"] = getattr(first, key).detach()
        return {"layers": state, "done": list(self._done)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep them until the network has its weights."""
        self._restored, self._done = dict(state_dict["layers"]), list(state_dict["done"])

    @staticmethod
    def _copy_param(new: nn.Module, old: nn.Module, name: str) -> None:
        """Set weights back to what they were; Lightning's own would go on to train the originals.

        It gives both the same memory, so that a second time there is nothing to go back to.
        """
        ModelPruning._copy_param(new, old, name)
        pruned = f"{name}_orig" in dict(new.named_parameters(recurse=False))
        weight: Any = new.get_parameter(f"{name}_orig" if pruned else name)
        weight.data = weight.data.clone()

    @property
    def sparsity(self) -> float:
        """The share of zeros among the weights."""
        weights = [getattr(layer, name) for layer, name in self._weights]
        zeros = sum(int((weight == 0).sum()) for weight in weights)
        return zeros / sum(weight.numel() for weight in weights)
