"""Run benchmarks, each in a process of its own: python -m benchmarks [NAME …]."""

from __future__ import annotations

import sys

from benchmarks.measure import RESULTS, start

# In this order; about a quarter of an hour on two cores.
DEFAULT = ("step", "convolutions", "update", "loader", "overhead", "start", "memory", "epoch_end")
MORE = (
    *("sweeps", "growth", "accuracy", "recipes", "kills", "long_run", "fuzz", "busy"),
    *("speedrun", "leave_one_out", "convergence", "gpu", "gpu_speedrun"),
)


def main() -> None:
    names = sys.argv[1:] or DEFAULT
    for name in names:
        if name not in DEFAULT + MORE:
            sys.exit(f"error: no benchmark {name!r}: it takes {', '.join(DEFAULT + MORE)}.")
    for name in names:
        print(f"{name} …", file=sys.stderr, flush=True)
        code = start("-m", f"benchmarks.{name}").wait()
        if code:
            sys.exit(f"error: the benchmark {name} ended with {code}.")
    missed = [
        line
        for name in names
        if (RESULTS / f"{name}.md").exists()
        for line in (RESULTS / f"{name}.md").read_text().splitlines()
        if line.endswith("| no |")
    ]
    print(f"\nThe tables are in {RESULTS}.")
    if missed:
        print("Outside their limits:", *missed, sep="\n")


if __name__ == "__main__":
    main()
