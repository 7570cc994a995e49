"""What each recipe of docs/recipes.md does for VGG-16: python -m benchmarks recipes.

10,000 of CIFAR-10's training pictures, 5,000 others to validate, and as many epochs for each. The
pictures are data/cifar10-jpeg where it is there, else the official archive.
"""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path

from benchmarks.measure import REAL, RESULTS, machine, run
from litvision import records

EPOCHS = int(os.environ.get("EPOCHS", "8"))
SEEDS = [int(seed) for seed in os.environ.get("SEEDS", "0,1").split(",")]
COMMON = [
    *("model=vgg16", "optimizer=sgd_nesterov", "optimizer.lr=0.05", "scheduler=one_cycle"),
    f"trainer.max_epochs={EPOCHS}",
    *("data.limit_per_class=1500", "data.val_fraction=0.3333333", "test=false"),
    *(
        "callbacks.figures=null",
        "callbacks.model_summary=null",
        "callbacks.progress_bar.kind=plain",
    ),
]
RECIPES = {
    "one-cycle alone": [],
    "a constant rate of 0.01 instead": ["scheduler=none", "optimizer.lr=0.01"],
    "EMA": ["callbacks=ema", "callbacks.ema.decay=0.99"],
    "label smoothing": ["model.label_smoothing=0.1"],
    "gradient clipping": ["trainer.gradient_clip_val=1"],
    "mixup": ["data.mix=mixup"],
    "CutMix": ["data.mix=cutmix"],
    "TrivialAugment": ["data.augment=trivial"],
    "Cutout": ["data.augment=cutout"],
}


def main() -> None:
    found: dict[str, dict[int, float]] = {name: {} for name in [*RECIPES, "test-time flip"]}
    for seed in SEEDS:
        for name, options in RECIPES.items():
            folder = RESULTS / "recipes" / f"{name.replace(' ', '-')}-{EPOCHS}-{seed}"
            found[name][seed] = train(folder, [*options, f"seed={seed}"])
            if not options:
                found["test-time flip"][seed] = evaluate(folder)
            report(found)


def train(folder: Path, options: list[str]) -> float:
    """Train once, unless it was done before; return the last epoch's validation accuracy."""
    if records.read_result(folder).get("state") != "done":
        run("-m", "litvision.train", *COMMON, *REAL, *options, f"hydra.run.dir={folder}")
    return float(records.read_result(folder)["val/acc"])


def evaluate(folder: Path) -> float:
    """Return the same of its last weights, with test-time averaging."""
    out = folder / "flip"
    options = [f"checkpoint={folder}/checkpoints/last.ckpt", "split=val", "tta=flip"]
    run("-m", "litvision.evaluate", *options, f"hydra.run.dir={out}")
    return float(json.loads((out / "evaluation.json").read_text())["test/acc"])


def report(found: dict[str, dict[int, float]]) -> None:
    """Write the table of what has been measured so far, and print it."""
    base = found["one-cycle alone"]
    lines = [
        f"{machine()}; VGG-16, 10,000 pictures, {EPOCHS} epochs, seeds {SEEDS}",
        "",
        "| recipe | validation accuracy, last epoch | difference, seed by seed |",
        "| --- | ---: | ---: |",
    ]
    for name, runs in found.items():
        if runs:
            accuracy = statistics.mean(runs.values())
            differences = [runs[seed] - base[seed] for seed in runs]
            shown = ", ".join(f"{100 * value:+.1f}" for value in differences)
            lines.append(f"| {name} | {accuracy:.1%} | {shown} |")
    text = "\n".join(lines)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "recipes.md").write_text(text + "\n")
    print(text, flush=True)


if __name__ == "__main__":
    main()
