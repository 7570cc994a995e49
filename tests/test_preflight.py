"""What is tried before a run leaves the network as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from conftest import Compose
from litvision.assemble import assemble
from litvision.batches import Images
from litvision.callbacks.figures import Figures
from litvision.networks.normalization import Norm
from tiny import TinyNet


class FrozenStatistics(TinyNet):
    """Keeps its normalisation in evaluation mode, as fine-tuning by hand does."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3, norm: Norm = "batch") -> None:
        super().__init__(num_classes, in_channels, norm)
        self.norm.eval()


class Remembers(TinyNet):
    """Makes a tensor of the first picture's size at the first call, as transformers do."""

    positions: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv(images)
        if self.positions is None:
            self.positions = torch.linspace(0, 1, x.shape[-1], device=x.device)
        return self.fc((self.norm(x) * self.positions).relu().mean((2, 3)))


class Uncopied(TinyNet):
    """Cannot be copied, as what torch's old `weight_norm` or a lock is in."""

    def __deepcopy__(self, memo: object) -> TinyNet:
        raise TypeError("cannot pickle")


class Lazy(nn.Module):
    """Has weights whose shapes the first picture decides."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3, norm: Norm = "batch") -> None:
        super().__init__()
        self.conv = nn.LazyConv2d(4, 3, stride=4)
        self.norm = nn.LazyBatchNorm2d()
        self.fc = nn.LazyLinear(num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(images)).relu().flatten(1))


class Grey:
    """Grey pictures, brighter from class to class."""

    def prepare(self) -> None:
        pass

    def read(self) -> dict[str, Images]:
        labels = torch.arange(40) % 2
        noise = torch.randint(0, 100, (40, 16, 16, 1), generator=torch.manual_seed(0))
        pixels = (noise + 120 * labels[:, None, None, None]).to(torch.uint8)
        images = Images(pixels, labels, ("dark", "bright"))
        return {"train": images, "test": images}


OPTIONS = ["callbacks.progress_bar=null", "callbacks.provenance=null", "data.batch_size=8"]
OPTIONS += ["logger=none", "trainer.max_epochs=2", "trainer.accelerator=cpu"]


@pytest.mark.parametrize("name", ["FrozenStatistics", "Remembers", "Lazy", "Uncopied"])
def test_a_network_is_left_as_it_was_built(compose_train: Compose, name: str) -> None:
    run = assemble(compose_train(*OPTIONS, f"model.network._target_=test_preflight.{name}"))
    network = run.classifier.network
    assert network.training
    if name == "FrozenStatistics":
        assert not network.norm.training
    if name == "Remembers":
        assert network.positions is None
    before = {key: value.clone() for key, value in network.named_buffers()}
    run.trainer.fit(run.classifier, run.datamodule)
    moved = [key for key, value in network.named_buffers() if not torch.equal(value, before[key])]
    assert bool(moved) == (name != "FrozenStatistics")


def test_grey_pictures_are_trained_on_and_tested(compose_train: Compose, tmp_path: Path) -> None:
    cfg = compose_train(
        *OPTIONS,
        *("data=shapes", "data.source._target_=test_preflight.Grey", "~data.train_size"),
        *("~data.test_size", "~data.image_size", "data.seed=0", "optimizer.lr=0.1"),
        *("model.network._target_=tiny.TinyNet", "model.network.in_channels=1"),
        *("trainer.max_epochs=8", "trainer.precision=32-true"),
    )
    run = assemble(cfg)
    run.trainer.callbacks.append(Figures(str(tmp_path / "figures")))
    run.trainer.fit(run.classifier, run.datamodule)
    metrics = run.trainer.test(run.classifier, run.datamodule, verbose=False)[0]
    assert metrics["test/acc"] == 1.0
    assert (tmp_path / "figures" / "test_confusion.png").exists()
