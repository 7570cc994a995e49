"""What people write instead: the training loop of a tutorial, in plain PyTorch.

float32, the default memory layout, torchvision's data set with PIL transforms, a DataLoader with
two processes, a new optimizer each epoch, `loss.item()` at every step.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from subprocess import PIPE
from typing import Any

from benchmarks.measure import start

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def dataset(pictures: int, train: bool = True) -> Any:
    """torchvision's CIFAR-10, with random pictures in place of the archive: speed is the same."""
    import numpy as np
    from torchvision import transforms
    from torchvision.datasets import CIFAR10

    normalize = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    augment = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]

    class Pictures(CIFAR10):
        def __init__(self) -> None:
            self.transform = transforms.Compose([*augment, *normalize] if train else normalize)
            self.target_transform = None
            random = np.random.default_rng(0)
            self.data = random.integers(0, 256, (pictures, 32, 32, 3), dtype=np.uint8)
            self.targets = random.integers(0, 10, pictures).tolist()

    return Pictures()


def loader(pictures: int, batch_size: int = 128) -> Any:
    from torch.utils.data import DataLoader

    return DataLoader(dataset(pictures), batch_size, shuffle=True, num_workers=2)


def network(name: str) -> Any:
    """Ours, on which the two ways agree, without what makes it fast."""
    from litvision.networks.resnet import ResNet18
    from litvision.networks.vgg import VGG16

    return {"resnet18": ResNet18, "vgg16": VGG16}[name]()


def steps(name: str, batch_size: int, pictures: int) -> Iterator[float]:
    """Train without end, and yield the loss of each step."""
    import torch
    from torch import nn

    model, criterion = network(name), nn.CrossEntropyLoss()
    batches = loader(pictures, batch_size)
    while True:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        for images, labels in batches:
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            yield loss.item()


class Elsewhere:
    """The loop in a process of its own, with that process's memory and threads to itself."""

    def __init__(self, name: str, batch_size: int = 128, pictures: int = 50_000) -> None:
        arguments = [name, str(batch_size), str(pictures)]
        self.process = start("-m", "benchmarks.plain", *arguments, stdin=PIPE, stdout=PIPE)

    def run(self, count: int) -> float:
        """Take `count` steps and return the seconds of one."""
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline()) / count

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()


def main() -> None:
    """Read how many steps to take from standard input, and answer with the seconds they took."""
    name, batch_size, pictures = sys.argv[1:]
    training = steps(name, int(batch_size), int(pictures))
    for line in sys.stdin:
        started = time.perf_counter()
        for _ in range(int(line)):
            next(training)
        print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main()
