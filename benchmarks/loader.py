"""From uint8 pictures in memory to augmented, normalised float batches."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torchvision.transforms.v2 import TrivialAugmentWide

from benchmarks.measure import Table, copy_bandwidth, in_turn, ratios
from benchmarks.pictures import Pictures
from benchmarks.plain import loader
from litvision import hardware
from litvision.datamodule import ImageDataModule
from litvision.trivial_augment import trivial_augment

PICTURES, BATCH, ROUNDS = 50_000, 128, 5


def compare(
    table: Table,
    what: str,
    images: int,
    both: dict[str, Callable[[], object]],
    rounds: int,
    limit: str,
) -> float:
    """Time both ways to load so many images in turn, add a row, and return our images/s."""
    seconds = in_turn(both, rounds)
    rates = {name: images / statistics.median(values) for name, values in seconds.items()}
    table.add(
        what,
        f"{rates['ours']:,.0f}",
        f"{rates['theirs']:,.0f}",
        ratios(seconds["theirs"], seconds["ours"]),
        limit,
    )
    return rates["ours"]


def main() -> None:
    table = Table(f"Loader: {PICTURES:,} pictures, batches of {BATCH}, crop, flip and normalise")
    hardware.keep_freed_memory()  # as every run does
    datamodule = ImageDataModule(Pictures, batch_size=BATCH, size=PICTURES, val_fraction=1e-4)
    datamodule.setup()
    ours, theirs = datamodule.train_dataloader(), loader(PICTURES, BATCH)

    def load_ours() -> None:
        for batch in ours:
            datamodule.on_after_batch_transfer(batch, 0)

    def load_theirs() -> None:
        for _ in theirs:
            pass

    rate = compare(
        table,
        "images/s, one process, beside torchvision's data set + PIL + DataLoader with 2",
        PICTURES,
        {"ours": load_ours, "theirs": load_theirs},
        ROUNDS,
        "≥ 12",
    )
    bandwidth = copy_bandwidth()
    # 3,072 bytes are read and 12,288 written: what no way of doing it can avoid.
    limit = bandwidth / (3072 * 5)
    table.add(
        "the same, beside the bandwidth of memory",
        f"{rate:,.0f}",
        f"{limit:,.0f} ({bandwidth / 1e9:.0f} GB/s)",
        rate / limit,
    )
    pixels = torch.randint(256, (BATCH, 32, 32, 3), dtype=torch.uint8)
    augment = TrivialAugmentWide()
    alone = pixels.permute(0, 3, 1, 2).unbind()
    compare(
        table,
        "TrivialAugment, images/s, beside torchvision's, picture by picture",
        BATCH,
        {
            "ours": lambda: trivial_augment(pixels, torch.randint(2**31, (BATCH,))),
            "theirs": lambda: torch.stack([augment(picture) for picture in alone]),
        },
        4 * ROUNDS,
        "≥ 1",
    )
    table.notes.append(
        f"Medians of {ROUNDS} epochs each, in turn; {torch.get_num_threads()} threads. The second "
        "row's reference reads each picture's 3,072 bytes and writes its 12,288 once, at the speed "
        f"of a large copy. TrivialAugment: medians of {4 * ROUNDS} batches."
    )
    table.save("loader")


if __name__ == "__main__":
    main()
