"""A classifier as one file: the same answers, for any batch, without this project."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

import litvision
from conftest import Run, run_command, write_image_folder
from litvision import export
from litvision.configs import CONF
from litvision.errors import UserError
from litvision.export import compare

TRAIN = (
    "data=image_folder",
    "data.val_fraction=0.25",
    "data.batch_size=6",
    "data.image_size=36",
    "model=resnet18",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.max_epochs=2",
    "callbacks.model_summary=null",
    "callbacks.figures=null",
    "logger=none",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    pictures = write_image_folder(folder / "pictures")
    done = run_command(folder, "train", *TRAIN, f"data.root={pictures}", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    return folder / "run"


def expected(run: Path, files: list[Path]) -> np.ndarray:
    """The classifier's probabilities in float32, from the checkpoint."""
    predictor = litvision.load(run, device="cpu")
    predictor.bf16 = False
    return torch.stack([answer.probabilities for answer in predictor(files)]).numpy()


def pixels(run: Path, files: list[Path]) -> np.ndarray:
    predictor = litvision.load(run, device="cpu")
    return np.stack([predictor.prepare(file) for file in files]).transpose(0, 3, 1, 2)


def test_onnx_gives_the_classifiers_probabilities_for_any_batch(
    trained: Path, run: Run, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="make install EXTRAS=export")
    done = run("export", f"checkpoint={trained}", "output=a/classifier.onnx")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["classifier.onnx"]
    lines = done.stdout.splitlines()
    assert lines[0].startswith("a/classifier.onnx  4")  # 44.7 MB
    assert lines[1] == "in   uint8 [batch, 3, 36, 36], RGB"
    assert lines[3].startswith("largest difference from the classifier on 12 pictures: ")
    assert float(lines[3].split()[-1]) < 1e-5

    session = onnxruntime.InferenceSession(tmp_path / "a" / "classifier.onnx")
    (given,), (gotten,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape[1:]) == ("pixels", "tensor(uint8)", [3, 36, 36])
    assert (gotten.name, gotten.type) == ("probabilities", "tensor(float)")
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["classes"]) == ["blue", "green", "red"]
    assert json.loads(told["image_size"]) == [36, 36]
    files = sorted((trained.parent / "pictures" / "test").rglob("*.*"))
    for size in (1, 2, 7, 12):
        (found,) = session.run(None, {"pixels": pixels(trained, files[:size])})
        np.testing.assert_allclose(found, expected(trained, files[:size]), atol=1e-5)


def test_torch_export_gives_the_classifiers_probabilities_for_any_batch(
    trained: Path, run: Run, tmp_path: Path
) -> None:
    done = run("export", f"checkpoint={trained}", "format=torch_export")
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("logs/export/*/classifier.pt2")
    extra = {"litvision.json": ""}
    program = torch.export.load(file, extra_files=extra).module()
    assert json.loads(json.loads(extra["litvision.json"])["classes"]) == ["blue", "green", "red"]
    files = sorted((trained.parent / "pictures" / "test").rglob("*.*"))
    for size in (1, 2, 12):
        found = program(torch.from_numpy(pixels(trained, files[:size])))
        np.testing.assert_allclose(
            found.detach().numpy(), expected(trained, files[:size]), atol=1e-5
        )


def test_what_differs_is_not_kept_and_an_older_file_stays(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, run = export.FORMATS["torch_export"]

    def wrong(file: Path) -> Callable[[Tensor], Tensor]:
        program = run(file)
        return lambda pixels: program(pixels) + 0.25

    monkeypatch.setitem(export.FORMATS, "torch_export", (write, wrong))
    kept = tmp_path / "classifier.pt2"
    kept.write_text("the one before")
    with initialize_config_dir(str(CONF)):
        cfg = compose(
            "export",
            [
                f"checkpoint={trained}",
                "format=torch_export",
                f"output={kept}",
                f"run_dir={tmp_path}",
            ],
        )
    main: Any = export.main
    with pytest.raises(UserError, match=r"differs from the original by 0\.25 .* was not kept"):
        main.__wrapped__(cfg)
    assert kept.read_text() == "the one before"
    assert list(tmp_path.iterdir()) == [kept]


@pytest.mark.parametrize("bad", [0.01, float("nan")])
def test_a_difference_is_found_at_any_batch_size(bad: float) -> None:
    class Half(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            return torch.full((len(pixels), 2), 0.5)

    def differs(pixels: Tensor) -> Tensor:
        found = torch.full((len(pixels), 2), 0.5)
        if len(pixels) == 3:
            found[2, 1] += bad
        return found

    pictures = torch.zeros(70, 3, 4, 4, dtype=torch.uint8)
    assert compare(Half(), Half(), pictures) == 0
    assert compare(Half(), differs, pictures) == pytest.approx(bad, rel=1e-5, nan_ok=True)


def test_without_its_own_data_it_asks_for_pictures(trained: Path, run: Run, tmp_path: Path) -> None:
    checkpoint = trained / "checkpoints" / "best.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    content["litvision"]["config"]["data"]["root"] = "nowhere"
    torch.save(content, tmp_path / "moved.ckpt")
    options = [f"checkpoint={tmp_path}/moved.ckpt", "format=torch_export"]
    done = run("export", *options)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: The pictures that the classifier was trained on are not at hand")
    assert line.endswith("give pictures=<a picture, folder or pattern> to verify with.")
    done = run("export", *options, f"pictures={trained.parent}/pictures/test")
    assert done.returncode == 0, done.stderr
    assert "on 12 pictures: " in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["format=tflite"], "format='tflite' does not fit: it takes one of onnx, torch_export."),
        (["output=a.pt"], "output=a.pt: a file of format=onnx ends in .onnx."),
        (["tolerance=0"], "tolerance=0 does not fit: it takes a number above 0."),
    ],
)
def test_a_mistake_gets_one_line(trained: Path, run: Run, options: list[str], message: str) -> None:
    done = run("export", f"checkpoint={trained}", *options)
    assert done.returncode == 1
    assert done.stderr == f"error: {message}\n"
