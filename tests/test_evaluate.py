from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from callbacks.test_sparsity import Small
from conftest import Run, run_command, write_image_folder
from litvision.classifier import ImageClassifier
from litvision.evaluate import balanced_accuracy, sparse_layers, table
from litvision.sources.image_folder import ImageFolder

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
    "callbacks.figures=null",
)
EVALUATE = ("trust=[tiny.*]", "trainer.accelerator=cpu", "trainer.precision=32-true")


@dataclass(frozen=True)
class Trained:
    pictures: Path
    checkpoint: Path  # the best one of a run on them
    result: dict[str, float]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    pictures = write_image_folder(folder / "pictures")
    done = run_command(folder, "train", *TRAIN, f"data.root={pictures}")
    assert done.returncode == 0, done.stderr
    (checkpoint,) = folder.glob("logs/default/*/checkpoints/best.ckpt")
    return Trained(
        pictures, checkpoint, json.loads((checkpoint.parents[1] / "result.json").read_text())
    )


def evaluation(folder: Path) -> dict[str, float]:
    (path,) = folder.glob("logs/evaluate/*/evaluation.json")
    return json.loads(path.read_text())


def test_a_checkpoint_alone_gives_the_test_result_of_its_run(
    trained: Trained, run: Run, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere.ckpt"
    shutil.copy(trained.checkpoint, moved)
    done = run("evaluate", f"checkpoint={moved}", *EVALUATE)
    assert done.returncode == 0, done.stderr
    found = evaluation(tmp_path)
    assert found["test/acc"] == trained.result["test/acc"] == 1.0
    assert "The classifier was trained on pictures of" not in done.stdout
    assert found["test/loss"] == pytest.approx(trained.result["test/loss"], rel=1e-6)
    named = {"checkpoint": str(moved), "split": "test", "tta": None, "test/balanced_acc": 1.0}
    assert {key: found[key] for key in named} == named
    assert [line.split()[0] for line in done.stdout.splitlines() if line] == [
        "pictures", "loss", "accuracy", "blue", "green", "red",
    ]  # fmt: skip
    assert "100.00%  4 of 4" in done.stdout


def test_other_data_are_read_as_the_classifier_was_trained(
    trained: Trained, run: Run, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(trained.pictures, other, ignore=shutil.ignore_patterns(".litvision"))
    # Every blue picture is called red now: the classifier must get exactly these wrong.
    for file in (other / "test" / "blue").iterdir():
        file.rename(other / "test" / "red" / f"was_blue_{file.name}")
    shutil.copy(next((other / "test" / "green").iterdir()), other / "test" / "blue" / "g.png")
    data = ["data=image_folder", f"data.root={other}"]
    done = run("evaluate", f"checkpoint={trained.checkpoint}", *data, *EVALUATE)
    assert done.returncode == 0, done.stderr
    found = evaluation(tmp_path)
    assert (found["acc/red"], found["acc/green"], found["acc/blue"]) == (0.5, 1.0, 0.0)


def test_another_root_and_another_split_of_the_same_kind_of_data(
    trained: Trained, run: Run, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(trained.pictures, moved)
    options = [f"data.root={moved}", "split=val"]
    done = run("evaluate", f"checkpoint={trained.checkpoint}", *options, *EVALUATE)
    assert done.returncode == 0, done.stderr
    assert "of 2" in done.stdout  # a quarter of 8 training pictures a class


def test_other_pictures_need_no_training_split(trained: Trained, run: Run, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(trained.pictures / "test", other / "test")
    (other / "test" / "green").rename(other / "test" / "violet")
    data = ["data=image_folder", f"data.root={other}"]
    done = run("evaluate", f"checkpoint={trained.checkpoint}", *data, *EVALUATE)
    assert done.returncode == 0, done.stderr
    found = evaluation(tmp_path)
    assert (found["acc/red"], found["acc/green"], found["acc/blue"]) == (1.0, None, 1.0)
    assert "pictures         8\n" in done.stdout
    assert (
        "left out the pictures of classes that the classifier does not know: violet" in done.stdout
    )


def test_a_class_that_came_later_is_not_taken_for_one_of_the_logits(
    trained: Trained, run: Run, tmp_path: Path
) -> None:
    grown = tmp_path / "grown"
    shutil.copytree(trained.pictures, grown)
    for split in ("train", "test"):  # the first by its name
        shutil.copytree(grown / split / "red", grown / split / "amber")
    done = run("evaluate", f"checkpoint={trained.checkpoint}", f"data.root={grown}", *EVALUATE)
    assert done.returncode == 0, done.stderr
    assert evaluation(tmp_path)["test/acc"] == 1.0
    assert (
        "left out the pictures of classes that the classifier does not know: amber" in done.stdout
    )


def test_what_is_typed_of_chosen_data_counts(trained: Trained, run: Run, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(trained.pictures, other, ignore=shutil.ignore_patterns(".litvision"))
    data = ["data=image_folder", f"data.root={other}", "data.image_size=16"]
    done = run("evaluate", f"checkpoint={trained.checkpoint}", *data, *EVALUATE)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (other / ".litvision").glob("*.npy")] == ["test-16px.npy"]
    told = "The classifier was trained on pictures of 32 x 32 pixels, and these are of 16 x 16: "
    assert told in done.stdout


@pytest.mark.parametrize("split", ["val", "train"])
def test_chosen_data_are_split_as_in_training(
    trained: Trained, run: Run, tmp_path: Path, split: str
) -> None:
    chosen = ["data=image_folder", f"data.root={trained.pictures}"]
    for number, data in enumerate(([], chosen)):
        folder = f"hydra.run.dir={tmp_path}/{number}"
        options = [f"split={split}", "seed=3", folder, *data, *EVALUATE]
        done = run("evaluate", f"checkpoint={trained.checkpoint}", *options)
        assert done.returncode == 0, done.stderr
    own, other = (json.loads((tmp_path / n / "evaluation.json").read_text()) for n in "01")
    assert own["test/loss"] == other["test/loss"]


def test_pictures_of_none_of_the_classes_are_refused(
    trained: Trained, run: Run, tmp_path: Path
) -> None:
    shutil.copytree(trained.pictures / "test" / "red", tmp_path / "other" / "test" / "violet")
    data = ["data=image_folder", f"data.root={tmp_path / 'other'}"]
    done = run("evaluate", f"checkpoint={trained.checkpoint}", *data, *EVALUATE)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "error: None of the classes blue, green, red is there: the data have violet."
    )


def test_its_own_training_pictures_are_not_decoded(
    trained: Trained, run: Run, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(trained.pictures, moved, ignore=shutil.ignore_patterns(".litvision", "train"))
    done = run("evaluate", f"checkpoint={trained.checkpoint}", f"data.root={moved}", *EVALUATE)
    assert done.returncode == 0, done.stderr
    assert evaluation(tmp_path)["test/acc"] == 1.0
    assert [path.name for path in (moved / ".litvision").glob("*.npy")] == ["test-32px.npy"]


@pytest.mark.parametrize("classes", ["[red,blue]", "[red,green,blue]"])
def test_other_classes_than_those_of_the_logits_are_refused(
    trained: Trained, run: Run, classes: str
) -> None:
    data = ["data=image_folder", f"data.root={trained.pictures}", f"data.classes={classes}"]
    done = run("evaluate", f"checkpoint={trained.checkpoint}", *data, *EVALUATE)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "error: data.classes differs from what the checkpoint was trained on, in number or order: "
        "leave it out, or give \"data.classes=['blue','green','red']\"."
    )


def test_nothing_is_imported_for_the_data_config_of_a_stranger(
    trained: Trained, run: Run, tmp_path: Path
) -> None:
    content = torch.load(trained.checkpoint, weights_only=True)
    content["litvision"]["config"]["data"]["source"]["_target_"] = "evil.Source"
    torch.save(content, tmp_path / "evil.ckpt")
    (tmp_path / "evil.py").write_text("open('ran', 'w')\nclass Source: pass\n")
    done = run("evaluate", "checkpoint=evil.ckpt", *EVALUATE)
    assert done.returncode == 1
    assert done.stderr.startswith("error: evil.ckpt names 'evil.Source', which is not trusted.")
    assert not (tmp_path / "ran").exists()


class Source(ImageFolder):
    """One of a person's own."""


def test_a_source_of_ones_own_is_trusted_by_name(
    trained: Trained, run: Run, tmp_path: Path
) -> None:
    content = torch.load(trained.checkpoint, weights_only=True)
    content["litvision"]["config"]["data"]["source"]["_target_"] = "test_evaluate.Source"
    torch.save(content, tmp_path / "own.ckpt")
    done = run("evaluate", "checkpoint=own.ckpt", "trust=[tiny.*,test_evaluate.*]", *EVALUATE[1:])
    assert done.returncode == 0, done.stderr
    assert evaluation(tmp_path)["test/acc"] == trained.result["test/acc"]


def test_validation_pictures_that_may_have_been_trained_on_are_told(
    trained: Trained, run: Run, tmp_path: Path
) -> None:
    pictures = shutil.copytree(trained.pictures, tmp_path / "pictures")
    options = [f"checkpoint={trained.checkpoint}", f"data.root={pictures}", *EVALUATE]
    told = "files of other names: others are set aside for validation, and some of these may"
    for split in ("val", "test"):
        done = run("evaluate", *options, f"split={split}")
        assert done.returncode == 0, done.stderr
        assert told not in " ".join(done.stdout.split())
    file = next((pictures / "train" / "red").glob("*.*"))
    file.rename(file.with_stem("other"))
    assert told in " ".join(run("evaluate", *options, "split=val").stdout.split())
    assert told not in " ".join(run("evaluate", *options, "split=test").stdout.split())


def test_no_training_pictures_are_told_among_validation_pictures_of_their_own(
    trained: Trained, run: Run, tmp_path: Path
) -> None:
    pictures = shutil.copytree(trained.pictures, tmp_path / "pictures")
    shutil.copytree(pictures / "test", pictures / "val")
    made = run("train", *TRAIN, f"data.root={pictures}", "trainer.max_epochs=1", "test=false")
    assert made.returncode == 0, made.stderr
    (folder,) = (tmp_path / "logs" / "default").iterdir()
    for split in ("val", "train"):
        done = run("evaluate", f"checkpoint={folder}", f"split={split}", *EVALUATE)
        assert done.returncode == 0, done.stderr
        assert "set aside" not in done.stdout


def test_a_file_that_does_not_say_which_pictures_it_was_trained_on(
    trained: Trained, run: Run, tmp_path: Path
) -> None:
    content = torch.load(trained.checkpoint, weights_only=True)
    del content["litvision"]["pictures"]
    torch.save(content, tmp_path / "older.ckpt")
    done = run("evaluate", "checkpoint=older.ckpt", "split=val", *EVALUATE)
    assert done.returncode == 0, done.stderr
    assert "set aside" not in done.stdout


def test_data_of_another_kind_need_the_classes_of_the_checkpoint(
    trained: Trained, run: Run, tmp_path: Path
) -> None:
    done = run("evaluate", f"checkpoint={trained.checkpoint}", "data=shapes", *EVALUATE)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: None of the classes blue, green, red is")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["checkpoint=nowhere.ckpt"], "error: There is no checkpoint at nowhere.ckpt: give"),
        (
            ["checkpoint=cut.ckpt"],
            "error: cut.ckpt cannot be read as a checkpoint: it is",
        ),
        (["checkpoint=cut.ckpt", "trust=tiny.*"], "error: trust='tiny.*' does not fit: it takes a"),
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["split=dev"], "split='dev' does not fit: it takes one of train, val, test."),
        (["sparse=true", "tta=flip"], "sparse=true tests the network as it is: leave tta out."),
    ],
)
def test_options_that_do_not_fit_are_one_line(
    trained: Trained, run: Run, options: list[str], message: str
) -> None:
    done = run("evaluate", f"checkpoint={trained.checkpoint}", *EVALUATE, *options)
    assert (done.returncode, done.stderr) == (1, f"error: {message}\n")


def test_nothing_to_test_is_one_line(trained: Trained, run: Run) -> None:
    none = "trainer.limit_test_batches=0"
    done = run("evaluate", f"checkpoint={trained.checkpoint}", *EVALUATE, none)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last == "error: trainer.limit_test_batches leaves nothing to test: leave it out."


def test_layers_that_a_run_left_dense_stay_so() -> None:
    classifier = ImageClassifier(Small())
    classifier.card = {"config": {"callbacks": {"sparsity_2_4": {"exclude": ["conv"]}}}}
    assert list(sparse_layers(classifier).layers) == ["hidden"]
    options = {"exclude": None, "except_first_and_last": False}
    classifier.card = {"config": {"callbacks": {"sparsity_2_4": options}}}
    assert list(sparse_layers(classifier).layers) == ["conv", "hidden", "fc"]
    classifier.card = {"config": {}}
    assert list(sparse_layers(classifier).layers) == ["conv", "hidden"]


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
    text = table(
        ["cat", "dog"], {"test/loss": 0.5, "test/acc": 0.8}, torch.tensor([[3, 1], [0, 1]])
    )
    assert text.splitlines()[2:4] == ["accuracy    80.00%", "balanced    87.50%  mean of classes"]
    wide = table(["cat", "hippopotamus"], {"test/loss": 0.5, "test/acc": 0.75}, matrix)
    assert wide.splitlines()[-2:] == [
        "cat             75.00%  3 of 4",
        "hippopotamus         -  0 of 0",
    ]


def test_balanced_accuracy_is_the_mean_over_classes_that_are_there() -> None:
    torch.manual_seed(0)
    true = torch.randint(6, (200,)).pow(2) % 7 % 5  # of classes 0 to 4, unequal, and none of 3
    said = torch.randint(6, (200,))
    matrix = torch.zeros(6, 6, dtype=torch.int64)
    matrix.index_put_((true, said), torch.tensor(1), accumulate=True)
    assert len(true.unique()) == 4
    expected = sum((said[true == c] == c).double().mean() for c in true.unique()) / 4
    assert balanced_accuracy(matrix) == pytest.approx(float(expected), abs=1e-12)


def test_sparse_accuracy_stands_beside_the_dense_one(
    trained: Trained, run: Run, tmp_path: Path
) -> None:
    """TinyNet has a first convolution and a last layer; with an own one between them, 2:4 works."""
    done = run("evaluate", f"checkpoint={trained.checkpoint}", *EVALUATE, "sparse=true")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "error: 2:4 sparsity finds no layer to prune in TinyNet: conv: 3 inputs, not a multiple of "
    )

    network = ["model.network._target_=callbacks.test_sparsity.Small"]
    sparse = ["callbacks=sparsity_2_4", "callbacks.sparsity_2_4.start_epoch=8"]
    options = [o for o in TRAIN if not o.startswith("model")]
    made = run("train", *options, *network, *sparse, f"data.root={trained.pictures}")
    assert made.returncode == 0, made.stderr
    (folder,) = (tmp_path / "logs" / "default").iterdir()
    reports = {}
    for name in ("best", "best_dense"):
        checkpoint = folder / "checkpoints" / f"{name}.ckpt"
        shutil.rmtree(tmp_path / "logs" / "evaluate", ignore_errors=True)
        trust = ["trust=[callbacks.*]", *EVALUATE[1:]]
        done = run("evaluate", f"checkpoint={checkpoint}", *trust, "sparse=true")
        assert done.returncode == 0, done.stderr
        reports[name] = (evaluation(tmp_path), done.stdout)
    found, text = reports["best"]
    assert found["sparse/zeroed"] == 0
    assert found["sparse/acc"] == found["test/acc"]
    assert "the same weights: they were 2:4 sparse already" in text
    found, text = reports["best_dense"]
    assert found["sparse/zeroed"] == 336
    assert found["sparse/loss"] != found["test/loss"]
    share = f"2:4 sparse accuracy  {found['sparse/acc']:.2%}, dense {found['test/acc']:.2%}; "
    assert share + "336 weights of 2 layers set to zero" in text
    assert "on sparse tensor cores  0 of 2 layers" in text
    assert "1 not: torch multiplies no sparse convolutions" in text
