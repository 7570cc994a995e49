"""Does bfloat16 cost accuracy? The same short training in float32 and bfloat16, three seeds.

Needs real pictures in data/cifar10-jpeg, or the folder given: python -m benchmarks.accuracy FOLDER.
About an hour on two cores. Read on the validation split.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
from pathlib import Path

from benchmarks.measure import RESULTS, Table, run

SEEDS = (0, 1, 2)


def train(network: str, precision: str, seed: int, pictures: str) -> dict[str, float]:
    folder = RESULTS / "accuracy" / f"{network}-{precision}-{seed}"
    options = [
        "experiment=seed",
        f"model={network}",
        "data=image_folder",
        f"data.root={pictures}",
        "data.limit_per_class=1000",
        "trainer.max_epochs=3",
        f"trainer.precision={precision}",
        f"seed={seed}",
        "test=false",
        "logger=none",
        f"hydra.run.dir={folder}",
    ]
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier call
    print(run("-m", "litvision.train", *options), file=sys.stderr, flush=True)
    return json.loads((folder / "result.json").read_text())


def main() -> None:
    pictures = sys.argv[1] if len(sys.argv) > 1 else "data/cifar10-jpeg"
    if not Path(pictures, "train").is_dir():
        sys.exit(f"error: {pictures}/train is not there: give the folder of the pictures.")
    table = Table("Accuracy of bfloat16: 9,000 pictures, 3 epochs, seed recipe, seeds 0, 1, 2")
    for network in ("resnet18", "vgg16"):
        found: dict[str, list[dict[str, float]]] = {"bf16-mixed": [], "32-true": []}
        for seed in SEEDS:
            for precision, results in found.items():
                results.append(train(network, precision, seed, pictures))
        for metric in ("val/loss", "val/acc"):
            ours, full = ([r[metric] for r in found[p]] for p in ("bf16-mixed", "32-true"))
            apart = abs(statistics.mean(ours) - statistics.mean(full))
            spread = max(full) - min(full)
            table.add(
                f"{network}, {metric}",
                " ".join(f"{v:.4f}" for v in ours) + f", mean {statistics.mean(ours):.4f}",
                " ".join(f"{v:.4f}" for v in full) + f", mean {statistics.mean(full):.4f}",
                apart / spread,
                "≤ 1",
            )
    table.notes.append(
        "Reference: float32. Ratio: the distance of the two means over the spread (highest minus "
        "lowest seed) of float32."
    )
    table.save("accuracy")


if __name__ == "__main__":
    main()
