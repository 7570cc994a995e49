"""End a sweep in one table and one picture: a metric against one option, a line for another."""

from __future__ import annotations

import csv
import json
import statistics
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class Comparison(Callback):
    """A Hydra callback that compares the runs of a sweep by two of the options that it sweeps.

    After every run it rewrites `comparison.csv`, `comparison.md` and `comparison.png` in the
    sweep's folder from the runs' `result.json`, so that a sweep that is cut short has them too; at
    the end it prints the table. A run that failed shows as "failed". Several runs with the same two
    options (seeds, say) are averaged.

    Args:
        metric: a key of `result.json`.
        x: the option along the table's columns and the picture's axis, as on the command line.
        line: the option that has a row and a line for each of its values.
        percent: show the metric, a share from 0 to 1, in percent.
    """

    def __init__(self, metric: str, x: str, line: str, percent: bool = False) -> None:
        self.metric = metric
        self.x = x
        self.line = line
        self.percent = percent

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Take the run into account that has just ended."""
        if config.hydra.mode.name == "MULTIRUN":
            self.write(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table, and where it lies."""
        folder = Path(config.hydra.sweep.dir)
        table = self.write(folder)
        if table:
            print(f"\n{table}\n\ntable and picture  {folder}/comparison.md, .csv, .png", flush=True)

    def write(self, folder: Path) -> str:
        """Write table and picture of a sweep's folder; return the table, empty without runs."""
        runs = read(folder, self.metric, self.x, self.line)
        if not runs:
            return ""
        with (folder / "comparison.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([self.line, self.x, self.metric, "run"])
            writer.writerows([[r["line"], r["x"], r["value"], r["run"]] for r in runs])
        table = self._table(runs)
        (folder / "comparison.md").write_text(table + "\n", encoding="utf-8")
        self._draw(runs, folder / "comparison.png")
        return table

    def _cells(self, runs: list[dict[str, Any]]) -> dict[tuple[str, str], float | None]:
        """Return (line, x) -> mean metric, None where every run failed."""
        values: dict[tuple[str, str], list[float]] = {}
        for run in runs:
            cell = values.setdefault((run["line"], run["x"]), [])
            if run["value"] is not None:
                cell.append(run["value"] * (100 if self.percent else 1))
        return {key: statistics.mean(found) if found else None for key, found in values.items()}

    def _table(self, runs: list[dict[str, Any]]) -> str:
        cells, columns = self._cells(runs), _ordered(run["x"] for run in runs)
        name = f"{self.metric}, %" if self.percent else self.metric
        lines = [f"| {name} | " + " | ".join(f"{self.x}={x}" for x in columns) + " |"]
        lines.append("| --- |" + " ---: |" * len(columns))
        for line in dict.fromkeys(run["line"] for run in runs):
            row = [_shown(cells, (line, x), 1 if self.percent else 4) for x in columns]
            lines.append(f"| {self.line}={line} | " + " | ".join(row) + " |")
        return "\n".join(lines)

    def _draw(self, runs: list[dict[str, Any]], path: Path) -> None:
        from matplotlib.figure import Figure  # takes a second to import, which --help need not

        cells, columns = self._cells(runs), _ordered(run["x"] for run in runs)
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        for line in dict.fromkeys(run["line"] for run in runs):
            points = [(i, cells.get((line, x))) for i, x in enumerate(columns)]
            known = [(i, y) for i, y in points if y is not None]
            axes.plot([i for i, _ in known], [y for _, y in known], marker="o", label=line)
        axes.set_xticks(range(len(columns)), columns)
        axes.set_xlabel(self.x)
        axes.set_ylabel(f"{self.metric}, %" if self.percent else self.metric)
        axes.grid(alpha=0.3)
        figure.legend(title=self.line, loc="outside right upper")
        figure.savefig(path, dpi=120)


def read(folder: Path, metric: str, x: str, line: str) -> list[dict[str, Any]]:
    """Return what each run of a sweep's folder came to, in the order of the runs.

    Args:
        folder: holds a folder for each run, named by its number.
        metric: a key of `result.json`.
        x, line: options whose values are looked up in the run's `overrides`.

    Returns:
        dicts of `run` (its folder's name), `x`, `line` (as typed, "" where not swept) and `value`
        (None where the run failed or has not logged the metric).
    """
    runs = []
    numbered = [path for path in folder.glob("*/result.json") if path.parent.name.isdigit()]
    for path in sorted(numbered, key=lambda path: int(path.parent.name)):
        result = json.loads(path.read_text(encoding="utf-8"))
        options = dict(o.lstrip("+~").split("=", 1) for o in result["overrides"] if "=" in o)
        value = result.get(metric) if result["state"] == "done" else None
        run = {"run": path.parent.name, "x": options.get(x, ""), "line": options.get(line, "")}
        runs.append({**run, "value": value})
    return runs


def _ordered(values: Any) -> list[str]:
    """Return each value once, numbers by size and before words."""

    def key(value: str) -> tuple[int, float, str]:
        try:
            return 0, float(value), value
        except ValueError:
            return 1, 0.0, value

    return sorted(set(values), key=key)


def _shown(cells: dict[tuple[str, str], float | None], key: tuple[str, str], digits: int) -> str:
    if key not in cells:
        return ""
    value = cells[key]
    return "failed" if value is None else f"{value:.{digits}f}"
