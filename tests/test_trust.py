"""Strangers' checkpoints: they run nothing, fetch nothing, and take no more than they bring."""

from __future__ import annotations

import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from litvision import checkpoints, trust
from litvision.errors import UserError
from test_checkpoints import content, save


class Calls:
    """Calls something when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


NOT_NETWORKS = [
    "torchvision.datasets.utils.download_and_extract_archive",
    "torchvision.io.write_file",
    # Of trusted packages, but no classes of networks: these download, write, import or run.
    "torchvision.models._api.WeightsEnum.get_state_dict",
    "torchvision.models._api.get_model",
    "torchvision.models.get_weight",
    "torchvision.models.resnet.ResNet18_Weights.DEFAULT.get_state_dict",
    "torchvision.models.segmentation.fcn_resnet50",  # downloads its backbone unless told not to
    "torchvision.models.detection.fasterrcnn_resnet50_fpn",
    "torch.nn.attention._fa3._fa3_import_module",
    "torch.nn.Module.state_dict",
    "torch.nn.Linear.__init__.__globals__",
    "torch.nn.functional.torch.os.system",
    "torchvision.models.resnet.torch.hub.os.system",
    "litvision.networks.resnet.torch.os.system",
    "litvision.networks.normalization.normalization",
    "litvision.train.main",
    "litvision.commandline.os.system",
    "litvision.sources.cifar.CIFAR10",
    "litvision.sources.cifar.CIFAR10.prepare",
    "litvision.sources.cifar._unpack",
    "litvision.sources.image_folder.ImageFolder.prepare",
    "litvision.datamodule.ImageDataModule",
    "litvision.classifier.ImageClassifier",  # within one
    "torch.nn.no_such_thing",
    "torch.nn",
]


@pytest.mark.parametrize("target", NOT_NETWORKS)
@pytest.mark.parametrize("partial", [True, False])
def test_what_is_no_network_is_not_trusted(target: str, partial: bool, tmp_path: Path) -> None:
    network = {"_target_": target, "_partial_": partial}
    for place in ({"network": network}, {"network": {"_target_": "tiny.TinyNet", "norm": network}}):
        with pytest.raises(UserError, match="which is not trusted"):
            checkpoints.rebuild(content(**place), "a.ckpt", trust=["tiny.*"])


@pytest.mark.parametrize("name", ["fcn_resnet50", "get_weight", {"_target_": "os.getcwd"}, None])
def test_a_name_that_is_no_network_is_not_trusted(name: Any) -> None:
    network = {"_target_": "torchvision.models.get_model", "name": name}
    with pytest.raises(UserError, match="which is not trusted"):
        checkpoints.rebuild(content(network=network), "a.ckpt")


def test_a_set_of_weights_of_a_strangers_fetches_nothing(tmp_path: Path) -> None:
    """torchvision's own loader would take any address, and unpickle what comes."""
    save(tmp_path / "evil.pth", {"a": Calls(Path.touch, tmp_path / "ran")})
    weights = {
        "_target_": "torchvision.models._api.Weights",
        "url": (tmp_path / "evil.pth").as_uri(),
        "transforms": None,
        "meta": {},
    }
    network = {
        "_target_": "torchvision.models._api.WeightsEnum.get_state_dict",
        "self": weights,
        "model_dir": str(tmp_path / "made"),
    }
    with pytest.raises(UserError, match="which is not trusted"):
        checkpoints.rebuild(content(network=network), "a.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["evil.pth"]


@pytest.mark.parametrize(
    "target", ["torch.nn.Identity", "torchvision.models.resnet18", "torchvision.models.ResNet",
               "litvision.networks.resnet.ResNet18", "tiny.anything"]
)  # fmt: skip
def test_networks_are_trusted(target: str) -> None:
    model = content(network={"_target_": target})["litvision"]["config"]["model"]
    assert trust.trusted_model(model, ["tiny.*"], "a.ckpt")["network"]["_target_"] == target


def test_nothing_is_looked_up_on_this_machine_for_a_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SECRET", "TinyNet")
    for text in ("tiny.${oc.env:SECRET}", f"${{new_folder:{tmp_path}/made}}"):
        for model in ({"network": {"_target_": "tiny.TinyNet", "norm": text}}, {"compile": [text]}):
            with pytest.raises(
                UserError, match=r"a.ckpt is not as a run saves it: its config holds"
            ):
                checkpoints.rebuild(content(**model), "a.ckpt", trust=["tiny.*"])
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("side", [10**6, 5 * 10**4])  # 4 TB; 10 GB
def test_a_network_is_not_built_larger_than_its_weights(side: int) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    huge = {"_target_": "torch.nn.Linear", "in_features": side, "out_features": side}
    message = (
        f"a.ckpt does not give a classifier: its config has network.weight with shape "
        rf"\[{side}, {side}\], its weights have none"
    )
    with pytest.raises(UserError, match=message):
        checkpoints.rebuild(content(network=huge), "a.ckpt")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux sets the limit")
class TestMemoryLimit:
    @pytest.fixture(autouse=True)
    def _little_room(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(trust, "_ROOM", 2**28)

    def test_more_memory_is_refused_within_it_alone(self) -> None:
        with trust.memory_limit(0):
            with pytest.raises(RuntimeError, match="can't allocate memory"):
                torch.empty(2**30, dtype=torch.uint8)
            with pytest.raises(MemoryError):
                bytearray(2**30)
        assert len(bytearray(2**30)) == torch.empty(2**30, dtype=torch.uint8).numel()

    def test_it_bounds_a_network_that_cannot_be_built_without_memory(self) -> None:
        network = {"_target_": "torchvision.models.regnet_y_128gf"}  # 645 million weights
        with pytest.raises(UserError, match=r"a\.ckpt does not give a classifier: .*memory"):
            checkpoints.rebuild(content(network=network), "a.ckpt")

    @pytest.mark.slow
    def test_it_bounds_a_network_of_many_layers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(trust, "_ROOM", 2**26)  # each takes 50 kB, and time
        network = {"_target_": "torch.nn.Transformer", "num_encoder_layers": 10**9, "d_model": 8}
        with pytest.raises(UserError, match=r"a\.ckpt does not give a classifier"):
            checkpoints.rebuild(content(network=network), "a.ckpt")

    @pytest.mark.parametrize("call", [(torch.Tensor, 10**5, 10**5), (bytearray, 10**11)])
    def test_it_bounds_what_is_unpickled(self, tmp_path: Path, call: Any) -> None:
        path = save(tmp_path / "a.ckpt", content() | {"large": Calls(*call)})
        with pytest.raises(UserError, match="cannot be read as a checkpoint"):
            checkpoints.read(path)


def test_one_number_does_not_stand_for_many() -> None:
    linear = {"_target_": "torch.nn.Linear", "in_features": 10**6, "out_features": 10**6}
    saved = content(network=linear | {"bias": False})
    saved["state_dict"] = {"network.weight": torch.zeros(1).expand(10**6, 10**6)}
    with pytest.raises(UserError, match=r"its weights have the shapes .* but not as many values"):
        checkpoints.rebuild(saved, "a.ckpt")


def test_one_memory_does_not_stand_for_many_layers() -> None:
    layers = [{"_target_": "torch.nn.Linear", "in_features": 9, "out_features": 9, "bias": False}]
    saved = content(network={"_target_": "torch.nn.Sequential", "_args_": layers * 20})
    whole = torch.zeros(9, 9)
    saved["state_dict"] = {f"network.{k}.weight": whole for k in range(20)}
    assert trust.memory_of(saved["state_dict"]) == 9 * 9 * 4
    with pytest.raises(UserError, match=r"its weights have the shapes .* but not as many values"):
        checkpoints.rebuild(saved, "a.ckpt")


def test_a_shape_without_numbers_is_no_weight(tmp_path: Path) -> None:
    saved = content()
    saved["state_dict"]["more"] = torch.empty(10**6, 10**6, device="meta")
    path = save(tmp_path / "a.ckpt", saved)
    with pytest.raises(UserError, match="its state_dict holds more than tensors of numbers"):
        checkpoints.read(path)


def test_a_file_that_unpacks_to_more_than_itself_is_refused(tmp_path: Path) -> None:
    saved = content()
    saved["state_dict"]["large"] = torch.zeros(10**7)
    whole, bomb = save(tmp_path / "whole.ckpt", saved), tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for part in old.infolist():
            new.writestr(part.filename, old.read(part))
    assert bomb.stat().st_size < 200_000
    assert "large" in torch.load(bomb, weights_only=True)["state_dict"]  # torch unpacks it
    checkpoints.read(whole)
    with pytest.raises(UserError, match=r"bomb\.ckpt cannot be read as a checkpoint"):
        checkpoints.read(bomb)


@pytest.mark.parametrize("package", ["torchvision", "torchvision by name", "timm"])
def test_trained_weights_are_not_fetched_where_the_file_brings_them(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(*args: Any, **options: Any) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", fetch)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    network: dict[str, Any]
    if package != "timm":
        import torchvision

        network = {"_target_": "torchvision.models.mobilenet_v3_small", "num_classes": 3}
        if package == "torchvision by name":
            network |= {"_target_": "torchvision.models.get_model", "name": "MobileNet_V3_small"}
        built = torchvision.models.mobilenet_v3_small(num_classes=3)
        network |= {"weights": "IMAGENET1K_V1", "pretrained": True}
        by_place = network | {"_args_": ["IMAGENET1K_V1"]}
        with pytest.raises(UserError, match="which is not trusted"):
            checkpoints.rebuild(content(network=by_place), "a.ckpt")
    else:
        timm = pytest.importorskip("timm")
        network = {"_target_": "timm.create_model", "model_name": "resnet10t", "num_classes": 3}
        built = timm.create_model("resnet10t", num_classes=3)
        network["pretrained"] = True
    saved = content(network=network)
    saved["state_dict"] = {f"network.{k}": v for k, v in built.state_dict().items()}
    rebuilt = checkpoints.rebuild(saved, "a.ckpt", trust=["timm.*"])
    assert sum(p.numel() for p in rebuilt.network.parameters()) == sum(
        p.numel() for p in built.parameters()
    )


def test_a_network_that_looks_at_values_while_it_is_built_is_rebuilt() -> None:
    saved = content(network={"_target_": "tiny.ReadsValues", "num_classes": 3})
    rebuilt = checkpoints.rebuild(saved, "a.ckpt", trust=["tiny.*"])
    assert torch.equal(rebuilt.network.fc.weight, saved["state_dict"]["network.fc.weight"])


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("config", {"model": []}, "litvision.config.model: input should be a valid dictionary"),
        ("config", {"model": {}}, "litvision.config.data: field required"),
        ("classes", [], "litvision.classes: list should have at least 1 item"),
        ("classes", "abc", "litvision.classes: input should be a valid list"),
        ("std", [0.2, 0.0, 0.2], "litvision.std.1: input should be greater than 0"),
        ("mean", None, "litvision.mean: input should be a valid list"),
        ("image_size", [10**6] * 2, "litvision.image_size.0: input should be less than or equal"),
        ("image_size", [32], "litvision.image_size: list should have at least 2 items"),
        ("loaded", 3, "litvision.loaded: input should be a valid list"),
        ("version", None, "litvision.version: input should be a valid string"),
        ("mean", ["0.5"] * 3, "litvision.mean.0: input should be a valid number"),
        ("mean", [float("nan")] * 3, "litvision.mean.0: input should be a finite number"),
        ("mean", [0.5] * 5, "litvision: value error, 5 means and 3 standard deviations"),
        ("format", torch.tensor([1, 2]), "the entry 'litvision' holds more than plain values"),
        ("config", {"model": (1,), "data": {}}, "the entry 'litvision' holds more than plain"),
        ("config", {"model": {1: 2}, "data": {}}, "the entry 'litvision' holds more than plain"),
    ],
)
def test_an_entry_that_no_run_writes_is_one_line(
    tmp_path: Path, key: str, value: Any, complaint: str
) -> None:
    saved = content()
    saved["litvision"][key] = value
    path = save(tmp_path / "a.ckpt", saved)
    with pytest.raises(UserError, match=r"a\.ckpt is not as a run saves it: ") as error:
        checkpoints.read(path)
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("weights", [[1, 2], {"network.fc.bias": 3}])
def test_weights_that_are_none_are_one_line(tmp_path: Path, weights: Any) -> None:
    path = save(tmp_path / "a.ckpt", content() | {"state_dict": weights})
    with pytest.raises(UserError, match=r"a\.ckpt is not as a run saves it: "):
        checkpoints.read(path)


def test_a_config_that_holds_itself_is_one_line(tmp_path: Path) -> None:
    saved = content()
    saved["litvision"]["config"]["more"] = saved["litvision"]["config"]
    path = save(tmp_path / "a.ckpt", saved)
    with pytest.raises(UserError, match="the entry 'litvision' holds more than plain values"):
        checkpoints.read(path)


def test_logits_are_as_many_as_the_classes() -> None:
    saved = content()
    saved["litvision"]["classes"] = ["a", "b"]
    with pytest.raises(UserError, match=r"its network gives \[1, 3\] for a picture and 2 classes"):
        checkpoints.rebuild(saved, "a.ckpt", trust=["tiny.*"])


# ---------------------------------------------------------------------------------------- data


DATA = {
    "_target_": "litvision.datamodule.ImageDataModule",
    "source": {"_target_": "litvision.sources.cifar.CIFAR10", "_partial_": True},
    "root": "data/cifar10",
    "batch_size": 128,
}


def test_where_to_download_from_and_write_to_is_not_for_a_file_to_say() -> None:
    more = {"url": "http://example.com/x", "cache_dir": "/tmp/x", "num_workers": 99}
    assert trust.trusted_data(DATA | more, [], "a.ckpt") == DATA
    nested = DATA | {"source": {**DATA["source"], **more}}
    assert trust.trusted_data(nested, [], "a.ckpt") == DATA
    assert trust.trusted_data(nested, ["litvision.*"], "a.ckpt") == DATA


@pytest.mark.parametrize(
    "data",
    [
        DATA | {"source": {"_target_": "litvision.sources.cifar.CIFAR10.prepare"}},
        DATA | {"source": {"_target_": "litvision.sources.cifar._unpack", "_partial_": True}},
        DATA | {"source": {"_target_": "litvision.sources.cifar.CIFAR10", "_partial_": False}},
        DATA | {"source": {"_target_": "torch.nn.Linear", "_partial_": True}},
        DATA | {"mean": {"_target_": "litvision.sources.cifar.CIFAR10", "_partial_": True}},
        DATA | {"_target_": "litvision.datamodule.ImageDataModule.prepare_data"},
        DATA["source"],
    ],
)
def test_data_are_a_data_module_of_a_source(data: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="which is not trusted"):
        trust.trusted_data(data, [], "a.ckpt")


def test_data_look_nothing_up() -> None:
    with pytest.raises(UserError, match="is not as a run saves it"):
        trust.trusted_data(DATA | {"root": "${oc.env:HOME}"}, [], "a.ckpt")


def test_two_limits_at_once_leave_none_behind() -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_AS)
    entered, leave = threading.Event(), threading.Event()
    order: list[str] = []

    def first() -> None:
        with trust.memory_limit(2**30):
            entered.set()
            leave.wait(5)
            order.append("the first leaves")

    def second() -> None:
        with trust.memory_limit(2**31):
            order.append("the second enters")

    threads = [threading.Thread(target=function) for function in (first, second)]
    threads[0].start()
    entered.wait(5)
    threads[1].start()
    time.sleep(0.05)
    leave.set()
    for thread in threads:
        thread.join()
    assert order == ["the first leaves", "the second enters"]
    assert resource.getrlimit(resource.RLIMIT_AS) == before
