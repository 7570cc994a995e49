"""Two of every four weights stay, and the others stay zero to the bit, whatever the optimizer."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from conftest import Compose
from litvision.assemble import Run, assemble
from litvision.callbacks.sparsity import Sparsity24
from litvision.errors import UserError
from litvision.networks.normalization import Norm, normalization
from litvision.networks.resnet import ResNet18
from litvision.sparsity import accelerate, covered, mask_2_4, prune

QUIET = ["callbacks.progress_bar=null", "callbacks.provenance=null", "test=false"]
QUIET += ["trainer.precision=32-true", "trainer.max_epochs=3"]
SPARSE = ["callbacks=sparsity_2_4", "callbacks.sparsity_2_4.start_epoch=1"]
NETWORK = "model.network._target_=callbacks.test_sparsity.Small"


class Small(nn.Module):
    """A first convolution, one to prune, a linear layer to prune, and a last layer."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3, norm: Norm = "batch") -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 8, 3, stride=4)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = normalization(norm, 8)
        self.hidden = nn.Linear(8, 12)
        self.fc = nn.Linear(12, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.conv(self.stem(images).relu())).relu()
        return self.fc(self.hidden(x.mean((2, 3))).relu())


def train(cfg: Any) -> Run:
    run = assemble(cfg)
    run.trainer.fit(run.classifier, run.datamodule, ckpt_path=run.resume_from, weights_only=True)
    return run


def zeros_in_fours(weight: Tensor) -> Tensor:
    """How many of every four inputs are zero, as a set of numbers."""
    return (weight == 0).movedim(1, -1).unflatten(-1, (-1, 4)).sum(-1).unique()


def test_the_mask_keeps_the_two_largest_of_four_inputs() -> None:
    weight = torch.tensor([[1.0, -3, 2, 0, 5, 5, -5, 5], [0, 0, 0, 0, -1, 2, 3, -4]])
    assert mask_2_4(weight).int().tolist() == [[0, 1, 1, 0, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0, 1, 1]]


def test_a_convolution_is_masked_along_its_input_channels_at_each_place() -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 8, 3, 3).to(memory_format=torch.channels_last)
    mask = mask_2_4(weight)
    assert mask.stride() == weight.stride()
    for place in ((0, 0), (1, 2)):
        flat = weight[:, :, place[0], place[1]]  # what a linear layer would have there
        assert torch.equal(mask[:, :, place[0], place[1]], mask_2_4(flat))
    assert mask.sum() == weight.numel() // 2


def test_the_first_convolution_and_the_last_layer_stay_dense() -> None:
    with torch.device("meta"):
        found = covered(ResNet18())
        assert len(found.layers) == 19  # 20 convolutions, 1 linear layer
        assert found.dense == {
            "conv1": "3 inputs, not a multiple of 4",
            "fc": "first convolution or last layer",
        }
        assert "fc" in covered(ResNet18(), except_first_and_last=False).layers
        few = covered(ResNet18(), exclude=["layer[123].*"])
        assert all(name.startswith("layer4") for name in few.layers)
        assert few.dense["layer1.0.conv1"] == "excluded"


def test_the_ends_of_any_network_stay_dense_and_what_fours_do_not_fit() -> None:
    ends = "first convolution or last layer"
    linear = covered(nn.Sequential(*(nn.Linear(n, m) for n, m in [(8, 8), (8, 6), (6, 4), (4, 2)])))
    assert list(linear.layers) == ["1"]
    assert linear.dense == {"0": ends, "2": "6 inputs, not a multiple of 4", "3": ends}
    mixed = nn.Sequential(nn.Linear(4, 4), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 2))
    assert list(covered(mixed).layers) == ["0", "2"]
    assert covered(mixed).dense == {"1": ends, "3": ends}
    with pytest.raises(UserError, match=r"layer to prune in ReLU: it has none\. Change exclude or"):
        covered(nn.ReLU())


OPTIMIZERS = {
    "sgd": ["optimizer=sgd", "optimizer.lr=0.1"],
    "sgd for loop": ["optimizer=sgd", "optimizer.fused=false", "optimizer.lr=0.1"],
    "nesterov": ["optimizer=sgd_nesterov", "optimizer.lr=0.1"],
    "adamw": ["optimizer=adamw", "optimizer.weight_decay=0.1"],
    "muon": ["optimizer=muon", "optimizer.lr_linear=0.1"],
    "clipped": ["optimizer=sgd", "optimizer.lr=0.1", "trainer.gradient_clip_val=0.1"],
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_of_four_are_zero_with_all_that_belongs_to_them(
    compose_train: Compose, name: str
) -> None:
    cfg = compose_train(NETWORK, *SPARSE, *QUIET, *OPTIMIZERS[name], "logger=none")
    run = assemble(cfg)
    start = {key: p.detach().clone() for key, p in run.classifier.network.named_parameters()}
    run.trainer.fit(run.classifier, run.datamodule)
    network = run.classifier.network
    (callback,) = [c for c in run.trainer.callbacks if isinstance(c, Sparsity24)]
    assert set(callback.masks) == {"conv", "hidden"}
    state = run.trainer.optimizers[0].state
    for key, mask in callback.masks.items():
        weight = network.get_submodule(key).weight
        assert zeros_in_fours(weight).tolist() == [2]
        assert torch.equal(weight != 0, mask)
        kept = [v for v in state[weight].values() if torch.is_tensor(v) and v.shape == mask.shape]
        assert kept
        for value in kept:
            assert (value[~mask] == 0).all()
            assert (value[mask] != 0).any()
        assert not torch.equal(weight[mask], start[f"{key}.weight"][mask])
    for key in ("stem", "fc"):
        assert (network.get_submodule(key).weight != 0).all()


def test_the_last_layer_can_take_part(compose_train: Compose) -> None:
    options = [*SPARSE, "callbacks.sparsity_2_4.except_first_and_last=false", "logger=none"]
    network = train(compose_train(NETWORK, *QUIET, *options)).classifier.network
    assert zeros_in_fours(network.fc.weight).tolist() == [2]


class Fixed(Small):
    """Has a layer to prune that it never trains."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3, norm: Norm = "batch") -> None:
        super().__init__(num_classes, in_channels, norm)
        self.hidden.weight.requires_grad_(False)


def test_a_layer_that_does_not_train_is_pruned_too(compose_train: Compose) -> None:
    fixed = NETWORK.replace("Small", "Fixed")
    network = train(compose_train(fixed, *QUIET, *SPARSE, "logger=none")).classifier.network
    assert zeros_in_fours(network.hidden.weight).tolist() == [2]


def test_gradients_are_clipped_by_the_norm_of_what_still_trains(compose_train: Compose) -> None:
    changes = []

    class Measure(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
            self.before = weights()

        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            changes.append(float((weights() - self.before).norm()))

    def weights() -> Tensor:
        return torch.cat([p.detach().double().flatten() for p in network.parameters()])

    plain = ["optimizer=sgd", "optimizer.lr=1", "optimizer.momentum=0", "optimizer.weight_decay=0"]
    options = [*plain, "trainer.gradient_clip_val=0.01", "logger=none"]
    run = assemble(compose_train(NETWORK, *QUIET, *SPARSE, *options))
    network = run.classifier.network
    run.trainer.callbacks.append(Measure())
    run.trainer.fit(run.classifier, run.datamodule)
    assert changes == pytest.approx([0.01] * 6, rel=1e-3)


def test_before_its_epoch_training_is_dense_and_the_same(
    compose_train: Compose, tmp_path: Path
) -> None:
    later = [*SPARSE, "callbacks.sparsity_2_4.start_epoch=2"]
    rows = {}
    for name, options in (("dense", []), ("sparse", later)):
        train(compose_train(NETWORK, *options, *QUIET, "logger=csv", f"run_dir={tmp_path}/{name}"))
        rows[name] = list(csv.DictReader((tmp_path / name / "metrics.csv").open()))
    assert [float(row["sparsity"]) for row in rows["sparse"] if row["sparsity"]] == [0, 0, 0.5]
    losses = {
        name: [row["train/loss"] for row in found if row["train/loss"]]
        for name, found in rows.items()
    }
    assert losses["dense"][:2] == losses["sparse"][:2]
    assert losses["dense"][2] != losses["sparse"][2]
    dense = torch.load(tmp_path / "sparse" / "checkpoints" / "best_dense.ckpt", weights_only=True)
    assert (dense["state_dict"]["network.conv.weight"] != 0).all()


def test_the_best_checkpoint_is_a_sparse_one(compose_train: Compose, tmp_path: Path) -> None:
    run = train(compose_train(NETWORK, *SPARSE, *QUIET, "logger=none", "optimizer.lr=1e-6"))
    folder = tmp_path / "run" / "checkpoints"
    best = torch.load(folder / "best.ckpt", weights_only=True)
    assert run.checkpoint == str(folder / "best.ckpt")
    assert best["epoch"] >= 1
    assert zeros_in_fours(best["state_dict"]["network.conv.weight"]).tolist() == [2]
    dense = torch.load(folder / "best_dense.ckpt", weights_only=True)
    assert dense["epoch"] == 0
    assert (dense["state_dict"]["network.conv.weight"] != 0).all()


def test_an_average_of_the_weights_is_sparse_too(compose_train: Compose, tmp_path: Path) -> None:
    sparse = ["callbacks=[sparsity_2_4,ema]", SPARSE[1]]
    train(compose_train(NETWORK, *sparse, *QUIET, "logger=none", "optimizer.lr=0.1"))
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    for kind in ("state_dict", "current_model_state"):
        assert zeros_in_fours(saved[kind]["network.conv.weight"]).tolist() == [2]
    averaged, trained = (
        saved[kind]["network.conv.weight"] for kind in ("state_dict", "current_model_state")
    )
    assert not torch.equal(averaged, trained)


@pytest.mark.parametrize("steps", [2, 4], ids=["dense", "sparse"])  # 2 iterations an epoch
def test_a_resumed_run_ends_with_the_same_weights(
    compose_train: Compose, tmp_path: Path, steps: int
) -> None:
    options = [NETWORK, *SPARSE, *QUIET, "logger=none"]
    whole = train(compose_train(*options, f"run_dir={tmp_path}/whole"))
    part = [f"trainer.max_steps={steps}", f"run_dir={tmp_path}/part"]
    cut = train(compose_train(*options, *part))
    assert cut.trainer.current_epoch == steps // 2
    resumed = train(compose_train(*options, f"resume={tmp_path}/part"))
    expected = whole.classifier.network.state_dict()
    for name, tensor in resumed.classifier.network.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_what_takes_part_is_said(
    compose_train: Compose, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.INFO)
    train(compose_train(NETWORK, *SPARSE, *QUIET, "logger=none"))
    assert (
        "2:4 sparsity from epoch 2 on, in 2 layers with 672 weights; dense: stem (3 inputs, not a "
        "multiple of 4); fc (first convolution or last layer)"
    ) in caplog.messages
    assert "epoch 2: half of their weights are zero from now on" in caplog.messages
    kept = tmp_path / "run" / "checkpoints" / "best_dense.ckpt"
    assert (
        f"the best checkpoint so far is kept as {kept}; the search starts anew" in caplog.messages
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["callbacks=sparsity_2_4"],
            r"start_epoch=20 is never reached: the run ends after epoch 2, counted from 0",
        ),
        (
            [*SPARSE, "callbacks.sparsity_2_4.exclude=['*']"],
            r"finds no layer to prune in Small: stem: excluded; conv: excluded; hidden: excluded",
        ),
        (
            ["callbacks=pruning", "callbacks.pruning.at_epochs=[9,1]"],
            r"callbacks\.pruning\.at_epochs=\[1, 9\] is never reached: the run ends after epoch 2",
        ),
        (
            ["callbacks=pruning"],
            r"callbacks\.pruning\.at_epochs=\[20\] is never reached: the run ends after epoch 2",
        ),
    ],
)
def test_what_cannot_be_is_refused(
    compose_train: Compose, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train(compose_train(NETWORK, *overrides, *QUIET, "logger=none"))


def test_pruning_by_hand_says_what_it_changed() -> None:
    torch.manual_seed(0)
    network = Small()
    assert prune(network) == (576 + 96) // 2
    assert prune(network) == 0
    assert zeros_in_fours(network.hidden.weight).tolist() == [2]


def test_by_hand_only_the_chosen_layers_change() -> None:
    network = Small()
    chosen = covered(network, exclude=["conv"])
    assert prune(network, chosen) == 96 // 2
    assert (network.conv.weight != 0).all()
    assert list(accelerate(network, torch.bfloat16, chosen)) == ["hidden"]


def test_layers_that_cannot_run_sparse_here_say_why() -> None:
    network = Small()
    prune(network)
    weight = network.hidden.weight.clone()
    reasons = accelerate(network, torch.bfloat16)
    assert reasons["conv"] == "torch multiplies no sparse convolutions"
    assert "cuda" in reasons["hidden"].lower()  # tried, and refused on a processor
    assert torch.equal(network.hidden.weight, weight)


LOTTERY = "callbacks.pruning.lottery_ticket=true"
PRUNING = ["callbacks=pruning", "callbacks.pruning.at_epochs=[1,2]", "logger=csv"]


@pytest.mark.parametrize("channels_last", ["false", "true"])
@pytest.mark.parametrize("lottery", ["false", "true"])
def test_lightnings_pruning_masks_a_share_of_what_is_left_each_time(
    compose_train: Compose, tmp_path: Path, lottery: str, channels_last: str
) -> None:
    options = [*PRUNING, f"callbacks.pruning.lottery_ticket={lottery}"]
    options.append(f"model.channels_last={channels_last}")
    run = train(compose_train(NETWORK, *QUIET, *options, "callbacks.pruning.amount=0.5"))
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    shares = [float(row["sparsity"]) for row in rows if row["sparsity"]]
    assert shares == pytest.approx([0, 0.5, 0.75], abs=1e-3)
    best = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    names = {name for name in best["state_dict"] if "network" in name}
    assert names == {f"network.{n}" for n in Small().state_dict()}  # plain weights, no masks
    layers = [m for m in run.classifier.network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    zeros = sum(int((layer.weight == 0).sum()) for layer in layers)
    assert zeros / sum(layer.weight.numel() for layer in layers) == pytest.approx(0.75, abs=1e-3)
    if channels_last == "true":
        assert layers[1].weight.is_contiguous(memory_format=torch.channels_last)
    run.trainer.test(run.classifier, run.datamodule, ckpt_path=run.checkpoint, verbose=False)
    assert 0 <= run.trainer.callback_metrics["test/acc"] <= 1


@pytest.mark.parametrize("function", ["l1_unstructured", "random_unstructured"])
def test_which_weights_lightnings_pruning_masks(
    compose_train: Compose, tmp_path: Path, function: str
) -> None:
    found = []

    class Look(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.global_step == 2:  # the first of the second epoch
                found.append(
                    [torch.cat([pick(m).flatten() for m in layers]) for pick in (mask, weight)]
                )

    def mask(layer: Any) -> Tensor:
        return layer.weight_mask == 1

    def weight(layer: Any) -> Tensor:
        return layer.weight_orig.detach().abs()

    options = [
        *PRUNING,
        "callbacks.pruning.amount=0.25",
        f"callbacks.pruning.pruning_fn={function}",
    ]
    run = assemble(compose_train(NETWORK, *QUIET, *options))
    network = run.classifier.network
    layers: Any = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    run.trainer.callbacks.append(Look())
    run.trainer.fit(run.classifier, run.datamodule)
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    shares = [float(row["sparsity"]) for row in rows if row["sparsity"]]
    assert shares == pytest.approx([0, 0.25, 0.4375], abs=1e-3)
    ((stay, sizes),) = found
    smallest = sizes[~stay].max() <= sizes[stay].min()  # of all layers together
    assert smallest == (function == "l1_unstructured")


def test_the_best_checkpoint_before_each_pruning_is_kept(
    compose_train: Compose, tmp_path: Path
) -> None:
    train(compose_train(NETWORK, *QUIET, *PRUNING, "callbacks.pruning.at_epochs=[2,1]"))
    folder = tmp_path / "run" / "checkpoints"
    names = ["best_dense", "best_before", "best"]
    kept = [torch.load(folder / f"{name}.ckpt", weights_only=True) for name in names]
    assert [checkpoint["epoch"] for checkpoint in kept] == [0, 1, 2]
    zeros = [int((c["state_dict"]["network.conv.weight"] == 0).sum()) for c in kept]
    assert zeros[0] == 0 < zeros[1] < zeros[2]


def test_a_lottery_ticket_goes_back_to_the_first_weights_each_time(compose_train: Compose) -> None:
    found = []

    class Look(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.current_epoch in (1, 2) and trainer.fit_loop.epoch_loop.batch_idx == 0:
                found.append([layer.weight_orig * layer.weight_mask for layer in layers])

    run = assemble(compose_train(NETWORK, *QUIET, *PRUNING, LOTTERY, "data.batch_size=8"))
    network = run.classifier.network
    layers: Any = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    first = [layer.weight.detach().clone() for layer in layers]
    run.trainer.callbacks.append(Look())
    run.trainer.fit(run.classifier, run.datamodule)
    assert len(found) == 2
    for pruned in found:
        for weight, initial in zip(pruned, first, strict=True):
            assert torch.equal(weight, initial.where(weight != 0, 0))
            assert int((weight != 0).sum()) > 0


@pytest.mark.parametrize("options", [[], ["optimizer=muon"], [LOTTERY]])
@pytest.mark.parametrize("step", [7, 8])  # within the epoch that begins with pruning, and after it
def test_lightnings_pruning_goes_on_where_it_was(
    compose_train: Compose, tmp_path: Path, options: list[str], step: int
) -> None:
    options = [*options, "data.batch_size=8"]  # 4 steps an epoch
    whole = train(compose_train(NETWORK, *QUIET, *PRUNING, *options))
    part = [*PRUNING, *options, f"run_dir={tmp_path}/part"]
    train(compose_train(NETWORK, *QUIET, *part, f"trainer.max_steps={step}"))
    rest = train(compose_train(NETWORK, *QUIET, *part, f"resume={tmp_path}/part"))
    assert rest.trainer.global_step == whole.trainer.global_step == 12
    expected = whole.classifier.state_dict()
    assert sum(int((value == 0).sum()) for value in expected.values()) > 500
    for name, value in rest.classifier.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_a_resumed_lottery_ticket_goes_back_to_the_weights_it_was_initialised_from(
    compose_train: Compose, tmp_path: Path
) -> None:
    options = [NETWORK, *QUIET, "data.batch_size=8"]
    train(compose_train(*options, "logger=none", f"run_dir={tmp_path}/source"))
    options += [*PRUNING, LOTTERY, f"init_from={tmp_path}/source"]
    whole = train(compose_train(*options))
    part = f"run_dir={tmp_path}/part"
    train(compose_train(*options, part, "trainer.max_steps=7"))  # between the two prunings
    rest = train(compose_train(*options, part, f"resume={tmp_path}/part"))
    expected = whole.classifier.state_dict()
    for name, value in rest.classifier.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_lightnings_pruning_and_an_average_are_refused(compose_train: Compose) -> None:
    both = [option.replace("callbacks=pruning", "callbacks=[pruning,ema]") for option in PRUNING]
    assert both != PRUNING
    with pytest.raises(UserError, match=r"^callbacks\.pruning masks weights, and callbacks\.ema"):
        train(compose_train(NETWORK, *QUIET, *both))


def test_pruning_and_sparsity_are_refused_together(compose_train: Compose) -> None:
    options = ["callbacks.pruning.at_epochs=[1]", "callbacks.sparsity_2_4.start_epoch=2"]
    with pytest.raises(UserError, match="does not reach them: leave one out"):
        train(compose_train(NETWORK, *QUIET, "callbacks=[pruning,sparsity_2_4]", *options))
