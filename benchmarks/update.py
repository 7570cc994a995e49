"""An update of all weights by a fused optimizer, beside torch's own way to it."""

from __future__ import annotations

import statistics
from functools import partial

import torch

from benchmarks.measure import Table, in_turn, ratios
from litvision import hardware
from litvision.classifier import ImageClassifier
from litvision.networks.resnet import ResNet18
from litvision.networks.vgg import VGG16

OPTIMIZERS = {
    "SGD": partial(torch.optim.SGD, lr=1e-4, momentum=0.9, weight_decay=5e-4, fused=True),
    "AdamW": partial(torch.optim.AdamW, lr=1e-4, weight_decay=5e-4, fused=True),
}
ROUNDS = 25


def main() -> None:
    table = Table("Update of all weights, channels-last, float32")
    hardware.keep_freed_memory()  # as every run does
    for network, name in ((VGG16(), "SGD"), (ResNet18(), "SGD"), (ResNet18(), "AdamW")):
        network.to(memory_format=torch.channels_last)
        for weight in network.parameters():
            weight.grad = 0.01 * torch.randn_like(weight)
        theirs = OPTIMIZERS[name](network.parameters())
        ours = ImageClassifier(network, OPTIMIZERS[name]).configure_optimizers()
        seconds = in_turn({"ours": ours.step, "theirs": theirs.step}, ROUNDS)
        ms = {way: f"{1e3 * statistics.median(values):.1f}" for way, values in seconds.items()}
        table.add(
            f"{type(network).__name__}, fused {name}, ms, beside torch's as it is",
            ms["ours"],
            ms["theirs"],
            ratios(seconds["ours"], seconds["theirs"]),
            "≤ 1",
        )
    table.notes.append(f"Medians of {ROUNDS} in turn; {torch.get_num_threads()} threads.")
    table.save("update")


if __name__ == "__main__":
    main()
