"""Train with SETS random sets of overrides, 500 here, and debug=fast: each trains or is one line.

A set takes choices from the config groups and gives a few keys values that may not fit them.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.forked import start
from benchmarks.measure import RESULTS, machine, scratch

SETS = int(os.environ.get("SETS", "500"))
SEED = int(os.environ.get("SEED", "0"))
SECONDS = 120

# Where a choice would download, need other hardware, or start other processes.
LEFT_OUT = {
    "data": ("base", "cifar10", "cifar100"),
    "debug": ("fast", "none", "profile", "overfit"),
    "experiment": ("default", "batch_size", "normalization", "finetune"),
    "hydra": None,
    "logger": ("mlflow", "wandb"),
    "model": ("base",),
    "sweep": None,
    "trainer": ("ddp", "fsdp"),
}
SEVERAL = ("callbacks", "logger")
# Keys that say where files go, how many devices there are, or how Hydra itself works.
KEPT = ("hydra", "run_dir", "overrides", "debug", "sweep", "experiment")
PLACES = ("root", "url", "dirpath", "save_dir", "default_root_dir", "cache_dir", "filename")
DEVICES = ("devices", "num_nodes", "strategy", "fast_dev_run", "num_workers", "decode_workers")
VALUES = (
    *("null", "true", "false", "0", "-1", "1", "2", "3", "64", "0.5", "1e-3", "1e30", "-0.1"),
    *("nan", "inf", "''", "abc", "val/acc", "max", "'two words'", "[]", "[1,2]", "[disk,ring]"),
    *("{}", "{a:1}", "16-mixed", "bf16-mixed", "32-true", "'00:00:00:01'", "ä", "torch.nn.ReLU"),
)


def groups() -> dict[str, list[str]]:
    """Return the choices of every group that may be drawn."""
    from litvision.configs import CONF

    found = {}
    for folder in sorted(path for path in CONF.iterdir() if path.is_dir()):
        out = LEFT_OUT.get(folder.name, ())
        names = sorted(file.stem for file in folder.glob("*.yaml"))
        if out is not None:
            found[folder.name] = [name for name in names if name not in out]
    return found


def draw(rng: random.Random, choices: dict[str, list[str]], keys: dict[str, Any]) -> list[str]:
    """Return a set of overrides."""
    drawn = []
    for group, names in choices.items():
        if names and rng.random() < 0.35:
            taken = rng.sample(names, min(len(names), rng.randint(1, 3)))
            several = group in SEVERAL and rng.random() < 0.7
            drawn.append(f"{group}=[{','.join(taken)}]" if several else f"{group}={taken[0]}")
    for key in rng.sample(sorted(keys), rng.choice((0, 0, 1, 1, 2))):
        drawn.append(f"{key}={near(rng, keys[key])}")
    return drawn


def near(rng: random.Random, value: Any) -> str:
    """Return a value that may well fit where `value` does, or any."""
    if rng.random() < 0.5:
        return rng.choice(VALUES)
    if isinstance(value, bool):
        return str(not value).lower()
    if isinstance(value, int):
        return str(rng.choice((value - 1, value + 1, value * 2)))
    if isinstance(value, float):
        return str(value * rng.choice((0.1, 0.5, 2, 10)))
    return rng.choice(VALUES)


def free_keys() -> dict[str, Any]:
    """Return the keys of the default config whose values may be anything, and those values."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from litvision import records
    from litvision.configs import CONF, keys_of

    with initialize_config_dir(str(CONF)):
        cfg = compose("train", ["data=shapes"])
    flat = records.flat(OmegaConf.to_container(cfg))
    return {
        key: flat.get(key)
        for key in keys_of(cfg)
        if key.partition(".")[0] not in KEPT and key.rpartition(".")[2] not in (*PLACES, *DEVICES)
    }


def outcome(code: int | None, text: str) -> str:
    """Say in a few words how a command ended, from its exit status and what it printed."""
    if code is None:
        return "took too long"
    if "Traceback (most recent call last)" in text:
        return "a traceback"
    if code == 0:
        return "trained"
    last = text.strip().splitlines()[-1:]
    return "one line" if code == 1 and last and last[0].startswith("error: ") else "something else"


def complete(overrides: list[str], pictures: Path) -> list[str]:
    """Return the whole command: with tiny data, on the processor, with `debug=fast`."""
    first = ["trainer=cpu"] if not any(o.startswith("trainer=") for o in overrides) else []
    if "data=image_folder" in overrides:
        small = [f"data.root={pictures}"]
    else:
        small = ["data.train_size=40", "data.test_size=20"]
        first += [] if "data=shapes" in overrides else ["data=shapes"]
    chosen = [o for o in overrides if "." not in o.partition("=")[0]]
    return [*first, *chosen, *small, *(o for o in overrides if o not in chosen), "debug=fast"]


def run(number: int, arguments: list[str], place: Path) -> tuple[str, list[str], str]:
    """Train, and return how it ended, with what, and what it said."""
    folder, log = place / str(number), place / f"{number}.log"
    process = start([*arguments, f"hydra.run.dir={folder}"], log)
    process.join(SECONDS)
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
    text = log.read_text(encoding="utf-8", errors="replace")
    log.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    return outcome(code, text), arguments, text


def write_pictures(folder: Path) -> Path:
    """Write a few pictures in folders, as people bring them."""
    from PIL import Image

    for split in ("train", "test"):
        for name in ("blue", "red"):
            (folder / split / name).mkdir(parents=True)
            for index in range(8):
                Image.new("RGB", (40, 40 + index), name).save(
                    folder / split / name / f"{index}.png"
                )
    return folder


def main() -> None:
    rng = random.Random(SEED)
    choices, keys, place = groups(), free_keys(), Path(scratch())
    pictures = write_pictures(place / "pictures")
    drawn = [complete(draw(rng, choices, keys), pictures) for _ in range(SETS)]
    os.chdir(place)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        ended = list(pool.map(lambda pair: run(*pair, place), enumerate(drawn)))
    counts = Counter(how for how, _, _ in ended)
    rows = [f"| {how} | {count} |" for how, count in counts.most_common()]
    text = "\n".join([machine(), "", f"Seed {SEED}", "", "| | |", "| --- | ---: |", *rows])
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "fuzz.md").write_text(text + "\n")
    lines = [
        f"{how}: {' '.join(a)}\n    {said.strip().splitlines()[-1:]}" for how, a, said in ended
    ]
    (RESULTS / "fuzz.txt").write_text("\n".join(lines) + "\n")
    wrong = [(how, arguments, said) for how, arguments, said in ended
             if how not in ("trained", "one line")]  # fmt: skip
    for how, arguments, said in wrong:
        print(f'\n{how}: make train ARGS="{" ".join(arguments)}"\n{said[-1500:]}')
    print(text)
    if wrong:
        sys.exit(f"error: {len(wrong)} of {SETS} ended neither in training nor in one line.")


if __name__ == "__main__":
    main()
