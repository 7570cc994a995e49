"""Fine-tuning: what is loaded, replaced and frozen, and that frozen means to the bit."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from conftest import Compose, FileServer
from litvision.assemble import Run, assemble
from litvision.callbacks.finetuning import Finetuning
from litvision.callbacks.reduce_lr_on_plateau import ReduceLROnPlateau
from litvision.errors import UserError
from litvision.initialize import Initialization, initialize, last_layers
from litvision.networks.normalization import Norm
from litvision.networks.resnet import ResNet18
from litvision.networks.vgg import VGG16
from litvision.networks.zoo import TrainedOn
from test_checkpoints import content
from tiny import TinyNet

QUIET = ["logger=none", "callbacks.progress_bar=null", "callbacks.provenance=null", "test=false"]
QUIET += ["trainer.precision=32-true", "data.padding=0"]
FIRST = "data.classes=[triangle,cross,crescent]"
SECOND = "data.classes=[ring,star]"
BODY = ["conv.weight", "conv.bias", "norm.weight", "norm.bias"]
BODY += ["norm.running_mean", "norm.running_var", "norm.num_batches_tracked"]


@pytest.fixture
def source(compose_train: Compose, tmp_path: Path) -> Path:
    """The folder of a run on three classes."""
    train(compose_train(FIRST, *QUIET, f"run_dir={tmp_path}/source"))
    return tmp_path / "source"


def train(cfg: Any) -> Run:
    run = assemble(cfg)
    run.trainer.fit(run.classifier, run.datamodule, ckpt_path=run.resume_from, weights_only=True)
    return run


def tensors(path: Path) -> dict[str, Tensor]:
    state = torch.load(path, weights_only=True)["state_dict"]
    return {name.removeprefix("network."): t for name, t in state.items() if "network" in name}


def finetune(compose_train: Compose, source: Path, *overrides: str) -> Run:
    recipe = ["experiment=finetune", f"init_from={source}", SECOND, "trainer.max_epochs=4"]
    return train(compose_train(*recipe, *QUIET, *overrides))


def test_what_was_loaded_stays_to_the_bit_and_the_last_layer_trains(
    compose_train: Compose, source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    before = tensors(source / "checkpoints" / "best.ckpt")
    run = finetune(compose_train, source, "trainer.max_epochs=3")
    after = run.classifier.network.state_dict()
    for name in BODY:
        assert torch.equal(after[name], before[name]), name
    assert after["fc.weight"].shape == (2, 8)
    (group,) = run.trainer.optimizers[0].param_groups
    assert list(map(id, group["params"])) == list(map(id, run.classifier.network.fc.parameters()))
    assert not torch.equal(after["fc.weight"], assemble_fc(compose_train))
    assert caplog.messages.count("7 loaded tensors are frozen to the end") == 1
    line = f"initialized from {source / 'checkpoints' / 'best.ckpt'}: 7 tensors loaded, "
    assert line + "2 replaced (fc.weight, fc.bias)" in caplog.messages
    report = json.loads((tmp_path / "run" / "initialized.json").read_text())
    assert report["loaded"] == BODY
    assert report["replaced"] == ["fc.weight", "fc.bias"]


def assemble_fc(compose_train: Compose) -> Tensor:
    """The last layer as it is initialised for two classes."""
    return assemble(compose_train(SECOND, *QUIET)).classifier.network.fc.weight


def test_a_frozen_layer_normalises_as_in_evaluation(compose_train: Compose, source: Path) -> None:
    run = finetune(compose_train, source, "trainer.max_epochs=1")
    network = run.classifier.network
    assert network.training
    assert not network.norm.training
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(images), copy.deepcopy(network).eval()(images))


def test_unfrozen_weights_train_with_a_smaller_rate_that_a_plateau_lowers_too(
    compose_train: Compose, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    before = tensors(source / "checkpoints" / "best.ckpt")
    unfreeze = ["callbacks.finetuning.unfreeze_at_epoch=2", "optimizer.lr=0.04"]
    run = finetune(compose_train, source, *unfreeze)
    after = run.classifier.network.state_dict()
    assert not torch.equal(after["conv.weight"], before["conv.weight"])
    assert not torch.equal(after["norm.running_mean"], before["norm.running_mean"])
    # Two of the four epochs.
    tracked = int(after["norm.num_batches_tracked"]) - int(before["norm.num_batches_tracked"])
    assert tracked == 2 * run.datamodule.steps_per_epoch
    assert [group["lr"] for group in run.trainer.optimizers[0].param_groups] == [0.04, 0.004]
    assert "epoch 3: 4 frozen weights train from now on, at lr 0.004" in caplog.messages
    (plateau,) = [c for c in run.trainer.callbacks if isinstance(c, ReduceLROnPlateau)]
    for _ in range(10):  # epochs of a loss that is higher than any before
        plateau.schedule.step(1e9)
    assert [group["lr"] for group in run.trainer.optimizers[0].param_groups] == [0.02, 0.002]


def test_with_muon_each_kind_of_unfrozen_weights_has_its_own_smaller_rate(
    compose_train: Compose, source: Path
) -> None:
    rates = ["optimizer.lr=0.04", "optimizer.lr_linear=0.02", "optimizer.lr_vector=0.3"]
    unfreeze = ["optimizer=muon", *rates, "callbacks.finetuning.unfreeze_at_epoch=2"]
    run = finetune(compose_train, source, *unfreeze, "trainer.max_epochs=3")
    groups = run.trainer.optimizers[0].param_groups
    # The last layer's weights and biases; then the filters, and their and the norm's vectors.
    assert [(g["kind"], pytest.approx(g["lr"])) for g in groups] == [
        ("linear", 0.02), ("vector", 0.3), ("filter", 0.004), ("vector", 0.03),
    ]  # fmt: skip


def test_decay_is_left_out_for_the_same_weights_after_unfreezing(
    compose_train: Compose, source: Path
) -> None:
    options = ["callbacks.finetuning.unfreeze_at_epoch=1", "model.decay_norm_and_bias=false"]
    run = finetune(compose_train, source, *options, "trainer.max_epochs=2")
    groups = run.trainer.optimizers[0].param_groups
    network = run.classifier.network
    assert [(len(g["params"]), g["weight_decay"]) for g in groups] == [
        (1, 5e-4), (1, 0.0), (1, 5e-4), (3, 0.0),
    ]  # fmt: skip
    assert groups[2]["params"][0] is network.conv.weight


class Fixed(TinyNet):
    """Never trains the gains of its normalisation."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3, norm: Norm = "batch") -> None:
        super().__init__(num_classes, in_channels, norm)
        self.norm.weight.requires_grad_(False)


def test_what_a_network_never_trains_stays_so_after_unfreezing(
    compose_train: Compose, tmp_path: Path
) -> None:
    network = "model.network._target_=callbacks.test_finetuning.Fixed"
    train(compose_train(FIRST, network, *QUIET, f"run_dir={tmp_path}/source"))
    options = [network, "callbacks.finetuning.unfreeze_at_epoch=1", "optimizer=muon"]
    run = finetune(compose_train, tmp_path / "source", *options)
    after = run.classifier.network
    before = tensors(tmp_path / "source" / "checkpoints" / "best.ckpt")
    assert not torch.equal(after.conv.weight, before["conv.weight"])
    assert torch.equal(after.norm.weight, before["norm.weight"])
    kinds = [group["kind"] for group in run.trainer.optimizers[0].param_groups]
    assert kinds == ["linear", "vector", "filter", "vector"]


class FixedHead(TinyNet):
    """Never trains its last layer, or its biases only."""

    def __init__(
        self, num_classes: int = 10, in_channels: int = 3, norm: Norm = "batch", only: str = "fc."
    ) -> None:
        super().__init__(num_classes, in_channels, norm)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not name.startswith(only))


def test_what_a_network_never_trains_stays_so_where_it_is_replaced(
    compose_train: Compose, tmp_path: Path
) -> None:
    network = "model.network._target_=callbacks.test_finetuning.FixedHead"
    bias = [network, "+model.network.only=fc.bias"]
    train(compose_train(FIRST, *bias, *QUIET, f"run_dir={tmp_path}/source"))
    first = assemble(compose_train(SECOND, *bias, *QUIET)).classifier.network.fc.bias
    head = finetune(compose_train, tmp_path / "source", *bias).classifier.network.fc
    assert (head.weight.requires_grad, head.bias.requires_grad) == (True, False)
    assert torch.equal(head.bias, first)
    with pytest.raises(UserError, match="would freeze every weight: nothing could train"):
        finetune(compose_train, tmp_path / "source", network)


class NormedHead(TinyNet):
    """Ends with a normalisation, of the logits."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3, norm: Norm = "batch") -> None:
        super().__init__(num_classes, in_channels, norm)
        self.last = nn.BatchNorm1d(num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(super().forward(images))
        return logits


def test_statistics_that_are_replaced_are_those_of_the_new_pictures(
    compose_train: Compose, tmp_path: Path
) -> None:
    network = "model.network._target_=callbacks.test_finetuning.NormedHead"
    train(compose_train(FIRST, network, *QUIET, f"run_dir={tmp_path}/source"))
    run = finetune(compose_train, tmp_path / "source", network, "trainer.max_epochs=2")
    assert (
        int(run.classifier.network.last.num_batches_tracked) == 2 * run.datamodule.steps_per_epoch
    )


@pytest.mark.parametrize(
    ("epochs", "rest"), [(3, ""), (2, ", which the run, of 2, does not come to")]
)
def test_until_when_weights_are_frozen_is_said(
    compose_train: Compose, source: Path, caplog: pytest.LogCaptureFixture, epochs: int, rest: str
) -> None:
    caplog.set_level(logging.INFO)
    options = ["callbacks.finetuning.unfreeze_at_epoch=2", f"trainer.max_epochs={epochs}"]
    finetune(compose_train, source, *options)
    assert f"7 loaded tensors are frozen until epoch 3 begins{rest}" in caplog.messages


@pytest.mark.parametrize("epochs", [1, 3], ids=["frozen", "unfrozen"])
def test_a_resumed_run_ends_with_the_same_weights(
    compose_train: Compose, source: Path, tmp_path: Path, epochs: int
) -> None:
    unfreeze = "callbacks.finetuning.unfreeze_at_epoch=2"
    whole = finetune(compose_train, source, unfreeze, f"run_dir={tmp_path}/whole")
    part = f"run_dir={tmp_path}/part"
    finetune(compose_train, source, unfreeze, part, f"trainer.max_epochs={epochs}")
    gone = source.rename(tmp_path / "moved")  # a resumed run needs it no more
    resumed = finetune(compose_train, source, unfreeze, f"resume={tmp_path}/part")
    assert gone.exists()
    expected = whole.classifier.network.state_dict()
    for name, tensor in resumed.classifier.network.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("steps", [3, 5], ids=["frozen", "unfrozen"])
def test_a_run_resumed_within_an_epoch_ends_with_the_same_weights(
    compose_train: Compose, source: Path, tmp_path: Path, steps: int
) -> None:
    options = ["callbacks.finetuning.unfreeze_at_epoch=2", "data.batch_size=3"]
    whole = finetune(compose_train, source, *options, f"run_dir={tmp_path}/whole")
    assert whole.datamodule.steps_per_epoch == 2
    part = f"run_dir={tmp_path}/part"
    finetune(compose_train, source, *options, part, f"trainer.max_steps={steps}")
    resumed = finetune(compose_train, source, *options, f"resume={tmp_path}/part")
    expected = whole.classifier.network.state_dict()
    for name, tensor in resumed.classifier.network.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_without_freezing_it_is_a_warm_start(compose_train: Compose, source: Path) -> None:
    run = assemble(compose_train(f"init_from={source}", SECOND, *QUIET))
    before = tensors(source / "checkpoints" / "best.ckpt")
    assert torch.equal(run.classifier.network.conv.weight, before["conv.weight"])
    run.trainer.fit(run.classifier, run.datamodule)
    assert not torch.equal(run.classifier.network.conv.weight, before["conv.weight"])


def test_another_shape_is_replaced_too(tmp_path: Path) -> None:
    grey, colour = TinyNet(in_channels=1), TinyNet(in_channels=3)
    path = tmp_path / "grey.ckpt"
    save(grey, path)
    fresh = colour.conv.weight.clone()
    report = initialize(colour, str(path))
    assert report.replaced == ["conv.weight", "fc.weight", "fc.bias"]
    assert torch.equal(colour.conv.weight, fresh)
    assert torch.equal(colour.conv.bias, grey.conv.bias)


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (TrainedOn((32, 32), (0.45, 0.5, 0.55), (0.2, 0.2, 0.2)), None),
        (
            TrainedOn((32, 48), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
            "its weights know pictures of 32x32, and these are of 32x48: the closer they are, the "
            "more the weights are worth",
        ),
        (
            TrainedOn((32, 32), (0.485, 0.5, 0.5), (0.25, 0.25, 0.36)),
            "its weights know pictures of data.mean=[0.5,0.5,0.5] data.std=[0.25,0.25,0.25], and "
            "these are of data.mean=[0.485,0.5,0.5] data.std=[0.25,0.25,0.36]: the closer they "
            "are, the more the weights are worth",
        ),
        (TrainedOn((32, 32), (0.9,), (0.25,)), "data.mean=[0.9] data.std=[0.25]: the closer"),
        (TrainedOn((8, 8), (0.5, 0.5, 0.0), (0.25, 0.25, 0.25)), "32x32 with data.mean=[0.5,0.5,"),
    ],
    ids=["much the same", "size", "scale", "grey", "both"],
)
def test_pictures_unlike_those_that_the_weights_know_are_told(
    now: TrainedOn, said: str | None
) -> None:
    known = TrainedOn((32, 32), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    line = Initialization("a file", [], [], known).unlike(now)
    assert line == said if said is None or said.startswith("its") else said in str(line)


def test_a_run_says_that_its_pictures_are_of_another_size(
    compose_train: Compose, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assemble(compose_train(f"init_from={source}", SECOND, *QUIET))
    assert "its weights know" not in caplog.text
    assemble(compose_train(f"init_from={source}", SECOND, "data.image_size=24", *QUIET))
    assert "its weights know pictures of 32x32, and these are of 24x24: " in caplog.text


def save(network: nn.Module, path: Path) -> None:
    state = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save(content() | {"state_dict": state}, path)


def test_the_other_architecture_is_refused_with_the_first_differing_names(tmp_path: Path) -> None:
    path = tmp_path / "vgg.ckpt"
    save(VGG16(), path)
    with pytest.raises(UserError) as raised:
        initialize(ResNet18(), str(path))
    assert str(raised.value) == (
        f"init_from: {path} holds another network than ResNet18: it lacks conv1.weight and has "
        "features.0.weight, which ResNet18 has not. Give one that was trained with the same "
        "model.network, or choose its model=…."
    )


def test_another_normalisation_is_another_network(tmp_path: Path) -> None:
    save(TinyNet(norm="batch"), tmp_path / "batch.ckpt")
    with pytest.raises(UserError, match=r"it has norm\.weight, which TinyNet has not"):
        initialize(TinyNet(norm="none"), str(tmp_path / "batch.ckpt"))


def test_where_nothing_fits_it_is_refused(tmp_path: Path) -> None:
    save(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), tmp_path / "small.ckpt")
    with pytest.raises(UserError, match=r"no tensor of .*small\.ckpt fits Sequential"):
        initialize(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2)), str(tmp_path / "small.ckpt"))
    with pytest.raises(UserError, match="Linear has no layer before its last"):
        initialize(nn.Linear(3, 2), str(tmp_path / "small.ckpt"))


@pytest.mark.parametrize(("network", "head"), [(ResNet18, "fc"), (VGG16, "classifier")])
def test_the_last_layer_is_found(network: Any, head: str) -> None:
    with torch.device("meta"):
        assert last_layers(network()) == [head]


@pytest.mark.parametrize(
    ("network", "name", "replaced"),
    [
        (ResNet18, "resnet18", ["conv1.weight", "fc.weight", "fc.bias"]),
        (VGG16, "vgg16_bn", ["classifier.weight", "classifier.bias"]),
    ],
)
def test_imagenet_weights_come_from_torchs_cache(
    network: Any, name: str, replaced: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = torchvision.models.get_model_weights(name).DEFAULT
    with torch.device("meta"):
        shapes = torchvision.models.get_model(name).state_dict()
    theirs = {  # the large linear layers of VGG are not needed
        key: torch.full(tensor.shape, 2, dtype=tensor.dtype)
        for key, tensor in shapes.items()
        if not (name == "vgg16_bn" and key.startswith("classifier"))
    }
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(theirs, folder / Path(weights.url).name)
    ours = network()
    report = initialize(ours, "imagenet")
    assert report.replaced == replaced
    assert report.source.startswith(f"torchvision's {name} (")
    for key in report.loaded:
        assert (ours.state_dict()[key] == 2).all(), key


def test_a_download_that_fails_says_where_the_file_belongs(
    file_server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    file_server.fault = "missing"
    url = f"{file_server.url}/resnet18-f37072fd.pth"
    weights = torchvision.models.get_model_weights("resnet18").DEFAULT
    monkeypatch.setattr(weights.value, "url", url, raising=True)
    with pytest.raises(UserError) as raised:
        initialize(ResNet18(), "imagenet")
    file = tmp_path / "home" / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    assert str(raised.value) == (
        f"init_from=imagenet: {url} could not be downloaded (HTTP Error 404: Not Found). "
        f"Put that file at {file}, or give a checkpoint."
    )
    assert not file.exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["callbacks=finetuning"],
            r"callbacks\.finetuning freezes what init_from has loaded: give",
        ),
        (
            ["init_from=imagenet"],
            r"for ResNet18, VGG16 and the networks of torchvision and timm, not for TinyNet: give",
        ),
        (["init_from=nowhere.ckpt"], r"There is no checkpoint at nowhere\.ckpt: give init_from="),
        (["init_from=3"], r"init_from=3 does not fit: it takes a string or null"),
    ],
)
def test_what_cannot_be_is_refused(
    compose_train: Compose, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train(compose_train(*overrides, *QUIET))


def test_a_schedule_by_step_cannot_take_in_weights(compose_train: Compose, source: Path) -> None:
    options = ["scheduler=cosine", "callbacks.finetuning.unfreeze_at_epoch=1"]
    with pytest.raises(UserError, match=r"schedule cannot take in: give scheduler=none"):
        finetune(compose_train, source, *options)
    finetune(compose_train, source, "scheduler=cosine", "trainer.max_epochs=1")


def test_unfreezing_on_several_devices_is_refused(compose_train: Compose, source: Path) -> None:
    several = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    cfg = compose_train("experiment=finetune", f"init_from={source}", SECOND, *QUIET, *several)
    cfg.callbacks.finetuning.unfreeze_at_epoch = 1
    run = assemble(cfg)
    (callback,) = (c for c in run.trainer.callbacks if isinstance(c, Finetuning))
    with pytest.raises(UserError, match=r"unfreeze_at_epoch: several devices exchange only"):
        callback.setup(run.trainer, run.classifier, "fit")
