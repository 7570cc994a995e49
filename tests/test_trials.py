"""A network is tried before a run, and is left as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import litvision
from conftest import Compose
from litvision import hardware
from litvision.assemble import assemble
from litvision.batches import Images
from litvision.callbacks.figures import Figures
from litvision.errors import UserError
from litvision.networks.normalization import Norm
from litvision.sources.decode import with_channels
from litvision.trials import picks_channels_last, takes_channels_last
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


class Flattens(nn.Module):
    """Takes maps apart by `view`, as many networks do, and draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = nn.functional.dropout(self.conv(x))
        return maps.view(len(x), -1)


class MoreThanLogits(TinyNet):
    """Has a second output while it trains, as networks with auxiliary classifiers do."""

    def forward(self, images: Tensor) -> Any:
        logits = super().forward(images)
        return (logits, logits) if self.training else logits


class Asserts(TinyNet):
    """Takes pictures of one size, which it asserts, as torchvision's transformers do."""

    def forward(self, images: Tensor) -> Tensor:
        torch._assert(images.shape[2] == 224, "Wrong image height! Expected 224 but got 32!")
        return super().forward(images)


class OfLargePictures(TinyNet):
    """Has an output for training that is no good for small pictures, as Inception does."""

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            raise RuntimeError("Output size is too small")
        return super().forward(images)


class OfBatches(TinyNet):
    """Cannot be trained on two pictures."""

    def forward(self, images: Tensor) -> Tensor:
        if self.training and len(images) < 3:
            raise ValueError("more pictures, please")
        return super().forward(images)


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


@pytest.mark.parametrize("name", ["FrozenStatistics", "Remembers", "Lazy", "Uncopied", "OfBatches"])
def test_a_network_is_left_as_it_was_built(compose_train: Compose, name: str) -> None:
    run = assemble(compose_train(*OPTIONS, f"model.network._target_=test_trials.{name}"))
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


def test_a_network_that_flattens_by_view_does_not_take_channels_last() -> None:
    card = {"mean": [0.5, 0.5, 0.5], "image_size": [8, 8]}
    network, volumes = Flattens(), nn.Conv3d(1, 1, 1)
    state = torch.get_rng_state()
    assert not takes_channels_last(network, card)
    assert takes_channels_last(nn.Sequential(network.conv, nn.Flatten()), card)
    assert not takes_channels_last(volumes, card)
    for short in ({}, {"mean": [0.5] * 3}, {"image_size": [8, 8]}):  # nothing to try it on
        assert takes_channels_last(network, short)
    assert network.conv.weight.is_contiguous()
    assert torch.equal(torch.get_rng_state(), state)


def test_channels_last_is_tried_on_pictures_of_the_card_in_that_layout() -> None:
    grey = {"mean": [0.5], "image_size": [8, 8]}
    assert takes_channels_last(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten()), grey)

    class Pixels(nn.Module):
        """Has no map: what it takes apart by `view` is the pictures."""

        def forward(self, x: Tensor) -> Tensor:
            return x.view(len(x), -1)

    class Weights(Flattens):
        """Has channels last from its weights alone."""

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.contiguous())

    for network in (Pixels(), Weights()):
        assert not takes_channels_last(network, {"mean": [0.5] * 3, "image_size": [8, 8]})


@pytest.mark.parametrize("error", [RuntimeError, TypeError])
def test_a_network_that_cannot_be_copied_is_believed_to_take_channels_last(
    error: type[Exception],
) -> None:
    class Uncopied(Flattens):
        def __deepcopy__(self, memo: object) -> Flattens:
            raise error("cannot be copied")

    assert takes_channels_last(Uncopied(), {"mean": [0.5] * 3, "image_size": [8, 8]})


@pytest.mark.parametrize("faster", [True, False])
def test_channels_last_is_picked_where_it_is_faster_and_taken(
    monkeypatch: pytest.MonkeyPatch, faster: bool
) -> None:
    monkeypatch.setattr(hardware, "prefers_channels_last", lambda device: faster)
    card = {"mean": [0.5] * 3, "image_size": [8, 8]}
    assert picks_channels_last("cpu", nn.Conv2d(3, 4, 3), card) is faster
    assert picks_channels_last("cpu", Flattens(), card) is False


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "MoreThanLogits",
            "model.network gives tuple while it trains, not a tensor of logits: leave its other "
            "outputs out, by +model.network.aux_logits=false where it has that.",
        ),
        (
            "Asserts",
            "model.network refuses a picture of shape [1, 3, 32, 32]: Wrong image height! Expected "
            "224 but got 32! Give data.image_size=224, or a network for other sizes.",
        ),
        (
            "OfLargePictures",
            "model.network refuses pictures of shape [8, 3, 32, 32] while it trains: Output size "
            "is too small. Larger ones may do, by data.image_size, or fewer outputs, by "
            "+model.network.aux_logits=false where it has that.",
        ),
    ],
)
def test_what_a_network_does_not_take_or_give_is_said_in_one_line(
    compose_train: Compose, name: str, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        assemble(compose_train(*OPTIONS, f"model.network._target_=test_trials.{name}"))
    assert str(caught.value) == message


GREY = [
    *("data=shapes", "data.source._target_=test_trials.Grey", "~data.train_size"),
    *("~data.test_size", "~data.image_size", "data.seed=0"),
    *("model.network._target_=tiny.TinyNet", "trainer.precision=32-true"),
]


def test_grey_pictures_that_the_network_does_not_take(compose_train: Compose) -> None:
    with pytest.raises(UserError, match=r"refuses a picture of shape \[1, 1, ") as caught:
        assemble(compose_train(*OPTIONS, *GREY))
    assert str(caught.value).endswith(
        "to have 3 channels, but got 1 channels instead: give model.network.in_channels=1 if it "
        "has that"
    )


def test_grey_pictures_are_trained_on_and_tested(compose_train: Compose, tmp_path: Path) -> None:
    cfg = compose_train(
        *OPTIONS, *GREY,
        *("model.network.in_channels=1", "optimizer.lr=0.1", "trainer.max_epochs=8"),
    )  # fmt: skip
    run = assemble(cfg)
    run.trainer.callbacks.append(Figures(str(tmp_path / "figures")))
    run.trainer.fit(run.classifier, run.datamodule)
    metrics = run.trainer.test(run.classifier, run.datamodule, verbose=False)[0]
    assert metrics["test/acc"] == 1.0
    assert (tmp_path / "figures" / "test_confusion.png").exists()
    classify = litvision.load(tmp_path / "run", trust=["tiny.*"], device="cpu")
    pictures = [Image.new("RGB", (20, 30), (v, v, v)) for v in (50, 170)]
    assert [answer.name for answer in classify(pictures)] == ["dark", "bright"]
    assert [a.name for a in classify([p.convert("L") for p in pictures])] == ["dark", "bright"]


def test_colours_are_as_bright_as_pillow_says() -> None:
    pixels = torch.randint(256, (2, 9, 11, 3), dtype=torch.uint8)
    expected = [np.asarray(Image.fromarray(p.numpy()).convert("L")) for p in pixels]
    assert torch.equal(with_channels(pixels, 1)[..., 0], torch.from_numpy(np.stack(expected)))
    assert with_channels(pixels, 3) is pixels
    with pytest.raises(UserError, match="takes pictures of 4 channels, and files have 3 or 1"):
        with_channels(pixels, 4)


def test_a_network_with_shapes_from_its_first_picture_is_built_again(
    compose_train: Compose, tmp_path: Path
) -> None:
    run = assemble(compose_train(*OPTIONS, "model.network._target_=test_trials.Lazy"))
    run.trainer.fit(run.classifier, run.datamodule)
    classify = litvision.load(tmp_path / "run", trust="test_trials.*", device="cpu")
    saved = torch.load(str(run.checkpoint), weights_only=True)["state_dict"]
    found = classify.network.state_dict(prefix="network.")
    assert all(torch.equal(value, saved[name]) for name, value in found.items())
    assert found["network.fc.weight"].shape == (10, 4 * 8 * 8)
