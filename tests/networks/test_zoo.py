"""Networks of torchvision and timm by name, with weights that are there already."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from conftest import Compose
from litvision.assemble import assemble
from litvision.errors import UserError
from litvision.initialize import initialize
from litvision.networks import zoo

GET_MODEL = {"_target_": zoo.GET_MODEL, "num_classes": 3}
CREATE_MODEL = {"_target_": zoo.CREATE_MODEL, "num_classes": 3}
TORCHVISION = ["model=torchvision", f"model.network._target_={zoo.GET_MODEL}"]
TIMM = ["model=timm", f"model.network._target_={zoo.CREATE_MODEL}"]
QUIET = ["callbacks.progress_bar=null", "callbacks.provenance=null", "logger=none"]
QUIET += ["trainer.max_epochs=1", "trainer.accelerator=cpu", "data.train_size=40"]


SMALL = 2**-7  # of which all weights are, to be known again


def alike(network: nn.Module) -> dict[str, torch.Tensor]:
    state = network.state_dict().items()
    return {key: torch.full(tensor.shape, SMALL).to(tensor.dtype) for key, tensor in state}


def is_theirs(tensor: torch.Tensor) -> bool:
    return bool((tensor == (SMALL if tensor.is_floating_point() else 0)).all())


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put weights where torch would have downloaded them to."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def put(name: str) -> None:
        weights = torchvision.models.get_model_weights(name).DEFAULT
        folder = tmp_path / "hub" / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        with torch.device("meta"):
            network = torchvision.models.get_model(name)
        torch.save(alike(network), folder / Path(weights.url).name)

    return put


@pytest.mark.parametrize(
    ("node", "head"),
    [
        (GET_MODEL | {"name": "MobileNet_V3_Small"}, "classifier.3"),
        ({"_target_": "torchvision.models.squeezenet1_1", "num_classes": 3}, "classifier.1"),
    ],
    ids=["by name", "by function"],
)
def test_torchvisions_weights_are_taken_but_for_the_last_layer(
    node: dict[str, Any], head: str, cached: Callable[[str], None]
) -> None:
    name = node.get("name", "squeezenet1_1").lower()
    cached(name)
    network = torchvision.models.get_model(name, num_classes=3)
    report = initialize(network, "imagenet", node)
    assert report.replaced == [f"{head}.weight", f"{head}.bias"]
    assert report.source.startswith(f"torchvision's {name} (")
    assert report.pictures == ((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    state = network.state_dict()
    assert all(is_theirs(state[key]) for key in report.loaded)
    assert state[f"{head}.bias"].shape == (3,)


def test_auxiliary_classifiers_may_be_left_out(cached: Callable[[str], None]) -> None:
    cached("googlenet")
    network = torchvision.models.googlenet(num_classes=3, aux_logits=False, init_weights=False)
    report = initialize(network, "imagenet", GET_MODEL | {"name": "googlenet"})
    assert report.replaced == ["fc.weight", "fc.bias"]


def test_a_class_of_torchvisions_stands_for_no_weights() -> None:
    network = torchvision.models.resnet18(num_classes=3)
    with pytest.raises(UserError, match="torchvision and timm, not for ResNet: give a checkpoint"):
        initialize(network, "imagenet", {"_target_": "torchvision.models.ResNet"})


def test_timms_weights_are_taken_from_a_file_too(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    file = tmp_path / "weights.pth"
    torch.save(alike(timm.create_model("resnet10t")), file)
    overlay = {"pretrained_cfg_overlay": {"file": str(file)}}
    node = CREATE_MODEL | {"model_name": "resnet10t", "in_chans": 3} | overlay
    network = timm.create_model("resnet10t", num_classes=3)
    random = torch.get_rng_state()
    report = initialize(network, "imagenet", node)
    assert torch.equal(torch.get_rng_state(), random)
    assert report.replaced == ["fc.weight", "fc.bias"]
    assert report.source == "timm's resnet10t.c3_in1k"
    assert report.pictures == ((176, 176), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert is_theirs(network.state_dict()["layer4.0.conv2.weight"])
    file.unlink()
    with pytest.raises(UserError) as caught:
        initialize(network, "imagenet", node)
    assert str(caught.value) == (
        "init_from=imagenet: timm's weights of resnet10t, "
        "https://huggingface.co/timm/resnet10t.c3_in1k, could not be had (FileNotFoundError). "
        "Give another name, a file of weights as +model.network.pretrained_cfg_overlay.file=<path>,"
        " or a checkpoint."
    )


def test_a_network_of_two_heads_begins_both_anew(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    file = tmp_path / "weights.pth"
    torch.save(alike(timm.create_model("repvit_m0_9", num_classes=3)), file)
    overlay = {"file": str(file), "num_classes": 3, "classifier": ("head.head.l",)}
    node = CREATE_MODEL | {"model_name": "repvit_m0_9", "pretrained_cfg_overlay": overlay}
    network = timm.create_model("repvit_m0_9", num_classes=3)
    report = initialize(network, "imagenet", node)
    heads = ("head.head.l", "head.head_dist.l")
    assert report.replaced == [
        f"{head}.{tensor}" for head in heads for tensor in ("weight", "bias")
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            [*TORCHVISION, "model.network.name=resnet5o"],
            "model.network.name=resnet5o: torchvision has no network of that name that classifies. "
            "Nearest: resnet50, ",
        ),
        (
            [*TORCHVISION, "model.network.name=raft_large"],
            "model.network.name=raft_large: torchvision has no network of that name",
        ),
        (
            [*TIMM, "model.network.model_name=resnet10"],
            "model.network.model_name=resnet10: timm has no network of that name",
        ),
    ],
    ids=["misspelt", "another task", "timm"],
)
def test_an_unknown_name_is_refused_before_data_are_read(
    options: list[str], message: str, compose_train: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "model=timm" in options:
        pytest.importorskip("timm")
    monkeypatch.setattr("litvision.assemble.build_datamodule", pytest.fail)
    with pytest.raises(UserError) as caught:
        assemble(compose_train(*options, *QUIET))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            [*TORCHVISION, "model.network.name=resnet18", "+model.network.foo=1"],
            "model: ResNet.__init__() got an unexpected keyword argument 'foo': leave that option "
            "out.",
        ),
        (
            [*TORCHVISION, "model.network.name=resnet18", "+model.network.weights=foo"],
            "model: it knows no 'foo'",
        ),
        (
            [*TIMM, "model.network.model_name=local-dir:/nowhere"],
            "model: Config file not found: /nowhere/config.json",
        ),
        (["trainer.devices=-1"], "trainer: `devices` selected with `CPUAccelerator` should be an"),
    ],
    ids=["option", "weights", "file", "devices"],
)
def test_what_a_package_refuses_while_building_is_said_in_one_line(
    options: list[str], message: str, compose_train: Compose
) -> None:
    if "model=timm" in options:
        pytest.importorskip("timm")
    with pytest.raises(UserError) as caught:
        assemble(compose_train(*options, *QUIET))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("name", "said"),
    [("Mistaken", "unexpected keyword argument 'colour'"), ("Deeper", "must be tuple of ints")],
)
def test_a_mistake_in_ones_own_network_keeps_its_traceback(
    name: str, said: str, compose_train: Compose
) -> None:
    with pytest.raises(TypeError, match=said):
        assemble(compose_train(f"model.network._target_=test_zoo.{name}", *QUIET))


class Mistaken(nn.Module):
    def __init__(self, num_classes: int = 3, in_channels: int = 3, norm: str = "batch") -> None:
        super().__init__()
        nn.Conv2d(3, 3, 3, colour=True)  # type: ignore[call-arg]


class Deeper(nn.Module):
    """Is mistaken in what only a function of torch's finds."""

    def __init__(self, num_classes: int = 3, in_channels: int = 3, norm: str = "batch") -> None:
        super().__init__()
        nn.Linear("three", num_classes)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["resnet10t", "resnet10t.c3_in1k", "hf-hub:someone/something"])
def test_names_that_timm_knows(name: str) -> None:
    pytest.importorskip("timm")
    zoo.check_name(CREATE_MODEL | {"model_name": name})


def test_one_of_torchvision_is_fine_tuned_from_a_config(
    compose_train: Compose, cached: Callable[[str], None]
) -> None:
    cached("mobilenet_v3_small")
    options = ["experiment=finetune", "init_from=imagenet", *TORCHVISION]
    run = assemble(compose_train(*options, *QUIET))
    run.trainer.fit(run.classifier, run.datamodule)
    state = run.classifier.network.state_dict()
    moved = [key for key, tensor in state.items() if not is_theirs(tensor)]
    assert moved == ["classifier.3.weight", "classifier.3.bias"]
