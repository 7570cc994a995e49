from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from litvision import checkpoints
from litvision.classifier import ImageClassifier
from litvision.errors import UserError
from tiny import Evil, TinyNet


def content(**model: Any) -> dict[str, Any]:
    classifier = ImageClassifier(TinyNet(3))
    network = {"_target_": "tiny.TinyNet", "num_classes": 3}
    target = "litvision.classifier.ImageClassifier"
    config = {"model": {"_target_": target, "network": network} | model, "data": {}}
    card = {"format": 1, "version": "0.1.0", "config": config, "classes": ["a", "b", "c"]}
    card |= {"mean": [0.5] * 3, "std": [0.2] * 3, "image_size": [32, 32]}
    return {"state_dict": classifier.state_dict(), "litvision": card}


def save(path: Path, what: Any) -> Path:
    torch.save(what, path)
    return path


def test_a_checkpoint_gives_back_its_classifier(tmp_path: Path) -> None:
    saved = content()
    path = save(tmp_path / "a.ckpt", saved)
    rebuilt = checkpoints.rebuild(checkpoints.read(path), path, trust=["tiny.*"])
    assert rebuilt.card == saved["litvision"]
    for name, value in rebuilt.state_dict().items():
        assert torch.equal(value, saved["state_dict"][name])


def test_a_target_that_is_not_trusted_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tiny.TinyNet.* add trust=\[<package>.\*\]"):
        checkpoints.rebuild(content(), "a.ckpt")


def test_a_target_that_runs_a_command_is_never_called(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    evil = {"_target_": "os.system", "command": f"touch {marker}"}
    for model in ({"network": evil}, {"label_smoothing": evil}, evil):
        with pytest.raises(UserError, match=r"a.ckpt names 'os.system', which is not trusted"):
            checkpoints.rebuild(content(**model), "a.ckpt", trust=["tiny.*"])
    assert not marker.exists()


def test_weights_of_another_network_are_refused() -> None:
    saved = content()
    del saved["state_dict"]["network.fc.bias"]
    reason = r"its config has network.fc.bias with shape \[3\], its weights have none"
    with pytest.raises(UserError, match=f"a.ckpt does not give a classifier: {reason}"):
        checkpoints.rebuild(saved, "a.ckpt", trust=["tiny.*"])


def test_a_file_that_runs_code_when_unpickled_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    for name, write in (("torch", torch.save), ("pickle", None)):
        path = tmp_path / name
        if write:
            write(content() | {"evil": Evil(marker)}, path)
        else:
            path.write_bytes(pickle.dumps(Evil(marker)))
        with pytest.raises(UserError, match="holds more than tensors and plain values"):
            checkpoints.read(path)
    assert not marker.exists()


def test_files_that_are_no_checkpoints_are_refused_in_one_line(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.ckpt", content()).read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.ckpt").write_bytes(b"")
    (tmp_path / "text.ckpt").write_text("no checkpoint at all\n")
    (tmp_path / "metrics.csv").write_text("epoch,step\n1,2\n")
    save(tmp_path / "foreign.ckpt", {"state_dict": {}})
    save(tmp_path / "list.ckpt", [1, 2])
    newer = content()
    newer["litvision"]["format"] = 2
    save(tmp_path / "newer.ckpt", newer)
    for name, reason in {
        "missing.ckpt": "There is no checkpoint at",
        "": "is a folder without a checkpoint",
        "cut.ckpt": "cannot be read as a checkpoint",
        "empty.ckpt": "cannot be read as a checkpoint",
        "metrics.csv": "cannot be read as a checkpoint",
        "text.ckpt": "cannot be read as a checkpoint",
        "foreign.ckpt": "is a checkpoint of another program",
        "list.ckpt": "is a checkpoint of another program",
        "newer.ckpt": "has checkpoint format 2, and this version reads 1",
    }.items():
        with pytest.raises(UserError, match=reason) as error:
            checkpoints.read(tmp_path / name)
        assert "\n" not in str(error.value)


def test_a_run_folder_means_its_best_checkpoint_else_its_last(tmp_path: Path) -> None:
    saved = tmp_path / "checkpoints"
    saved.mkdir()
    assert checkpoints.find(tmp_path) == tmp_path
    for name in ("last", "best"):
        (saved / f"{name}.ckpt").touch()
        assert checkpoints.find(tmp_path) == saved / f"{name}.ckpt"
    assert checkpoints.find(tmp_path, ["last"]) == saved / "last.ckpt"
    assert checkpoints.find(saved / "last.ckpt") == saved / "last.ckpt"
