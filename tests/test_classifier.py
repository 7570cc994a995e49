from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from litvision.batches import Batch
from litvision.classifier import ImageClassifier, NonFiniteLossError
from litvision.errors import UserError
from tiny import TinyNet

SGD = partial(torch.optim.SGD, lr=0.1)


def batches(sizes: list[int], seed: int = 0) -> list[Batch]:
    random = torch.Generator().manual_seed(seed)
    return [
        Batch(
            torch.randn(size, 3, 8, 8, generator=random),
            torch.randint(0, 4, (size,), generator=random),
        )
        for size in sizes
    ]


def loader(content: list[Batch]) -> DataLoader:
    return DataLoader(content, batch_size=None)


def trainer(folder: Path, **options: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    fixed = {"accelerator": "cpu", "max_epochs": 1, "enable_checkpointing": False}
    return L.Trainer(default_root_dir=folder, **{**fixed, **quiet, **options})


def test_training_metrics_are_those_of_the_whole_epoch_with_its_short_batch(tmp_path: Path) -> None:
    data = batches([8, 8, 3])
    torch.manual_seed(0)
    network = TinyNet(4)
    expected = TinyNet(4)
    expected.load_state_dict(network.state_dict())
    fit = trainer(tmp_path)
    fit.fit(ImageClassifier(network, SGD), loader(data))

    optimizer, loss_sum, correct = SGD(expected.parameters()), 0.0, 0
    for images, labels, *_ in data:
        logits = expected(images)
        loss = F.cross_entropy(logits, labels)
        loss_sum += loss.item() * len(labels)
        correct += int((logits.argmax(1) == labels).sum())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(fit.callback_metrics["train/loss"]) == pytest.approx(loss_sum / 19, rel=1e-6)
    assert float(fit.callback_metrics["train/acc"]) == pytest.approx(correct / 19, rel=1e-6)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter, expected.get_parameter(name))


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_metrics_are_exact_with_a_short_batch(tmp_path: Path, split: str) -> None:
    data = batches([8, 8, 1])
    network = TinyNet(4).eval()
    run = trainer(tmp_path)
    measure = run.validate if split == "val" else run.test
    (found,) = measure(ImageClassifier(network, label_smoothing=0.3), loader(data), verbose=False)
    images, labels = torch.cat([b.images for b in data]), torch.cat([b.labels for b in data])
    with torch.no_grad():
        logits = network(images)
    assert found[f"{split}/loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    right = (logits.argmax(1) == labels).double().mean().item()
    assert found[f"{split}/acc"] == pytest.approx(right, rel=1e-6)


def test_metrics_of_the_second_epoch_forget_the_first(tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []

    class Watch(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            seen.append({k: float(v) for k, v in trainer.callback_metrics.items()})

    still = partial(torch.optim.SGD, lr=0.0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    data = batches([8, 3])
    run = trainer(tmp_path, max_epochs=2, callbacks=[Watch()], num_sanity_val_steps=0)
    run.fit(ImageClassifier(network, still), loader(data), loader(data))
    assert seen[0] == pytest.approx(seen[1])
    assert seen[0]["train/loss"] == pytest.approx(seen[0]["val/loss"], rel=1e-5)
    assert set(seen[0]) == {"train/loss", "train/acc", "val/loss", "val/acc"}


def test_the_gradient_is_weighted_by_the_share_of_this_device(tmp_path: Path) -> None:
    (data,) = batches([6])
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(192, 4)) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    start = networks[0][1].weight.detach().clone()
    for network, share in zip(networks, (1.0, 0.5), strict=True):
        trainer(tmp_path).fit(ImageClassifier(network, SGD), loader([data._replace(share=share)]))
    whole, half = (network[1].weight.detach() - start for network in networks)
    torch.testing.assert_close(half, whole / 2)


def test_label_smoothing_changes_the_training_loss_as_torch_defines_it(tmp_path: Path) -> None:
    (data,) = batches([6])
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    expected = F.cross_entropy(network(data.images), data.labels, label_smoothing=0.2).item()
    run = trainer(tmp_path)
    run.fit(ImageClassifier(network, SGD, label_smoothing=0.2), loader([data]))
    assert float(run.callback_metrics["train/loss"]) == pytest.approx(expected, rel=1e-6)


def test_balanced_classes_count_alike() -> None:
    classifier = ImageClassifier(TinyNet(3), class_weights="balanced")
    classifier.weigh_classes([6, 2, 0])
    assert classifier.loss_weights is not None
    assert classifier.loss_weights.tolist() == pytest.approx([8 / 12, 8 / 4, 0])  # two are there
    labels, logits = torch.tensor([0] * 6 + [1] * 2), torch.zeros(8, 3)
    losses = [classifier.loss(logits[labels == c], labels[labels == c]) for c in (0, 1)]
    # Each class's pictures together count as much as the other's, and one counts 1 on average.
    assert float(6 * losses[0]) == pytest.approx(float(2 * losses[1]))
    assert "loss_weights" not in classifier.state_dict()


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_loss_of_a_picture_counts_by_its_class(mixed: bool, smoothing: float) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 3, 3])
    other = labels.roll(1)
    targets = 0.7 * F.one_hot(labels, 4) + 0.3 * F.one_hot(other, 4) if mixed else labels
    weights = [0.5, 2.0, 0.0, 1.0]
    classifier = ImageClassifier(TinyNet(4), label_smoothing=smoothing, class_weights=weights)
    classifier.weigh_classes([1, 1, 1, 3])
    counts = torch.tensor(weights)[labels]
    if mixed:
        counts = 0.7 * counts + 0.3 * torch.tensor(weights)[other]
    each = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    expected = (counts * each).sum() / 6
    torch.testing.assert_close(classifier.loss(logits, targets), expected)
    if not mixed and not smoothing:  # else torch has another idea of it
        whole = F.cross_entropy(logits, labels, torch.tensor(weights), reduction="sum") / 6
        torch.testing.assert_close(classifier.loss(logits, targets), whole)
    # Two devices' halves, whatever they hold, average to the same.
    halves = [classifier.loss(logits[half], targets[half]) for half in (slice(3), slice(3, 6))]
    torch.testing.assert_close(sum(halves) / 2, expected)
    plain = ImageClassifier(TinyNet(4), label_smoothing=smoothing, class_weights=[1.0] * 4)
    plain.weigh_classes([1, 1, 1, 3])
    unweighted = ImageClassifier(TinyNet(4), label_smoothing=smoothing)
    torch.testing.assert_close(plain.loss(logits, targets), unweighted.loss(logits, targets))
    assert unweighted.picture_weights(targets).tolist() == [1.0] * 6


def test_smoothing_teaches_no_rare_class_with_every_picture() -> None:
    weights = [0.4, 4.0, 4.0]  # of one frequent class, and two rare ones
    classifier = ImageClassifier(TinyNet(3), label_smoothing=0.3, class_weights=weights)
    classifier.weigh_classes([940, 94, 94])
    logits = torch.zeros(1, 3, requires_grad=True)
    for _ in range(200):  # towards what the loss of one picture of the frequent class likes best
        (gradient,) = torch.autograd.grad(classifier.loss(logits, torch.tensor([0])), logits)
        logits = (logits - gradient).detach().requires_grad_()
    torch.testing.assert_close(
        logits.softmax(1), torch.tensor([[0.8, 0.1, 0.1]]), rtol=0, atol=1e-3
    )


def test_a_class_of_ones_own_may_have_class_weights_of_its_own() -> None:
    class Weighted(ImageClassifier):
        def __init__(self, *, class_weights: list[float], **options: Any) -> None:
            super().__init__(**options)
            self.register_buffer("class_weights", torch.tensor(class_weights), persistent=False)

    classifier = Weighted(class_weights=[1.0, 2.0], network=TinyNet(2))
    classifier.weigh_classes([1, 1])
    assert classifier.class_weights.tolist() == [1, 2]


def test_class_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for weights in ([1.0, 2.0], [0.0, 0.0, 0.0]):
        with pytest.raises(UserError) as raised:
            ImageClassifier(TinyNet(3), class_weights=weights).weigh_classes([1, 1, 1])
        assert str(raised.value) == (
            f"model.class_weights={weights} does not fit: it takes 3 numbers, one a class and not "
            "all 0, or balanced."
        )
    unaware = ImageClassifier(TinyNet(4), SGD, class_weights="balanced")
    with pytest.raises(ValueError, match=r"take effect with weigh_classes\(counts\), before fit"):
        trainer(tmp_path).fit(unaware, loader(batches([6])))


def test_weight_decay_can_leave_out_norm_and_bias() -> None:
    network = TinyNet(4)
    (every,) = ImageClassifier(network, SGD).parameter_groups()
    assert len(every["params"]) == 6
    decayed, free = ImageClassifier(network, SGD, decay_norm_and_bias=False).parameter_groups()
    assert [id(p) for p in decayed["params"]] == [id(network.conv.weight), id(network.fc.weight)]
    assert free["weight_decay"] == 0.0
    assert len(free["params"]) == 4
    frozen = ImageClassifier(network, SGD)
    network.conv.requires_grad_(False)
    assert len(frozen.parameter_groups()[0]["params"]) == 4


def test_a_schedule_steps_after_every_batch(tmp_path: Path) -> None:
    halve = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    run = trainer(tmp_path)
    run.fit(ImageClassifier(TinyNet(4), SGD, halve), loader(batches([4, 4, 4])))
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 / 8)


@pytest.mark.parametrize("wanted", [True, False])
def test_memory_layout_is_the_one_asked_for(tmp_path: Path, wanted: bool) -> None:
    strides: list[bool] = []

    class Spy(TinyNet):
        def forward(self, images: Tensor) -> Tensor:
            strides.append(images.is_contiguous(memory_format=torch.channels_last))
            return super().forward(images)

    network = Spy(4)
    trainer(tmp_path).fit(ImageClassifier(network, SGD, channels_last=wanted), loader(batches([4])))
    assert strides == [wanted]
    assert network.conv.weight.is_contiguous(memory_format=torch.channels_last) is wanted


@pytest.mark.parametrize(("option", "mode"), [(True, None), ("reduce-overhead", "reduce-overhead")])
def test_compile_keeps_names_and_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: Any, mode: str | None
) -> None:
    asked: list[tuple[nn.Module, str | None]] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, mode: asked.append((self, mode)))
    classifier = ImageClassifier(TinyNet(4), SGD, compile=option)
    names = list(classifier.state_dict())
    run = trainer(tmp_path)
    run.fit(classifier, loader(batches([4])))
    assert asked == [(classifier.network, mode)]
    assert list(classifier.state_dict()) == names
    run.test(classifier, loader(batches([4])), verbose=False)
    assert len(asked) == 1  # testing alone does not pay for compiling


class Explodes(nn.Module):
    """A network whose loss becomes infinite at its `bad`-th call."""

    def __init__(self, bad: int) -> None:
        super().__init__()
        self.fc, self.calls, self.bad = nn.Linear(192, 4), 0, bad

    def forward(self, images: Tensor) -> Tensor:
        logits = self.fc(images.flatten(1))
        self.calls += 1
        return logits * math.nan if self.calls == self.bad else logits


def test_answers_that_are_no_numbers_are_not_left_out(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    classifier = ImageClassifier(Explodes(2), SGD)
    metrics = run.test(classifier, loader(batches([4, 4, 4])), verbose=False)[0]
    assert math.isnan(metrics["test/loss"])


def test_a_loss_that_is_not_finite_names_step_batch_and_rate(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_epochs=3)
    with pytest.raises(NonFiniteLossError) as error:
        run.fit(ImageClassifier(Explodes(5), SGD), loader(batches([4, 4, 4])))
    assert str(error.value) == (
        "The training loss is not finite at epoch 1, step 4, batch 1 of that epoch, learning rate "
        "0.1. What was saved before is kept. Lower optimizer.lr, or set "
        "trainer.gradient_clip_val=1."
    )


def test_on_a_gpu_the_first_bad_batch_is_named_when_it_is_looked_up(tmp_path: Path) -> None:
    """A GPU's loss is read only now and then: the batch named is the first bad one all the same."""

    class Deferred(ImageClassifier):
        def _watch(self, loss: Tensor, batch_idx: int) -> None:
            self.pretend = True
            super()._watch(loss, batch_idx)

        @property
        def device(self) -> Any:  # looks like a GPU to _watch alone
            real = super().device
            if self.__dict__.pop("pretend", False):
                return torch.device("cuda")
            return real

    halve = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    data = loader(batches([4] * 4))
    run = trainer(tmp_path, log_every_n_steps=50, num_sanity_val_steps=0)
    with pytest.raises(
        NonFiniteLossError, match=r"step 1, batch 1 of that epoch, learning rate 0\.05"
    ):
        run.fit(Deferred(Explodes(2), SGD, halve), data, loader(batches([4])))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("fused", [False, True])
def test_clipping_limits_the_update_whatever_the_optimizer(
    tmp_path: Path, precision: str, fused: bool
) -> None:
    torch.manual_seed(0)
    network = TinyNet(4)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    options = {"precision": precision, "gradient_clip_val": 1e-3}
    optimizer = partial(torch.optim.SGD, lr=1.0, fused=fused)
    fit = trainer(tmp_path, limit_train_batches=1, **options)
    fit.fit(ImageClassifier(network, optimizer), loader(batches([8])))
    moved = [(a.detach() - b).norm() for a, b in zip(network.parameters(), before, strict=True)]
    assert float(torch.stack(moved).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_a_fused_optimizer_cannot_be_clipped_under_a_gradient_scaler() -> None:
    classifier = ImageClassifier(TinyNet(4))
    plugin = SimpleNamespace(scaler=object(), precision="16-mixed")
    classifier._trainer = SimpleNamespace(precision_plugin=plugin)
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.1, fused=True)
    with pytest.raises(UserError, match=r"precision=16-mixed .* give optimizer\.fused=false"):
        classifier.configure_gradient_clipping(optimizer, 1.0, "norm")


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_runs_as_training_does_but_keeps_nothing_for_gradients(
    tmp_path: Path, split: str
) -> None:
    seen: list[tuple[Any, ...]] = []

    class Notes(TinyNet):
        def forward(self, images: Tensor) -> Tensor:
            layout = images.is_contiguous(memory_format=torch.channels_last)
            dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
            seen.append((torch.is_inference_mode_enabled(), self.training, dtype, layout))
            return super().forward(images)

    run = trainer(tmp_path, precision="bf16-mixed")
    classifier = ImageClassifier(Notes(4), SGD, channels_last=True)
    run.fit(classifier, loader(batches([8])))
    (run.validate if split == "val" else run.test)(classifier, loader(batches([8])), verbose=False)
    assert seen == [
        (False, True, torch.bfloat16, True),
        (True, False, torch.bfloat16, True),
    ]


def test_training_without_an_optimizer_is_a_programming_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="built without an optimizer"):
        trainer(tmp_path).fit(ImageClassifier(TinyNet(4)), loader(batches([4])))
