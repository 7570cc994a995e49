"""The leaderboard lists what runs came to, the best first."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from litvision.leaderboard import main


def write(run: Path, state: str = "done", **content: Any) -> None:
    run.mkdir(parents=True)
    overrides = content.pop("overrides", [])
    whole = {"state": state, "overrides": overrides, **content}
    (run / "result.json").write_text(json.dumps(whole))


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    logs = tmp_path / "logs"
    common = {"epochs": 3, "seconds": 60.5, "images_per_second": 212.4}
    for number, (loss, acc) in enumerate([(0.5, 0.8), (0.25, 0.9)]):
        overrides = ["data=shapes", f"+optimizer.lr=0.{number}", "sweep.trial=1"]
        content = {"overrides": overrides, "best_val/loss": loss, "best_epoch": 2, "test/acc": acc}
        write(logs / "grid" / "a" / str(number), **content, **common)
    (logs / "grid" / "a" / "sweep.json").write_text('{"keys": ["optimizer.lr"], "runs": []}')
    write(logs / "grid" / "a" / "2", "failed", overrides=["optimizer.lr=9"], error="NaN")
    write(logs / "grid" / "a" / "1_failed_1", "failed")
    overrides = ["seed=1", "optimizer.lr=0.0014995637", "optimizer.weight_decay=1.8255254e-05"]
    write(logs / "demo" / "b", "running", overrides=overrides, **{"best_val/loss": 0.3})
    (logs / "other").mkdir()
    (logs / "other" / "result.json").write_text("[1, 2]")
    return logs


def rows(capsys: pytest.CaptureFixture[str]) -> list[dict[str, str]]:
    return list(csv.DictReader(capsys.readouterr().out.splitlines()))


def test_lists_are_shown_with_their_brackets(
    logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(logs / "demo" / "c", overrides=["data.classes=[ring,disk]", "x.exclude=[/head]"])
    main([])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "demo/c" in line]
    assert "'data.classes=[ring,disk]' 'x.exclude=[/head]'" in line


def test_a_metric_of_ones_own_is_sorted_as_the_run_had_it(
    logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("d", 0.25), ("e", 0.8731)):
        write(logs / "own" / name, **{"best_val/f1": value, "mode": "max"})
    main(["logs/own"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["logs/own/e", "logs/own/d"]
    assert lines[1].endswith("0.8731")


def test_every_run_is_listed_the_best_first(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--csv"])
    found = rows(capsys)
    assert [row["run"] for row in found] == [
        "logs/grid/a/1",
        "logs/demo/b",
        "logs/grid/a/0",
        "logs/grid/a/2",
    ]
    assert found[0] == {
        "run": "logs/grid/a/1",
        "state": "done",
        "options": "+optimizer.lr=0.1",  # of a sweep, what differs within it
        "best val/loss": "0.25",
        "test/acc": "0.9",
        "epochs": "3",
        "seconds": "60.5",
        "images_per_second": "212.4",
    }
    assert found[1]["options"].startswith("seed=1 optimizer.lr=0.0014995637 ")
    assert [row["state"] for row in found[1:]] == ["running", "done", "failed"]


def test_any_metric_that_a_run_has_can_be_sorted_by(
    logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, f1 in (("d", 0.25), ("e", 0.75)):
        write(logs / "own" / name, **{"best_val/f1": 1 - f1, "mode": "max", "val/f1": f1})
        write(logs / "own" / f"low_{name}", **{"best_val/loss": 0.5, "val/map": f1})
    main(["logs/own", "--sort", "val/f1", "--csv"])
    assert [row["run"][-1] + row["val/f1"] for row in rows(capsys)[:2]] == ["e0.75", "d0.25"]
    main(["logs/own", "--sort", "val/map", "--csv"])
    assert [row["val/map"] for row in rows(capsys)] == ["0.25", "0.75", "", ""]
    with pytest.raises(SystemExit, match=r"--sort val/mop: there is no such column\. All: "):
        main(["logs/own", "--sort", "val/mop"])


def test_means_over_seeds(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = logs / "seeds"
    results = [("0.1", 0, 0.5), ("0.1", 1, 0.7), ("0.2", 0, 0.25), ("0.3", 0, 0.4)]
    for number, (lr, seed, loss) in enumerate(results):
        overrides = [f"optimizer.lr={lr}", f"seed={seed}"]
        content = {"best_val/loss": loss, "test/acc": 1 - loss, "seconds": 60 + number}
        write(folder / str(number), overrides=overrides, data="Shapes", **content)
    write(folder / "4", "failed", overrides=["optimizer.lr=0.2", "seed=1"], data="Shapes")
    main(["logs/seeds", "--over", "seed"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert " ".join(lines[0]) == (
        "options runs best val/loss ± best val/loss test/acc ± test/acc seconds"
    )
    assert lines[1:] == [
        ["optimizer.lr=0.2", "1", "0.2500", "75.00%", "62"],
        ["optimizer.lr=0.3", "1", "0.4000", "60.00%", "63"],
        ["optimizer.lr=0.1", "2", "0.6000", "0.1414", "40.00%", "14.14%", "60"],
    ]
    main(["logs/seeds", "--over", "seed", "--csv", "--sort", "runs"])
    assert [row["runs"] for row in rows(capsys)] == ["1", "1", "2"]
    main(["logs/seeds", "--over", "optimizer.lr", "--csv"])
    assert [(row["options"], row["runs"]) for row in rows(capsys)] == [
        ("seed=0", "3"),
        ("seed=1", "1"),
    ]
    with pytest.raises(
        SystemExit, match=r"^error: no run in logs/seeds/4 is done: there is no mean"
    ):
        main(["logs/seeds/4", "--over", "seed"])


def test_means_are_of_runs_that_are_the_same_but_for_the_option(
    logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model, loss in (("vgg16", 0.25), ("resnet18", 0.75)):
        folder, content = logs / "seeds" / model, {"data": "CIFAR10", "best_val/loss": loss}
        for seed in (0, 1):
            overrides = [f"model={model}", "+optimizer.lr=0.1", f"+seed={seed}", "sweep.trial=1"]
            write(folder / str(seed), overrides=overrides, **content)
        (folder / "sweep.json").write_text('{"keys": ["optimizer.lr", "seed"], "runs": []}')
    overrides = ["model=vgg16", "optimizer.lr=0.1", "seed=2"]
    for name, data in (("alone", "CIFAR10"), ("other", "Shapes")):
        content = {"data": data, "best_val/loss": 0.25}
        write(logs / "seeds" / name, overrides=overrides, **content)
    main(["logs/seeds", "--over", "seed", "--csv"])
    assert [tuple(row.values())[:4] for row in rows(capsys)] == [
        ("CIFAR10", "model=vgg16 optimizer.lr=0.1", "3", "0.25"),
        ("CIFAR10", "model=resnet18 optimizer.lr=0.1", "2", "0.75"),
        ("Shapes", "model=vgg16 optimizer.lr=0.1", "1", "0.25"),
    ]
    with pytest.raises(SystemExit, match=r"^error: --over sed: no run was given that option\.$"):
        main(["logs/seeds", "--over", "sed"])


def test_only_numbers_are_sorted_by(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^error: --sort error: there is no such column\. All: "):
        main(["--sort", "error"])
    main(["--sort", "best_val/loss", "--csv"])
    found = rows(capsys)
    assert list(found[0]).count("best val/loss") == 1
    assert [row["best val/loss"] for row in found] == ["0.25", "0.3", "0.5", ""]


def test_runs_on_other_data_stand_apart(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, (data, loss) in enumerate(
        [("Shapes", 0.1), ("CIFAR10", 0.5), ("Shapes", 0.05), ("CIFAR10: cat", 0.0)]
    ):
        write(logs / "mixed" / str(number), data=data, **{"best_val/loss": loss, "test/acc": loss})
    main(["logs/mixed"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["run", "state", "data", "options", "best", "val/loss", "test/acc"],
        ["logs/mixed/1", "done", "CIFAR10", "0.5000", "50.00%"],
        [],
        ["logs/mixed/3", "done", "CIFAR10:", "cat", "0.0000", "0.00%"],
        [],
        ["logs/mixed/2", "done", "Shapes", "0.0500", "5.00%"],
        ["logs/mixed/0", "done", "Shapes", "0.1000", "10.00%"],
    ]
    main(["--csv", "--sort", "test/acc"])  # runs that say nothing of their data come last
    found = rows(capsys)
    assert [row["data"] for row in found[:4]] == ["CIFAR10", "CIFAR10: cat", "Shapes", "Shapes"]
    assert [row["test/acc"] for row in found[2:6]] == ["0.1", "0.05", "0.9", "0.8"]
    assert {row["data"] for row in found[4:]} == {""}
    main(["logs/mixed/0", "logs/mixed/2", "--csv"])
    assert "data" not in rows(capsys)[0]


def test_one_sweep_alone_and_by_another_column(
    logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["logs/grid/a", "--csv", "--sort", "test/acc"])
    assert [row["test/acc"] for row in rows(capsys)] == ["0.9", "0.8", ""]


def test_the_table_is_for_reading(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0][:5] == ["run", "state", "options", "best", "val/loss"]
    assert lines[1] == [
        "logs/grid/a/1", "done", "+optimizer.lr=0.1", "0.2500", "90.00%", "3", "60", "212",
    ]  # fmt: skip
    assert lines[2][2:5] == ["seed=1", "optimizer.lr=0.0015", "optimizer.weight_decay=1.83e-05"]


def test_a_run_is_listed_once_and_only_where_it_was_asked_for(
    logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(logs.parent / "elsewhere")
    write(logs / "what_failed_before" / "0", overrides=["seed=2", "resume=x"], **{"test/acc": 0.0})
    main(["--csv"])
    found = {row["run"]: row for row in rows(capsys)}
    assert "elsewhere" not in found
    row = found["logs/what_failed_before/0"]
    assert (row["options"], row["test/acc"]) == ("seed=2", "0.0")
    main(["logs/demo", "logs", "--csv"])
    assert len(rows(capsys)) == len(found)
    main(["logs/what_failed_before"])
    assert capsys.readouterr().out.split()[-1] == "0.00%"


@pytest.mark.parametrize(
    ("key", "order"),
    [("seconds", "ab"), ("images_per_second", "ba"), ("best val/f1", "ba"), ("run", "ab")],
)
def test_a_rate_falls_and_a_time_rises(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, order: str
) -> None:
    for number, name in enumerate("ab", start=1):
        content = {"seconds": number, "images_per_second": number, "best_val/f1": number}
        write(tmp_path / name, mode="max", **content)
    main([str(tmp_path), "--csv", "--sort", key])
    assert [Path(row["run"]).name for row in rows(capsys)] == list(order)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "error: there is no folder nowhere: give one that runs were made in."),
        (["logs", "no"], "error: there is no folder no: give one that runs were made in."),
        (["logs/other"], "error: no run in logs/other: `make train` makes one."),
        (["--sort", "accuracy"], "error: --sort accuracy: there is no such column. All: run, "),
    ],
)
def test_what_cannot_be_listed_is_said_in_one_line(
    logs: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match=message.replace("[", r"\[")):
        main(arguments)
