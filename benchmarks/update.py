"""What follows the gradients: a fused optimizer's update and a moving average of the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn

from benchmarks.measure import Table
from litvision import hardware
from litvision.callbacks.ema import EMA
from litvision.classifier import ImageClassifier
from litvision.networks.resnet import ResNet18
from litvision.networks.vgg import VGG16

OPTIMIZERS = {
    "SGD": partial(torch.optim.SGD, lr=1e-4, momentum=0.9, weight_decay=5e-4, fused=True),
    "AdamW": partial(torch.optim.AdamW, lr=1e-4, weight_decay=5e-4, fused=True),
}
ROUNDS = 25


def average(network: nn.Module, *callbacks: EMAWeightAveraging) -> Iterator[Callable[[], object]]:
    """Yield what each callback has its average do after a step, set up as for a run."""
    module, trainer = ImageClassifier(network), L.Trainer(logger=False, enable_checkpointing=False)
    for callback in callbacks:
        callback.setup(trainer, module, "fit")
    network.to(memory_format=torch.channels_last)  # which the module's own setup does after theirs
    for callback in callbacks:
        callback.on_fit_start(trainer, module)
        averaged: Any = callback._average_model
        yield partial(averaged.update_parameters, module)


def main() -> None:
    table = Table("Update of all weights, channels-last, float32, in ms")
    hardware.keep_freed_memory()  # as every run does
    for network, name in ((VGG16(), "SGD"), (ResNet18(), "SGD"), (ResNet18(), "AdamW")):
        network.to(memory_format=torch.channels_last)
        for weight in network.parameters():
            weight.grad = 0.01 * torch.randn_like(weight)
        theirs = OPTIMIZERS[name](network.parameters())
        ours = ImageClassifier(network, OPTIMIZERS[name]).configure_optimizers()
        what = f"{type(network).__name__}, fused {name}, beside torch's as it is"
        table.compare(what, ours.step, theirs.step, ROUNDS)
    both = average(ResNet18(), EMA(), EMAWeightAveraging())
    table.compare("ResNet18, callbacks=ema, beside Lightning's", *both, ROUNDS)
    table.notes.append(f"Medians of {ROUNDS} in turn; {torch.get_num_threads()} threads.")
    table.save("update")


if __name__ == "__main__":
    main()
