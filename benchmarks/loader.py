"""From uint8 pictures in memory to augmented, normalised float batches."""

from __future__ import annotations

import statistics

import torch
from torchvision.transforms.v2 import TrivialAugmentWide

from benchmarks.measure import Table, copy_bandwidth, in_turn, ratios
from benchmarks.pictures import Pictures
from benchmarks.plain import loader
from litvision import hardware
from litvision.datamodule import ImageDataModule
from litvision.trivial_augment import trivial_augment

PICTURES, BATCH, ROUNDS = 50_000, 128, 5


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

    seconds = in_turn({"ours": load_ours, "theirs": load_theirs}, ROUNDS)
    rates = {name: PICTURES / statistics.median(values) for name, values in seconds.items()}
    table.add(
        "images/s, one process, beside torchvision's data set + PIL + DataLoader with 2",
        f"{rates['ours']:,.0f}",
        f"{rates['theirs']:,.0f}",
        ratios(seconds["theirs"], seconds["ours"]),
        "≥ 12",
    )
    bandwidth = copy_bandwidth()
    # 3,072 bytes are read and 12,288 written: what no way of doing it can avoid.
    limit = bandwidth / (3072 * 5)
    table.add(
        "the same, beside the bandwidth of memory",
        f"{rates['ours']:,.0f}",
        f"{limit:,.0f} ({bandwidth / 1e9:.0f} GB/s)",
        rates["ours"] / limit,
    )
    pixels = torch.randint(256, (BATCH, 32, 32, 3), dtype=torch.uint8)
    augment = TrivialAugmentWide()
    alone = pixels.permute(0, 3, 1, 2).unbind()
    both = {
        "ours": lambda: trivial_augment(pixels, torch.randint(2**31, (BATCH,))),
        "theirs": lambda: torch.stack([augment(picture) for picture in alone]),
    }
    seconds = in_turn(both, rounds=4 * ROUNDS)
    rates = {name: BATCH / statistics.median(values) for name, values in seconds.items()}
    table.add(
        "TrivialAugment, images/s, beside torchvision's, picture by picture",
        f"{rates['ours']:,.0f}",
        f"{rates['theirs']:,.0f}",
        ratios(seconds["theirs"], seconds["ours"]),
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
