"""Several runs at once on one device: wall time of the same 12 short runs with one, two and four workers.

    python benchmarks/packing.py --jobs 1 2 --json > benchmarks/results/packing_cpu.json
    python benchmarks/packing.py --images 2008 --epochs 4 --json       on a GPU, where an epoch must last a while

The cores are shared out among the workers. The images are decoded before the clock starts; starting Python and the
workers counts. Ratios to one worker, which has all cores, are taken within a repeat.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from input_path import write_jpegs
from loops.sides import add_flags, settings_of
from machine import machine
from many_runs import RUNS, sweep

from spurbench.engine.device import choose_device


def main() -> None:
    """Measure all numbers of workers in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, images=200)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument(
        "--jobs", type=int, nargs="+", default=[1, 2, 4], help="numbers of workers; the first is the base"
    )
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    seconds: dict[int, list[float]] = {jobs: [] for jobs in options.jobs}
    with tempfile.TemporaryDirectory() as name:
        folder, shared = write_jpegs(Path(name) / "birds", options.images), Path(name) / "cache"
        shared.mkdir()
        for repeat in range(options.repeats + 1):
            for jobs in options.jobs if repeat > 0 else options.jobs[-1:]:  # the first one decodes and is not counted
                scratch = Path(name) / f"{repeat}-{jobs}"
                scratch.mkdir()
                (scratch / "cache").symlink_to(shared)
                started = time.perf_counter()
                sweep(folder, scratch, options, str(jobs), threads=max(1, options.threads // jobs))
                found = time.perf_counter() - started
                if repeat > 0:
                    seconds[jobs].append(found)
                print(f"repeat {repeat}/{options.repeats} {jobs} at once: {found:.0f} s", file=sys.stderr, flush=True)
    base = seconds[options.jobs[0]]
    ratios = {jobs: [a / b for a, b in zip(base, values, strict=True)] for jobs, values in seconds.items()}
    document = {
        "runs_per_hour_relative_to_one_worker": ratios,
        "seconds": seconds,
        "runs": RUNS,
        "settings": settings_of(options),
        **machine(choose_device("auto")),
    }
    if options.json:
        print(json.dumps(document, indent=1))
        return
    for jobs, values in seconds.items():
        median, low, high = statistics.median(ratios[jobs]), min(ratios[jobs]), max(ratios[jobs])
        print(
            f"{jobs} at once: {statistics.median(values):6.1f} s, {median:.2f} times the runs [{low:.2f}, {high:.2f}]"
        )


if __name__ == "__main__":
    main()
