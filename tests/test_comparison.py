"""A sweep ends in one table and one picture."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hydra.core.utils import JobReturn
from hydra.types import RunMode
from matplotlib.figure import Figure
from omegaconf import OmegaConf
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


def test_a_run_that_has_not_ended_well_counts_for_nothing_and_a_zero_does(sweep: Path) -> None:
    options = ["data.batch_size=8", "model.network.norm=group", "~callbacks.ema", "x='a=b'"]
    for number, state in enumerate(("failed", "running", "pruned", "done"), start=3):
        value = 0.0 if state == "done" else 0.75
        write_run(sweep, number, *options, state=state, **{"val/acc": value})
    runs = read(sweep, "val/acc", "data.batch_size", "model.network.norm")
    assert [(run["x"], run["value"]) for run in runs[3:]] == [("8", None)] * 3 + [("8", 0.0)]
    assert "| model.network.norm=group |  | 0.0000 |  |" in comparison().write(sweep)


def test_columns_are_in_the_order_of_numbers_and_words_come_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    for number, x in enumerate(("auto", "16", "9", "0.5", "null")):
        result = {"val/acc": float(number)} if x != "9" else {"state": "failed"}
        write_run(tmp_path, number, f"data.batch_size={x}", "model.network.norm=a", **result)
    header, _, row = comparison().write(tmp_path).splitlines()
    assert re.findall(r"size=(\S+)", header) == ["0.5", "9", "16", "auto", "null"]
    assert row.endswith("| 3.0000 | failed | 1.0000 | 0.0000 | 4.0000 |")
    (line,) = drawn[0].axes[0].get_lines()
    assert line.get_xydata().tolist() == [[0, 3], [2, 1], [3, 0], [4, 4]]


@pytest.mark.parametrize(("mode", "written"), [(RunMode.MULTIRUN, True), (RunMode.RUN, False)])
def test_a_sweep_has_its_table_after_every_run(sweep: Path, mode: RunMode, written: bool) -> None:
    config = OmegaConf.create({"hydra": {"mode": mode, "sweep": {"dir": str(sweep)}}})
    comparison().on_job_end(config, JobReturn())
    assert (sweep / "comparison.md").exists() == written


def test_a_recipe_that_is_a_sweep_needs_no_multirun_and_prints_its_table(
    tmp_path: Path, run: Run
) -> None:
    options = ["data=shapes", "data.train_size=40", "data.test_size=20", "trainer.max_epochs=1"]
    network = ["model.network._target_=tiny.TinyNet", "logger=none"]
    network.append("callbacks.figures=null")
    swept = ["data.batch_size=8,16", "model.network.norm=batch,none"]
    done = run("train", "experiment=normalization", *options, *network, *swept)
    assert done.returncode == 0, done.stderr
    assert "images_per_second" not in done.stdout  # the table of sweeps without one of their own
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
