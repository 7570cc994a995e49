"""The training loop that `experiment=seed` grew from, in plain PyTorch: what it has to equal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batches = Iterable[tuple[Tensor, Tensor]]


def reference_loop(
    network: nn.Module, train: Callable[[int], Batches], val: Callable[[], Batches], *,
    epochs: int, lr: float, patience: int, stop_after: int, momentum: float = 0.9,
    weight_decay: float = 5e-4, new_optimizer_each_epoch: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    """Train, and return a row an epoch: losses, accuracy, learning rate, whether weights were kept.

    Weights are kept when validation loss is no higher than the lowest so far; after `patience`
    epochs in a row without that the learning rate is halved, after `stop_after` training ends.
    """
    optimizer, rows = None, []
    lowest, waited, without = math.inf, 0, 0
    for epoch in range(epochs):
        if optimizer is None or new_optimizer_each_epoch:
            optimizer = torch.optim.SGD(network.parameters(), lr, momentum, 0.0, weight_decay)
        network.train()
        total = pictures = 0.0
        for images, labels in train(epoch):
            loss = F.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total, pictures = total + loss.item() * len(labels), pictures + len(labels)
        row = {"epoch": epoch, "train/loss": total / pictures, "lr": lr}
        network.eval()
        total = right = pictures = 0.0
        with torch.no_grad():
            for images, labels in val():
                logits = network(images)
                total += F.cross_entropy(logits, labels, reduction="sum").item()
                right += (logits.argmax(1) == labels).sum().item()
                pictures += len(labels)
        row |= {"val/loss": total / pictures, "val/acc": right / pictures}
        row["kept"] = row["val/loss"] <= lowest
        lowest = min(lowest, row["val/loss"])
        waited, without = (0, 0) if row["kept"] else (waited + 1, without + 1)
        rows.append(row)
        if waited == patience:
            lr, waited = lr / 2, 0
            optimizer.param_groups[0]["lr"] = lr
        if without == stop_after:
            break
    return rows
