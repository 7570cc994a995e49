"""A network of two layers for two classes, and its gradients written out by hand.

The derivation, with shapes: docs/backpropagation.md.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Activation = Literal["sigmoid", "tanh", "relu"]


class Gradients(NamedTuple):
    """Derivatives of the mean loss, each of the shape of what it is the derivative by."""

    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor


class TwoLayer(nn.Module):
    """Picture, linear, activation, linear, sigmoid: the probability of the second of two classes.

    `forward` returns the logits (0, z), of which softmax is (1 - sigmoid(z), sigmoid(z)) and
    cross-entropy is the binary cross-entropy of sigmoid(z): the network trains, is tested and
    predicts like any other.

    Args:
        num_classes: 2.
        in_channels: 1 for grey pictures, 3 for colour.
        image_size: height and width of the pictures, in pixels.
        hidden: units of the first layer.
        activation: what follows the first layer.
        by_hand: compute gradients by the formulas of `gradients` instead of by autograd.

    Raises:
        ValueError: `num_classes` is not 2.
    """

    def __init__(
        self,
        num_classes: Annotated[int, Field(ge=1)] = 2,
        in_channels: Annotated[int, Field(ge=1)] = 3,
        image_size: list[Annotated[int, Field(ge=1)]] | None = None,
        hidden: Annotated[int, Field(ge=1)] = 100,
        activation: Activation = "sigmoid",
        by_hand: bool = False,
    ) -> None:
        if num_classes != 2:
            raise ValueError(
                f"TwoLayer tells 2 classes apart, not {num_classes}: name two, for example "
                "data.classes=[airplane,automobile]"
            )
        super().__init__()
        height, width = image_size or (32, 32)
        self.linear1 = nn.Linear(in_channels * height * width, hidden)
        self.linear2 = nn.Linear(hidden, 1)
        self.activation: Activation = activation
        self.by_hand = by_hand

    def forward(self, images: Tensor) -> Tensor:
        """Map pictures `[B, C, H, W]` to logits `[B, 2]`, of which the first is 0."""
        z = self.logit(images)
        return torch.stack([torch.zeros_like(z), z], dim=1)

    def probability(self, images: Tensor) -> Tensor:
        """Return the probability of the second class, `[B]`."""
        return torch.sigmoid(self.logit(images))

    def logit(self, images: Tensor) -> Tensor:
        """Return z, `[B]`: the second layer's output, before the sigmoid."""
        x = images.flatten(1)
        first, second = self.linear1, self.linear2
        if self.by_hand:
            weights = (first.weight, first.bias, second.weight, second.bias)
            return _ByHand.apply(x, *weights, self.activation)
        return second(activate(first(x), self.activation)).squeeze(1)


def activate(a: Tensor, activation: Activation) -> Tensor:
    """Return the activation of `a`, elementwise."""
    return {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu}[activation](a)


def slope(h: Tensor, activation: Activation) -> Tensor:
    """Return the activation's derivative, elementwise, from its value `h`."""
    match activation:
        case "sigmoid":
            return h * (1 - h)
        case "tanh":
            return 1 - h * h
        case "relu":
            return (h > 0).to(h.dtype)


def gradients(
    x: Tensor, y: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor,
    activation: Activation = "sigmoid",
) -> Gradients:  # fmt: skip
    """Return the gradients of the batch's mean binary cross-entropy, in closed form.

    With a = x w1ᵀ + b1, h = f(a), z = h w2ᵀ + b2 and p = sigmoid(z), the loss is the mean of
    -y log p - (1 - y) log(1 - p).

    Args:
        x: `[B, D]`, the pictures, flat.
        y: `[B]`, 0 or 1.
        w1, b1: `[K, D]` and `[K]`.
        w2, b2: `[1, K]` and `[1]`.
        activation: f.
    """
    h = activate(x @ w1.T + b1, activation)
    z = (h @ w2.T + b2).squeeze(1)
    dz = (torch.sigmoid(z) - y) / len(y)
    return backward(dz, x, h, w2, activation)


def backward(dz: Tensor, x: Tensor, h: Tensor, w2: Tensor, activation: Activation) -> Gradients:
    """Send dL/dz `[B]` back through both layers; see `gradients` for the other shapes."""
    dz = dz.unsqueeze(1)  # [B, 1]
    da = (dz @ w2) * slope(h, activation)  # [B, K]
    return Gradients(w1=da.T @ x, b1=da.sum(0), w2=dz.T @ h, b2=dz.sum(0))


class _ByHand(torch.autograd.Function):
    """The network's z with `backward` in place of autograd; the pictures get no gradient.

    In the weights' own precision, also where autocast lowers that of other layers.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, activation: Activation
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(w1.dtype)
            h = activate(x @ w1.T + b1, activation)
            z = (h @ w2.T + b2).squeeze(1)
        ctx.save_for_backward(x, h, w2)
        ctx.activation = activation
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor) -> Any:
        x, h, w2 = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            return None, *backward(dz.to(w2.dtype), x, h, w2, ctx.activation), None
