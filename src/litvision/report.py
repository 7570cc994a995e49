"""Write a run or a sweep as one HTML page: `python -m litvision.report FOLDER`."""

from __future__ import annotations

import argparse
import base64
import sys
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from jinja2 import Environment, PackageLoader, StrictUndefined
from omegaconf import OmegaConf, open_dict

from litvision import leaderboard, records
from litvision.configs import CONF
from litvision.leaderboard import shown

SHOWN = 20  # runs of a sweep with a curve of their own: the best ones
FIGURES = ("confusion", "class_accuracy", "wrong", "reliability")
SPLITS = {"test": "on the test split", "val": "on validation, at the best epoch"}


def main(arguments: list[str] | None = None) -> None:
    """Write `report.html` into the folder and say where it is."""
    parser = argparse.ArgumentParser(prog="make report", description=__doc__)
    parser.add_argument("folder", nargs="?", help="of a run, or of a sweep or other runs")
    given = parser.parse_args(arguments)
    if given.folder is None:
        sys.exit("error: give the folder of a run or a sweep: make report RUN=logs/…")
    folder = Path(given.folder)
    if not folder.is_dir():
        sys.exit(f"error: there is no folder {folder}: give one that a run or a sweep made.")
    page = render(folder)
    if page is None:
        sys.exit(
            f"error: no run in {folder}: it holds no result.json. Give a folder that a run or a "
            "sweep made."
        )
    path = folder / "report.html"
    try:
        records.write_text(path, page)
    except OSError as error:
        sys.exit(f"error: {path} cannot be written: {error.strerror}.")
    print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")


def render(folder: Path) -> str | None:
    """Return the page of a run's folder, or of a folder with runs below; None if it has none.

    The page holds all that it shows: it needs no other file and no network.
    """
    content = run_content(folder) if "state" in records.read_result(folder) else None
    if content is None:
        content = sweep_content(folder)
    if content is None:
        return None
    loader = PackageLoader(__package__ or "litvision", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("report.html.j2").render(content)


def run_content(run: Path) -> dict[str, Any]:
    """Return what the page of one run shows."""
    from litvision import curves

    result, provenance = records.read_result(run), records.read_object(run / "provenance.json")
    found = curves.read(run)
    return {
        "title": str(run),
        "runs": None,
        "pictures": [],
        "best": None,
        "result": result,
        "facts": facts(result),
        "differences": differences(run),
        "curves": _svg(curves.draw_run(found), "curves by epoch") if found else None,
        "epochs": epochs(found),
        "figures": figures(run),
        "provenance": flat_provenance(provenance),
        "uncommitted": (provenance.get("git") or {}).get("diff", ""),
    }


def sweep_content(folder: Path) -> dict[str, Any] | None:
    """Return what the page of several runs shows; None where there is no run.

    The table has them all, best first; the best one's own page follows.
    """
    from litvision import curves

    rows = leaderboard.ordered(leaderboard.read([folder]))
    if not rows:
        return None
    metrics = ["test/acc", "epochs", "seconds", "images_per_second"]
    best = sorted({key for row in rows for key in row if key.startswith("best ")})
    columns = ["run", "state", "options", *best, *metrics]
    columns = [c for c in columns if any(row.get(c) not in (None, "") for row in rows)]
    table = []
    for row in rows:
        error = records.read_result(Path(row["run"])).get("error", "")
        row = {**row, "run": str(Path(row["run"]).relative_to(folder))}
        cells = [shown(column, row.get(column)) for column in columns]
        table.append({"cells": cells, "error": error})
    first = Path(rows[0]["run"])
    monitor = best[0].removeprefix("best ") if best else "val/loss"
    lines = [(str(Path(row["run"]).relative_to(folder)), curves.read(Path(row["run"])))
             for row in rows[:SHOWN]]  # fmt: skip
    pictures = []
    if any(found for _, found in lines):
        pictures.append(_svg(curves.draw_runs(lines, monitor), "validation, a line a run"))
    if (folder / "comparison.png").is_file():
        pictures.append(_png(folder / "comparison.png", "comparison"))
    return {
        **run_content(first),
        "title": str(folder),
        "runs": {"columns": columns, "rows": table, "shown": min(SHOWN, len(rows))},
        "pictures": pictures,
        "best": str(first.relative_to(folder)),
    }


def facts(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what is read first: name, value."""
    pairs = [("state", result["state"]), ("why", result.get("error"))]
    pairs += [("test accuracy", shown("test/acc", result.get("test/acc")))]
    for name in leaderboard.monitored(result):
        pairs.append((f"best {name}", shown(f"best {name}", result[f"best_{name}"])))
    if result.get("best_epoch"):
        pairs.append(("best epoch", f"{result['best_epoch']} of {result.get('epochs')}"))
    pairs += [("stopped early", result.get("stopped"))]
    pairs += [("seconds", shown("seconds", result.get("seconds")))]
    pairs += [("images/s", shown("images_per_second", result.get("images_per_second")))]
    pairs += [("data", result.get("data"))]
    pairs += [("options", " ".join(result.get("overrides", [])))]
    return [(name, value) for name, value in pairs if value]


def differences(run: Path) -> list[tuple[str, Any, Any]] | None:
    """Return key, default and value wherever a run's config is not what `conf/train.yaml` gives.

    None where there is no config. A key that one of them lacks has "" there.
    """
    config = records.read_config(run)
    if config is None:
        return None
    with initialize_config_dir(str(CONF)):
        defaults = compose("train")
    with open_dict(defaults):  # what a run fills in
        for key in ("run_dir", "overrides", "num_classes", "image_size", "total_steps"):
            defaults[key] = config.get(key)
    before: dict[str, Any] = records.flat(OmegaConf.to_container(defaults, resolve=True))
    now = records.flat(config)
    found = []
    for key in dict.fromkeys([*now, *before]):
        if key.rpartition(".")[2] not in records.PLACES and before.get(key, "") != now.get(key, ""):
            found.append((key, before.get(key, ""), now.get(key, "")))
    return found


def epochs(found: Any) -> dict[str, Any] | None:
    """Return columns and rows of the epochs' table."""
    names = [n for n in ("train/loss", "val/loss", "train/acc", "val/acc") if n in found]
    names += [n for n in found if n.startswith(("train/", "val/")) and n not in names]
    by_epoch = {name: dict(found[name]) for name in names}
    numbers = sorted({epoch for points in by_epoch.values() for epoch in points})
    if not numbers:
        return None
    rows = [
        [f"{number:.0f}", *(shown(name, by_epoch[name].get(number)) for name in names)]
        for number in numbers
    ]
    return {"columns": ["epoch", *names], "rows": rows}


def figures(run: Path) -> list[dict[str, Any]]:
    """Return the pictures that a run has drawn, the test's before validation's."""
    groups = []
    for split, title in SPLITS.items():
        files = [run / "figures" / f"{split}_{name}.png" for name in FIGURES]
        pictures = [_png(file, f"{file.stem}") for file in files if file.is_file()]
        if pictures:
            groups.append({"title": title, "pictures": pictures})
    batch = run / "figures" / "train_batch.png"
    if batch.is_file():
        picture = _png(batch, "train_batch")
        groups.append({"title": "first training batch", "pictures": [picture]})
    return groups


def flat_provenance(provenance: dict[str, Any]) -> list[tuple[str, str]]:
    """Return name and value of what a run was made of, the uncommitted changes aside."""
    rows = records.flat(provenance)
    return [
        (key, str(value))
        for key, value in rows.items()
        if key != "git.diff" and value not in (None, "")
    ]


def _svg(figure: Any, name: str) -> dict[str, str]:
    from litvision import curves

    return _picture(curves.to_svg(figure), "svg+xml", name)


def _png(path: Path, name: str) -> dict[str, str]:
    return _picture(path.read_bytes(), "png", name)


def _picture(content: bytes, kind: str, name: str) -> dict[str, str]:
    encoded = base64.b64encode(content).decode()
    return {"source": f"data:image/{kind};base64,{encoded}", "name": name.replace("_", " ")}


if __name__ == "__main__":
    main()
