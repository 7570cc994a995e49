"""Find the largest batch that fits into memory, before training."""

from __future__ import annotations

import logging
import math
from typing import Annotated, Any

import lightning as L
import torch
from lightning.pytorch.callbacks import BatchSizeFinder
from pydantic import Field

from litvision import hardware
from litvision.errors import UserError
from litvision.trials import try_one_picture

log = logging.getLogger(__name__)


class LargestBatch(BatchSizeFinder):
    """Lightning's `BatchSizeFinder`, made safe on a processor.

    The batch is doubled until memory runs out, all pictures are in one batch, or the next would
    exceed `max_val`; weights, optimizer and data are then as before. A GPU says when its memory is
    full. On a processor the system would end the whole program instead, so memory is limited
    meanwhile to what is free, where the system can do so (Linux).

    Args:
        steps_per_trial: training steps to try each size with.
        init_val: the first size.
        max_val: try none larger.
        apply: train with the size found; False: only say it.

    Raises:
        UserError: `apply` where a schedule counts steps, which a larger batch makes fewer; more
            than one device; or a size leaves one picture alone, on which the network cannot train.
    """

    def __init__(
        self,
        steps_per_trial: Annotated[int, Field(ge=1)] = 3,
        init_val: Annotated[int, Field(ge=1)] = 16,
        max_val: Annotated[int, Field(ge=1, le=8192)] = 8192,
        apply: bool = False,
    ) -> None:
        if init_val > max_val:
            raise UserError(
                f"callbacks.batch_size_finder.init_val={init_val} exceeds max_val={max_val}: the "
                "search begins at the first and ends at the second."
            )
        # Lightning stops at its limit without trying it, and takes it for one that fits.
        self.largest = init_val * 2 ** int(math.log2(max_val / init_val))
        super().__init__(
            "power", steps_per_trial, init_val, max_val=self.largest + 1, max_trials=25
        )
        self.apply = apply
        self._applied: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the size that training took, which a resumed run's config does not say."""
        return {"batch_size": self._applied}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the size that was found before the run was stopped."""
        self._applied = state_dict["batch_size"]

    def setup(
        self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str | None = None
    ) -> None:
        """Check that it can be used here."""
        if stage == "fit" and trainer.world_size > 1:
            raise UserError("batch_size_finder works on one device: give trainer.devices=1.")

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find it and say it; a resumed run has it behind itself, and goes on with it."""
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.ckpt_path is not None:
            if self.apply and self._applied is not None:
                datamodule.batch_size = self._applied
            return
        if self.apply and trainer.lr_scheduler_configs:
            raise UserError(
                "callbacks.batch_size_finder.apply=true changes how many steps an epoch has, which "
                "the scheduler counts by: give scheduler=none, or apply=false and the size found "
                "as data.batch_size."
            )
        configured, crop = datamodule.batch_size, datamodule.crop
        if datamodule.crop_epochs is not None:
            datamodule.crop = None  # whole pictures come later, and need more memory
        cuda = [pl_module.device] if pl_module.device.type == "cuda" else []
        try:
            with (
                hardware.limited_memory(pl_module.device.type),
                torch.random.fork_rng(devices=cuda),
            ):
                super().on_fit_start(trainer, pl_module)
        except ValueError:
            self._try_one_picture(pl_module, datamodule)  # is it that?
            raise
        datamodule.crop = crop
        trainer.ckpt_path = None  # what was restored is the beginning of this run, not another
        if self.optimal_batch_size is None:  # trainer.fast_dev_run
            return
        pictures = len(datamodule.subsets["train"])
        found = min(self.optimal_batch_size, self.largest, pictures)
        datamodule.batch_size = found if self.apply else configured
        self._applied = found if self.apply else None
        if self.apply:
            self._try_one_picture(pl_module, datamodule)
        trainer.fit_loop._combined_loader = None  # made for the last size that was tried
        trainer.fit_loop.setup_data()
        then = f"training goes on with data.batch_size={configured}"
        if self.apply:
            then = f"training with it: {datamodule.steps_per_epoch:,} iterations an epoch"
        what = "all pictures fit into one batch" if found == pictures else "largest batch that fits"
        if found == self.largest:
            what = "batch_size_finder.max_val allows no larger batch, and this one fits"
        log.info(f"{what}: {found:,}; {then}")

    def _try_one_picture(self, pl_module: Any, datamodule: Any) -> None:
        instead = "callbacks.batch_size_finder.max_val below that"
        try_one_picture(pl_module, datamodule, instead)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Nothing: the size is that of training."""

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Nothing: the size is that of training."""
