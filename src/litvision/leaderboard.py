"""List runs, the best first: `python -m litvision.leaderboard [folder …] [--csv]`."""

from __future__ import annotations

import argparse
import csv
import re
import shlex
import statistics
import sys
from collections.abc import Iterable
from operator import itemgetter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from litvision import records

METRICS = ("test/acc", "epochs", "seconds", "images_per_second")


def main(arguments: list[str] | None = None) -> None:
    """Print the table of all runs below the folders given, `logs` if none is."""
    parser = argparse.ArgumentParser(prog="make leaderboard", description=__doc__)
    parser.add_argument(
        "folders", nargs="*", default=["logs"], help="runs or sweeps; default: logs"
    )
    parser.add_argument("--csv", action="store_true", help="comma-separated values, all digits")
    parser.add_argument(
        "--sort", metavar="KEY", help="a column, or a metric; default: the monitored metric"
    )
    parser.add_argument(
        "--over", metavar="KEY", help="means of runs that differ in this option alone, as seed"
    )
    given = parser.parse_args(arguments)
    if given.sort and given.sort.startswith("best_") and given.sort != "best_epoch":
        given.sort = given.sort.replace("_", " ", 1)  # as result.json has it
    missing = [folder for folder in given.folders if not Path(folder).is_dir()]
    if missing:
        sys.exit(f"error: there is no folder {missing[0]}: give one that runs were made in.")
    rows = read(map(Path, given.folders), more=[given.sort] if given.sort else [])
    if not rows:
        sys.exit(f"error: no run in {', '.join(given.folders)}: `make train` makes one.")
    if given.over:
        if not any(given.over in _given(row) for row in rows):
            sys.exit(f"error: --over {given.over}: no run was given that option.")
        rows = over(rows, given.over)
        if not rows:
            sys.exit(f"error: no run in {', '.join(given.folders)} is done: there is no mean yet.")
    columns = columns_of(rows)
    if given.sort and any(given.sort in row for row in rows):
        columns = list(dict.fromkeys([*columns, given.sort]))
    if given.sort and given.sort not in columns:
        sys.exit(f"error: --sort {given.sort}: there is no such column. All: {', '.join(columns)}")
    rows = ordered(rows, given.sort)
    if given.csv:
        writer = csv.DictWriter(sys.stdout, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        show(rows, columns)


def tell(folder: Path) -> None:
    """Print the table of a sweep's runs, if any has begun."""
    if rows := read([folder]):
        print()
        show(ordered(rows), columns_of(rows))


def columns_of(rows: list[dict[str, Any]]) -> list[str]:
    """Return the table's columns, in order: those of which any row has a value."""
    best = sorted({key for row in rows for key in row if key.startswith("best ")})
    metrics = [key for key in METRICS if any(key in row for row in rows)]
    several = ["data"] if len({row.get("data") for row in rows}) > 1 else []
    if "runs" in rows[0]:
        spread = [name for key in (*best, *metrics) for name in (key, f"± {key}")]
        return [*several, "options", "runs", *(n for n in spread if any(n in row for row in rows))]
    return ["run", "state", *several, "options", *best, *metrics]


def read(folders: Iterable[Path], more: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Return one row for each `result.json` below the folders: what it says of a finished run.

    `run`, `state`, `data`, `options` (what the command line changed; in a sweep, what differs
    within it), `best <monitor>`, and of the last epoch `METRICS` and `more`. What a run has not is
    left out. Folders of failed runs that were put aside for a second try are passed over.
    """
    rows = []
    for path in sorted({path for folder in folders for path in folder.rglob("result.json")}):
        run = path.parent
        if "_failed_" in run.name:
            continue
        result = records.read_result(run)
        if "state" not in result:
            continue  # some other program's file
        row = {"run": str(run), "state": result["state"], "options": options(run, result)}
        row["overrides"] = result.get("overrides", [])
        if "data" in result:  # not in older runs
            row["data"] = result["data"]
        for name in monitored(result):
            row[f"best {name}"] = result[f"best_{name}"]
        if result.get("mode") == "max":
            row["mode"] = "max"
        last = [key for key in (*METRICS, *more) if key not in row]
        row |= {key: result[key] for key in last if isinstance(result.get(key), int | float)}
        rows.append(row)
    return rows


def over(rows: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Return one row for all finished runs whose options differ in one key alone.

    Each has `runs`, their number, the mean of every number that they have, and under `± <name>` of
    the best metric and the test accuracy the standard deviation, of more than one run.

    Args:
        rows: as `read` returns them.
        key: of an option, such as "seed". Of all that a command line gave: what a sweep's runs have
            in common, and is not shown of them, tells them from other sweeps'.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    meant: dict[str, set[Any]] = {}  # by what is shown of options, all that they are
    for row in (row for row in rows if row["state"] == "done"):
        whole = tuple(sorted(pair for pair in _given(row).items() if pair[0] != key))
        groups.setdefault((row.get("data"), row.get("mode"), whole), []).append(row)
        meant.setdefault(_without(key, row), set()).add(whole)
    means = []
    for (data, mode, whole), members in groups.items():
        named = {"data": data, "mode": mode, "options": _without(key, members[-1])}
        if len(meant[_without(key, members[-1])]) > 1:
            named["options"] = shlex.join(f"{name}={value}" for name, value in whole)
        mean: dict[str, Any] = {k: v for k, v in named.items() if v is not None}
        mean["runs"] = len(members)
        for name in dict.fromkeys(name for row in members for name in row):
            values = [row[name] for row in members if isinstance(row.get(name), int | float)]
            if values:
                mean[name] = statistics.fmean(values)
            if len(values) > 1 and (name.startswith("best ") or name == "test/acc"):
                mean[f"± {name}"] = statistics.stdev(values)
        means.append(mean)
    return means


def _given(row: dict[str, Any]) -> dict[str, str]:
    """Return the options that a run was given, by key, but for those of its place in a sweep."""
    given = {records.key_of(override): override.partition("=")[2] for override in row["overrides"]}
    return {k: v for k, v in given.items() if not k.startswith("sweep.") and k != "resume"}


def _without(key: str, row: dict[str, Any]) -> str:
    """Return what is shown of a run's options but for one."""
    return shlex.join(o for o in shlex.split(row["options"]) if records.key_of(o) != key)


def monitored(result: dict[str, Any]) -> list[str]:
    """Return the metrics of which a run's `result.json` has the best value: one, or none."""
    names = [key.removeprefix("best_") for key in result if key.startswith("best_")]
    return [name for name in names if name != "epoch"]


def options(run: Path, result: dict[str, Any]) -> str:
    """Return what distinguishes a run: the options that its sweep varies, else all it was given."""
    overrides = [o for o in result.get("overrides", []) if not o.startswith(("sweep.", "resume="))]
    if plan := records.read_plan(run.parent):
        overrides = [o for o in overrides if records.key_of(o) in plan["keys"]]
    return shlex.join(overrides)


def ordered(rows: list[dict[str, Any]], key: str | None = None) -> list[dict[str, Any]]:
    """Sort by a column, or by the best monitored metric; rows without it come last.

    An accuracy, a rate, and what a run maximises falls and anything else rises from row to row.
    Each data set's runs stand together: a metric compares no two of them.
    """
    names = sorted({row.get("data", "") for row in rows}, key=lambda name: (not name, name))
    sets = ([row for row in rows if row.get("data", "") == name] for name in names)
    return [row for of_one in sets for row in _ordered(of_one, key)]


def _ordered(rows: list[dict[str, Any]], key: str | None) -> list[dict[str, Any]]:
    key = key or next((name for row in rows for name in row if name.startswith("best ")), "run")
    have = [row for row in rows if row.get(key) is not None]
    best = f"best {key.removeprefix('best ')}"
    most = any(best in row and row.get("mode") == "max" for row in have)
    have.sort(key=itemgetter(key), reverse=most or "acc" in key or key == "images_per_second")
    return have + [row for row in rows if row.get(key) is None]


def show(rows: list[dict[str, Any]], columns: list[str]) -> None:
    """Print the rows as a table; runs of one folder are named by what differs."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        words = column in ("run", "state", "data", "options")
        table.add_column(column, justify="left" if words else "right", overflow="fold")
    for before, row in zip([None, *rows], rows, strict=False):
        if "data" in columns and before is not None and before.get("data") != row.get("data"):
            table.add_row()
        # Rich would take a list's brackets for its own markup.
        table.add_row(*(escape(shown(column, row.get(column))) for column in columns))
    # A pipe has no width: nothing shall be folded there.
    Console(width=None if sys.stdout.isatty() else 1000, highlight=False).print(table)


def shown(column: str, value: Any) -> str:
    """Return a value as a person reads it; "" for None."""
    if value is None:
        return ""
    if column == "options":  # a search's numbers have more digits than anyone reads
        return re.sub(r"\d+\.\d{4,}(e[-+]?\d+)?", lambda found: f"{float(found[0]):.3g}", value)
    if isinstance(value, str):
        return value
    if "acc" in column:
        return f"{value:.2%}"
    if column == "runs":
        return str(value)
    if "loss" in column:
        return f"{value:.4f}"
    return f"{value:.0f}" if column in METRICS else f"{value:.4g}"


if __name__ == "__main__":
    main()
