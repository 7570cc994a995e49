"""Optimizers that torch does not have, and what to know of any before training with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer

from litvision.hardware import in_layout_of

# Of the quintic iteration of Jordan et al. 2024: steep at zero, so that few steps are enough.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(Optimizer):
    """Orthogonalised updates for convolutions' filters, Nesterov SGD for all other weights.

    Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks") replaces
    the gradient's momentum, as a matrix of one row a filter, by the nearest matrix with orthogonal
    rows, so that every direction is learned at the same pace. `torch.optim.Muon` takes matrices
    only, and lets the filters grow, which slows learning where normalisation follows.

    Weights of four or more dimensions are filters; of two or three, linear layers; of fewer, biases
    and norm layers. Each kind is a parameter group with a learning rate of its own, which a
    schedule scales alike.

    Args:
        params: tensors, or groups of them, whose own settings come first (see `add_param_group`).
        lr: learning rate of the filters.
        momentum: of the filters.
        lr_linear, lr_vector: learning rates of linear layers, and of biases and norm layers.
        momentum_sgd: of these two.
        weight_decay: of these two: the share that a step at the full learning rate takes off the
            weights, before momentum. (torch's SGD multiplies it by the learning rate.)
        keep_norm: before each update, scale each layer's filters so that their mean square norm is
            1. For layers that normalisation follows.
        steps: of the iteration that orthogonalises.
        foreach: update all weights of a kind together, and orthogonalise filters of one shape
            together: a third of the kernels, which are what a GPU waits for. The same up to
            rounding. None: on CUDA.
    """

    mixes_entries = True  # an entry moves although its own gradient is zero

    def __init__(
        self,
        params: Iterable[Any],
        lr: Annotated[float, Field(gt=0)] = 0.05,
        momentum: Annotated[float, Field(ge=0, lt=1)] = 0.6,
        lr_linear: Annotated[float, Field(gt=0)] = 0.01,
        lr_vector: Annotated[float, Field(gt=0)] = 0.01,
        momentum_sgd: Annotated[float, Field(ge=0, lt=1)] = 0.85,
        weight_decay: Annotated[float, Field(ge=0)] = 0.0,
        keep_norm: bool = True,
        steps: Annotated[int, Field(ge=1)] = 3,
        foreach: bool | None = None,
    ) -> None:
        self.foreach = foreach
        self._settings = {
            "lr": lr,
            "momentum": momentum,
            "lr_linear": lr_linear,
            "lr_vector": lr_vector,
            "momentum_sgd": momentum_sgd,
            "weight_decay": weight_decay,
        }
        super().__init__(params, {"keep_norm": keep_norm, "steps": steps})

    @property
    def lr(self) -> float:
        """The filters' learning rate as a schedule has left it, also where no filter trains yet."""
        first = self.param_groups[0]
        name = "lr" if first["kind"] == "filter" else f"lr_{first['kind']}"
        return float(first["lr"] / self._settings[name] * self._settings["lr"])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add weights, each kind as a group of its own.

        Args:
            param_group: `params`, and what differs from the arguments of the optimizer. `lr`
                stands for all three rates, which keep the ratios that they have there.
        """
        given = {**self._settings, **param_group}
        members = given.pop("params")
        tensors: list[Tensor] = [members] if isinstance(members, Tensor) else list(members)
        kinds = {
            "filter": [p for p in tensors if p.ndim >= 4],
            "linear": [p for p in tensors if 1 < p.ndim < 4],
            "vector": [p for p in tensors if p.ndim <= 1],
        }
        lr, momentum, momentum_sgd = (given.pop(k) for k in ("lr", "momentum", "momentum_sgd"))
        scale = lr / self._settings["lr"]
        rates = {
            "filter": lr,
            "linear": scale * given.pop("lr_linear"),
            "vector": scale * given.pop("lr_vector"),
        }
        decay = given.pop("weight_decay")
        for kind, some in kinds.items():
            if some:
                own = {
                    "params": some,
                    "kind": kind,
                    "lr": rates[kind],
                    "momentum": momentum if kind == "filter" else momentum_sgd,
                    "weight_decay": 0.0 if kind == "filter" else decay / rates[kind],
                }
                super().add_param_group({**given, **own})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every weight that has a gradient.

        Args:
            closure: computes the loss and the gradients anew, as torch's optimizers take it.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            if trained and (trained[0].is_cuda if self.foreach is None else self.foreach):
                self._update_together(trained, group)
                continue
            for p in trained:
                self._update(p, p.grad, group)
        return loss

    def _momentum(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "momentum_buffer" not in state:
            gradient: Any = p.grad
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer: Tensor = state["momentum_buffer"]
        return buffer

    def _update(self, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        if group["weight_decay"]:
            gradient = gradient.add(p, alpha=group["weight_decay"])
        buffer = self._momentum(p)
        buffer.mul_(group["momentum"]).add_(gradient)
        update = gradient.add(buffer, alpha=group["momentum"])  # Nesterov
        if group["kind"] == "filter":
            if group["keep_norm"]:
                p.mul_(len(p) ** 0.5 / p.norm().clamp(min=1e-12))  # zeros stay zeros
            rows = _in_memory_order(update, p)
            found = orthogonalize(rows.flatten(1), group["steps"])
            update = _in_memory_order(found.view(rows.shape), p, back=True)
        p.add_(update.to(p.dtype), alpha=-group["lr"])

    def _update_together(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        """Do to all weights of a group what `_update` does to one."""
        gradients: Any = [p.grad for p in weights]
        if group["weight_decay"]:
            gradients = torch._foreach_add(gradients, weights, alpha=group["weight_decay"])
        buffers = [self._momentum(p) for p in weights]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, gradients)
        updates = list(torch._foreach_add(gradients, buffers, alpha=group["momentum"]))
        if group["kind"] == "filter":
            if group["keep_norm"]:
                scales = list(torch._foreach_norm(weights))
                torch._foreach_clamp_min_(scales, 1e-12)
                torch._foreach_reciprocal_(scales)
                torch._foreach_mul_(scales, [len(p) ** 0.5 for p in weights])
                torch._foreach_mul_(weights, scales)
            alike: dict[tuple[int, ...], list[int]] = {}
            for number, p in enumerate(weights):
                alike.setdefault((*p.shape, *p.stride()), []).append(number)
            for numbers in alike.values():
                rows = [_in_memory_order(updates[number], weights[number]) for number in numbers]
                found = orthogonalize(torch.stack([x.flatten(1) for x in rows]), group["steps"])
                for number, row, update in zip(numbers, rows, found.to(rows[0].dtype), strict=True):
                    updates[number] = _in_memory_order(
                        update.view(row.shape), weights[number], back=True
                    )
        torch._foreach_add_(weights, updates, alpha=-group["lr"])


def _in_memory_order(tensor: Tensor, weight: Tensor, back: bool = False) -> Tensor:
    """Bring channels to where they lie in a weight's memory, or back: a view of the tensor.

    A channels-last gradient is contiguous so, and a filter's update one row without a copy:
    orthogonalising knows no order of columns.
    """
    if weight.ndim != 4 or weight.is_contiguous():
        return tensor
    return tensor.movedim(-1, 1) if back else tensor.movedim(1, -1)


def orthogonalize(matrix: Tensor, steps: int = 3) -> Tensor:
    """Bring a matrix's singular values near 1 and keep its singular vectors.

    The Newton-Schulz iteration X <- aX + b(XX')X + c(XX')^2 X, which needs matrix products only.
    With the steep coefficients it does not converge: after 3 steps the values that mattered lie
    between about 0.5 and 1.5, which serves as well.

    Args:
        matrix: float `[rows, columns]`, or `[n, rows, columns]` for several.
        steps: of the iteration.

    Returns:
        bfloat16, of the same shape.
    """
    a, b, c = COEFFICIENTS
    x = matrix.bfloat16()
    norm = x.norm() if x.ndim == 2 else x.norm(dim=(1, 2), keepdim=True)
    x = x / (norm + 1e-7)  # no singular value above 1
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    for _ in range(steps):
        square = x @ x.mT
        if x.ndim == 2:
            x = a * x + (b * square + c * square @ square) @ x
        else:  # the same in three kernels, not eight
            x = torch.baddbmm(x, square.baddbmm(square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def lay_out_momenta(optimizer: Optimizer) -> None:
    """Bring momenta into the memory layout of their weights.

    A run may be resumed where another layout is fastest. Fused optimizers go through memory as it
    lies: a processor's would add each momentum to another weight, and a GPU's refuses.
    """
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[key] = in_layout_of(parameter, value)


def spare_copies(optimizer: Optimizer) -> None:
    """Let torch's fused optimizers update channels-last weights on a processor without copies.

    Their kernels go through weight, gradient and momenta as these lie in memory, and yet begin with
    a contiguous copy of the gradient, which nothing reads (torch 2.15, `FusedSGDKernel.cpp` and its
    like). In the order of its memory, the gradient is contiguous as it is.
    """
    torchs = type(optimizer).__module__.startswith("torch.optim.")
    gather = getattr(optimizer, "_init_group", None) if torchs else None
    if gather is None or not any(group.get("fused") for group in optimizer.param_groups):
        return

    def gather_in_memory_order(
        group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor], *states: list[Any]
    ) -> Any:
        result = gather(group, weights, gradients, *states)
        # A GPU's kernels copy nothing; and in the first step SGD makes its momenta of the
        # gradients' shape.
        here = group.get("fused") and all(weight.is_cpu for weight in weights)
        if here and not any(x is None for state in states for x in state):
            for number, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
                if gradient.stride() == weight.stride() and type(gradient) is Tensor:
                    gradients[number] = _in_memory_order(gradient, weight)
        return result

    optimizer._init_group = gather_in_memory_order  # type: ignore[attr-defined]


def several_rates(optimizer: Optimizer) -> str:
    """Return the learning rates of the kinds of weights; "" where all have the same."""
    rates = sorted({float(group["lr"]) for group in optimizer.param_groups})
    return ", ".join(f"{rate:g}" for rate in rates) if len(rates) > 1 else ""


def unfit_for_muon(network: torch.nn.Module, optimizer: Optimizer) -> list[str]:
    """Return a sentence for an option of Muon that does nothing, or harm, for this network."""
    if not isinstance(optimizer, Muon):
        return []
    if not any(weight.ndim >= 4 for weight in network.parameters()):
        return [
            "optimizer.lr is the learning rate of filters, and the network has none: what counts "
            "is optimizer.lr_linear and optimizer.lr_vector."
        ]
    normalized = any("Norm" in type(module).__name__ for module in network.modules())
    if optimizer.param_groups[0]["keep_norm"] and not normalized:
        return [
            "optimizer.keep_norm=true scales filters down, which normalisation would make good, "
            "and the network has none: give optimizer.keep_norm=false."
        ]
    return []
