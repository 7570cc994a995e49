"""A trained classifier that takes pictures as they come: `litvision.load(checkpoint)`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from litvision import checkpoints, hardware
from litvision.classifier import ImageClassifier
from litvision.errors import UserError, first_line
from litvision.sources.decode import decode, fit, with_channels
from litvision.transforms import normalize
from litvision.trials import picks_channels_last
from litvision.tta import Tta, average


@dataclass(frozen=True)
class Answer:
    """What a classifier says about one picture.

    Attributes:
        classes: all names, in the order of the logits.
        probabilities: float32 `[classes]` on the CPU, non-negative, their sum is 1.
    """

    classes: tuple[str, ...]
    probabilities: Tensor

    @property
    def name(self) -> str:
        """The most probable class."""
        return self.classes[int(self.probabilities.argmax())]

    @property
    def probability(self) -> float:
        """That of the most probable class."""
        return float(self.probabilities.max())

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """Return the `k` most probable classes and their probabilities, the first one first."""
        values, labels = self.probabilities.topk(min(k, len(self.classes)))
        pairs = zip(labels.tolist(), values.tolist(), strict=True)
        return [(self.classes[label], value) for label, value in pairs]

    def __repr__(self) -> str:
        """Say the first three."""
        return "Answer(" + ", ".join(f"{name} {value:.1%}" for name, value in self.top(3)) + ")"


class Predictor:
    """Classifies pictures, prepared as those that the classifier was trained on.

    Args:
        classifier: with its card, as `checkpoints.rebuild` returns it.
        device: where to compute, as torch names it; "auto": on a GPU where there is one.

    Raises:
        UserError: there is no such device.
    """

    def __init__(self, classifier: ImageClassifier, device: str = "auto") -> None:
        name = hardware.accelerator("auto") if device == "auto" else device
        try:
            self.device = torch.device(name)
            torch.zeros(1, device=self.device)
        except (RuntimeError, AssertionError) as error:  # the latter: torch without CUDA
            raise UserError(
                f"device={device!r} cannot be used here ({first_line(error)}): give auto, or cpu."
            ) from error
        self.card = classifier.card
        self.classes = tuple(self.card["classes"])
        height, width = self.card["image_size"]
        self.image_size = (int(height), int(width))
        # Precision and layout of training and evaluation on this device.
        self.bf16 = hardware.precision(self.device.type) == "bf16-mixed"
        channels_last = picks_channels_last(self.device.type, classifier.network, self.card)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.network = classifier.network.eval().to(self.device).to(memory_format=layout)
        self._layout = layout
        self._mean = torch.tensor(self.card["mean"], device=self.device)
        self._std = torch.tensor(self.card["std"], device=self.device)

    def __call__(self, pictures: Any, batch_size: int = 512) -> Any:
        """Classify one picture or many.

        Args:
            pictures: a path, a PIL picture, an array or a tensor; or several: a list of these, an
                array `[N, H, W, C]`, a tensor `[N, C, H, W]`. Arrays have their channels last and
                tensors first, or none for grey; their values are uint8, or floats from 0 to 1.
            batch_size: pictures that are computed at a time.

        Returns:
            An `Answer`, or a list of them for several pictures.

        Raises:
            TypeError: something that is no picture.
            ValueError: an array or tensor of another shape, type or range.
            OSError: a file that is not there or no picture.
        """
        many = not isinstance(pictures, str | Path | Image.Image)
        if isinstance(pictures, np.ndarray | Tensor):
            many = pictures.ndim == 4
        if many and not isinstance(pictures, Iterable):
            raise TypeError(f"{_kind(pictures)} is no picture: give {_WANTED}")
        chosen: Sequence[Any] = list(pictures) if many else [pictures]
        answers: list[Answer] = []
        for start in range(0, len(chosen), batch_size):
            pixels = [self.prepare(picture) for picture in chosen[start : start + batch_size]]
            rows = self.probabilities(torch.from_numpy(np.stack(pixels)))
            answers += [Answer(self.classes, row) for row in rows]
        return answers if many else answers[0]

    def prepare(self, picture: Any) -> np.ndarray:
        """Return one picture as the network's input: uint8 `[height, width, 3]`."""
        if isinstance(picture, str | Path):
            return decode(picture, self.image_size)
        if isinstance(picture, Tensor):
            array = picture.detach().cpu()
            picture = (array.movedim(0, -1) if array.ndim == 3 else array).numpy()
        if isinstance(picture, np.ndarray):
            picture = Image.fromarray(_bytes(picture))
        if not isinstance(picture, Image.Image):
            raise TypeError(f"{_kind(picture)} is no picture: give {_WANTED}")
        return fit(picture, self.image_size)

    @torch.inference_mode()
    def probabilities(self, pixels: Tensor) -> Tensor:
        """Return the probability of each class.

        Args:
            pixels: uint8 `[B, height, width, 3]`, on the CPU.

        Returns:
            float32 `[B, classes]` on the CPU.

        Raises:
            UserError: the network takes neither colours nor grey.
        """
        pixels = with_channels(pixels, len(self._mean))
        images = normalize(pixels.to(self.device), self._mean, self._std)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.network(images.contiguous(memory_format=self._layout))
        return logits.float().softmax(1).cpu()


_WANTED = "a path, a PIL picture, a NumPy array [H, W, C], a tensor [C, H, W], or a list of these"


def load(
    checkpoint: str | Path,
    trust: Iterable[str] = (),
    device: str = "auto",
    tta: Tta | None = None,
) -> Predictor:
    """Return the classifier of a checkpoint, ready to be given pictures.

    Args:
        checkpoint: a run's folder, for its best one, or a file.
        trust: targets that its config may name beside this project's own and those of torch and
            torchvision, such as "timm.*".
        device: as torch names it; "auto": a GPU where there is one.
        tta: "flip": average over each picture and its mirror image; "flip_shift": over shifts by
            one pixel too.

    Raises:
        UserError: there is no checkpoint, it cannot be read, or it is not trusted.
    """
    path = checkpoints.find(checkpoint)
    classifier = checkpoints.rebuild(checkpoints.read(path), path, trust)
    average(classifier, tta)
    return Predictor(classifier, device)


def _bytes(array: np.ndarray) -> np.ndarray:
    """Return an array as Pillow takes it: uint8 `[H, W]` or `[H, W, C]`."""
    shape = list(array.shape)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))) or 0 in shape:
        raise ValueError(
            f"an array of shape {shape} (channels last) is no picture: it has height and width, "
            "and 1, 3 or 4 channels or none"
        )
    if np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"float values go from 0 to 1, and not from {low:g} to {high:g}")
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise ValueError(f"values are uint8 or floats, not {array.dtype}")
    return np.ascontiguousarray(array)


def _kind(thing: Any) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"
