"""Export a classifier: `python -m litvision.export checkpoint=PATH format=onnx|torch_export`."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

from omegaconf import DictConfig
from pydantic import Field

from litvision import records
from litvision.commandline import command
from litvision.errors import UserError, first_line, os_error
from litvision.importing import quick_imports

if TYPE_CHECKING:
    from torch import Tensor, nn

    from litvision.classifier import ImageClassifier

SUFFIX = {"onnx": ".onnx", "torch_export": ".pt2"}
METADATA = "litvision.json"  # the name of the metadata within a .pt2
BATCHES = (1, 3, 64)  # sizes that are verified, for the batch is to be of any size


class Options(TypedDict):
    """The plain keys of `conf/export.yaml` and what they take."""

    format: Literal["onnx", "torch_export"]
    output: str | None
    pictures: str | None
    tolerance: Annotated[float, Field(gt=0)]
    trust: list[str]


@command("export")
def main(cfg: DictConfig) -> float:
    """Write the file, verify it on real pictures, and return the largest difference."""
    with quick_imports():
        from litvision import checkpoints, messages
        from litvision.validation import check_keys

    messages.settle_logging()
    check_keys(cfg, Options)
    path = checkpoints.find(cfg.checkpoint)
    content = checkpoints.read(path)
    classifier = checkpoints.rebuild(content, path, cfg.trust)
    module = deployable(classifier)
    pixels = real_pictures(cfg, content, path)
    output = records.from_here(cfg.output or f"{cfg.run_dir}/classifier{SUFFIX[cfg.format]}")
    if output.suffix != SUFFIX[cfg.format]:
        raise UserError(
            f"output={output}: a file of format={cfg.format} ends in {SUFFIX[cfg.format]}."
        )
    part = output.with_name(f"{output.stem}.part{output.suffix}")
    write, run = FORMATS[cfg.format]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write(module, classifier.card, part)
        difference = compare(module, run(part), pixels)
        if not difference <= cfg.tolerance:  # neither is NaN
            raise UserError(
                f"The exported classifier differs from the original by {difference:.2g} in a "
                f"probability, more than tolerance={cfg.tolerance:g}, and was not kept. Raise the "
                "tolerance if that is good enough."
            )
        part.replace(output)
    except (OSError, RuntimeError) as error:
        if cause := os_error(error):
            raise UserError(f"output={output} cannot be written ({cause}).") from error
        raise
    finally:
        part.unlink(missing_ok=True)
    height, width = classifier.card["image_size"]
    print(
        f"{output}  {output.stat().st_size / 1e6:.1f} MB\n"
        f"in   uint8 [batch, {pixels.shape[1]}, {height}, {width}], {_colours(classifier.card)}\n"
        f"out  probabilities, float32 [batch, {len(classifier.card['classes'])}]\n"
        f"largest difference from the classifier on {len(pixels)} pictures: {difference:.1e}",
        flush=True,
    )
    return difference


def deployable(classifier: ImageClassifier) -> nn.Module:
    """Return a module from uint8 `[B, 3, H, W]` to probabilities, float32 `[B, classes]`."""
    import torch
    from torch import nn

    class Deployable(nn.Module):
        scale: Tensor
        shift: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.network = classifier.network
            mean, std = (torch.tensor(classifier.card[key]) for key in ("mean", "std"))
            self.register_buffer("scale", (1 / (255 * std)).view(1, -1, 1, 1))
            self.register_buffer("shift", (-mean / std).view(1, -1, 1, 1))

        def forward(self, pixels: Tensor) -> Tensor:
            images = pixels.float() * self.scale + self.shift
            return self.network(images).softmax(1)

    return Deployable().eval()


def real_pictures(cfg: Any, content: dict[str, Any], path: Path) -> Tensor:
    """Return up to 64 pictures to verify with: uint8 `[n, C, H, W]`.

    Raises:
        UserError: there are none; which option names others.
    """
    import torch

    from litvision import assemble
    from litvision.predict import find
    from litvision.sources.decode import DecodedBatches, with_channels
    from litvision.tested_data import data_config
    from litvision.trust import TRUSTED, trusted_data
    from litvision.validation import check

    card = content["litvision"]
    height, width = card["image_size"]
    most = max(BATCHES)
    if cfg.pictures is not None:
        batches = DecodedBatches(find(cfg.pictures)[:most], (height, width))
        array, errors = batches[0]
        if errors:
            file, reason = next(iter(errors.items()))
            raise UserError(f"cannot read {file} ({reason}): give pictures=<other ones>.")
        pixels = with_channels(torch.from_numpy(array), len(card["mean"]))
        return pixels.permute(0, 3, 1, 2).contiguous()
    card["config"]["data"] = trusted_data(card["config"]["data"], cfg.trust, path)
    try:
        node = data_config(DictConfig({}), card, "test")
        node["on_device"] = False
        check(DictConfig({"data": node}))
        datamodule = assemble.build_datamodule(node, (*TRUSTED, *cfg.trust))
        datamodule.test_split = "test"
        datamodule.prepare_data()
        datamodule.setup()
    except UserError as error:
        raise UserError(
            f"The pictures that the classifier was trained on are not at hand ({first_line(error)})"
            ": give pictures=<a picture, folder or pattern> to verify with."
        ) from error
    subset = datamodule.subsets["test"]
    rows = torch.linspace(0, len(subset) - 1, min(most, len(subset))).long()
    return subset.images.pixels[subset.indices[rows]].permute(0, 3, 1, 2).contiguous()


def compare(module: nn.Module, run: Callable[[Tensor], Tensor], pixels: Tensor) -> float:
    """Return the largest difference of a probability, over batches of several sizes."""
    import torch

    largest = torch.tensor(0.0)
    with torch.inference_mode():
        for size in BATCHES:
            batch = pixels[:size]
            largest = torch.maximum(largest, (run(batch) - module(batch)).abs().max())  # keeps NaN
    return float(largest)


def _colours(card: dict[str, Any]) -> str:
    return {1: "grey", 3: "RGB"}.get(len(card["mean"]), f"{len(card['mean'])} channels")


def metadata(card: dict[str, Any]) -> dict[str, str]:
    """Return what a user of the exported file has to know: strings only, as ONNX takes them."""
    height, width = card["image_size"]
    return {
        "classes": json.dumps(card["classes"]),
        "input": f"uint8 [batch, channels, {height}, {width}], {_colours(card)}, not normalised",
        "output": "probabilities, float32 [batch, classes]",
        "image_size": json.dumps([height, width]),
        "litvision_version": str(card["version"]),
    }


# ---------------------------------------------------------------------------------------- formats


def _exported(module: nn.Module, card: dict[str, Any]) -> Any:
    import torch

    pixels = torch.zeros(2, len(card["mean"]), *card["image_size"], dtype=torch.uint8)
    with _quiet(), torch.no_grad():
        return torch.export.export(
            module, (pixels,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
        )


def write_onnx(module: nn.Module, card: dict[str, Any], path: Path) -> None:
    """Write an ONNX file with a dynamic batch, its weights inside."""
    try:
        import onnxscript  # noqa: F401 - what torch.onnx writes with
    except ImportError as error:
        raise UserError(
            f"format=onnx needs {error.name}, which is not installed: make install EXTRAS=export"
        ) from error
    import torch

    with _quiet():
        program = torch.onnx.export(
            _exported(module, card), input_names=["pixels"], output_names=["probabilities"],
            dynamo=True, verbose=False,
        )  # fmt: skip
    assert program is not None
    program.model.metadata_props.update(metadata(card))
    program.save(str(path), external_data=False)


def run_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """Return the ONNX file as a function, computed by ONNX Runtime on the processor."""
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            "format=onnx needs onnxruntime, which is not installed: make install EXTRAS=export"
        ) from error
    import torch

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run(None, {"pixels": pixels.numpy()})[0])


def write_torch_export(module: nn.Module, card: dict[str, Any], path: Path) -> None:
    """Write a .pt2 archive, for `torch.export.load`; its extra file is `METADATA`."""
    import torch

    extra = {METADATA: json.dumps(metadata(card), indent=2)}
    content = io.BytesIO()  # torch's own writer ends the process where a disk is full
    with _quiet():
        torch.export.save(_exported(module, card), content, extra_files=extra)
    path.write_bytes(content.getbuffer())


def run_torch_export(path: Path) -> Callable[[Tensor], Tensor]:
    """Return the .pt2 archive as a function."""
    import torch

    return torch.export.load(path).module()


FORMATS: dict[str, tuple[Callable[..., None], Callable[[Path], Callable[[Tensor], Tensor]]]] = {
    "onnx": (write_onnx, run_onnx),
    "torch_export": (write_torch_export, run_torch_export),
}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' remarks on their own workings from the screen."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


if __name__ == "__main__":
    main()
