from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from conftest import Run
from litvision.evaluate import table

TRAIN = (
    "data=image_folder",
    "data.val_fraction=0.25",
    "data.batch_size=6",
    "optimizer.lr=0.1",
    "model.network._target_=tiny.TinyNet",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.max_epochs=12",
    "logger=none",
)
EVALUATE = ("trust=[tiny.*]", "trainer.accelerator=cpu", "trainer.precision=32-true")


@pytest.fixture
def trained(image_folder: Path, run: Run, tmp_path: Path) -> Path:
    """The best checkpoint of a run on the coloured pictures."""
    done = run("train", *TRAIN, f"data.root={image_folder}")
    assert done.returncode == 0, done.stderr
    (checkpoint,) = tmp_path.glob("logs/default/*/checkpoints/best.ckpt")
    return checkpoint


def evaluation(folder: Path) -> dict[str, float]:
    (path,) = folder.glob("logs/evaluate/*/evaluation.json")
    return json.loads(path.read_text())


def test_a_checkpoint_alone_gives_the_test_result_of_its_run(
    trained: Path, run: Run, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere.ckpt"
    shutil.copy(trained, moved)
    done = run("evaluate", f"checkpoint={moved}", *EVALUATE)
    assert done.returncode == 0, done.stderr
    expected = json.loads((trained.parents[1] / "result.json").read_text())
    found = evaluation(tmp_path)
    assert found["test/acc"] == expected["test/acc"]
    assert found["test/loss"] == pytest.approx(expected["test/loss"], rel=1e-6)
    assert [line.split()[0] for line in done.stdout.splitlines() if line] == [
        "pictures", "loss", "accuracy", "blue", "green", "red",
    ]  # fmt: skip
    assert f"{expected['test/acc']:.2%}" in done.stdout
    assert "of 4" in done.stdout


def test_other_data_are_read_as_the_classifier_was_trained(
    trained: Path, run: Run, tmp_path: Path, image_folder: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(image_folder, other, ignore=shutil.ignore_patterns(".litvision"))
    # Every blue picture is called red now: the classifier must get exactly these wrong.
    for file in (other / "test" / "blue").iterdir():
        file.rename(other / "test" / "red" / f"was_blue_{file.name}")
    shutil.copy(next((other / "test" / "green").iterdir()), other / "test" / "blue" / "g.png")
    before = run("evaluate", f"checkpoint={trained}", *EVALUATE, folder=tmp_path / "a")
    assert "blue" in before.stdout
    done = run(
        "evaluate", f"checkpoint={trained}", "data=image_folder", f"data.root={other}", *EVALUATE,
        folder=tmp_path / "b",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    good, bad = evaluation(tmp_path / "a"), evaluation(tmp_path / "b")
    assert good["test/acc"] == 1.0
    assert bad["acc/red"] == 0.5
    assert bad["acc/green"] == 1.0
    assert bad["acc/blue"] == 0.0


def test_another_root_for_the_same_kind_of_data(
    trained: Path, run: Run, tmp_path: Path, image_folder: Path
) -> None:
    moved = image_folder.rename(tmp_path / "moved")
    lost = run("evaluate", f"checkpoint={trained}", *EVALUATE)
    assert lost.returncode == 1
    assert lost.stderr.startswith("error: ")
    done = run("evaluate", f"checkpoint={trained}", f"data.root={moved}", "split=val", *EVALUATE)
    assert done.returncode == 0, done.stderr
    assert "of 2" in done.stdout  # a quarter of 8 training pictures a class


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["checkpoint=nowhere.ckpt"], "error: There is no checkpoint at nowhere.ckpt: give"),
        (
            ["checkpoint=cut.ckpt"],
            "error: cut.ckpt cannot be read as a checkpoint: it is",
        ),
        (["checkpoint=foreign.ckpt"], "error: foreign.ckpt is a checkpoint of another program"),
        ([], "error: checkpoint has no value: give checkpoint=…"),
    ],
)
def test_what_is_no_checkpoint_gets_one_line(
    run: Run, tmp_path: Path, arguments: list[str], message: str
) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(100)}}, tmp_path / "foreign.ckpt")
    whole = (tmp_path / "foreign.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[:300])
    done = run("evaluate", *arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(message)


def test_table_counts_each_class() -> None:
    matrix = torch.tensor([[3, 1], [0, 0]])
    text = table(["cat", "dog"], {"test/loss": 0.5, "test/acc": 0.75}, matrix)
    assert text.splitlines() == [
        "pictures         4",
        "loss        0.5000",
        "accuracy    75.00%",
        "",
        "cat         75.00%  3 of 4",
        "dog              -  0 of 0",
    ]
