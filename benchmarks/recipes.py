"""What each recipe of docs/recipes.md does for VGG-16: python -m benchmarks recipes.

10,000 of CIFAR-10's training pictures, 5,000 others to validate, and as many epochs for each. The
pictures are data/cifar10-jpeg where it is there, else the official archive.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.measure import RESULTS, ROOT, machine

EPOCHS = int(os.environ.get("EPOCHS", "6"))
SEEDS = [int(seed) for seed in os.environ.get("SEEDS", "0,1").split(",")]
PICTURES = ROOT / "data" / "cifar10-jpeg"
DATA = [f"data.root={PICTURES}", "data=image_folder"] if PICTURES.is_dir() else ["data=cifar10"]
COMMON = [
    *("model=vgg16", "optimizer=sgd_nesterov", "optimizer.lr=0.05", f"trainer.max_epochs={EPOCHS}"),
    *("data.limit_per_class=1500", "data.val_fraction=0.3333333", "test=false"),
    *(
        "callbacks.figures=null",
        "callbacks.model_summary=null",
        "callbacks.progress_bar.kind=plain",
    ),
]
RECIPES = {
    "none of them": [],
    "one-cycle": ["scheduler=one_cycle"],
    "EMA": ["callbacks=ema", "callbacks.ema.decay=0.99"],
    "label smoothing": ["model.label_smoothing=0.1"],
    "gradient clipping": ["trainer.gradient_clip_val=1"],
    "mixup": ["data.mix=mixup"],
    "CutMix": ["data.mix=cutmix"],
    "TrivialAugment": ["data.augment=trivial"],
    "Cutout": ["data.augment=cutout"],
}


def main() -> None:
    found: dict[str, dict[int, dict[str, float]]] = {name: {} for name in RECIPES}
    found["test-time flip"] = {}
    for seed in SEEDS:
        for name, options in RECIPES.items():
            run = RESULTS / "recipes" / f"{name.replace(' ', '-')}-{seed}"
            found[name][seed] = train(run, [*options, f"seed={seed}"])
            if name == "none of them":
                flipped = evaluate(run)
                found["test-time flip"][seed] = {**found[name][seed], "val/acc": flipped}
            report(found)


def train(run: Path, options: list[str]) -> dict[str, float]:
    """Train once, unless it was done before, and return its result."""
    if not (run / "result.json").exists():
        call("train", *COMMON, *DATA, *options, f"hydra.run.dir={run}")
    lines = (run / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("val/acc")
    values = [row.split(",")[column] for row in lines[1:]]
    return {"val/acc": [float(v) for v in values if v][-1]}


def evaluate(run: Path) -> float:
    """Return the last epoch's accuracy on the validation split with test-time averaging."""
    out = run / "flip"
    checkpoint = run / "checkpoints" / "last.ckpt"
    call("evaluate", f"checkpoint={checkpoint}", "split=val", "tta=flip", f"hydra.run.dir={out}")
    return float(json.loads((out / "evaluation.json").read_text())["test/acc"])


def call(module: str, *options: str) -> None:
    command = [sys.executable, "-m", f"litvision.{module}", *options]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def report(found: dict[str, dict[int, dict[str, float]]]) -> None:
    """Write the table of what has been measured so far, and print it."""
    base = found["none of them"]
    lines = [
        f"{machine()}; VGG-16, 10,000 pictures, {EPOCHS} epochs, seeds {SEEDS}",
        "",
        "| recipe | validation accuracy, last epoch | difference, seed by seed |",
        "| --- | ---: | ---: |",
    ]
    for name, runs in found.items():
        if runs:
            accuracy = statistics.mean(run["val/acc"] for run in runs.values())
            differences = [runs[seed]["val/acc"] - base[seed]["val/acc"] for seed in runs]
            shown = ", ".join(f"{100 * value:+.1f}" for value in differences)
            lines.append(f"| {name} | {accuracy:.1%} | {shown} |")
    text = "\n".join(lines)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "recipes.md").write_text(text + "\n")
    print(text, flush=True)


if __name__ == "__main__":
    main()
