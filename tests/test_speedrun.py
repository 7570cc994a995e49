"""The parts of `experiment=speedrun`, each by itself and with other networks."""

from __future__ import annotations

import json
from pathlib import Path

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_dir

from conftest import Compose, Run
from litvision.assemble import Run as Assembled
from litvision.assemble import assemble
from litvision.configs import CONF
from litvision.errors import UserError
from litvision.transforms import normalize
from test_datamodule import datamodule, epoch

QUIET = ["logger=none", "callbacks.progress_bar=null", "callbacks.model_summary=null"]
SMALL = ["data=shapes", "data.train_size=120", "data.test_size=40", "data.batch_size=32"]


def speedrun(folder: Path, *overrides: str, recipe: str = "experiment=speedrun") -> Assembled:
    fixed = [*SMALL, *QUIET, recipe, "trainer.accelerator=cpu", "overrides=[]"]
    fixed += ["callbacks.figures=null", f"run_dir={folder}", "model.network.widths=[8,16,16]"]
    with initialize_config_dir(str(CONF)):
        return assemble(compose("train", [*fixed, *overrides]))


# ------------------------------------------------------------------------------ alternating flip


def test_a_picture_is_mirrored_in_every_other_epoch() -> None:
    made = datamodule(flip="alternating", padding=0, mean=[0.0] * 3, std=[1.0] * 3)
    images = made.subsets["train"].images.pixels
    images += (torch.arange(8) * 8)[:, None].to(torch.uint8)  # darker on the left

    def mirrored(number: int) -> dict[tuple[float, ...], bool]:
        found = {}
        for batch in epoch(made, number):
            for picture in batch.images:
                row = picture[0, 0].tolist()
                found[tuple(sorted(row))] = row[0] > row[-1]
        return found

    first, second, third = (mirrored(number) for number in range(3))
    assert first.keys() == second.keys() == third.keys()
    assert all(first[key] != second[key] for key in first)
    assert first == third
    assert 0.25 < sum(first.values()) / len(first) < 0.75


def test_devices_mirror_the_same_pictures_as_one(tmp_path: Path) -> None:
    made = datamodule(flip="alternating")
    whole = list(made._plans("train", training=True))
    shared = []
    for rank in range(2):
        plans = made._plans("train", training=True)
        plans.rank, plans.world_size = rank, 2
        shared.append(list(plans))
    for step, plan in enumerate(whole):
        for rank in range(2):
            assert (shared[rank][step].draws == plan.draws[rank::2]).all()


# ------------------------------------------------------------------------------------- whitening


def test_the_first_layer_is_whitened_with_the_training_pictures_once(tmp_path: Path) -> None:
    run = speedrun(tmp_path, "callbacks.whitening.pictures=50", "trainer.max_epochs=4")
    run.trainer.fit(run.classifier, run.datamodule)
    network, data = run.classifier.network, run.datamodule
    twin = type(network)(widths=[8, 16, 16], epsilon=0.01, directions=8)
    subset = data.subsets["train"]
    labels = subset.images.labels[subset.indices]
    chosen = torch.tensor([k * len(subset) // 50 for k in range(50)])
    assert len(labels[chosen].unique()) == 10  # also where pictures are sorted by class
    pixels = subset.images.pixels[subset.indices[chosen]]
    twin.whiten([normalize(pixels, torch.tensor(data.mean), torch.tensor(data.std))])
    torch.testing.assert_close(network.whitening.weight, twin.whitening.weight)
    assert not network.whitening.bias.requires_grad  # after two epochs
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    saved = last["state_dict"]["network.whitening.bias"]
    assert torch.equal(saved, network.whitening.bias)


def test_a_gate_is_trained_for_as_many_epochs_as_given(tmp_path: Path) -> None:
    options = ["callbacks.whitening.gate_epochs=1", "callbacks.whitening.bias_epochs=2"]
    run = speedrun(tmp_path, *options, "trainer.max_epochs=3")
    network, seen = run.classifier.network, []

    class Note(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            seen.append((network.gate.conv.weight.clone(), network.whitening.bias.clone()))

    before = network.gate.conv.weight.clone()
    run.trainer.callbacks.append(Note())
    run.trainer.fit(run.classifier, run.datamodule)
    gates, biases = zip(*seen, strict=True)
    assert not torch.equal(gates[0], before)
    assert torch.equal(gates[0], gates[2])
    assert not torch.equal(biases[0], biases[1])
    assert torch.equal(biases[1], biases[2])
    asked = []  # once both have settled, no gradient goes through the first group's convolution
    convolution = network.groups[0].conv1
    convolution.register_forward_pre_hook(lambda module, inputs: asked.append(inputs[0]))
    network.train()(torch.randn(4, 3, 32, 32))
    assert not asked[0].requires_grad


def test_few_pictures_at_a_time_are_normalized_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = speedrun(tmp_path, "callbacks.whitening.pictures=50", "trainer.max_epochs=1")
    sizes: list[int] = []
    monkeypatch.setattr(
        run.classifier.network, "whiten", lambda batches: sizes.extend(map(len, batches))
    )
    monkeypatch.setattr("litvision.callbacks.whitening.VALUES", 16 * 32 * 32 * 3)
    run.trainer.fit(run.classifier, run.datamodule)
    assert sizes == [16, 16, 16, 2]


@pytest.mark.parametrize("finder", ["lr_finder", "batch_size_finder"])
def test_a_finder_tries_the_whitened_network(tmp_path: Path, finder: str) -> None:
    options = [f"callbacks=[{finder},whitening]", "trainer.max_epochs=1"]
    run = speedrun(tmp_path, *options, recipe="model=speednet")
    run.trainer.fit(run.classifier, run.datamodule)
    assert run.classifier.network.whitening.weight.abs().max() > 1  # 0.3 where it is random


def test_several_rates_are_not_searched_as_one(tmp_path: Path) -> None:
    run = speedrun(tmp_path, "callbacks=[lr_finder,whitening]")
    with pytest.raises(UserError, match=r"has several \(0.15, 26.5, 670\): give another optimizer"):
        run.trainer.fit(run.classifier, run.datamodule)


def test_loaded_filters_are_not_computed_anew(tmp_path: Path) -> None:
    first = speedrun(tmp_path / "first", "trainer.max_epochs=1")
    first.trainer.fit(first.classifier, first.datamodule)
    options = [f"init_from={tmp_path}/first", "data.seed=5", "trainer.max_epochs=1"]
    second = speedrun(tmp_path / "second", *options)
    second.trainer.fit(second.classifier, second.datamodule)
    loaded, kept = (r.classifier.network.whitening.weight for r in (first, second))
    assert torch.equal(loaded, kept)


def test_two_devices_train_the_whole_recipe(tmp_path: Path, run: Run) -> None:
    options = [*SMALL, "experiment=speedrun", "trainer.accelerator=cpu", "trainer.max_epochs=4"]
    options += ["trainer=ddp", "trainer.devices=2", "model.network.widths=[8,16,16]"]
    options.append("callbacks.figures=null")
    done = run("train", *options, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["epochs"] == 4
    assert "sync_dist" not in done.stderr  # Lightning's advice on what is reduced already
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["state_dict"]["network.whitening.weight"].abs().max() > 1


def test_a_resumed_run_ends_where_a_whole_one_does(tmp_path: Path) -> None:
    whole, half, rest = (tmp_path / name for name in ("whole", "half", "rest"))
    options = ["trainer.max_epochs=4", "trainer.precision=32-true"]
    options += ["data.crop=24", "data.crop_epochs=3"]  # it is stopped within the last of these
    run = speedrun(whole, *options)
    run.trainer.fit(run.classifier, run.datamodule)
    stop = "+callbacks.signal={_target_: tiny.Signal, step: 9}"
    first = speedrun(half, *options, stop)
    with pytest.raises(SystemExit):
        first.trainer.fit(first.classifier, first.datamodule)
    again = speedrun(rest, *options, f"resume={half}")
    again.trainer.fit(
        again.classifier, again.datamodule, ckpt_path=again.resume_from, weights_only=True
    )
    for name, value in run.classifier.state_dict().items():
        assert torch.equal(again.classifier.state_dict()[name], value), name


def test_another_network_has_nothing_to_whiten(compose_train: Compose) -> None:
    run = assemble(compose_train(*QUIET, "callbacks=whitening"))
    with pytest.raises(UserError, match=r"TinyNet has no layer to whiten: choose model=speednet"):
        run.trainer.fit(run.classifier, run.datamodule)


# ----------------------------------------------------------------------------- progressive resizing


def test_training_sees_windows_first_and_validation_whole_pictures(tmp_path: Path) -> None:
    run = speedrun(tmp_path, "trainer.max_epochs=3", "data.crop=20", "data.crop_epochs=2")
    seen: list[tuple[bool, tuple[int, ...]]] = []
    network = run.classifier.network
    network.register_forward_pre_hook(
        lambda module, inputs: seen.append((module.training, tuple(inputs[0].shape[2:])))
    )
    run.trainer.fit(run.classifier, run.datamodule)
    steps = run.datamodule.steps_per_epoch
    trained = [size for training, size in seen if training]
    assert trained == [(20, 20)] * (2 * steps) + [(32, 32)] * steps
    assert {size for training, size in seen if not training} == {(32, 32)}


def test_a_window_too_small_for_the_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        speedrun(tmp_path, "data.crop=8")
    assert str(caught.value) == (
        "data.crop=8: model.network refuses a picture of shape [1, 3, 8, 8]: SpeedNet needs "
        "pictures of at least 9x9 pixels, not 8x8: enlarge or pad them"
    )


# ----------------------------------------------------------------------------- all training data


def test_without_validation_every_training_picture_is_trained_on(tmp_path: Path) -> None:
    run = speedrun(tmp_path, "data.val_fraction=0", "monitor=train/loss", "trainer.max_epochs=2")
    assert len(run.datamodule.subsets["train"]) == 120
    run.trainer.fit(run.classifier, run.datamodule)
    assert run.checkpoint is None  # none is the best, where nothing is validated
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()
    assert "val/loss" not in run.trainer.callback_metrics
    run.trainer.test(run.classifier, run.datamodule, ckpt_path=run.checkpoint, verbose=False)
    assert 0 <= run.trainer.callback_metrics["test/acc"] <= 1


def test_without_validation_a_plateau_of_the_training_loss_lowers_the_rate(
    compose_train: Compose,
) -> None:
    options = ["data.val_fraction=0", "monitor=train/loss", "trainer.max_epochs=6"]
    options += ["optimizer.lr=1e-6", "callbacks.reduce_lr_on_plateau.patience=1"]  # learns nothing
    run = assemble(compose_train(*QUIET, "callbacks.figures=null", *options))
    run.trainer.fit(run.classifier, run.datamodule)
    assert run.trainer.optimizers[0].param_groups[0]["lr"] <= 0.5e-6


# ------------------------------------------------------------------------------- all of it at once


def test_the_recipe_learns(tmp_path: Path, run: Run) -> None:
    options = ["data=shapes", "data.train_size=1000", "data.test_size=200", "data.batch_size=50"]
    done = run(
        "train", "experiment=speedrun", *options, "model.network.widths=[16,32,32]",
        "optimizer.lr_linear=20", "optimizer.lr_vector=5", "trainer.max_epochs=4",
        "trainer.accelerator=cpu", "hydra.run.dir=run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    plain = json.loads((tmp_path / "run" / "result.json").read_text())["test/acc"]
    assert plain > 0.6  # one in ten by chance
    done = run("evaluate", "checkpoint=run", "tta=flip_shift", "hydra.run.dir=tta")
    assert done.returncode == 0, done.stderr
    averaged = json.loads((tmp_path / "tta" / "evaluation.json").read_text())
    assert averaged["tta"] == "flip_shift"
    assert averaged["test/acc"] > plain - 0.1


@pytest.mark.slow
@pytest.mark.parametrize("model", ["resnet18", "vgg16"])
def test_its_parts_work_with_other_networks(tmp_path: Path, run: Run, model: str) -> None:
    done = run(
        "train", "data=shapes", "data.train_size=400", "data.test_size=100", "data.batch_size=40",
        f"model={model}", "optimizer=muon", "scheduler=linear", "data.flip=alternating",
        "data.padding_mode=reflect", "model.label_smoothing=0.2", "trainer.max_epochs=4",
        "trainer.accelerator=cpu", "hydra.run.dir=run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["train/loss"] < 2.0  # 2.3 by chance
    assert result["val/acc"] > 0.25
    done = run("evaluate", "checkpoint=run", "tta=flip_shift", "hydra.run.dir=tta")
    assert done.returncode == 0, done.stderr
