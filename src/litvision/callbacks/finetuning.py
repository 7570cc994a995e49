"""Train the new layers of a network that began with trained weights; later, if wished, all."""

from __future__ import annotations

import logging
from typing import Annotated, Any

import lightning as L
from lightning.pytorch.callbacks import BaseFinetuning
from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from litvision.errors import UserError
from litvision.optimizers import Muon
from litvision.position import last_epoch

log = logging.getLogger(__name__)


class Finetuning(BaseFinetuning):
    """Freeze every tensor that `init_from` loaded; what it replaced trains.

    Frozen is frozen to the bit: such weights get no gradient, and a batch normalisation's layer
    uses its running statistics as in evaluation and leaves them as they are.

    Args:
        unfreeze_at_epoch: train everything from this epoch on, counted from 0; None: never.
        unfrozen_lr_factor: from then on the unfrozen weights have so many times the learning rate
            of the others, and a plateau rule lowers both.

    Raises:
        UserError: nothing was loaded; or weights are to be unfrozen later, under a schedule by
            step, which cannot take them in, or on several devices.
    """

    def __init__(
        self,
        unfreeze_at_epoch: Annotated[int, Field(ge=1)] | None = None,
        unfrozen_lr_factor: Annotated[float, Field(gt=0)] = 0.1,
    ) -> None:
        super().__init__()
        self.unfreeze_at_epoch = unfreeze_at_epoch
        self.unfrozen_lr_factor = unfrozen_lr_factor
        self._loaded: frozenset[str] = frozenset()
        self._fixed: frozenset[str] = frozenset()  # what the network itself never trains

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Freeze before the optimizer is built, which takes what is not frozen."""
        if stage == "fit":
            if self.unfreeze_at_epoch is not None and trainer.world_size > 1:
                raise UserError(
                    "callbacks.finetuning.unfreeze_at_epoch: several devices exchange only the "
                    "gradients of weights that train from the start. Give trainer.devices=1; or "
                    "callbacks.finetuning.unfreeze_at_epoch=null, and go on later from that run by "
                    "init_from, without callbacks=finetuning."
                )
            super().setup(trainer, pl_module, stage)

    def freeze_before_training(self, pl_module: L.LightningModule) -> None:
        """Freeze what was loaded."""
        module: Any = pl_module
        self._loaded = frozenset(module.card.get("loaded", ()))
        if not self._loaded:
            raise UserError(
                "callbacks.finetuning freezes what init_from has loaded, and nothing was: give "
                "init_from=<a checkpoint or a run's folder>."
            )
        self._fixed = frozenset(
            name for name, p in module.network.named_parameters() if not p.requires_grad
        )
        for name, parameter in module.network.named_parameters():
            parameter.requires_grad_(name not in self._loaded | self._fixed)
        if not any(p.requires_grad for p in module.network.parameters()):
            raise UserError("callbacks.finetuning would freeze every weight: nothing could train.")

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say what is frozen; on resuming, give the optimizer back the weights unfrozen before."""
        later = self.unfreeze_at_epoch
        if later is not None and any(not c.reduce_on_plateau for c in trainer.lr_scheduler_configs):
            raise UserError(
                "callbacks.finetuning.unfreeze_at_epoch adds weights to the optimizer, which the "
                "scheduler group's schedule cannot take in: give scheduler=none, or "
                "callbacks.finetuning.unfreeze_at_epoch=null."
            )
        super().on_fit_start(trainer, pl_module)
        last = last_epoch(trainer)
        until = "to the end" if later is None else f"until epoch {later + 1} begins"
        if later is not None and last is not None and later > last:
            until += f", which the run, of {last + 1}, does not come to"
        log.info(f"{len(self._loaded)} loaded tensors are frozen {until}")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Freeze statistics, also where a run is resumed within an epoch."""
        self._apply(pl_module, trainer.current_epoch)

    def finetune_function(
        self, pl_module: L.LightningModule, epoch: int, optimizer: Optimizer
    ) -> None:
        """At the start of each epoch; at the one of unfreezing, hand over the weights."""
        self._apply(pl_module, epoch)
        if self.unfreeze_at_epoch is None or epoch < self.unfreeze_at_epoch:
            return
        held = {p for group in optimizer.param_groups for p in group["params"]}
        # Muon's first group may be the last layer, whose rate is not the filters'.
        rate = optimizer.lr if isinstance(optimizer, Muon) else optimizer.param_groups[0]["lr"]
        lr = rate * self.unfrozen_lr_factor
        module: Any = pl_module
        count = 0
        for group in module.parameter_groups():
            new = [p for p in group["params"] if p not in held]
            count += len(new)
            if new:
                optimizer.add_param_group({**group, "params": new, "lr": lr})
        if count:
            log.info(f"epoch {epoch + 1}: {count} frozen weights train from now on, at lr {lr:.4g}")

    def _apply(self, pl_module: L.LightningModule, epoch: int) -> None:
        """Set what is frozen in this epoch: gradients, and the mode of layers with statistics."""
        network: Any = pl_module.network
        frozen = self.unfreeze_at_epoch is None or epoch < self.unfreeze_at_epoch
        for name, parameter in network.named_parameters():
            held = self._loaded | self._fixed if frozen else self._fixed
            parameter.requires_grad_(name not in held)
        for module in self._with_loaded_statistics(network):
            module.train(not frozen)

    def _with_loaded_statistics(self, network: nn.Module) -> list[nn.Module]:
        return [
            module
            for prefix, module in network.named_modules()
            for name, _ in module.named_buffers(prefix, recurse=False)
            if name in self._loaded
        ]
