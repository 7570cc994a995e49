"""Muon: orthogonal updates for filters, torch's Nesterov SGD for the rest. Fused optimizers."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from counted import Counted
from litvision.classifier import ImageClassifier
from litvision.networks.speednet import SpeedNet
from litvision.optimizers import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(16, 100), (100, 16), (32, 32), (1, 9)])
def test_singular_values_come_near_one_and_vectors_stay(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = s / matrix.norm()
    for _ in range(3):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    found = orthogonalize(matrix, steps=3)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), u @ torch.diag(values) @ v, atol=0.03, rtol=0)
    assert values.max() < 1.25
    assert torch.linalg.svdvals(orthogonalize(matrix, steps=6).float()).median() > 0.65


def test_it_is_torchs_iteration() -> None:
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.randn(16, 3, 3, 3)) for _ in range(2))
    theirs = nn.Parameter(ours.detach().flatten(1).clone())
    gradient = torch.randn(16, 27)
    ours.grad, theirs.grad = gradient.view_as(ours), gradient.clone()
    Muon([ours], lr=0.1, momentum=0.6, keep_norm=False, steps=5).step()
    torch.optim.Muon([theirs], lr=0.1, weight_decay=0.0, momentum=0.6, ns_steps=5).step()
    torch.testing.assert_close(ours.flatten(1), theirs, atol=6e-3, rtol=0)


def parameters() -> dict[str, nn.Parameter]:
    torch.manual_seed(0)
    shapes = {"filter": (4, 2, 3, 3), "linear": (3, 8), "vector": (8,), "scalar": ()}
    return {name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}


def test_other_weights_are_updated_as_by_torchs_nesterov_sgd() -> None:
    ours, theirs = parameters(), parameters()
    muon = Muon(ours.values(), lr_linear=0.2, lr_vector=0.3, momentum_sgd=0.8, weight_decay=0.01)
    sgd = torch.optim.SGD(
        [
            {"params": [theirs["linear"]], "lr": 0.2, "weight_decay": 0.01 / 0.2},
            {"params": [theirs["vector"], theirs["scalar"]], "lr": 0.3, "weight_decay": 0.01 / 0.3},
        ],
        momentum=0.8,
        nesterov=True,
    )
    for _ in range(4):
        for name in ours:
            ours[name].grad = torch.randn_like(ours[name])
            theirs[name].grad = ours[name].grad.clone()
        muon.step()
        sgd.step()
    for name in ("linear", "vector", "scalar"):
        torch.testing.assert_close(ours[name], theirs[name])


def test_filters_keep_their_norm_and_step_by_the_learning_rate() -> None:
    p = parameters()["filter"]
    p.data *= 7
    p.grad = torch.randn_like(p)
    optimizer = Muon([p], lr=0.01)
    optimizer.step()
    assert p.norm().item() == pytest.approx(2.0, abs=0.05)  # the root of four filters
    before = p.detach().clone()
    optimizer.step()
    assert 0.01 < (p - before).norm() < 0.01 * 2 * 1.5 + 0.05


def test_each_kind_is_a_group_that_a_schedule_scales() -> None:
    optimizer = Muon(parameters().values(), lr=0.1, lr_linear=2.0, lr_vector=3.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=4)
    rates = []
    for _ in range(5):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    expected = [[0.1 * s, 2 * s, 3 * s] for s in (1, 0.75, 0.5, 0.25, 0)]
    assert [pytest.approx(row) for row in expected] == rates


def test_a_group_without_decay_keeps_its_own() -> None:
    tensors = parameters()
    groups: list[Any] = [
        {"params": [tensors["filter"], tensors["linear"]]},
        {"params": [tensors["vector"]], "weight_decay": 0.0},
    ]
    found = Muon(groups, weight_decay=0.01, lr_linear=0.5).param_groups
    assert [(g["kind"], g["weight_decay"]) for g in found] == [
        ("filter", 0.0),
        ("linear", 0.02),
        ("vector", 0.0),
    ]


def test_weights_added_later_are_told_apart_and_a_rate_of_their_own_scales_all_three() -> None:
    tensors = parameters()
    optimizer = Muon([tensors["scalar"]], lr=0.1, lr_linear=2.0, lr_vector=3.0, weight_decay=0.3)
    later = [tensors["filter"], tensors["linear"], tensors["vector"]]
    optimizer.add_param_group({"params": later, "lr": 0.05, "momentum": 0.9})
    found = [(g["kind"], g["lr"], g["momentum"]) for g in optimizer.param_groups]
    assert found == [
        ("vector", 3.0, 0.85),
        ("filter", 0.05, 0.9),
        ("linear", 1.0, 0.85),
        ("vector", 1.5, 0.85),
    ]
    assert [g["weight_decay"] for g in optimizer.param_groups] == pytest.approx([0.1, 0, 0.3, 0.2])
    assert all(g["steps"] == 3 and g["keep_norm"] for g in optimizer.param_groups)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("decay", [0.0, 1e-3])
def test_together_weights_are_updated_as_one_by_one(
    layout: torch.memory_format, decay: float
) -> None:
    torch.manual_seed(0)
    shapes = [(8, 4, 3, 3), (8, 4, 3, 3), (4, 9, 2, 2), (16, 3, 1, 1), (2, 3, 2, 2, 2), (5, 7)]
    shapes += [(8,), (16,), (6, 4, 3, 3)]
    one = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    for p in one:
        if p.ndim == 4:
            p.data = p.data.to(memory_format=layout)
    together = [torch.nn.Parameter(p.detach().clone()) for p in one]
    options = {"lr": 1.0, "lr_linear": 0.2, "lr_vector": 0.3, "weight_decay": decay}
    first, second = Muon(one, **options), Muon(together, **options, foreach=True)
    for _ in range(4):
        for p, q in zip(one[:-1], together[:-1], strict=True):  # the last has no gradient
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        first.step()
        second.step()
    for p, q in zip(one, together, strict=True):
        assert q.stride() == p.stride()
        # An update is as long as the filters. bfloat16 rounds by up to 0.2 %, at each of a dozen
        # operations of four updates, and not at the same ones: of another order, all would differ.
        assert (q - p).norm() < (0.03 if p.ndim >= 4 else 1e-6) * p.norm(), p.shape
    buffers = zip(first.state.values(), second.state.values(), strict=True)
    for a, b in buffers:
        torch.testing.assert_close(b["momentum_buffer"], a["momentum_buffer"])


def test_together_takes_a_third_of_the_operations() -> None:
    network = SpeedNet(widths=(64, 192, 256), directions=8, gates=True)
    network.to(memory_format=torch.channels_last)
    trained = [p for p in network.parameters() if p.requires_grad]
    for p in trained:
        p.grad = torch.randn_like(p)
    counts = []
    for foreach in (False, True):
        optimizer = Muon(trained, foreach=foreach)
        optimizer.step()  # the first makes the momenta
        with Counted() as counted:
            optimizer.step()
        counts.append(counted.count)
    assert 500 < counts[0] < 600
    assert counts[1] < 0.34 * counts[0]


def test_filters_of_zeros_and_of_five_dimensions_train() -> None:
    zeros, volume = nn.Parameter(torch.zeros(4, 2, 3, 3)), nn.Parameter(torch.randn(4, 2, 3, 3, 3))
    optimizer = Muon([zeros, volume], lr=0.1)
    zeros.grad, volume.grad = torch.randn_like(zeros), torch.randn_like(volume)
    before = volume.detach().clone()
    optimizer.step()
    assert zeros.isfinite().all()
    assert zeros.norm() > 0.05
    assert not torch.equal(volume, before)


def test_what_has_no_gradient_stays_and_a_state_is_gone_on_with() -> None:
    first, second = parameters(), parameters()
    idle = first["vector"].detach().clone()
    optimizers = [Muon(tensors.values()) for tensors in (first, second)]
    gradient = torch.randn_like(first["filter"])
    for _ in range(2):
        first["filter"].grad = gradient.clone()
        optimizers[0].step()
    second["filter"].grad = gradient.clone()
    optimizers[1].step()
    third = {name: nn.Parameter(tensor.detach().clone()) for name, tensor in second.items()}
    resumed = Muon(third.values())
    resumed.load_state_dict(optimizers[1].state_dict())
    third["filter"].grad = gradient.clone()
    resumed.step()
    assert torch.equal(third["filter"], first["filter"])
    assert torch.equal(first["vector"], idle)


FUSED = {
    "sgd": partial(torch.optim.SGD, lr=0.1),
    "momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
    "dampening": partial(torch.optim.SGD, lr=0.1, momentum=0.9, dampening=0.5),
    "adamw": partial(torch.optim.AdamW, lr=0.1, amsgrad=True),
    "adagrad": partial(torch.optim.Adagrad, lr=0.1),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", FUSED)
def test_fused_optimizers_copy_no_gradient_and_update_as_others(
    name: str, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(5, 4, 3), nn.Conv2d(4, 6, 1), nn.Linear(7, 2))
    network.to(memory_format=layout)
    classifier = ImageClassifier(network, partial(FUSED[name], fused=True))
    fused = classifier.configure_optimizers()
    weights = list(network.parameters())
    twins = [nn.Parameter(weight.detach().clone()) for weight in weights]
    other = FUSED[name](twins, fused=False, foreach=False)
    for _ in range(4):
        for weight, twin in zip(weights, twins, strict=True):
            weight.grad = torch.randn_like(weight)
            twin.grad = weight.grad.clone()
        with profile(activities=[ProfilerActivity.CPU]) as last:
            fused.step()
        other.step()
    for weight, twin in zip(weights, twins, strict=True):
        torch.testing.assert_close(weight, twin)
        for key, value in fused.state[weight].items():
            torch.testing.assert_close(value, other.state[twin][key])
            assert value.ndim < 4 or value.is_contiguous(memory_format=layout)
    kernels = {event.key for event in last.key_averages()}
    assert any(kernel.startswith("aten::_fused_") for kernel in kernels)
    assert "aten::clone" not in kernels


def test_an_optimizer_of_ones_own_gathers_as_it_likes() -> None:
    class Own(torch.optim.SGD):
        def _init_group(self, group: Any, *, params: Any, grads: Any) -> None:
            raise NotImplementedError

    own = ImageClassifier(nn.Linear(2, 2), partial(Own, lr=0.1, fused=True)).configure_optimizers()
    assert own._init_group.__func__ is Own._init_group


def test_a_gradient_that_lies_otherwise_than_its_weight_is_not_reordered() -> None:
    weight = nn.Parameter(torch.randn(4, 5, 3, 3).to(memory_format=torch.channels_last))
    optimizer = ImageClassifier(
        nn.ParameterList([weight]), partial(torch.optim.SGD, lr=0.1, fused=True)
    ).configure_optimizers()
    given = torch.randn(4, 5, 3, 3)
    weight.grad = given
    params: list[torch.Tensor] = []
    grads: list[torch.Tensor] = []
    optimizer._init_group(optimizer.param_groups[0], params, grads, [])
    assert grads[0] is given


def test_a_step_returns_its_closures_loss() -> None:
    assert Muon([nn.Parameter(torch.ones(2, 2))]).step(lambda: 3.5) == 3.5
