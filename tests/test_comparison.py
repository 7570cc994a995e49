"""A sweep ends in one table and one picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from conftest import Run
from litvision.comparison import Comparison, read


def write_run(folder: Path, number: int, *overrides: str, **result: Any) -> None:
    path = folder / str(number)
    path.mkdir(parents=True)
    content = {"state": "done", "overrides": list(overrides), **result}
    (path / "result.json").write_text(json.dumps(content))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    values = [("4", "batch", 0.25), ("16", "batch", 0.5), ("4", "none", 0.125)]
    for number, (size, norm, acc) in enumerate(values):
        overrides = [f"data.batch_size={size}", f"+model.network.norm={norm}", "seed=1"]
        write_run(tmp_path, number, *overrides, **{"val/acc": acc})
    return tmp_path


def comparison(**options: Any) -> Comparison:
    return Comparison("val/acc", x="data.batch_size", line="model.network.norm", **options)


def test_runs_are_read_in_their_order(sweep: Path) -> None:
    write_run(sweep, 10, "data.batch_size=16", "model.network.norm=none", **{"val/acc": 1.0})
    (sweep / "figures").mkdir()
    (sweep / "figures" / "result.json").write_text("not a run")
    runs = read(sweep, "val/acc", "data.batch_size", "model.network.norm")
    assert [run["run"] for run in runs] == ["0", "1", "2", "10"]
    assert runs[0] == {"run": "0", "x": "4", "line": "batch", "value": 0.25}


def test_the_table_has_a_column_for_each_x_and_a_row_for_each_line(sweep: Path) -> None:
    write_run(
        sweep, 3, "data.batch_size=16", "model.network.norm=none", state="failed", error="NaN"
    )
    assert comparison(percent=True).write(sweep).splitlines() == [
        "| val/acc, % | data.batch_size=4 | data.batch_size=16 |",
        "| --- | ---: | ---: |",
        "| model.network.norm=batch | 25.0 | 50.0 |",
        "| model.network.norm=none | 12.5 | failed |",
    ]
    assert (sweep / "comparison.csv").read_text().splitlines() == [
        "model.network.norm,data.batch_size,val/acc,run",
        "batch,4,0.25,0",
        "batch,16,0.5,1",
        "none,4,0.125,2",
        "none,16,,3",
    ]
    assert Image.open(sweep / "comparison.png").size == (720, 480)


def test_runs_with_the_same_two_options_are_averaged_and_a_gap_stays_empty(sweep: Path) -> None:
    write_run(sweep, 3, "data.batch_size=4", "model.network.norm=batch", **{"val/acc": 0.75})
    table = comparison().write(sweep).splitlines()
    assert table[2:] == [
        "| model.network.norm=batch | 0.5000 | 0.5000 |",
        "| model.network.norm=none | 0.1250 |  |",
    ]


def test_a_folder_without_runs_has_no_table(tmp_path: Path) -> None:
    assert comparison().write(tmp_path) == ""
    assert not list(tmp_path.iterdir())


def test_a_recipe_that_is_a_sweep_needs_no_multirun_and_prints_its_table(
    tmp_path: Path, run: Run
) -> None:
    options = ["data=shapes", "data.train_size=40", "data.test_size=20", "trainer.max_epochs=1"]
    network = ["model.network._target_=tiny.TinyNet", "logger=none"]
    network.append("callbacks.figures=null")
    swept = ["data.batch_size=8,16", "model.network.norm=batch,none"]
    done = run("train", "experiment=normalization", *options, *network, *swept)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "logs" / "normalization").iterdir()
    table = (folder / "comparison.md").read_text()
    assert table in done.stdout
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == [
        "model.network.norm=batch",
        "model.network.norm=none",
    ]
    for number in range(4):
        result = json.loads((folder / str(number) / "result.json").read_text())
        assert "test/acc" not in result  # compared on validation, the test split is not read
        assert f"{100 * result['val/acc']:.1f}" in table
    # The learning rate followed the batch.
    assert result["lr"] == 0.00125
