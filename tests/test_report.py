"""The report of a run and of a sweep: one page that holds what it shows, and nothing else."""

from __future__ import annotations

import base64
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from conftest import Run
from litvision import curves, report

TINY = [
    *("data=shapes", "data.train_size=60", "data.test_size=20", "data.batch_size=16"),
    *("model.network._target_=tiny.TinyNet", "trainer.max_epochs=2", "trainer.accelerator=cpu"),
    *("optimizer.lr=0.02", "hydra.run.dir=run"),
]
METRICS = """epoch,lr,step,train/loss,val/acc,val/loss
,0.1,0,,,
0,,3,2.5,0.25,2.25
,0.05,4,,,
1,,7,1.5,0.5,1.75
"""


class Page(HTMLParser):
    """What a page says and where it points."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.places: list[str] = []  # every src and href
        self.pictures: dict[str, bytes] = {}  # by their alternative text
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self.inside = False  # a cell
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.places += [str(given[key]) for key in ("src", "href") if key in given]
        if tag == "img":
            content = str(given["src"]).partition("base64,")[2]
            self.pictures[str(given["alt"])] = base64.b64decode(content)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data


def write_run(folder: Path, loss: float | None, *options: str, **more: object) -> None:
    folder.mkdir(parents=True)
    result = {"state": "done", "overrides": options, "best_val/loss": loss, **more}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "metrics.csv").write_text(METRICS)


def test_a_run_is_one_page_that_needs_nothing_else(run: Run, tmp_path: Path) -> None:
    done = run("train", *TINY)
    assert done.returncode == 0, done.stderr
    done = run("report", "run")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "run"
    assert done.stdout.startswith("run/report.html  ")
    page = Page(folder / "report.html")
    assert page.places
    assert all(place.startswith("data:image/") for place in page.places)
    assert not {"script", "link", "iframe"} & set(page.tags)
    files = sorted((folder / "figures").glob("*.png"))
    assert len(files) == 9
    for file in files:
        assert page.pictures[file.stem.replace("_", " ")] == file.read_bytes()
    assert page.pictures["curves by epoch"].startswith(b"<?xml")
    result = json.loads((folder / "result.json").read_text())
    assert ["test accuracy", f"{result['test/acc']:.2%}"] in page.rows
    assert ["2", *(f"{result[f'{s}/loss']:.4f}" for s in ("train", "val"))] in [
        row[:3] for row in page.rows
    ]
    # What the command line chose, and what `auto` came to; nothing about folders.
    start = page.rows.index(["key", "default", "this run"]) + 1
    shown = {row[0]: row[1:] for row in page.rows[start:] if row and len(row) == 3}
    assert shown["optimizer.lr"] == ["0.01", "0.02"]
    assert shown["trainer.max_epochs"] == ["30", "2"]
    assert shown["model.network._target_"][1] == "tiny.TinyNet"
    assert shown["data.train_size"] == ["", "60"]
    assert not {"seed", "run_dir", "callbacks.figures.dirpath", "total_steps"} & set(shown)
    versions = json.loads((folder / "provenance.json").read_text())["versions"]
    assert ["versions.torch", versions["torch"]] in page.rows


def test_a_sweep_is_a_table_the_best_first_and_its_best_run(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    hostile = "<script>alert(1)</script>"
    write_run(sweep / "0", 2.0, "optimizer.lr=0.1", "seed=5")
    write_run(sweep / "1", 1.75, "optimizer.lr=0.2", "seed=5")
    write_run(sweep / "2", None, "optimizer.lr=9", "seed=5", state="failed", error=hostile)
    (sweep / "sweep.json").write_text(json.dumps({"keys": ["optimizer.lr"], "runs": []}))
    (sweep / "comparison.png").write_bytes(b"a picture")
    report.main([str(sweep)])
    page = Page(sweep / "report.html")
    assert page.rows[:5] == [
        ["run", "state", "options", "best val/loss"],
        ["1", "done", "optimizer.lr=0.2", "1.7500"],
        ["0", "done", "optimizer.lr=0.1", "2.0000"],
        ["2", "failed", "optimizer.lr=9", ""],
        ["", hostile],
    ]
    assert "script" not in page.tags
    assert page.pictures["comparison"] == b"a picture"
    assert {"validation, a line a run", "curves by epoch"} <= set(page.pictures)
    assert ["options", "optimizer.lr=0.2 seed=5"] in page.rows  # the best run's own


def test_a_run_under_way_has_a_page_too(tmp_path: Path) -> None:
    write_run(tmp_path / "run", None, state="running")
    (tmp_path / "run" / "metrics.csv").unlink()
    report.main([str(tmp_path / "run")])
    text = (tmp_path / "run" / "report.html").read_text()
    assert "the run has no metrics.csv yet" in text
    assert "Unknown: the run has no config.yaml." in text


def test_curves_are_read_by_epoch_and_the_rate_by_step(tmp_path: Path) -> None:
    again = "1,,7,1.25,0.75,1.5\n"  # a resumed run's
    (tmp_path / "metrics.csv").write_text(METRICS + again)
    assert curves.read(tmp_path) == {
        "lr": [(0, 0.1), (4, 0.05)],
        "train/loss": [(1, 2.5), (2, 1.25)],
        "val/acc": [(1, 0.25), (2, 0.75)],
        "val/loss": [(1, 2.25), (2, 1.5)],
    }
    figure = curves.draw_run(curves.read(tmp_path))
    loss = figure.axes[0].get_lines()
    assert [list(line.get_ydata()) for line in loss] == [[2.5, 1.25], [2.25, 1.5]]
    assert curves.to_svg(figure) == curves.to_svg(curves.draw_run(curves.read(tmp_path)))


def test_the_best_runs_have_curves_and_any_run_has_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[list[str], str]] = []

    def draw(runs: list[tuple[str, object]], monitor: str) -> Figure:
        asked.append(([name for name, _ in runs], monitor))
        return Figure()

    monkeypatch.setattr(report, "SHOWN", 2)
    monkeypatch.setattr(curves, "draw_runs", draw)
    for name, loss in (("a", 1.0), ("b", 3.0), ("c", 2.0)):
        write_run(tmp_path / name, loss, **({"seconds": 7.0} if name == "b" else {}))
    (tmp_path / "a" / "metrics.csv").unlink()  # whose own curves take long to draw
    (tmp_path / "result.json").write_text("{}")  # some other program's
    report.main([str(tmp_path)])
    assert asked == [(["a", "c"], "val/loss")]
    page = Page(tmp_path / "report.html")
    assert page.rows[:4] == [
        ["run", "state", "best val/loss", "seconds"],
        ["a", "done", "1.0000", ""],
        ["c", "done", "2.0000", ""],
        ["b", "done", "3.0000", "7"],
    ]
    assert f"<title>{tmp_path}</title>" in (tmp_path / "report.html").read_text()


def test_what_is_read_first_is_what_the_run_has() -> None:
    assert report.facts({"state": "running", "overrides": []}) == [("state", "running")]
    result = {"state": "failed", "error": "NaN", "best_val/loss": 0.5, "best_epoch": 3, "epochs": 9}
    result |= {"stopped": "no better", "seconds": 61.2, "images_per_second": 99.6, "test/acc": 0.0}
    assert report.facts({**result, "data": "Shapes", "overrides": ["a=1", "b=2"]}) == [
        ("state", "failed"),
        ("why", "NaN"),
        ("test accuracy", "0.00%"),
        ("best val/loss", "0.5000"),
        ("best epoch", "3 of 9"),
        ("stopped early", "no better"),
        ("seconds", "61"),
        ("images/s", "100"),
        ("data", "Shapes"),
        ("options", "a=1 b=2"),
    ]


def test_an_epoch_without_validation_has_empty_cells() -> None:
    found = {"val/loss": [(2.0, 0.5)], "train/loss": [(1.0, 1.5)], "lr": [(0.0, 0.1)]}
    assert report.epochs(found) == {
        "columns": ["epoch", "train/loss", "val/loss"],
        "rows": [["1", "1.5000", ""], ["2", "", "0.5000"]],
    }
    assert report.epochs({"lr": [(0.0, 0.1)]}) is None


def test_metrics_of_ones_own_are_in_the_table_of_epochs() -> None:
    found = {"val/f1": [(1.0, 0.25)], "lr": [(0.0, 0.1)], "val/loss": [(1.0, 0.5)]}
    assert report.epochs(found) == {
        "columns": ["epoch", "val/loss", "val/f1"],
        "rows": [["1", "0.5000", "0.25"]],
    }


def test_provenance_has_a_seed_of_zero_and_its_diff_is_apart(tmp_path: Path) -> None:
    provenance = {"seed": 0, "git": {"commit": "abc", "diff": "-old", "untracked": ""}, "x": None}
    assert report.flat_provenance(provenance) == [("seed", "0"), ("git.commit", "abc")]
    write_run(tmp_path / "run", 1.0)
    (tmp_path / "run" / "metrics.csv").unlink()
    (tmp_path / "run" / "provenance.json").write_text(json.dumps(provenance))
    assert report.run_content(tmp_path / "run")["uncommitted"] == "-old"


def test_a_page_that_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    write_run(tmp_path / "run", 1.0)
    (tmp_path / "run" / "metrics.csv").unlink()
    (tmp_path / "run" / "report.html").mkdir()
    with pytest.raises(
        SystemExit, match=r"error: .*report\.html cannot be written: Is a directory"
    ):
        report.main([str(tmp_path / "run")])


def test_pictures_of_the_test_come_before_those_of_validation(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    for name in ("train_batch", "val_wrong", "test_wrong", "test_confusion"):
        (tmp_path / "figures" / f"{name}.png").write_bytes(b"x")
    found = [[picture["name"] for picture in g["pictures"]] for g in report.figures(tmp_path)]
    assert found == [["test confusion", "test wrong"], ["val wrong"], ["train batch"]]


def test_a_key_that_a_run_lacks_differs_from_the_default(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("run_dir: a\nseed: 7\nown: {dirpath: b, x: 1}\n")
    found = {key: values for key, *values in report.differences(tmp_path) or []}
    assert found["own.x"] == ["", 1]
    assert found["seed"][1] == 7
    assert found["monitor"] == ["val/loss", ""]
    assert not {"own.dirpath", "run_dir", "callbacks.best_checkpoint.dirpath"} & set(found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: give the folder of a run or a sweep: make report RUN=logs/…"),
        (["no"], "error: there is no folder no: give one that a run or a sweep made."),
        (["."], "error: no run in .: it holds no result.json. Give a folder that a run or a sweep "
                "made."),
    ],
)  # fmt: skip
def test_a_folder_without_a_run_is_answered_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        report.main(arguments)
    assert str(stopped.value) == message
