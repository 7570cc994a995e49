"""Gradients by hand are those of autograd and of differences, and train to the same weights."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conftest import Compose
from litvision import checkpoints
from litvision.assemble import Run, assemble
from litvision.errors import UserError
from litvision.networks.two_layer import Activation, TwoLayer, activate, gradients

ACTIVATIONS: list[Activation] = ["sigmoid", "tanh", "relu"]
TWO = "data.classes=[triangle,cross]"
QUIET = ["logger=none", "callbacks.progress_bar=null", "callbacks.provenance=null", "test=false"]


def problem(activation: Activation) -> tuple[Tensor, ...]:
    """Five pictures of 7 values, their labels, and the weights of a network of 4 units."""
    random = torch.Generator().manual_seed(ACTIVATIONS.index(activation))
    shapes = [(5, 7), (4, 7), (4,), (1, 4), (1,)]
    x, *weights = [torch.randn(s, generator=random, dtype=torch.float64) for s in shapes]
    return x, torch.tensor([0.0, 1, 1, 0, 1], dtype=torch.float64), *weights


def loss(x: Tensor, y: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, f: Activation):
    z = F.linear(activate(F.linear(x, w1, b1), f), w2, b2).squeeze(1)
    return F.binary_cross_entropy(torch.sigmoid(z), y)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_formulas_are_what_autograd_finds(activation: Activation) -> None:
    x, y, *weights = problem(activation)
    for weight in weights:
        weight.requires_grad_()
    expected = torch.autograd.grad(loss(x, y, *weights, activation), weights)
    with torch.no_grad():
        found = gradients(x, y, *weights, activation)
    for name, gradient, wanted in zip(found._fields, found, expected, strict=True):
        assert gradient.shape == wanted.shape
        assert (gradient - wanted).abs().max() < 1e-10, name
        assert wanted.abs().max() > 1e-3  # else nothing would have been compared


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_formulas_are_the_slope_between_two_points(activation: Activation) -> None:
    x, y, *weights = problem(activation)
    found = gradients(x, y, *weights, activation)
    step = 1e-6
    for number, gradient in enumerate(found):
        for place in product(*map(range, gradient.shape)):
            values = []
            for sign in (1, -1):
                moved = [weight.clone() for weight in weights]
                moved[number][place] += sign * step
                values.append(loss(x, y, *moved, activation))
            slope = (values[0] - values[1]) / (2 * step)
            assert float(gradient[place]) == pytest.approx(float(slope), abs=1e-8)


def test_two_logits_give_the_sigmoid_and_its_binary_cross_entropy() -> None:
    torch.manual_seed(0)
    network = TwoLayer(image_size=[4, 4]).double()
    images, labels = torch.randn(6, 3, 4, 4).double(), torch.tensor([0, 1, 1, 0, 1, 0])
    logits, p = network(images), network.probability(images)
    assert logits.shape == (6, 2)
    torch.testing.assert_close(logits.softmax(1), torch.stack([1 - p, p], 1))
    expected = F.binary_cross_entropy(p, labels.double())
    torch.testing.assert_close(F.cross_entropy(logits, labels), expected)
    assert torch.equal(logits.argmax(1), (p > 0.5).long())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_by_hand_the_gradients_are_those_of_float32_in_any_precision(
    activation: Activation, precision: str
) -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(8, 3, 4, 4), torch.arange(8) % 2
    network = TwoLayer(image_size=[4, 4], activation=activation)
    weights = list(network.parameters())
    expected = torch.autograd.grad(F.cross_entropy(network(images), labels), weights)
    network.by_hand = True
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        loss = F.cross_entropy(network(images).float(), labels)
    found = torch.autograd.grad(loss, weights)
    for gradient, wanted in zip(found, expected, strict=True):
        assert (gradient - wanted).norm() <= 1e-6 * wanted.norm()


def trained(compose_train: Compose, *overrides: str) -> Run:
    target = "model.network._target_=litvision.networks.two_layer.TwoLayer"
    options = ["model=two_layer", target, TWO, "data.train_size=200", "trainer.precision=32-true"]
    run = assemble(compose_train(*options, *QUIET, *overrides))
    run.trainer.fit(run.classifier, run.datamodule)
    return run


@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
def test_training_by_hand_ends_with_the_same_weights(
    compose_train: Compose, activation: str
) -> None:
    overrides = [f"model.network.activation={activation}", "trainer.max_epochs=5"]
    start = assemble(compose_train("model=two_layer", TWO, "data.train_size=200", *overrides,
        "model.network._target_=litvision.networks.two_layer.TwoLayer"))  # fmt: skip
    runs = [trained(compose_train, *overrides, f"model.network.by_hand={b}") for b in (False, True)]
    nodes = [run.classifier.network.linear1.weight for run in runs]
    assert not torch.equal(nodes[0], start.classifier.network.linear1.weight)
    for (name, auto), hand in zip(
        runs[0].classifier.network.named_parameters(),
        runs[1].classifier.network.parameters(),
        strict=True,
    ):
        assert (auto - hand).norm() <= 1e-5 * auto.norm(), name
    assert runs[0].score == pytest.approx(runs[1].score, rel=1e-5)


def test_it_learns_and_its_checkpoint_says_how_large_it_is(
    compose_train: Compose, tmp_path: Path
) -> None:
    plain = ["data.padding=0", "data.flip=false", "optimizer.lr=0.1"]
    overrides = ["trainer.max_epochs=30", "model.network.by_hand=true", *plain]
    run = trained(compose_train, *overrides)
    assert run.trainer.callback_metrics["train/acc"] > 0.9
    path = tmp_path / "run" / "checkpoints" / "best.ckpt"
    rebuilt = checkpoints.rebuild(checkpoints.read(path), path)
    assert rebuilt.network.linear1.in_features == 3 * 32 * 32
    assert rebuilt.network.by_hand


def test_ten_classes_are_refused(compose_train: Compose) -> None:
    with pytest.raises(
        UserError, match=r"^model: TwoLayer tells 2 classes apart, not 10: name two, for example"
    ):
        assemble(
            compose_train(
                "model=two_layer",
                "model.network._target_=litvision.networks.two_layer.TwoLayer",
            )
        )
