"""Data and numbers at the edge: each works, or is refused by a line that names what to change."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import open_dict
from PIL import Image

from conftest import Compose, Run
from litvision.assemble import Run as Assembled
from litvision.assemble import assemble
from litvision.classifier import NonFiniteLossError
from litvision.errors import UserError
from litvision.trials import try_one_picture

QUIET = ("logger=none", "callbacks.progress_bar=null", "test=false")


def write_pictures(root: Path, **counts: int) -> Path:
    """Write `split_class=count` pictures, each of one colour."""
    for place, count in counts.items():
        split, name = place.split("_")
        (root / split / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            colour = (index * 20, 200, 90) if name == "cat" else (90, index * 20, 200)
            Image.new("RGB", (32, 32), colour).save(root / split / name / f"{index}.png")
    return root


@pytest.fixture
def made(compose_train: Compose) -> Any:
    """Assemble a run on a folder of pictures, or on what `data` says."""

    def assembled(root: Path | None, *overrides: str) -> Assembled:
        cfg = compose_train(*QUIET, *overrides)
        if root is not None:
            with open_dict(cfg):
                del cfg.data.train_size, cfg.data.test_size
                cfg.data.source._target_ = "litvision.sources.image_folder.ImageFolder"
                cfg.data.root = str(root)
        return assemble(cfg)

    return assembled


def fit(run: Assembled) -> dict[str, float]:
    run.trainer.fit(run.classifier, run.datamodule)
    return {name: float(value) for name, value in run.trainer.callback_metrics.items()}


def test_one_class_is_trained_on_and_said(
    tmp_path: Path, made: Any, caplog: pytest.LogCaptureFixture
) -> None:
    run = made(write_pictures(tmp_path / "data", train_cat=6, test_cat=2), "data.val_fraction=0.3")
    assert "There is one class only: nothing to tell apart" in caplog.text
    metrics = fit(run)
    assert (metrics["val/acc"], metrics["val/loss"]) == (1.0, 0.0)


def test_unequal_classes_are_told_with_what_one_answer_gets(
    tmp_path: Path, made: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    counts = {"train_cat": 9, "train_dog": 3, "test_cat": 1, "test_dog": 1}
    root = write_pictures(tmp_path / "data", **counts, val_cat=3, val_dog=2)
    told = "\nunequal classes: 9 pictures of cat, 3 of dog; an accuracy of {} is that of always "
    told += "answering cat; model.class_weights=balanced trains all classes alike\n"
    assert made(root).datamodule.class_counts("val") == [3, 2]
    assert told.format("60.00%") in caplog.text
    caplog.clear()
    made(root, "data.limit_per_class=4")
    assert "unequal" not in caplog.text  # 4 and 3
    (root / "val").rename(root / "valid")
    made(root, "data.val_fraction=0", "monitor=train/loss")
    assert told.format("75.00%") in caplog.text
    caplog.clear()
    made(root, "data.val_fraction=0", "monitor=train/loss", "model.class_weights=balanced")
    assert "answering cat\n" in caplog.text
    assert "class_weights" not in caplog.text


@pytest.mark.parametrize(("cats", "told"), [(6, False), (7, True)])
def test_half_as_many_again_is_not_yet_unequal(
    tmp_path: Path, made: Any, caplog: pytest.LogCaptureFixture, cats: int, told: bool
) -> None:
    caplog.set_level("INFO")
    counts = {"train_cat": cats, "train_dog": 4, "test_cat": 1, "test_dog": 1}
    made(write_pictures(tmp_path / "data", **counts, val_cat=1, val_dog=2))
    assert ("an accuracy of 33.33% is that of always answering cat" in caplog.text) == told


def test_classes_are_counted_and_weighed_as_trained_on(tmp_path: Path, made: Any) -> None:
    counts = {"train_cat": 9, "train_dog": 3, "test_cat": 1, "test_dog": 1}
    root = write_pictures(tmp_path / "data", **counts, val_cat=3)
    run = made(root, "data.limit_per_class=4", "model.class_weights=balanced")
    assert run.datamodule.class_counts("train") == [4, 3]
    assert run.datamodule.class_counts("val") == [3, 0]
    assert run.classifier.loss_weights.tolist() == pytest.approx([7 / 8, 7 / 6])


def test_one_picture_leaves_none_to_validate(tmp_path: Path, made: Any) -> None:
    for counts in ({"train_cat": 1}, {"train_cat": 1, "train_dog": 1}):
        root = write_pictures(tmp_path / str(len(counts)), **counts, test_cat=1)
        with pytest.raises(UserError, match=r"The val split has no pictures left: .*Add pictures"):
            made(root)


def test_one_picture_a_split_is_enough(tmp_path: Path, made: Any) -> None:
    root = write_pictures(tmp_path / "data", train_cat=1, val_cat=1, test_cat=1)
    assert fit(made(root))["val/acc"] == 1.0


def test_a_batch_larger_than_the_data_is_all_of_them(made: Any) -> None:
    run = made(None, "data.batch_size=1000")
    assert run.datamodule.steps_per_epoch == 1
    fit(run)
    assert run.trainer.global_step == 2


def test_an_empty_folder_for_validation_is_said(tmp_path: Path, made: Any) -> None:
    root = write_pictures(tmp_path / "data", train_cat=4, test_cat=2, val_cat=0)
    with pytest.raises(UserError, match=f"no pictures in {root}/val; expected"):
        made(root)


def test_no_validation_leaves_nothing_to_watch(made: Any) -> None:
    for option in ("trainer.limit_val_batches=0", "data.val_fraction=0"):
        with pytest.raises(UserError) as error:
            made(None, option)
        assert str(error.value) == (
            f"monitor=val/loss needs pictures to validate, and {option} leaves none: give "
            f"monitor=train/loss too, or leave {option} out."
        )
    run = made(None, "trainer.limit_val_batches=0", "monitor=train/loss")
    fit(run)
    assert run.score is not None


def test_a_class_without_pictures_has_no_accuracy(tmp_path: Path, run: Run) -> None:
    root = write_pictures(tmp_path / "data", train_cat=6, train_dog=6, test_cat=3)
    options = [
        *("data=image_folder", f"data.root={root}", "data.val_fraction=0.3"),
        *("model.network._target_=tiny.TinyNet", "trainer.accelerator=cpu"),
        *("trainer.max_epochs=1", "callbacks.model_summary=null", "callbacks.figures=null"),
    ]
    done = run("train", *options, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    done = run("evaluate", "checkpoint=run", "trust=[tiny.*]", "hydra.run.dir=evaluated")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "evaluated" / "evaluation.json").read_text())
    assert found["acc/dog"] is None
    assert found["acc/cat"] == found["test/acc"]
    shutil.rmtree(root / "train" / "dog")
    (root / "train" / "dog").mkdir()
    done = run("train", *options)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: no pictures in {root}/train/dog; ")


@pytest.mark.parametrize("label", [-1, 2, 7])
def test_a_label_that_is_no_class_is_refused(compose_train: Compose, label: int) -> None:
    cfg = compose_train(*QUIET)
    with open_dict(cfg):
        del cfg.data.train_size, cfg.data.test_size
        del cfg.data.image_size
        cfg.data.source._target_ = "tiny.Mislabelled"
        cfg.data.label = label
    numbers = f"{min(label, 0)} to {max(label, 1)}"
    with pytest.raises(UserError, match=r"^data.source: labels must be 0 to 1, ") as error:
        assemble(cfg)
    assert str(error.value).endswith(f"and are {numbers}")


@pytest.mark.parametrize(
    "options", [("optimizer.lr=1e30",), ("optimizer.lr=1e30", "monitor=val/acc", "mode=max")]
)
def test_exploding_weights_end_the_run(made: Any, options: tuple[str, ...]) -> None:
    with pytest.raises(NonFiniteLossError, match=r"Lower optimizer.lr, or set trainer.gradient_"):
        fit(made(None, *options))


class TestBatchOfOne:
    """Of 40 pictures, 30 are trained on: 29 and 1."""

    def test_batch_normalisation_of_one_pixel_refuses_it_before_training(self, made: Any) -> None:
        flat = "model.network._target_=tiny.TinyFlat"
        with pytest.raises(UserError) as error:
            made(None, flat, "data.batch_size=29")
        assert str(error.value) == (
            "data.batch_size=29 and 30 pictures make a batch of one, which the network cannot be "
            "trained on (Expected more than 1 value per channel when training, got input size "
            "torch.Size([1, 8])): give data.batch_size=30, or model.network.norm=layer where the "
            "network has it."
        )
        with pytest.raises(UserError, match=r"data.batch_size=1 and 30 .* give data.batch_size=2,"):
            made(None, flat, "data.batch_size=1")
        fit(made(None, flat, "data.batch_size=2"))

    def test_a_last_batch_that_is_left_out_does_not_matter(self, made: Any) -> None:
        flat = "model.network._target_=tiny.TinyFlat"
        fit(made(None, flat, "data.batch_size=29", "trainer.limit_train_batches=1"))

    def test_the_size_that_is_proposed_fits_every_device(self, made: Any) -> None:
        datamodule = made(None).datamodule
        plans = datamodule._plans("train", training=True)
        plans.sampler.size, plans.world_size = 6, 2
        found = {}
        for size in range(2, 7):
            plans.batch_size = size
            found[size] = plans.fewest()
        assert found == {2: 1, 3: 1, 4: 1, 5: 3, 6: 3}

    def test_a_network_that_can_is_left_as_it_was(self, made: Any) -> None:
        run = made(None, "data.batch_size=29")
        assert run.datamodule.fewest() == 1
        before = {name: value.clone() for name, value in run.classifier.state_dict().items()}
        state = torch.get_rng_state()
        try_one_picture(run.classifier, run.datamodule)
        assert torch.equal(torch.get_rng_state(), state)
        for name, value in run.classifier.state_dict().items():
            assert torch.equal(value, before[name]), name
        fit(run)
        assert run.trainer.global_step == 4

    @pytest.mark.parametrize(
        ("batch_size", "world_size", "fewest"),
        [(8, 1, 6), (29, 1, 1), (64, 1, 30), (29, 2, 15), (7, 2, 1)],
    )
    def test_the_fewest_pictures_of_a_step(
        self, made: Any, batch_size: int, world_size: int, fewest: int
    ) -> None:
        datamodule = made(None, f"data.batch_size={batch_size}").datamodule
        plans = datamodule._plans("train", training=True)
        plans.world_size = world_size
        assert plans.fewest() == fewest
        shares = []
        for rank in range(world_size):
            plans.rank = rank
            shares += [len(plan.indices) for plan in plans]
        assert min(shares) == fewest
