"""2:4 structured sparsity: which weights stay, which layers take part, which can run sparse."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from litvision.errors import UserError, one_line


@dataclass
class Covered:
    """The layers that take part, by name, and why others do not."""

    layers: dict[str, Any] = field(default_factory=dict)
    dense: dict[str, str] = field(default_factory=dict)

    @property
    def weights(self) -> int:
        """How many weights the layers have, pruned and not."""
        return sum(layer.weight.numel() for layer in self.layers.values())


def mask_2_4(weight: Tensor) -> Tensor:
    """Say which weights stay: of every four along the reduction dimension the two largest.

    Four consecutive input features of a linear layer, or input channels at one place of a
    convolution's kernel: neighbours in the sum that a sparse tensor core computes (Mishra et al.
    2021, arXiv 2104.08378). Of equal magnitudes the first stay.

    Args:
        weight: `[out, in]` or `[out, in, height, width]`, `in` a multiple of 4.

    Returns:
        bool, of the same shape and memory layout.
    """
    fours = weight.detach().abs().movedim(1, -1).unflatten(-1, (-1, 4))
    largest = fours.sort(dim=-1, descending=True, stable=True).indices[..., :2]
    kept = torch.zeros_like(fours, dtype=torch.bool).scatter_(-1, largest, True)
    mask = torch.empty_like(weight, dtype=torch.bool)
    return mask.copy_(kept.flatten(-2).movedim(-1, 1))


def covered(
    network: nn.Module, except_first_and_last: bool = True, exclude: Iterable[str] = ()
) -> Covered:
    """Return the linear and convolution layers to prune.

    Args:
        network: any.
        except_first_and_last: leave out the first convolution (else the first layer, if there is
            none) and the last layer, where pruning costs most and saves least.
        exclude: patterns of layer names to leave out, such as "layer1.*".

    Raises:
        UserError: none is left.
    """
    kinds = (nn.Linear, nn.Conv2d)
    layers = {name: m for name, m in network.named_modules() if isinstance(m, kinds)}
    result, patterns = Covered(), tuple(exclude)
    ends: set[str] = set()
    if except_first_and_last and layers:
        convolutions = [name for name, m in layers.items() if isinstance(m, nn.Conv2d)]
        ends = {(convolutions or list(layers))[0], list(layers)[-1]}
    for name, layer in layers.items():
        inputs = layer.weight.shape[1]
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            result.dense[name] = "excluded"
        elif inputs % 4:
            result.dense[name] = f"{inputs} inputs, not a multiple of 4"
        elif name in ends:
            result.dense[name] = "first convolution or last layer"
        else:
            result.layers[name] = layer
    if not result.layers:
        raise UserError(
            f"2:4 sparsity finds no layer to prune in {type(network).__name__}: "
            + ("; ".join(f"{n}: {why}" for n, why in result.dense.items()) or "it has none")
            + ". Change exclude or except_first_and_last, or choose another network."
        )
    return result


@torch.no_grad()
def prune(network: nn.Module, layers: Covered | None = None) -> int:
    """Set to zero what `mask_2_4` says; return how many weights were not zero already."""
    changed = 0
    for layer in (layers or covered(network)).layers.values():
        gone = ~mask_2_4(layer.weight)
        changed += int((layer.weight[gone] != 0).sum())
        layer.weight.masked_fill_(gone, 0)
    return changed


def accelerate(
    network: nn.Module, dtype: torch.dtype, layers: Covered | None = None
) -> dict[str, str]:
    """Store pruned linear layers for sparse tensor cores; return why others stay as they are.

    Layer by layer, as far as `torch.sparse.to_sparse_semi_structured` goes: linear layers, on
    NVIDIA's GPUs from compute capability 8.0 on.

    Args:
        network: pruned, in place.
        dtype: of the products, float16 or bfloat16.
        layers: which; None: as `covered` says.

    Returns:
        layer name -> "" if it is sparse now, else the reason.
    """
    reasons: dict[str, str] = {}
    for name, layer in (layers or covered(network)).layers.items():
        if not isinstance(layer, nn.Linear):
            reasons[name] = "torch multiplies no sparse convolutions"
            continue
        try:
            weight = torch.sparse.to_sparse_semi_structured(layer.weight.detach().to(dtype))
            layer.weight = nn.Parameter(weight, requires_grad=False)
            reasons[name] = ""
        except (RuntimeError, ValueError, NotImplementedError) as error:
            reasons[name] = one_line(error)
    return reasons
