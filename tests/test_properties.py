"""What holds for any data, any options and any number of devices."""

from __future__ import annotations

import math
import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import fuzz
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from litvision.assemble import assemble
from litvision.batches import Batch, Images
from litvision.configs import CONF
from litvision.datamodule import ImageDataModule
from litvision.mistakes import is_bug, message_of
from litvision.splits import split_stratified

# The same examples in every run, so that a failure is of this change.
SETTINGS = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
NAMES = tuple("abcdef")


class Given:
    """A source of the pictures that it is given."""

    def __init__(self, train: Images, test: Images) -> None:
        self.splits = {"train": train, "test": test}

    def prepare(self) -> None:
        pass

    def read(self) -> dict[str, Images]:
        return dict(self.splits)


def numbered(labels: list[int]) -> Images:
    """Pictures whose pixels are their own number."""
    numbers = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None]
    return Images(numbers.expand(-1, 2, 2, 3).contiguous(), torch.tensor(labels), NAMES)


def ranks(world_size: int) -> Any:
    """What the data module asks of the trainer of each device."""
    loop = SimpleNamespace(epoch_progress=SimpleNamespace(current=SimpleNamespace(processed=0)))
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    for rank in range(world_size):
        yield SimpleNamespace(
            world_size=world_size, global_rank=rank, strategy=strategy, fit_loop=loop
        )


# At least two of each of these classes, so that each can be split.
LABELS = st.lists(st.sampled_from(range(len(NAMES))), max_size=100).map(
    lambda more: [label for label in sorted(set(more)) for _ in range(2)] + more
)


@given(LABELS.filter(bool), st.floats(0.001, 0.999), st.integers(0, 2**32))
@SETTINGS
def test_a_split_is_disjoint_complete_and_stratified(
    labels: list[int], fraction: float, seed: int
) -> None:
    first, second = split_stratified(torch.tensor(labels), fraction, seed)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(len(labels)))
    for label in set(labels):
        count, taken = labels.count(label), sum(labels[row] == label for row in second.tolist())
        assert 1 <= taken <= count - 1
        wanted = min(max(fraction * count, 1), count - 1)
        assert abs(taken - wanted) <= 0.5 + 1e-9


@given(
    labels=LABELS.filter(bool),
    test_labels=st.lists(st.sampled_from(range(len(NAMES))), min_size=1, max_size=20),
    only=st.one_of(st.none(), st.lists(st.sampled_from(NAMES), min_size=1, unique=True)),
    limit=st.one_of(st.none(), st.integers(2, 9)),
    fraction=st.floats(0.01, 0.99),
    batch_size=st.integers(1, 70),
    world_size=st.integers(1, 5),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 3),
)
@SETTINGS
def test_every_picture_is_seen_once_an_epoch_by_one_device(
    labels: list[int],
    test_labels: list[int],
    only: list[str] | None,
    limit: int | None,
    fraction: float,
    batch_size: int,
    world_size: int,
    seed: int,
    epoch: int,
) -> None:
    made = ImageDataModule(
        lambda: Given(numbered(labels), numbered(test_labels)),
        batch_size=batch_size,
        eval_batch_size=batch_size,
        val_fraction=fraction,
        classes=only,
        limit_per_class=limit,
        seed=seed,
        padding=0,
    )
    wanted = set(only or NAMES)
    there = {split: [NAMES[label] for label in values] for split, values in
             (("train", labels), ("test", test_labels))}  # fmt: skip
    if not wanted & set(there["train"]) or not wanted & set(there["test"]):
        return  # refused, see test_datamodule.py
    made.setup()
    rows = {name: set(subset.indices.tolist()) for name, subset in made.subsets.items()}
    assert not rows["train"] & rows["val"]
    chosen = rows["train"] | rows["val"]
    for name in wanted & set(there["train"]):
        of_it = {row for row, other in enumerate(there["train"]) if other == name}
        assert len(chosen & of_it) == min(len(of_it), limit or len(of_it))
        assert rows["train"] & of_it
        assert rows["val"] & of_it
    assert all(there["train"][row] in wanted for row in chosen)
    assert rows["test"] == {row for row, name in enumerate(there["test"]) if name in wanted}

    for split in ("train", "val", "test"):
        size = len(rows[split])
        if min(size, batch_size) < world_size:
            continue  # refused, see test_datamodule.py
        steps, seen, shares = set(), [], 0.0
        for trainer in ranks(world_size):
            made.trainer = trainer
            loader = getattr(made, f"{split}_dataloader")()
            loader.batch_sampler.sampler.set_epoch(epoch)
            batches = list(loader)
            steps.add(len(batches))
            for batch in batches:
                assert 1 <= len(batch.labels) <= 2 * batch_size
                seen += batch.images[:, 0, 0, 0].tolist()
                names = [made.classes[label] for label in batch.labels.tolist()]
                source = "test" if split == "test" else "train"
                numbers = batch.images[:, 0, 0, 0].tolist()
                assert names == [there[source][number] for number in numbers]
            shares += sum(batch.share for batch in batches)
        assert len(steps) == 1  # else one device would wait for ever
        assert sorted(seen) == sorted(rows[split])
        # Weighted by them, the devices' means are the mean over each step's pictures.
        assert math.isclose(shares, world_size * steps.pop())


# ---------------------------------------------------------------------------------- augmentation


def slowly(picture: np.ndarray, draws: list[int], options: dict[str, Any]) -> np.ndarray:
    """One picture, uint8 `[H, W, C]`, as it should come out: float64 `[C, H, W]`."""
    height, width, channels = picture.shape
    padding, side = options["padding"], options["crop"]
    if padding or side:
        inner = (side, side) if side else (height, width)
        top = draws[0] % (height + 2 * padding - inner[0] + 1)
        left = draws[1] % (width + 2 * padding - inner[1] + 1)
        window = np.zeros((*inner, channels), np.uint8)
        for y in range(inner[0]):
            for x in range(inner[1]):
                row, column = y + top - padding, x + left - padding
                if options["padding_mode"] == "reflect":
                    window[y, x] = picture[bounced(row, height), bounced(column, width)]
                elif 0 <= row < height and 0 <= column < width:
                    window[y, x] = picture[row, column]
        picture, (height, width) = window, inner
    if options["flip"] and draws[2] % 2:
        picture = picture[:, ::-1]
    result = np.zeros((channels, height, width))
    for channel in range(channels):
        mean, std = options["mean"][channel], options["std"][channel]
        result[channel] = (picture[..., channel] / 255 - mean) / std
    up, more = (draws[5] >> 16) / 2**14 - 1, draws[5] % 2**16 / 2**15 - 1
    result = (result + options["brightness"] * up) * (1 + options["contrast"] * more)
    if options["cutout"]:
        side = options["cutout"]
        for y in range(height):
            for x in range(width):
                if (0 <= y - (draws[3] % height - side // 2) < side
                        and 0 <= x - (draws[4] % width - side // 2) < side):  # fmt: skip
                    result[:, y, x] = 0
    return result


def bounced(position: int, size: int) -> int:
    """Walk from 0 to a position, turning round at the edges."""
    place, direction = 0, 1 if position > 0 else -1
    for _ in range(abs(position)):
        if not 0 <= place + direction < size:
            direction = -direction
        place += direction if size > 1 else 0
    return abs(place)


@given(data=st.data())
@SETTINGS
def test_augmentation_is_that_of_each_picture_by_itself(data: st.DataObject) -> None:
    height, width, count = (data.draw(st.integers(1, 9)) for _ in range(3))
    padding = data.draw(st.integers(0, 6))
    options = {
        "padding": padding,
        "crop": data.draw(st.none() | st.integers(1, min(height, width) + 2 * padding)),
        "padding_mode": data.draw(st.sampled_from(["zero", "reflect"])),
        "flip": data.draw(st.booleans()),
        "cutout": data.draw(st.integers(0, 11)),
        "brightness": data.draw(st.sampled_from([0.0, 0.3, 2.0])),
        "contrast": data.draw(st.sampled_from([0.0, 0.4])),
        "mean": [data.draw(st.floats(0, 1)) for _ in range(3)],
        "std": [data.draw(st.floats(0.05, 2)) for _ in range(3)],
    }
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    pixels = torch.from_numpy(rng.integers(0, 256, (count + 1, height, width, 3), np.uint8))
    images = Images(pixels, torch.zeros(count + 1, dtype=torch.int64), ("a",))
    made = ImageDataModule(
        lambda: Given(images, images), batch_size=count, val_fraction=0.5, **options
    )
    made.setup()
    draws = torch.from_numpy(rng.integers(2**31, size=(count, 6)))
    labels = torch.zeros(count, dtype=torch.int64)
    batch = made.on_after_batch_transfer(Batch(pixels[:count], labels, draws), 0)
    size = (options["crop"],) * 2 if options["crop"] else (height, width)
    assert (batch.images.shape, batch.images.dtype) == ((count, 3, *size), torch.float32)
    low, high = ((value - torch.tensor(options["mean"])) / torch.tensor(options["std"])
                 for value in (0, 1))  # fmt: skip
    zero = torch.zeros(3)  # where it is cut out
    up, more = options["brightness"], 1 + options["contrast"]
    bottom = torch.minimum((low - up) * more, zero)
    top = torch.maximum((high + up) * more, zero)
    assert (batch.images.amin((0, 2, 3)) >= bottom - 1e-4).all()
    assert (batch.images.amax((0, 2, 3)) <= top + 1e-4).all()
    for number in range(count):
        expected = slowly(pixels[number].numpy(), draws[number].tolist(), options)
        np.testing.assert_allclose(batch.images[number].numpy(), expected, atol=2e-4)


# --------------------------------------------------------------------------------------- configs


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Draw a set of overrides from a seed, for data and a network that take no time."""
    folder = tmp_path_factory.mktemp("fuzz")
    choices, keys = fuzz.groups(), fuzz.free_keys()
    choices |= {"model": [], "trainer": []}  # the network is another, and many have no GPU
    pictures = fuzz.write_pictures(folder / "pictures")
    tiny = ["model.network._target_=tiny.TinyNet", "overrides=[]", f"run_dir={folder}/run"]

    def of(seed: int) -> list[str]:
        overrides = fuzz.draw(random.Random(seed), choices, keys)
        return [*fuzz.complete(overrides, pictures), *tiny]

    return of


def train_a_step(overrides: list[str]) -> str:
    """Return "trained", or "refused" where one line is said; anything else is an error."""
    try:
        with initialize_config_dir(str(CONF)):
            cfg = compose("train", overrides)
    except HydraException:
        return "refused"  # test_commandline.py has what is said then
    except ValueError as error:  # of Hydra, for a group that is given a number
        assert not is_bug(error)  # noqa: PT017
        return "refused"
    try:
        run = assemble(cfg)
        run.trainer.fit(run.classifier, run.datamodule)
    except Exception as error:
        if is_bug(error) or "\n" in message_of(error):
            raise AssertionError(f"neither trained nor refused: {' '.join(overrides)}") from error
        return "refused"
    return "trained"


def test_what_composes_trains_a_step_or_is_refused_with_one_line(drawn: Any) -> None:
    """`make bench ARGS=fuzz` does so with real networks, as commands."""
    ended: Counter[str] = Counter()

    @given(seed=st.integers(0, 2**32))
    @settings(SETTINGS, max_examples=12)
    def check(seed: int) -> None:
        ended[train_a_step(drawn(seed))] += 1

    check()
    assert ended["trained"] >= 3
    assert ended["refused"] >= 1
