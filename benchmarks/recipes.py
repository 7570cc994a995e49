"""What each recipe of docs/recipes.md does for VGG-16: python -m benchmarks recipes.

10,000 of CIFAR-10's training pictures, 5,000 others to validate, and as many epochs for each. The
pictures are data/cifar10-jpeg where it is there, else the official archive.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.measure import run
from benchmarks.trained import EPOCHS, FEWER, SEEDS, Comparison, training

COMMON = [
    *("model=vgg16", "optimizer=sgd_nesterov", "optimizer.lr=0.05", "scheduler=one_cycle"),
    *(f"trainer.max_epochs={EPOCHS}", *FEWER),
]
BASE = "one-cycle alone"
RECIPES = {
    BASE: [],
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
    comparison = Comparison("recipes", f"VGG-16, 10,000 pictures, {EPOCHS} epochs", SEEDS)

    def flipped(seed: int, folder: Path) -> float:
        """Return the same of the plain run's last weights, with test-time averaging."""
        last = comparison.folder(BASE, seed) / "checkpoints" / "last.ckpt"
        options = [f"checkpoint={last}", "split=val", "tta=flip"]
        run("-m", "litvision.evaluate", *options, f"hydra.run.dir={folder}")
        return float(json.loads((folder / "evaluation.json").read_text())["test/acc"])

    ways = {name: training(*COMMON, *options) for name, options in RECIPES.items()}
    comparison.measure({**ways, "test-time flip": flipped})


if __name__ == "__main__":
    main()
