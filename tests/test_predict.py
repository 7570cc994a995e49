"""Pictures of any kind, classified from the command line and from Python."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import litvision
from conftest import Run, run_command, write_image_folder
from litvision import figures
from litvision.classifier import ImageClassifier
from litvision.errors import UserError
from litvision.predict import find
from litvision.predictor import Answer, Predictor
from litvision.sources.decode import decode
from tiny import TinyLinear

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
COLOURS = {"blue": (30, 30, 220), "green": (30, 220, 30), "red": (220, 30, 30)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a network that knows blue, green and red; pictures in `pictures/` beside it."""
    folder = tmp_path_factory.mktemp("trained")
    pictures = write_image_folder(folder / "pictures")
    done = run_command(folder, "train", *TRAIN, f"data.root={pictures}", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "run" / "result.json").read_text())["test/acc"] == 1
    return folder / "run"


@pytest.fixture(scope="module")
def classify(trained: Path) -> Predictor:
    return litvision.load(trained, trust=["tiny.*"], device="cpu")


def rows(folder: Path) -> list[dict[str, str]]:
    (path,) = folder.glob("logs/predict/*/predictions.csv")
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def plain(colour: str, size: tuple[int, int] = (50, 40)) -> Image.Image:
    return Image.new("RGB", size, COLOURS[colour])


# ------------------------------------------------------------------------- from the command line


def test_every_picture_of_a_folder_gets_a_row(trained: Path, run: Run, tmp_path: Path) -> None:
    pictures = trained.parent / "pictures" / "test"
    options = [f"checkpoint={trained}", f"input={pictures}", "trust=[tiny.*]", "device=cpu"]
    done = run("predict", *options, "top_k=9", "batch_size=5", "figure=true")
    assert done.returncode == 0, done.stderr
    found = rows(tmp_path)
    assert len(found) == 12
    assert list(found[0]) == [
        "path", "class", "probability", "class_2", "probability_2", "class_3", "probability_3",
    ]  # fmt: skip
    for row in found:
        assert row["class"] == Path(row["path"]).parent.name
        shares = [float(row[key]) for key in ("probability", "probability_2", "probability_3")]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1, abs=3e-6)
    assert "12 pictures; all answers: " in done.stdout
    (picture,) = tmp_path.glob("logs/predict/*/predictions.png")
    with Image.open(picture) as file:
        assert file.size == (1144, 367)  # two rows of eight


def test_whatever_pillow_reads_is_read(trained: Path, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "all kinds"
    folder.mkdir()
    red, blue = plain("red"), plain("blue")
    red.convert("RGBA").save(folder / "red_rgba.png")
    red.quantize(8).save(folder / "red_palette.gif")
    red.save(folder / "red.webp")
    red.save(folder / "red.bmp")
    red.resize((900, 700)).save(folder / "red_large.tiff")
    # Red above, blue below; turned by its EXIF orientation, the red part is the right one.
    both = Image.new("RGB", (60, 60), COLOURS["blue"])
    both.paste(COLOURS["red"], (0, 0, 60, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    both.save(folder / "turned.png", exif=exif)
    blue.save(folder / "blue.ppm")
    blue.convert("L").save(folder / "grey.png")
    Image.fromarray(np.full((40, 40), 40000, np.uint16)).save(folder / "grey_16_bits.png")
    options = [f"checkpoint={trained}", f"input='{folder}/**/*'", "trust=[tiny.*]", "device=cpu"]
    done = run("predict", *options)
    assert done.returncode == 0, done.stderr
    found = {Path(row["path"]).name: row["class"] for row in rows(tmp_path)}
    assert len(found) == 9
    assert {found[name] for name in found if name.startswith("red")} == {"red"}
    assert found["blue.ppm"] == "blue"
    turned = decode(folder / "turned.png", 32)
    assert turned[16, 30].tolist() == list(COLOURS["red"])
    assert turned[16, 2].tolist() == list(COLOURS["blue"])


def test_a_file_that_cannot_be_read_is_reported_and_the_others_are_not_lost(
    trained: Path, run: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "some"
    shutil.copytree(trained.parent / "pictures" / "test" / "red", folder)
    (folder / "broken.jpg").write_bytes(next(folder.iterdir()).read_bytes()[:200])
    (folder / "words.png").write_text("no picture")
    (folder / "gone.png").symlink_to("nowhere.png")
    options = [f"checkpoint={trained}", f"input={folder}", "trust=[tiny.*]", "device=cpu"]
    done = run("predict", *options, f"output={tmp_path}/a.csv")
    assert done.returncode == 1
    broken, gone, words, last = done.stderr.splitlines()
    assert gone.startswith(f"cannot read {folder}/gone.png (")
    assert broken.startswith(f"cannot read {folder}/broken.jpg (")
    assert words == f"cannot read {folder}/words.png (not a picture that Pillow knows)"
    assert last.startswith("error: 3 of 7 files could not be read, as said above;")
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 1 + 4
    assert not list(tmp_path.glob("*.part"))
    options[1] = f"input={folder}/words.png"
    done = run("predict", *options, f"output={tmp_path}/b.csv")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        words,
        f"error: input={folder}/words.png: none of 1 files could be read, as said above. Give "
        "pictures.",
    ]
    assert not list(tmp_path.glob("b.csv*"))


def test_input_is_a_file_a_folder_or_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("b.jpg", "a.PNG", "deep/c.png", "notes.txt", ".hidden.png"):
        (tmp_path / "in" / name).touch()

    def names(given: str) -> list[str]:
        return [str(Path(file).relative_to(tmp_path / "in")) for file in find(given)]

    assert names(f"{tmp_path}/in") == ["a.PNG", "b.jpg", "deep/c.png"]
    assert names(f"{tmp_path}/in/b.jpg") == ["b.jpg"]
    assert names(f"{tmp_path}/in/*.???") == ["a.PNG", "b.jpg", "notes.txt"]
    assert names(f"{tmp_path}/in/**/*.png") == ["deep/c.png"]
    with pytest.raises(UserError, match=r"input=.*/x\.jpg: no file is called or matches"):
        find(f"{tmp_path}/x.jpg")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no picture in the folder"):
        find(f"{tmp_path}/empty")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("top_k=0", "error: top_k=0 does not fit: it takes an integer from 1."),
        ("figure=yes please", "error: figure='yes please' does not fit: it takes true or false."),
        ("checkpoint=nowhere", "error: There is no checkpoint at nowhere: give checkpoint=<"),
        ("device=cpu2", "error: device='cpu2'"),
    ],
)
def test_a_mistake_gets_one_line(trained: Path, run: Run, option: str, message: str) -> None:
    pictures = trained.parent / "pictures" / "test"
    options = [f"checkpoint={trained}", f"input={pictures}", "trust=[tiny.*]", "device=cpu"]
    done = run("predict", *options, option)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(message)


# ------------------------------------------------------------------------------------ from Python


def test_one_picture_of_any_kind_gives_one_answer(
    classify: Predictor, trained: Path, tmp_path: Path
) -> None:
    image = plain("green")
    image.save(tmp_path / "green.png")
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    kinds: list[Any] = [
        tmp_path / "green.png", str(tmp_path / "green.png"), image, array, tensor,
        array.astype(np.float32) / 255, tensor.double() / 255, image.convert("RGBA"),
    ]  # fmt: skip
    expected = classify(kinds[0])
    assert isinstance(expected, Answer)
    assert expected.name == "green"
    assert expected.probability == pytest.approx(float(expected.probabilities[1]))
    assert float(expected.probabilities.sum()) == pytest.approx(1)
    assert expected.top(2)[0] == ("green", expected.probability)
    assert repr(expected).startswith("Answer(green ")
    for kind in kinds[1:]:
        assert torch.equal(classify(kind).probabilities, expected.probabilities), type(kind)


def test_several_pictures_give_a_list_in_their_order(classify: Predictor) -> None:
    images = [plain(colour) for colour in ("red", "blue", "green", "blue")]
    wanted = ["red", "blue", "green", "blue"]
    arrays = np.stack([np.asarray(image) for image in images])
    tensors = torch.from_numpy(arrays).permute(0, 3, 1, 2)
    for several in (images, tuple(images), iter(images), arrays, tensors, list(arrays)):
        assert [answer.name for answer in classify(several, batch_size=3)] == wanted
    assert classify([]) == []


def test_grey_arrays_are_pictures_too(classify: Predictor) -> None:
    grey = np.full((40, 50), 120, np.uint8)
    expected = classify(Image.fromarray(grey)).probabilities
    for kind in (grey, grey[..., None], torch.from_numpy(grey), torch.from_numpy(grey)[None]):
        assert torch.equal(classify(kind).probabilities, expected)


def test_answers_are_those_of_an_evaluation(
    classify: Predictor, trained: Path, run: Run, tmp_path: Path
) -> None:
    done = run("evaluate", f"checkpoint={trained}", "trust=[tiny.*]", "trainer.accelerator=cpu")
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("logs/evaluate/*/evaluation.json")
    files = sorted((trained.parent / "pictures" / "test").rglob("*.*"))
    losses = [
        -torch.log(answer.probabilities[classify.classes.index(file.parent.name)])
        for file, answer in zip(files, classify(files), strict=True)
    ]
    mean = float(torch.stack(losses).mean())
    assert mean == pytest.approx(json.loads(path.read_text())["test/loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (3, TypeError, "builtins.int is no picture: give a path"),
        ([3], TypeError, "builtins.int is no picture"),
        (np.zeros((4, 5, 7), np.uint8), ValueError, r"shape \[4, 5, 7\] \(channels last\)"),
        (np.zeros((0, 5, 3), np.uint8), ValueError, r"shape \[0, 5, 3\]"),
        (np.full((4, 4, 3), 255.0), ValueError, "float values go from 0 to 1, and not from 255"),
        (np.full((4, 4, 3), np.nan), ValueError, "float values go from 0 to 1"),
        (np.zeros((4, 4, 3), np.int32), ValueError, "values are uint8 or floats, not int32"),
        ("nowhere.png", FileNotFoundError, "nowhere.png"),
    ],
)
def test_what_is_no_picture_is_refused(
    classify: Predictor, wrong: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        classify(wrong)


def test_the_package_imports_no_torch_until_it_loads_a_checkpoint() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        litvision.lod  # noqa: B018
    assert callable(litvision.load)


def test_a_picture_of_answers_has_a_place_for_each() -> None:
    pixels = np.arange(9, dtype=np.uint8).repeat(48).reshape(9, 4, 4, 3)
    (axes,) = figures.pictures(pixels, [f"n{i}" for i in range(9)]).axes
    assert [text.get_text() for text in axes.texts] == [f"n{i}" for i in range(9)]
    assert [int(image.get_array()[0, 0, 0]) for image in axes.images] == list(range(9))
    places = [tuple(round(edge, 2) for edge in image.get_extent()) for image in axes.images]
    assert places[:2] == [(0.03, 1.03, 1.33, 0.33), (1.09, 2.09, 1.33, 0.33)]
    assert places[8][:2] == places[0][:2]  # the ninth begins the second row
    assert places[8][3] > places[0][2]


def test_an_answer_about_two_classes_names_both() -> None:
    answer = Answer(("a", "b"), torch.tensor([0.25, 0.75]))
    assert answer.top() == [("b", 0.75), ("a", 0.25)]
    assert repr(answer) == "Answer(b 75.0%, a 25.0%)"


def test_the_first_five_are_named_where_nothing_else_is_said() -> None:
    answer = Answer(tuple("abcdefg"), torch.tensor([0.1, 0.2, 0.0, 0.3, 0.25, 0.05, 0.1]))
    assert [name for name, _ in answer.top()][:3] == ["d", "e", "b"]
    assert len(answer.top()) == 5


@pytest.fixture
def wide() -> Predictor:
    """Takes pictures of 2 x 3 pixels."""
    classifier = ImageClassifier(TinyLinear(num_classes=2))
    card = {"classes": ["a", "b"], "image_size": [2, 3], "mean": [0.5] * 3, "std": [0.25] * 3}
    classifier.card = card
    return Predictor(classifier, device="cpu")


def test_pictures_have_the_height_and_width_of_the_card(wide: Predictor) -> None:
    assert wide.image_size == (2, 3)
    values = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 13
    np.testing.assert_array_equal(wide.prepare(values), values)
    np.testing.assert_array_equal(wide.prepare(values.astype(np.float32) / 255), values)
    learned = torch.from_numpy(values).permute(2, 0, 1).float().div(255).requires_grad_()
    np.testing.assert_array_equal(wide.prepare(learned), values)
    clear = np.dstack([values, np.full((2, 3), 255, np.uint8)])
    np.testing.assert_array_equal(wide.prepare(clear), values)
    assert (wide.prepare(np.full((2, 3), 0.999)) == 255).all()  # rounded, not cut off
    column = np.full((4, 1), 7, np.uint8)
    np.testing.assert_array_equal(wide.prepare(column), np.full((2, 3, 3), 7))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((4, 5, 2), np.uint8), r"shape \[4, 5, 2\]"),
        (np.full((4, 4), -0.5), "float values go from 0 to 1, and not from -0.5 to -0.5"),
    ],
)
def test_two_channels_and_values_below_zero_are_refused(
    wide: Predictor, wrong: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        wide(wrong)
