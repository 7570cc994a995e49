"""Networks small enough to train in a test; they take the options of conf/model/resnet18.yaml."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from litvision.batches import Images
from litvision.networks.normalization import Norm, normalization


class TinyNet(nn.Module):
    """What real ones have: convolution, norm, bias."""

    def __init__(
        self, num_classes: int = 10, in_channels: int = 3, norm: Norm = "batch", width: int = 8
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 3, stride=2)
        self.norm = normalization(norm, width)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(images)).relu().mean((2, 3)))


class ReadsValues(TinyNet):
    """Looks at a tensor while it is built, so that it cannot be built without memory."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3, norm: Norm = "batch") -> None:
        super().__init__(num_classes, in_channels, norm, width=int(torch.tensor(8).item()))


class TinyLinear(nn.Module):
    """No batch norm: the same result however a batch is shared out."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3, norm: Norm = "none") -> None:
        super().__init__()
        self.fc = nn.Linear(in_channels * 4 * 4, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(nn.functional.adaptive_avg_pool2d(images, 4).flatten(1))


class Explodes(TinyLinear):
    """Gives a loss that is not a number from the `bad`-th training step on."""

    def __init__(
        self, num_classes: int = 10, in_channels: int = 3, norm: Norm = "none", bad: int = 1
    ) -> None:
        super().__init__(num_classes, in_channels)
        self.bad, self.steps = bad, 0

    def forward(self, images: Tensor) -> Tensor:
        self.steps += self.training
        logits = super().forward(images)
        return logits * float("nan") if self.training and self.steps >= self.bad else logits


class FailsOnSecondDevice(TinyLinear):
    """Raises on the second of several processes, as a broken GPU would, at once."""

    def forward(self, images: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled() and os.environ.get("LOCAL_RANK") == "1":
            raise RuntimeError("the second device is broken")
        return super().forward(images)


class TinyFlat(nn.Module):
    """Normalises a layer of one pixel, which takes a batch of two."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3, norm: Norm = "batch") -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_channels * 4 * 4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        pooled = nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)
        return self.fc(self.norm(self.fc1(pooled)).relu())


class TinyDropout(TinyLinear):
    """Draws from torch's random numbers in every training step."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3, norm: Norm = "none") -> None:
        super().__init__(num_classes, in_channels)
        self.drop = nn.Dropout(0.3)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.drop(nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)))


class Signal(L.Callback):
    """Sends this process a signal after a step."""

    def __init__(self, step: int, number: int = signal.SIGTERM) -> None:
        self.step = step
        self.number = number

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


class SignalIn(L.Callback):
    """Sends this process SIGTERM, so many times, in the first call of a hook."""

    def __init__(self, hook: str, times: int = 1) -> None:
        self.left = times
        setattr(self, hook, self._send)

    def _send(self, trainer: L.Trainer, *args: Any) -> None:
        for _ in range(self.left if not trainer.sanity_checking else 0):
            self.left = 0
            os.kill(os.getpid(), signal.SIGTERM)


class FillsDisk(L.Callback):
    """From an epoch on, no file can grow beyond `size` bytes, as on a disk that is nearly full."""

    def __init__(self, epoch: int, size: int) -> None:
        self.epoch = epoch
        self.size = size

    def on_train_epoch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.current_epoch == self.epoch:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, hard))


class StopsOnFile(L.Callback):
    """Ends training once a file is there."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_train_epoch_end(self, trainer: L.Trainer, *args: Any) -> None:
        trainer.should_stop = self.file.exists()


class DeletesFolder(L.Callback):
    """Deletes a folder before a step, as a disk that is unmounted would."""

    def __init__(self, folder: Path, step: int) -> None:
        self.folder = folder
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            shutil.rmtree(self.folder)


class Mislabelled:
    """A source whose last training picture has a label that is no class's number."""

    def __init__(self, label: int) -> None:
        self.label = label

    def prepare(self) -> None:
        pass

    def read(self) -> dict[str, Images]:
        pixels, labels = torch.zeros(20, 32, 32, 3, dtype=torch.uint8), torch.arange(20) % 2
        test = Images(pixels, labels.clone(), ("cat", "dog"))
        labels[-1] = self.label
        return {"train": Images(pixels, labels, ("cat", "dog")), "test": test}


class Evil:
    """Makes a file when it is unpickled, as another might run a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (Path.touch, (self.marker,))
