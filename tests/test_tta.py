"""Test-time averaging over a picture and its mirror image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import litvision
import test_evaluate
from conftest import Run
from litvision.classifier import ImageClassifier
from litvision.tta import FlipAverage, FlipShiftAverage, Tta, average
from test_evaluate import EVALUATE, Trained, evaluation
from tiny import TinyLinear

trained = test_evaluate.trained  # the fixture


def test_both_directions_count_the_same() -> None:
    network = TinyLinear(num_classes=4)
    images = torch.randn(5, 3, 8, 8)
    mean = (network(images) + network(images.flip(3))) / 2
    torch.testing.assert_close(FlipAverage(network)(images), mean)
    torch.testing.assert_close(FlipAverage(network)(images.flip(3)), mean)
    assert not torch.allclose(network(images), mean)


def test_six_views_have_their_weights() -> None:
    """Of a network that reads one pixel, the answer is the mean of the pixels that come there."""

    class OnePixel(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images[:, :, 2, 1]

    images = torch.arange(25.0).square().view(1, 1, 5, 5)  # each corner counts otherwise
    found = FlipShiftAverage(OnePixel())(images)
    where, mirrored = images[0, 0, 2, 1], images[0, 0, 2, 3]
    up_left, down_right = (
        (images[0, 0, 1, 0], images[0, 0, 1, 2]),
        (images[0, 0, 3, 2], images[0, 0, 3, 4]),
    )
    expected = (where + mirrored) / 4 + sum(up_left) / 8 + sum(down_right) / 8
    torch.testing.assert_close(found, expected.view(1, 1))


def test_null_leaves_a_classifier_as_it_is() -> None:
    network = TinyLinear(num_classes=4)
    classifier = ImageClassifier(network)
    average(classifier, None)
    assert classifier.network is network


@pytest.mark.parametrize(("tta", "kind"), [("flip", FlipAverage), ("flip_shift", FlipShiftAverage)])
def test_each_way_of_averaging_has_its_name(tta: Tta, kind: type[FlipAverage]) -> None:
    classifier = ImageClassifier(TinyLinear(num_classes=4))
    average(classifier, tta)
    assert type(classifier.network) is kind
    assert classifier(torch.zeros(2, 3, 6, 9)).shape == (2, 4)


def test_views_of_a_picture_that_is_no_square_are_of_its_size() -> None:
    sizes: list[torch.Size] = []

    class Sizes(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            sizes.append(images.shape)
            return images[:, 0, 0]

    FlipShiftAverage(Sizes())(torch.zeros(2, 1, 4, 6))
    assert sizes == [(2, 1, 4, 6)] * 6


def test_evaluate_averages(trained: Trained, run: Run, tmp_path: Path) -> None:
    done = run("evaluate", f"checkpoint={trained.checkpoint}", *EVALUATE, "tta=flip")
    assert done.returncode == 0, done.stderr
    found = evaluation(tmp_path)
    assert found["tta"] == "flip"
    predictor = litvision.load(trained.checkpoint, trust=["tiny.*"], device="cpu", tta="flip")
    files = sorted((trained.pictures / "test").glob("*/*"))
    pixels = np.stack([predictor.prepare(file) for file in files])
    images = (torch.from_numpy(pixels) / 255 - predictor._mean) / predictor._std
    labels = torch.tensor([predictor.classes.index(file.parent.name) for file in files])
    with torch.no_grad():
        logits = predictor.network(images.permute(0, 3, 1, 2))
    assert len(labels) == 12
    assert found["test/loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-3)
    assert found["test/loss"] != pytest.approx(trained.result["test/loss"], rel=1e-3)


def test_a_mistake_gets_one_line(trained: Trained, run: Run) -> None:
    for module in ("evaluate", "predict"):
        options = [f"checkpoint={trained.checkpoint}", "tta=rotate"]
        options += EVALUATE if module == "evaluate" else ["input=."]
        done = run(module, *options)
        assert done.returncode == 1
        assert (
            done.stderr
            == "error: tta='rotate' does not fit: it takes one of flip, flip_shift or null.\n"
        )


def test_load_averages(trained: Trained) -> None:
    plain = litvision.load(trained.checkpoint, trust=["tiny.*"], device="cpu")
    both = litvision.load(trained.checkpoint, trust=["tiny.*"], device="cpu", tta="flip")
    pixels = np.random.default_rng(0).integers(0, 256, (3, *plain.image_size, 3), np.uint8)
    turned = np.ascontiguousarray(pixels[:, :, ::-1])
    for one, other in zip(both(pixels), both(turned), strict=True):
        torch.testing.assert_close(one.probabilities, other.probabilities, rtol=1e-2, atol=1e-2)
    assert not np.allclose(
        plain(pixels)[0].probabilities, plain(turned)[0].probabilities, atol=1e-6
    )


def test_the_edge_of_a_shifted_view_is_mirrored() -> None:
    class Corner(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, 0, :1, 0]

    # Upper left, where it is: 0, and mirrored 2. Shifted by a pixel, both times 4.
    answer = FlipShiftAverage(Corner())(torch.arange(9.0).view(1, 1, 3, 3))
    assert answer.item() == (0 + 2) / 4 + (4 + 4) / 4
