"""The LightningModule: loss, metrics, optimizer and schedule around any network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, cast

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MeanMetric

from litvision.batches import Batch
from litvision.errors import UserError
from litvision.optimizers import lay_out_momenta, spare_copies
from litvision.position import ends_here
from litvision.trials import picks_channels_last


class NonFiniteLossError(UserError):
    """The loss became NaN or infinite; the message names epoch, step, batch and learning rate."""

    advice = (
        "What was saved before is kept. Lower optimizer.lr, or set trainer.gradient_clip_val=1."
    )


class ImageClassifier(L.LightningModule):
    """Trains a network with cross-entropy.

    Logs `train/ val/ test/` `loss` and `acc` (0 to 1), each exact over the whole split: sums over
    all pictures of all devices, divided once.

    Args:
        network: maps float `[B, C, H, W]` to logits `[B, classes]`.
        optimizer: called with parameter groups, gives the optimizer; not needed to evaluate.
        scheduler: called with the optimizer, gives a schedule that steps after every batch.
        label_smoothing: share of the target spread evenly over all classes (Szegedy et al. 2015,
            arXiv 1512.00567); validation and test measure plain cross-entropy.
        class_weights: what a picture of each class counts in the training loss, in the order of
            the labels; "balanced": inversely to how many there are, `N / (classes * count)` over
            the classes that have any, so that these count alike and a picture 1 on average; None:
            all 1.
        decay_norm_and_bias: whether weight decay also shrinks biases and the gains of norm layers;
            without it, only weights with two or more dimensions are decayed.
        channels_last: channels-last memory for pictures and weights; "auto": where it is faster
            and the network takes it.
        compile: compile the network with TorchInductor before training; or the name of one of its
            modes: "reduce-overhead" replays a step's kernels as one CUDA graph.
    """

    # What `monitor` takes: whether the lowest or the highest is the best. A class of one's own
    # lists what it logs beside these.
    logs: ClassVar[Mapping[str, Literal["min", "max"]]] = {
        "train/loss": "min",
        "train/acc": "max",
        "val/loss": "min",
        "val/acc": "max",
    }
    # What a checkpoint says about itself, so that it can be used from its path alone: plain values.
    card: dict[str, Any]
    loss_weights: Tensor | None  # float32 `[classes]`, from `weigh_classes`
    # False while a callback lets the loss run away on purpose.
    stop_if_not_finite = True

    def __init__(
        self,
        network: nn.Module,
        optimizer: Callable[..., Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
        *,
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        class_weights: Literal["balanced"] | list[Annotated[float, Field(ge=0)]] | None = None,
        decay_norm_and_bias: bool = True,
        channels_last: bool | Literal["auto"] = "auto",
        compile: bool | Literal["default", "reduce-overhead", "max-autotune"] = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.label_smoothing = label_smoothing
        self._class_weights = class_weights  # a class of one's own may have a tensor by that name
        self.register_buffer("loss_weights", None, persistent=False)
        self.decay_norm_and_bias = decay_norm_and_bias
        self.channels_last = channels_last
        self.compile_network = compile
        self.card = {}
        measured = [f"{split}_{name}" for split in ("val", "test") for name in ("loss", "acc")]
        # Not torchmetrics' default, which leaves out what is NaN.
        self.metrics = nn.ModuleDict(
            {name: MeanMetric(nan_strategy="disable") for name in measured}
        )
        self.memory_layout = torch.contiguous_format
        # By number of the batch: its step, its learning rate, and its loss on the device.
        self._unchecked: dict[int, tuple[int, float, Tensor]] = {}
        self._resumed: dict[str, Any] | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes the running hook 40 times a step; torch's own way looks through all
        # parameters, buffers and modules each time, which together cost a tenth of its overhead.
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def setup(self, stage: str) -> None:
        """Choose the memory layout for the device that Lightning has picked; compile if asked."""
        if stage == "fit" and self._class_weights is not None and self.loss_weights is None:
            raise ValueError("class_weights take effect with weigh_classes(counts), before fit")
        wanted = self.channels_last
        if wanted == "auto":
            device = self.trainer.strategy.root_device.type
            wanted = picks_channels_last(device, self.network, self.card)
        self.memory_layout = torch.channels_last if wanted else torch.contiguous_format
        self.network.to(memory_format=self.memory_layout)
        if stage == "fit" and self.compile_network:
            mode = None if self.compile_network is True else self.compile_network
            self.network.compile(mode=mode)  # in place: names in the state dict stay as they are

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `[B, classes]` for normalised pictures, float `[B, C, H, W]`."""
        return self.network(images.contiguous(memory_format=self.memory_layout))

    # ------------------------------------------------------------------------------- training

    def on_train_start(self) -> None:
        """Go on within an epoch, where a resumed run stopped."""
        for optimizer in self.trainer.optimizers:
            lay_out_momenta(optimizer)
        self.on_train_epoch_start()  # which Lightning calls only where an epoch begins
        resumed, self._resumed = self._resumed, None
        if resumed is None:
            return
        if self.trainer.is_global_zero:  # the sums are those of all devices
            self._loss += resumed["loss"].to(self._loss)
            self._correct += resumed["correct"].to(self._correct)
            self._pictures = resumed["pictures"]
        torch.set_rng_state(resumed["rng"].cpu())
        if self.device.type == "cuda" and resumed["cuda_rng"] is not None:
            torch.cuda.set_rng_state(resumed["cuda_rng"].cpu(), self.device)

    def on_train_epoch_start(self) -> None:
        """Start the epoch's sums."""
        # float32 would lose the seventh digit over an epoch; Apple's GPUs have no float64.
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        self._loss = torch.zeros((), dtype=dtype, device=self.device)
        self._correct = torch.zeros((), dtype=torch.int64, device=self.device)
        self._pictures = 0
        self._unchecked = {}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the batch's mean loss, weighted so that devices' gradients average exactly."""
        labels, share = batch.labels, batch.share
        loss, logits = self.loss_and_logits(batch)
        detached = loss.detach()
        # Sums stay on the device, so that a GPU need not be waited for.
        self._loss.add_(detached, alpha=len(labels))
        largest = labels if labels.ndim == 1 else labels.argmax(1)  # of a mixed picture's classes
        self._correct.add_((logits.argmax(1) == largest).sum())
        self._pictures += len(labels)
        self._watch(detached, batch_idx)
        return loss if share == 1.0 else loss * share

    def loss_and_logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return what training makes small, a scalar, and the logits by which accuracy is counted.

        To be replaced where a loss needs more than logits and labels: the pictures, say, which
        another network is to see too.

        Args:
            batch: augmented and normalised, as `litvision.batches.Batch` has it on its device.

        Returns:
            The mean over the batch, and float32 `[B, classes]`.
        """
        logits = self(batch.images).float()
        return self.loss(logits, batch.labels), logits

    def weigh_classes(self, counts: list[int]) -> None:
        """Let the loss count classes as `class_weights` says.

        Args:
            counts: how many pictures of each class are trained on.

        Raises:
            UserError: `class_weights` are not as many as the classes, or all 0.
        """
        given = self._class_weights
        if given is None:
            return
        if given == "balanced":
            share = sum(counts) / sum(count > 0 for count in counts)
            weights = [share / count if count else 0.0 for count in counts]
        else:
            weights = [float(weight) for weight in given]
            if len(weights) != len(counts) or not any(weights):
                raise UserError(
                    f"model.class_weights={given} does not fit: it takes {len(counts)} numbers, "
                    "one a class and not all 0, or balanced."
                )
        self.loss_weights = torch.tensor(weights, dtype=torch.float32, device=self.device)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return what training makes small: the mean over a batch, a scalar.

        One of a class of one's own counts classes as `class_weights` says if it uses
        `picture_weights`.

        Args:
            logits: float32 `[B, classes]`.
            labels: int64 `[B]`; of mixed pictures, float32 `[B, classes]`, each class's share.
        """
        smoothing = self.label_smoothing
        if self.loss_weights is None:
            return F.cross_entropy(logits, labels, label_smoothing=smoothing)
        losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
        return (losses * self.picture_weights(labels)).mean()

    def picture_weights(self, labels: Tensor) -> Tensor:
        """Return what each picture counts in the loss, float32 `[B]`, by `class_weights`.

        The whole loss of a picture counts by its class. torch's `weight` would let the share of
        the target that label smoothing spreads count by the classes that it is spread to, and
        teach the rare ones with every picture; and it divides by the sum of a batch's weights,
        which differs from device to device.

        Args:
            labels: as `loss` has them.
        """
        weights = self.loss_weights
        if weights is None:
            return torch.ones(len(labels), device=labels.device)
        return weights[labels] if labels.ndim == 1 else labels.to(weights.dtype) @ weights

    def _watch(self, loss: Tensor, batch_idx: int) -> None:
        """Notice a loss that is not finite, without making a GPU wait at every step.

        A CPU knows the loss already. A GPU keeps the losses, and they are read together every
        `log_every_n_steps` batches, at an epoch's end, and before a checkpoint is saved.
        """
        if not self.stop_if_not_finite or (self.device.type == "cpu" and math.isfinite(loss)):
            return
        rate = float(self.trainer.optimizers[0].param_groups[0]["lr"])
        self._unchecked[batch_idx] = (self.global_step, rate, loss)
        every = getattr(self.trainer, "log_every_n_steps", 0) or 50
        if self.device.type == "cpu" or (batch_idx + 1) % every == 0:
            self._raise_if_not_finite()

    def _raise_if_not_finite(self) -> None:
        if not self._unchecked:
            return
        finite = torch.stack([loss for _, _, loss in self._unchecked.values()]).isfinite().tolist()
        for batch, fine in zip(self._unchecked, finite, strict=True):
            if not fine:
                step, rate, _ = self._unchecked[batch]
                raise NonFiniteLossError(
                    f"The training loss is not finite at epoch {self.current_epoch}, step {step}, "
                    f"batch {batch} of that epoch, learning rate {rate:g}. "
                    f"{NonFiniteLossError.advice}"
                )
        self._unchecked.clear()

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as `trainer.gradient_clip_val` says, also with a fused optimizer.

        Lightning's mixed precision refuses fused optimizers, which undo a gradient scaler's scaling
        within their step, after clipping. bfloat16 has no scaler.

        Raises:
            UserError: the optimizer is fused and the precision scales gradients.
        """
        plugin = self.trainer.precision_plugin
        fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        if not gradient_clip_val or not fused:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif getattr(plugin, "scaler", None) is not None:
            raise UserError(
                f"trainer.gradient_clip_val cannot clip the scaled gradients of "
                f"trainer.precision={plugin.precision} under a fused optimizer: "
                "give optimizer.fused=false, or another precision."
            )
        else:
            algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            Precision.clip_gradients(plugin, optimizer, gradient_clip_val, algorithm)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log `train/loss` and `train/acc` of the epoch with its last batch.

        Not in `on_train_epoch_end`, which comes after the callbacks' own: they would see the
        metrics of the epoch before.
        """
        trainer = self.trainer
        if trainer.is_last_batch or ends_here(trainer):
            self._raise_if_not_finite()
            pictures = torch.full_like(self._loss, self._pictures)
            sums = torch.stack([self._loss, self._correct.to(self._loss.dtype), pictures])
            loss, correct, size = trainer.strategy.reduce(sums, reduce_op="sum").tolist()
            if not size:  # a `training_step` of one's own, which logs what it wants
                return
            for name, value in (("loss", loss / size), ("acc", correct / size)):
                self.log(f"train/{name}", value, on_step=False, on_epoch=True, batch_size=1)

    def on_train_epoch_end(self) -> None:
        """Look once more before checkpoints are saved, for an epoch that `max_time` cut short."""
        self._raise_if_not_finite()

    # -------------------------------------------------------------------- validation and test

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Measure one validation batch and return its logits, float32 `[B, classes]`."""
        return self._measure("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Measure one test batch and return its logits, float32 `[B, classes]`."""
        return self._measure("test", batch)

    def _measure(self, split: str, batch: Batch) -> Tensor:
        logits, labels = self(batch.images).float(), batch.labels
        loss, acc = (cast(MeanMetric, self.metrics[f"{split}_{name}"]) for name in ("loss", "acc"))
        loss.update(F.cross_entropy(logits, labels, reduction="none"))
        acc.update((logits.argmax(1) == labels).float())
        size = len(labels)
        self.log(f"{split}/loss", loss, on_step=False, on_epoch=True, batch_size=size)
        self.log(f"{split}/acc", acc, on_step=False, on_epoch=True, batch_size=size)
        return logits

    def on_validation_end(self) -> None:
        """Stop when the last step of an epoch ruined the weights, before they are saved."""
        value = self.trainer.callback_metrics.get("val/loss")
        fitting = self.trainer.state.fn == "fit" and not self.trainer.sanity_checking
        watched = fitting and self.stop_if_not_finite
        if watched and value is not None and not torch.isfinite(value):
            raise NonFiniteLossError(
                f"The validation loss is not finite at epoch {self.current_epoch}, after step "
                f"{self.global_step - 1}. {NonFiniteLossError.advice}"
            )

    # ----------------------------------------------------------------- optimizer and schedule

    def configure_optimizers(self) -> Any:
        """Build the optimizer over one or two parameter groups, and its schedule."""
        if self.optimizer is None:
            raise ValueError("ImageClassifier was built without an optimizer; training needs one")
        optimizer = self.optimizer(self.parameter_groups())
        spare_copies(optimizer)
        if self.scheduler is None:
            return optimizer
        schedule = {"scheduler": self.scheduler(optimizer), "interval": "step", "name": "lr"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the trainable parameters; norm layers and biases apart if they do not decay."""
        trainable = [p for p in self.network.parameters() if p.requires_grad]
        if self.decay_norm_and_bias:
            return [{"params": trainable}]
        matrices = [p for p in trainable if p.ndim > 1]
        vectors = [p for p in trainable if p.ndim <= 1]
        return [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let the checkpoint say what it is, see `litvision.checkpoints`, and where it stands.

        Raises:
            NonFiniteLossError: the loss was not finite: what is there is not to be overwritten.
        """
        self._raise_if_not_finite()
        checkpoint["litvision"] = self.card
        if hasattr(self, "_loss"):
            sums = torch.stack([self._loss, self._correct.to(self._loss.dtype)])
            loss, correct = self.trainer.strategy.reduce(sums, reduce_op="sum")
            pictures = torch.tensor(float(self._pictures), device=self.device)
            cuda = self.device.type == "cuda"
            checkpoint["within_epoch"] = {
                "loss": loss,
                "correct": correct,
                "pictures": int(self.trainer.strategy.reduce(pictures, reduce_op="sum")),
                "rng": torch.get_rng_state(),
                "cuda_rng": torch.cuda.get_rng_state(self.device) if cuda else None,
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note where the checkpoint stands, for training to go on from there."""
        self._resumed = checkpoint.get("within_epoch")
