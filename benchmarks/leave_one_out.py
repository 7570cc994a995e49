"""What each idea of resnet18_fast and vgg16_fast gives: python -m benchmarks leave_one_out.

Each is left out alone, on 10,000 of CIFAR-10's training pictures, with 5,000 others to validate.
MODEL is resnet18 or vgg16, OPTIONS are more overrides for all ways.
"""

from __future__ import annotations

import os

from benchmarks.trained import EPOCHS, FEWER, SEEDS, Comparison, Way, training

MODEL = os.environ.get("MODEL", "vgg16")
OPTIONS = os.environ.get("OPTIONS", "").split()
COMMON = [f"experiment={MODEL}_fast", f"trainer.max_epochs={EPOCHS}", *FEWER, *OPTIONS]
WITHOUT = {
    # From the full rate down, as Muon goes, SGD with rates that suit it later hardly learns at all.
    "Muon (Nesterov SGD, one cycle up to 0.1)": [
        *("optimizer=sgd_nesterov", "optimizer.lr=0.1", "scheduler=one_cycle"),
    ],
    "filters kept at norm 1": ["optimizer.keep_norm=false"],
    "the rate going to zero (constant)": ["scheduler=none"],
    "alternating flip (a coin toss)": ["data.flip=true"],
    "label smoothing": ["model.label_smoothing=0"],
    "reflected edges, moves by two (zeros, four)": ["data.padding=4", "data.padding_mode=zero"],
    "batches of 250 (500)": ["data.batch_size=500"],
    "batches of 250 (128)": ["data.batch_size=128"],
}


def main() -> None:
    title = f"{MODEL}_fast, 10,000 pictures, {EPOCHS} epochs"
    ways: dict[str, Way] = {"the whole recipe": training(*COMMON)}
    ways |= {f"without {name}": training(*COMMON, *options) for name, options in WITHOUT.items()}
    Comparison(f"leave_one_out_{MODEL}", title, SEEDS).measure(ways)


if __name__ == "__main__":
    main()
