"""Show what a classifier gets right and wrong: in TensorBoard, and as PNG in `figures/`."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image
from torch import Tensor

BINS = 15  # of the reliability diagram
BATCH = 64  # pictures of the training batch that is shown


@dataclass
class Tally:
    """What a split's answers add up to, on their device.

    Attributes:
        matrix: int64 `[true class, predicted class]`.
        bins: float64 `[BINS, 3]`, see `figures.calibration_bins`.
        sure: float32 `[n]`, the probabilities of the most confidently wrong answers, descending;
            -1 where there are fewer.
        labels, answers: int64 `[n]`, their true and predicted classes.
        images: float32 `[n, C, H, W]`, their pictures, normalised.
    """

    matrix: Tensor
    bins: Tensor
    sure: Tensor
    labels: Tensor
    answers: Tensor
    images: Tensor


class Figures(L.Callback):
    """Draw figures of a classifier: of validation at each best epoch, and of the test.

    `confusion` and `class_accuracy`; `wrong`, the most confidently wrong pictures, with true and
    predicted names; `reliability`, how often answers are right against how sure it was of them.
    Before them `train/batch`, the first training batch as the network sees it.

    Each goes to the loggers that show pictures (TensorBoard, MLflow, Weights & Biases) as
    `<split>/<figure>` and to `<dirpath>/<split>_<figure>.png`. A step of validation adds up four
    small tensors; drawing takes a second or so, so that in a run with short epochs not each best
    epoch is drawn, but the last one always.

    Args:
        dirpath: the folder for the files.
        monitor: the metric of validation by which an epoch is the best so far.
        mode: "min" or "max".
        wrong: how many wrong pictures to show.
        share: of the run's seconds, how many may go into drawing.
    """

    def __init__(
        self,
        dirpath: str,
        monitor: str = "val/loss",
        mode: str = "min",
        wrong: int = 24,
        share: float = 0.02,
    ) -> None:
        self.dirpath = Path(dirpath)
        self.monitor = monitor
        self.mode = mode
        self.wrong = wrong
        self.share = share
        self.tally: Tally | None = None
        self.best: float | None = None
        self._waiting: tuple[Tally, int] | None = None  # of the best epoch, not drawn yet
        self._started = time.perf_counter()
        self._spent = 0.0
        self._last = 1.5  # seconds that the last drawing took, or that the first may

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run has to know."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare with the epochs before."""
        self.best = state_dict["best"]

    def forget(self) -> None:
        """Compare with later epochs only."""
        self.best = self._waiting = None

    # -------------------------------------------------------------------------------- training

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._started, self._spent = time.perf_counter(), 0.0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Show the run's first batch."""
        if trainer.global_step == 0 and batch_idx == 0 and trainer.is_global_zero:
            from torchvision.utils import make_grid

            pixels = torch.from_numpy(_pixels(batch.images[:BATCH], pl_module))
            grid = make_grid(pixels.permute(0, 3, 1, 2), nrow=16, padding=2, pad_value=255)
            scale = max(1, round(64 / pixels.shape[1]))  # small pictures are hard to see
            grid = grid.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
            self._show(trainer, "train/batch", grid.permute(1, 2, 0).contiguous().numpy(), 0)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the best epoch, if it has not been."""
        self._draw_waiting(trainer, pl_module)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Draw it also where a run is stopped."""
        if trainer.state.fn == "fit":
            self._draw_waiting(trainer, pl_module)

    # -------------------------------------------------------------------- validation and test

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count from zero."""
        self.tally = None

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count from zero."""
        self.tally = None

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any,
        batch_idx: int, dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Count a batch."""
        self._count(outputs, batch)

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any,
        batch_idx: int, dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Count a batch."""
        self._count(outputs, batch)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the counts of the best epoch, and draw them if it is time."""
        if not trainer.sanity_checking and not self.monitor.startswith("train/"):
            self._keep_the_best(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Do so where the metric is one of training, which is known only now."""
        if self.monitor.startswith("train/"):
            self._keep_the_best(trainer, pl_module)
            self.tally = None  # an epoch that is not validated has none

    def _keep_the_best(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        value = trainer.callback_metrics.get(self.monitor)
        if trainer.state.fn != "fit" or self.tally is None:
            return
        score = math.inf if value is None else float(value) * (1 if self.mode == "min" else -1)
        if self.best is not None and not score <= self.best:
            return
        self.best = score
        self._waiting = self._over_devices(trainer, pl_module, self.tally), trainer.global_step
        seconds = time.perf_counter() - self._started
        if self._spent + self._last <= self.share * seconds:
            self._draw_waiting(trainer, pl_module)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the test."""
        if self.tally is not None:
            self.tally = self._over_devices(trainer, pl_module, self.tally)
            self._draw(trainer, pl_module, self.tally, "test", trainer.global_step)

    # --------------------------------------------------------------------------------- counting

    def _count(self, logits: Tensor, batch: Any) -> None:
        from litvision.figures import calibration_bins

        images, labels = batch.images, batch.labels
        sure, answers = logits.softmax(1).max(1)
        right = answers == labels
        classes = logits.shape[1]
        # Not `bincount`, for whose range of values a GPU would be waited for.
        pairs = labels.new_zeros(classes * classes)
        pairs.scatter_add_(0, labels * classes + answers, torch.ones_like(labels))
        matrix, bins = pairs.view(classes, classes), calibration_bins(sure, right, BINS)
        # Padded, so that there are always `wrong` of them to choose from.
        sure = torch.cat([sure.masked_fill(right, -1.0), sure.new_full((self.wrong,), -1.0)])
        sure, rows = sure.topk(self.wrong)
        rows = rows.clamp(max=len(labels) - 1)
        found = (sure, labels[rows], answers[rows], images[rows])
        if self.tally is None:
            self.tally = Tally(matrix, bins, *found)
            return
        before = self.tally
        self.tally = Tally(
            before.matrix + matrix,
            before.bins + bins,
            *_surest((before.sure, before.labels, before.answers, before.images), found),
        )

    def _over_devices(self, trainer: L.Trainer, module: L.LightningModule, tally: Tally) -> Tally:
        if trainer.world_size == 1:
            return tally
        gathered: Any = module.all_gather(
            (tally.matrix, tally.bins, tally.sure, tally.labels, tally.answers, tally.images)
        )
        matrix, bins, *wrong = gathered
        sure, labels, answers, images = (tensor.flatten(0, 1) for tensor in wrong)
        found = sure[:0], labels[:0], answers[:0], images[:0]
        return Tally(
            matrix.sum(0), bins.sum(0), *_surest(found, (sure, labels, answers, images), self.wrong)
        )

    # ---------------------------------------------------------------------------------- drawing

    def _draw_waiting(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._waiting is not None:
            tally, step = self._waiting
            self._waiting = None
            self._draw(trainer, pl_module, tally, "val", step)

    def _draw(
        self, trainer: L.Trainer, module: L.LightningModule, tally: Tally, split: str, step: int
    ) -> None:
        if not trainer.is_global_zero:
            return
        from litvision import figures  # imports matplotlib

        started = time.perf_counter()
        card: Any = module.card
        names = list(card.get("classes") or map(str, range(len(tally.matrix))))
        matrix = tally.matrix.cpu()
        drawn = {
            "confusion": figures.confusion(matrix, names),
            "class_accuracy": figures.class_accuracy(matrix, names),
            "reliability": figures.reliability(tally.bins.cpu()),
        }
        there = tally.sure >= 0
        if bool(there.any()):
            columns = (t[there].tolist() for t in (tally.sure, tally.labels, tally.answers))
            rows = zip(*columns, strict=True)
            titles = [f"{names[true]}\nas {names[said]} {sure:.0%}" for sure, true, said in rows]
            pixels = _pixels(tally.images[there], module)
            drawn["wrong"] = figures.pictures(pixels, titles)
        for name, figure in drawn.items():
            self._show(trainer, f"{split}/{name}", figures.to_pixels(figure), step)
        self._last = time.perf_counter() - started
        self._spent += self._last

    def _show(self, trainer: L.Trainer, tag: str, pixels: np.ndarray, step: int) -> None:
        """Write a picture to its file and to the loggers: uint8 `[H, W, 3]`."""
        self.dirpath.mkdir(parents=True, exist_ok=True)
        file = f"{tag.replace('/', '_')}.png"
        Image.fromarray(pixels).save(self.dirpath / file)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(tag, pixels, step, dataformats="HWC")
            elif isinstance(logger, MLFlowLogger):
                logger.experiment.log_artifact(logger.run_id, self.dirpath / file, "figures")
            elif isinstance(logger, WandbLogger):
                logger.log_image(tag, [pixels], step)


def _surest(
    first: tuple[Tensor, ...], second: tuple[Tensor, ...], count: int | None = None
) -> tuple[Tensor, ...]:
    """Return the surest of two sets of wrong answers: as many as the first has, or `count`."""
    joined = [torch.cat(pair) for pair in zip(first, second, strict=True)]
    rows = joined[0].topk(len(first[0]) if count is None else count).indices
    return tuple(tensor[rows] for tensor in joined)


def _pixels(images: Tensor, module: Any) -> np.ndarray:
    """Undo the normalisation: float `[B, C, H, W]` to uint8 `[B, H, W, 3]`."""
    images = images.detach().float().cpu()
    if module.card.get("mean"):
        mean, std = (torch.tensor(module.card[key]).view(-1, 1, 1) for key in ("mean", "std"))
        images = images * std + mean
    pixels = (images * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    return pixels.expand(-1, -1, -1, 3).contiguous().numpy()
