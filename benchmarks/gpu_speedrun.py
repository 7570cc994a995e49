"""The fast recipes on a GPU in one call: python -m benchmarks gpu_speedrun.

Speedrun and resnet18_fast, as they are and compiled, a table each as `benchmarks speedrun` makes
it. Compiling is in the time of the first seed, most of it before the first step is done; the other
seeds find what it compiled in TorchInductor's cache.
"""

from __future__ import annotations

from benchmarks.measure import need_gpu
from benchmarks.speedrun import measure


def main() -> None:
    need_gpu()
    for experiment in ("speedrun", "resnet18_fast"):
        measure(f"{experiment}-gpu", experiment, [], {})
        measure(f"{experiment}-gpu-compiled", experiment, ["model.compile=true"], {})


if __name__ == "__main__":
    main()
