"""Strangers' checkpoints: they run nothing, fetch nothing, and take no more than they bring."""

from __future__ import annotations

import resource
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


@pytest.mark.parametrize(
    "target",
    [
        "torchvision.datasets.utils.download_and_extract_archive",
        "torchvision.io.write_file",
        "litvision.train.main",
        "litvision.commandline.os.system",
    ],
)
def test_what_writes_files_or_runs_commands_is_not_trusted(target: str) -> None:
    with pytest.raises(UserError, match="which is not trusted"):
        checkpoints.rebuild(content(network={"_target_": target, "_partial_": True}), "a.ckpt")


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
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    huge = {"_target_": "torch.nn.Linear", "in_features": side, "out_features": side}
    message = (
        f"a.ckpt does not give a classifier: its config has network.weight with shape "
        rf"\[{side}, {side}\], its weights have none"
    )
    with pytest.raises(UserError, match=message):
        checkpoints.rebuild(content(network=huge), "a.ckpt")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


def test_another_name_for_a_command_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    for target in (
        "torch.nn.functional.torch.os.system",
        "litvision.networks.resnet.torch.os.system",
        "torchvision.models.resnet.torch.hub.os.system",
        "torch.nn.Linear.__init__.__globals__",
    ):
        for more in ({}, {"_partial_": True}):
            network = {"_target_": target, "_args_": [f"touch {marker}"], **more}
            with pytest.raises(UserError, match=r"a\.ckpt does not give a classifier"):
                checkpoints.rebuild(content(network=network), "a.ckpt")
    assert not marker.exists()


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
    saved = content(
        network={"_target_": "torch.nn.Linear", "in_features": 10**6, "out_features": 10**6}
    )
    saved["state_dict"]["network.weight"] = torch.zeros(1).expand(10**6, 10**6)
    with pytest.raises(UserError, match=r"its network.weight has shape .* but not as many values"):
        checkpoints.rebuild(saved, "a.ckpt")
    saved["state_dict"]["network.weight"] = torch.empty(10**6, 10**6, device="meta")
    with pytest.raises(UserError, match=r"its network.weight has shape .* but not as many values"):
        checkpoints.rebuild(saved, "a.ckpt")


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


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_trained_weights_are_not_fetched_where_the_file_brings_them(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(*args: Any, **options: Any) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", fetch)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    network: dict[str, Any]
    if package == "torchvision":
        import torchvision

        network = {"_target_": "torchvision.models.mobilenet_v3_small", "num_classes": 3}
        built = torchvision.models.mobilenet_v3_small(num_classes=3)
        network["weights"] = "IMAGENET1K_V1"
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


def test_a_set_of_weights_is_no_network(tmp_path: Path) -> None:
    target = "torchvision.models.resnet.ResNet18_Weights.DEFAULT.get_state_dict"
    network = {"_target_": target, "model_dir": str(tmp_path)}
    with pytest.raises(UserError, match="which is not trusted"):
        checkpoints.rebuild(content(network=network), "a.ckpt")
    assert list(tmp_path.iterdir()) == []


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
