"""Classify pictures: `python -m litvision.predict checkpoint=PATH input=FILE|FOLDER|PATTERN`."""

from __future__ import annotations

import csv
import glob
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

from omegaconf import DictConfig
from pydantic import Field

from litvision import records
from litvision.commandline import command
from litvision.errors import UserError
from litvision.importing import quick_imports

if TYPE_CHECKING:
    from litvision.predictor import Answer, Predictor

SHOWN = 10  # answers on the screen
PICTURED = 32  # and in the picture


class Options(TypedDict):
    """The plain keys of `conf/predict.yaml` and what they take."""

    input: str
    output: str
    top_k: Annotated[int, Field(ge=1)]
    figure: bool
    tta: Literal["flip", "flip_shift"] | None
    batch_size: Annotated[int, Field(ge=1)]
    device: str
    decode_workers: Annotated[int, Field(ge=0)] | None
    trust: list[str]


@command("predict")
def main(cfg: DictConfig) -> int:
    """Write what the classifier says about every picture; return how many there were."""
    with quick_imports():
        from litvision import hardware, messages
        from litvision.predictor import load
        from litvision.validation import check_keys

    messages.settle_logging()
    check_keys(cfg, Options)
    files = find(cfg.input)
    hardware.keep_freed_memory()
    predictor = load(cfg.checkpoint, cfg.trust, cfg.device, cfg.tta)
    output = records.from_here(cfg.output)
    part = output.with_name(output.name + ".part")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with part.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
            top_k = min(cfg.top_k, len(predictor.classes))
            first, unreadable = write(stream, answers(predictor, files, cfg), top_k)
        if len(unreadable) < len(files):
            part.replace(output)
    except OSError as error:
        raise UserError(f"output={output} cannot be written ({error}).") from error
    finally:
        part.unlink(missing_ok=True)
    count = len(files) - len(unreadable)
    if not count:
        raise UserError(
            f"input={cfg.input}: none of {len(files)} files could be read, as said above. Give "
            "pictures."
        )
    print("\n".join(lines(first, count)))
    print(f"{count:,} picture{'' if count == 1 else 's'}; all answers: {output}")
    if cfg.figure and first:
        picture = output.with_suffix(".png")
        draw(first, predictor.image_size, picture)
        print(f"the first {min(count, PICTURED)}: {picture}", flush=True)
    if unreadable:
        raise UserError(
            f"{len(unreadable)} of {len(files)} files could not be read, as said above; the "
            "others' answers are there. Mend or remove them, or name pictures alone."
        )
    return count


def find(given: str) -> list[str]:
    """Return the files that `input` means, sorted.

    Args:
        given: a file, a folder (all pictures in it and below, by their extension), or a pattern
            (`*` and `?` within a name, `**` for any folders).

    Raises:
        UserError: there is none.
    """
    from litvision.sources.decode import EXTENSIONS, others, pictures

    path = Path(given).expanduser()
    if path.is_dir():
        found = sorted(name for name, _, _ in pictures(path, str(path)))
        if found and (left := others(path)):
            print(f"no pictures by their names, left out of {path}: {left}", file=sys.stderr)
        missing = f"no picture in the folder {path}: its files end in none of {_some(EXTENSIONS)}"
    elif path.exists():
        return [str(path)]
    else:
        matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute one
        found = sorted(match for match in matches if Path(match).is_file())
        missing = f"no file is called or matches {path}"
    if not found:
        raise UserError(f"input={given}: {missing}. Give a picture, a folder or a pattern.")
    return found


def answers(
    predictor: Predictor, files: list[str], cfg: Any
) -> Iterator[tuple[str, Answer | None]]:
    """Yield each file's answer, None for one that cannot be read, which is reported at once."""
    import torch
    from tqdm import tqdm

    from litvision.predictor import Answer
    from litvision.sources.decode import DecodedBatches

    batches = DecodedBatches(files, predictor.image_size, batch_size=cfg.batch_size)
    # A link to nowhere is a picture that cannot be read.
    size = sum(path.stat().st_size for path in map(Path, files) if path.exists())
    loader = batches.loader(cfg.decode_workers, size)
    with tqdm(total=len(files), unit=" pictures", disable=None) as bar:
        start = 0
        for pixels, errors in loader:
            group = files[start : start + batches.batch_size]
            start += len(group)
            rows = iter(predictor.probabilities(torch.from_numpy(pixels)) if len(pixels) else ())
            for file in group:
                if file in errors:
                    tqdm.write(f"cannot read {file} ({errors[file]})", file=sys.stderr)
                    yield file, None
                else:
                    yield file, Answer(predictor.classes, next(rows))
            bar.update(len(group))


def write(
    stream: Any, found: Iterator[tuple[str, Answer | None]], top_k: int
) -> tuple[list[tuple[str, Answer]], list[str]]:
    """Write one row a picture; return the first answers, and the files that cannot be read.

    Columns: `path`, `class`, `probability`, then `class_2`, `probability_2` and so on.
    """
    first: list[tuple[str, Answer]] = []
    unreadable = []
    writer = csv.writer(stream, lineterminator="\n")
    for number, (file, answer) in enumerate(found):
        if number == 0:
            writer.writerow(header(top_k))
        if answer is None:
            unreadable.append(file)
            continue
        if len(first) < PICTURED:
            first.append((file, answer))
        pairs = [(name, f"{value:.6f}") for name, value in answer.top(top_k)]
        writer.writerow([file, *(cell for pair in pairs for cell in pair)])
    return first, unreadable


def header(top_k: int) -> list[str]:
    """Return the names of the columns."""
    more = [name for k in range(2, top_k + 1) for name in (f"class_{k}", f"probability_{k}")]
    return ["path", "class", "probability", *more]


def lines(first: list[tuple[str, Answer]], count: int) -> Iterator[str]:
    """Yield the first answers for the screen."""
    shown = first[:SHOWN]
    width = max((len(answer.name) for _, answer in shown), default=0)
    for file, answer in shown:
        yield f"{answer.name:<{width}}  {answer.probability:>6.1%}  {file}"
    if count > len(shown):
        yield "…"


def draw(first: list[tuple[str, Answer]], image_size: tuple[int, int], path: Path) -> None:
    """Draw the first pictures, as the network sees them, with what it says about them."""
    from litvision import figures
    from litvision.sources.decode import decode

    pixels = [decode(file, image_size) for file, _ in first]
    titles = [f"{answer.name}\n{answer.probability:.0%}" for _, answer in first]
    figures.pictures(pixels, titles).savefig(path, dpi=figures.DPI)


def _some(words: tuple[str, ...]) -> str:
    return ", ".join(words[:8]) + ", …"


if __name__ == "__main__":
    main()
