"""SpeedNet: whitening, identities, small first answers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from litvision.networks.speednet import Gate, GhostBatchNorm2d, SpeedNet


@pytest.fixture
def network() -> SpeedNet:
    torch.manual_seed(0)
    return SpeedNet()


@pytest.fixture
def images() -> torch.Tensor:
    """Pictures whose neighbouring pixels and colours go together, as in real ones."""
    torch.manual_seed(1)
    rough = F.interpolate(torch.randn(64, 3, 9, 9), size=32, mode="bilinear")
    return rough + rough.mean(1, keepdim=True) + 0.1 * torch.randn(64, 3, 32, 32)


def test_parameters(network: SpeedNet) -> None:
    filters = 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256)
    biases = 24 + 2 * (64 + 256 + 256)
    trained = {n: p.numel() for n, p in network.named_parameters() if p.requires_grad}
    assert sum(trained.values()) == filters + biases + 2560
    assert "whitening.weight" not in trained
    assert not [name for name in trained if "norm" in name and name.endswith("weight")]


@pytest.mark.slow  # it compiles for a minute
def test_compiled_its_gradients_are_as_near_to_the_exact_ones(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    network = SpeedNet(widths=(8, 16, 16), gates=True).to(memory_format=torch.channels_last)
    network.whiten([images])
    labels = torch.randint(10, (len(images),))

    def gradients(forward: torch.nn.Module, bfloat16: bool) -> torch.Tensor:
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = forward(images)
        F.cross_entropy(logits.float(), labels).backward()
        found = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
        return torch.cat(found)

    def likeness(found: torch.Tensor) -> float:
        return F.cosine_similarity(found, exact, dim=0).item()

    exact, compiled = gradients(network, bfloat16=False), torch.compile(network)
    assert likeness(gradients(compiled, bfloat16=False)) > 0.9999
    # How far bfloat16 rounds is the processor's: here from 0.97 to 0.99, compiled or not.
    rounded = likeness(gradients(network, bfloat16=True))
    assert likeness(gradients(compiled, bfloat16=True)) > rounded - 0.02


def test_whitened_patches_are_uncorrelated_and_of_one_variance(
    network: SpeedNet, images: torch.Tensor
) -> None:
    network.whiten([images])
    filters = network.whitening.weight
    answers = F.conv2d(images, filters).transpose(0, 1).flatten(1)
    assert torch.equal(filters[12:], -filters[:12])
    moments = answers[:12] @ answers[:12].T / answers.shape[1]
    # s / (s + epsilon) on the diagonal for a direction of variance s.
    patches = F.unfold(images, 2).transpose(1, 2).flatten(0, 1)
    values = torch.linalg.eigvalsh(patches.T @ patches / len(patches))
    torch.testing.assert_close(moments, torch.diag(values / (values + 5e-4)), atol=1e-3, rtol=0)


def test_epsilon_keeps_a_direction_of_little_variance_small(images: torch.Tensor) -> None:
    norms = []
    for epsilon in (5e-4, 10.0):
        network = SpeedNet(epsilon=epsilon)
        network.whiten([images])
        norms.append(network.whitening.weight.flatten(1).norm(dim=1).max())
    patches = F.unfold(images, 2).transpose(1, 2).flatten(0, 1)
    least = torch.linalg.eigvalsh(patches.T @ patches / len(patches)).min()
    torch.testing.assert_close(norms[0], 1 / (least + 5e-4).sqrt(), rtol=1e-3, atol=0)
    torch.testing.assert_close(norms[1], 1 / (least + 10.0).sqrt(), rtol=1e-3, atol=0)


def test_the_directions_of_largest_variance_are_kept(images: torch.Tensor) -> None:
    some, every = SpeedNet(directions=5, gates=True), SpeedNet()
    for network in (some, every):
        network.whiten([images])
    kept, there = some.whitening.weight, every.whitening.weight[:12]
    assert torch.equal(kept, torch.cat((there[7:], -there[7:])))
    norms = there.flatten(1).norm(dim=1)  # one over the standard deviation
    assert norms[7:].max() < norms[:7].min()
    assert some(images[:2]).shape == (2, 10)


def test_more_directions_than_a_patch_has_are_refused() -> None:
    with pytest.raises(ValueError, match="directions=13: 2x2 patches of 3 channels have 12"):
        SpeedNet(directions=13)


def test_a_gate_scales_each_channel_by_the_means_of_all() -> None:
    gate = Gate(3)
    with torch.no_grad():
        gate.conv.weight.copy_(
            torch.tensor([[1.0, 0, 0], [0, 0, -2.0], [0, 0, 0]])[..., None, None]
        )
    x = torch.randn(5, 3, 4, 4)
    means = x.mean((2, 3))
    factors = [2 / (1 + torch.exp(-means[:, 0])), 2 / (1 + torch.exp(2 * means[:, 2]))]
    expected = x * torch.stack([*factors, torch.ones(5)], dim=1)[..., None, None]
    torch.testing.assert_close(gate(x), expected)


def test_each_convolution_has_a_gate_where_asked_for(network: SpeedNet) -> None:
    plain = set(network.state_dict())
    gated = SpeedNet(gates=True)
    names = [f"groups.{group}.gate{gate}.conv.weight" for group in range(3) for gate in (1, 2)]
    names.append("gate.conv.weight")
    assert set(gated.state_dict()) - plain == set(names)
    x = torch.randn(2, 3, 32, 32)
    for name in names:  # each is used
        before = gated(x)
        with torch.no_grad():
            gated.get_parameter(name).zero_()
        assert not torch.allclose(gated(x), before)


def test_batches_are_whitened_as_one(network: SpeedNet, images: torch.Tensor) -> None:
    def inverse() -> torch.Tensor:  # of the patches' moments, whatever the filters' signs
        filters = network.whitening.weight.flatten(1)
        return filters.T @ filters

    network.whiten([images])
    expected = inverse()
    network.whiten(images.split(5))
    torch.testing.assert_close(inverse(), expected, rtol=1e-4, atol=1e-3)


def test_a_convolution_begins_as_the_identity_on_what_it_takes(network: SpeedNet) -> None:
    x = torch.randn(2, 64, 8, 8)
    y = network.groups[1].conv1(F.pad(x, (1, 1, 1, 1)))
    torch.testing.assert_close(y[:, :64], x)
    assert y.shape == (2, 256, 8, 8)
    assert not torch.allclose(y[:, 64:128], x)


@pytest.mark.parametrize("size", [(7, 7), (8, 8), (6, 9), (15, 12)])
def test_a_group_computes_no_less_than_pooling_takes(
    network: SpeedNet, size: tuple[int, int]
) -> None:
    group = network.groups[1].eval()
    x = torch.randn(2, 64, *size)
    pooled = F.max_pool2d(F.conv2d(x, group.conv1.weight, padding=1), 2)
    expected = F.gelu(group.norm2(group.conv2(F.gelu(group.norm1(pooled)))))
    torch.testing.assert_close(group(x), expected)
    assert expected.shape == (2, 256, size[0] // 2, size[1] // 2)


def test_first_answers_are_unsure(network: SpeedNet, images: torch.Tensor) -> None:
    network.whiten([images])
    assert network.fc.weight.std().item() == pytest.approx(1.0)
    logits = network(images)
    assert logits.shape == (64, 10)
    assert logits.softmax(1).max() < 0.2
    logits.sum().backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)


def test_it_takes_other_sizes_channels_and_classes() -> None:
    network = SpeedNet(num_classes=4, in_channels=1, widths=[8, 16, 24])
    assert network(torch.randn(2, 1, 9, 40)).shape == (2, 4)
    with pytest.raises(ValueError, match=r"at least 9x9 pixels, not 8x40"):
        network(torch.randn(2, 1, 8, 40))


def test_parts_of_a_batch_are_normalized_each_by_itself() -> None:
    x = torch.randn(7, 5, 4, 4) * torch.arange(1.0, 8)[:, None, None, None]
    layer = GhostBatchNorm2d(5, pictures=2)
    parts = [x[:3], x[3:5], x[5:]]  # no part is smaller
    found = layer(x)
    for part, got in zip(parts, found.split([3, 2, 2]), strict=True):
        torch.testing.assert_close(got, F.batch_norm(part, None, None, training=True, eps=1e-12))
    # Together, the parts move the averages by a tenth, as one batch does.
    variance, mean = torch.ones(5), torch.zeros(5)
    keep = 0.9 ** (1 / 3)
    for part in parts:
        variance = keep * variance + (1 - keep) * part.var((0, 2, 3))
        mean = keep * mean + (1 - keep) * part.mean((0, 2, 3))
    torch.testing.assert_close(layer.running_var, variance)
    torch.testing.assert_close(layer.running_mean, mean)
    expected = (x - mean[:, None, None]) / variance.sqrt()[:, None, None]
    torch.testing.assert_close(layer.eval()(x), expected)


def test_a_small_batch_is_one_part(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    whole, parted = SpeedNet(), SpeedNet(norm_pictures=16)
    parted.load_state_dict(whole.state_dict())
    few = images[:31]
    assert torch.equal(whole(few), parted(few))
    assert not torch.allclose(whole(images), parted(images))
