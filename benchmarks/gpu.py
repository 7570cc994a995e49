"""All about a GPU in one call: is it right, how fast, how near to its limit, where does time go?

python -m benchmarks gpu        (about ten minutes, most of it compiling)
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure import ProductPeak, Table, in_turn, need_gpu, ratios, wait
from benchmarks.ours import Every, build
from benchmarks.pictures import Pictures
from benchmarks.plain import loader, network
from benchmarks.step import MULTIPLY_ADDS
from litvision.batches import Batch
from litvision.datamodule import ImageDataModule
from litvision.transforms import crop, flip

BATCHES = (128, 512, 1024)
MODES = {"eager": "false", "compiled": "true", "compiled, CUDA graphs": "reduce-overhead"}

# The first family whose word is in a kernel's name.
FAMILIES = {
    "copy from the device": ("memcpy dtoh",),
    "copy": ("memcpy", "memset", "copy_", "catarray"),
    "batch norm": ("bn_", "batch_norm", "batchnorm"),
    "convolution and product": ("conv", "gemm", "xmma", "cutlass", "cudnn", "sm80", "sm90", "mm"),
    "optimizer": ("multi_tensor", "fused", "sgd"),
    "pooling": ("pool",),
    "indexing": ("index", "gather", "flip", "pad"),
    "elementwise and reduction": ("elementwise", "reduce", "triton", "softmax", "nll", "threshold"),
}


def family(kernel: str) -> str:
    """Return what a kernel does, from its name."""
    name = kernel.lower()
    found = (kind for kind, words in FAMILIES.items() if any(word in name for word in words))
    return next(found, "other")


@contextmanager
def smooth() -> Iterator[None]:
    """Put GELU and mean pooling in the place of ReLU and max pooling.

    At their kinks the gradient jumps: two exact computations whose sums differ in the last digit
    come out some thousandths apart, float32 and float64 on one processor too.
    """

    def relu(x: Tensor, inplace: bool = False) -> Tensor:
        return F.gelu(x)

    def max_pool2d(x: Tensor, kernel_size: int, stride: int, *_: Any, **__: Any) -> Tensor:
        return F.avg_pool2d(x, kernel_size, stride)

    with patch.object(F, "relu", relu), patch.object(F, "max_pool2d", max_pool2d):
        yield


def correctness(table: Table, device: str) -> None:
    """Compare one step in float32 and the augmentation with the processor's."""
    torch.manual_seed(0)
    images, labels = torch.randn(32, 3, 32, 32), torch.randint(10, (32,))
    for name in MULTIPLY_ADDS:
        module = network(name)
        found = []
        for where in ("cpu", device):
            module = module.to(where).train()
            module.zero_grad()
            # TF32 is on by default.
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False), smooth():
                F.cross_entropy(module(images.to(where)), labels.to(where)).backward()
            found.append(torch.cat([p.grad.flatten().cpu() for p in module.parameters()]).double())
        apart = float((found[1] - found[0]).norm() / found[0].norm())
        table.add(f"{name}, float32 gradients, distance from the processor's", "", "", apart,
                  "≤ 0.0001")  # fmt: skip
    pixels = torch.randint(256, (64, 32, 32, 3), dtype=torch.uint8)
    rows, columns, mirrored = (torch.randint(n, (64,)) for n in (9, 9, 2))

    def augmented(where: str) -> Tensor:
        cut = crop(pixels.to(where), rows.to(where), columns.to(where), (32, 32), 4, "reflect")
        return flip(cut, mirrored.to(where) == 1).cpu()

    wrong = int((augmented(device) != augmented("cpu")).sum())
    table.add("augmented bytes that differ from the processor's", str(wrong), "0", wrong, "≤ 0")


def bare(name: str, batch: int, device: str) -> Any:
    """Return a function that takes one step of a plain loop with all that makes ours fast."""
    module = network(name).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4,
                                fused=True)  # fmt: skip
    images = torch.randn(batch, 3, 32, 32, device=device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,), device=device)

    def step(images: Tensor = images, labels: Tensor = labels) -> None:
        with torch.autocast(device, torch.bfloat16):
            logits = module(images)
        optimizer.zero_grad()
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    return step


def trained(name: str, batch: int, device: str, steps: int, *more: str,
            callbacks: tuple[L.Callback, ...] = ()) -> float:  # fmt: skip
    """Return the seconds of a step through Trainer.fit: the median of five turns after two."""
    stamps: list[float] = []

    def turn(step: int) -> None:
        wait(device)
        stamps.append(time.perf_counter())

    run = build(
        f"model={name}",
        f"data.batch_size={batch}",
        "data.val_fraction=0.02",
        f"trainer.accelerator={'gpu' if device == 'cuda' else device}",
        f"trainer.limit_train_batches={steps * 7 + 1}",
        "trainer.limit_val_batches=1",
        "trainer.max_epochs=1",
        "trainer.precision=bf16-mixed",
        "model.channels_last=true",
        "callbacks.model_summary=null",
        *more,
        pictures=round(batch * (steps * 7 + 1) / 0.98) + 50,
    )
    run.trainer.callbacks += [Every(steps, turn), *callbacks]
    run.trainer.fit(run.classifier, run.datamodule)
    times = [(b - a) / steps for a, b in pairwise(stamps)]
    return statistics.median(times[2:])


def rates(table: Table, device: str, batches: tuple[int, ...], steps: int) -> None:
    """Measure images/s by network, batch and mode, beside the plain loop and the peak."""
    peak = ProductPeak(device)
    for name, macs in MULTIPLY_ADDS.items():
        for batch in batches:
            step = bare(name, batch, device)

            def turn(step: Any = step) -> None:
                for _ in range(steps):
                    step()
                wait(device)

            seconds = in_turn({"plain": turn}, rounds=5)["plain"]
            plain = batch * steps / statistics.median(seconds)
            for mode, value in MODES.items():
                rate = batch / trained(name, batch, device, steps, f"model.compile={value}")
                what = f"{name}, batch {batch}, {mode}"
                limit = "≥ 0.95" if mode == "eager" else ""
                table.add(f"{what}: images/s, Trainer beside plain loop", f"{rate:,.0f}",
                          f"{plain:,.0f}", rate / plain, limit)  # fmt: skip
                flops, best = 6 * macs * rate, peak()
                table.add(f"{what}: TFLOP/s beside the {peak.name} product", f"{flops / 1e12:.1f}",
                          f"{best / 1e12:.1f}", flops / best)  # fmt: skip


def loading(table: Table, device: str, size: int, batch: int) -> None:
    """Measure the loader beside torchvision's, and what it adds to a step."""
    size -= size % batch  # a last short one would be fed, and not be computed without data
    module = ImageDataModule(Pictures, batch_size=batch, on_device=True, size=size, val_fraction=0)
    module.trainer = L.Trainer(accelerator="gpu" if device == "cuda" else device, logger=False)
    module.setup()
    ours, theirs = module.train_dataloader(), loader(size, batch)

    def ready() -> Iterator[Batch]:
        for raw in ours:  # as the trainer does it
            moved = module.transfer_batch_to_device(raw, torch.device(device), 0)
            yield module.on_after_batch_transfer(moved, 0)

    def load_ours() -> None:
        for _ in ready():
            pass
        wait(device)

    def load_theirs() -> None:
        for images, labels in theirs:
            images.to(device), labels.to(device)
        wait(device)

    seconds = in_turn({"ours": load_ours, "theirs": load_theirs}, rounds=3)
    rate = {name: size / statistics.median(values) for name, values in seconds.items()}
    table.add(f"loader, batch {batch}, images/s, beside DataLoader + PIL with 2 processes",
              f"{rate['ours']:,.0f}", f"{rate['theirs']:,.0f}",
              ratios(seconds["theirs"], seconds["ours"]))  # fmt: skip
    step = bare("resnet18", batch, device)

    def fed() -> None:
        for augmented in ready():
            step(augmented.images, augmented.labels)
        wait(device)

    def unfed() -> None:
        for _ in range(len(ours)):
            step()
        wait(device)

    seconds = in_turn({"fed": fed, "unfed": unfed}, rounds=3)
    waiting = 1 - ratios(seconds["unfed"], seconds["fed"])
    table.add(f"share of ResNet-18's step, batch {batch}, that data take", f"{waiting:.1%}", "",
              waiting, "≤ 0.02")  # fmt: skip


class Profiled(L.Callback):
    """Profile some steps, far from the epoch's ends."""

    def __init__(self, first: int, count: int, device: str) -> None:
        activities = [ProfilerActivity.CPU]
        self.profile = profile(
            activities=activities + ([ProfilerActivity.CUDA] if device == "cuda" else [])
        )
        self.first, self.last = first, first + count

    def on_train_batch_start(
        self, trainer: L.Trainer, module: Any, batch: Any, number: int
    ) -> None:
        if number == self.first:
            self.profile.start()
        elif number == self.last:
            self.profile.stop()


def where_time_goes(table: Table, device: str, batch: int, steps: int) -> None:
    """Add up the time of each family of kernels, and count what makes the processor wait.

    That is a copy from the device, one from memory that is not page-locked, and whatever asks for
    the end of a stream. The loss is looked at every 50 batches, which are not among these.
    """
    profiled = Profiled(3 * steps + 1, steps, device)
    trained("resnet18", batch, device, steps, callbacks=(profiled,))
    spent: Counter[str] = Counter()
    copies = waits = 0
    ran_on = DeviceType.CUDA if device == "cuda" else DeviceType.CPU
    own_time = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    for event in profiled.profile.key_averages():
        # What launched a kernel, and the spans around it, carry the kernel's time once more.
        if event.device_type == ran_on and not event.is_user_annotation:
            spent[family(event.key)] += getattr(event, own_time)
            kind = event.key.lower()
            copies += event.count * ("memcpy dtoh" in kind or "pageable" in kind)
        waits += event.count * (event.key in ("cudaStreamSynchronize", "cudaEventSynchronize"))
    for what, micro in spent.most_common():
        if micro:
            share = micro / spent.total()
            table.add(f"ResNet-18, batch {batch}: time in {what}", f"{micro / steps / 1e3:.2f} ms",
                      "", share)  # fmt: skip
    table.add(f"copies from the device or of pageable memory in {steps} steps", str(copies), "0",
              copies, "≤ 0")  # fmt: skip
    table.add(f"waits for the device in {steps} steps", str(waits), "0", waits, "≤ 0")


def main() -> None:
    need_gpu()
    table = Table(f"GPU: {torch.cuda.get_device_name()}, bfloat16 and channels-last")
    try:
        correctness(table, "cuda")
        rates(table, "cuda", BATCHES, steps=30)
        for batch in (128, 1024):
            loading(table, "cuda", 50_000, batch)
        where_time_goes(table, "cuda", batch=512, steps=20)
    finally:  # what was measured before an error, or the end of one's time, is worth keeping
        table.save("gpu")


if __name__ == "__main__":
    main()
