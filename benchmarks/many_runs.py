"""Wall time of 12 short runs (3 methods, 4 seeds) on one machine: `spurbench sweep` beside a process per run.

A process per run, one after another, is what the local launchers of the peers do (DomainBed's and SubpopBench's
``command_launchers.local_launcher``; SpuCo has none and is called in a shell loop). Their processes train and nothing
else; spurbench also validates after every epoch, measures the test set and its speed, and writes records. The peers
train ERM twelve times, which is their cheapest method.

    python benchmarks/many_runs.py --peer spuco=/path/to/its/python --json > benchmarks/results/many_runs_cpu.json
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from input_path import write_jpegs
from loops.sides import Side, add_flags, ask, end, hear, settings_of, sides_of
from machine import machine

RUNS = 12


def main() -> None:
    """Measure all sides in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, images=200)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {}
    for repeat in range(options.repeats):
        for side in sides_of(options, modes=("default",)):
            with tempfile.TemporaryDirectory() as name:
                folder = write_jpegs(Path(name) / "birds", options.images)
                started = time.perf_counter()
                if side.tool == "spurbench":
                    sweep(folder, Path(name), options)
                else:
                    for run in range(RUNS):
                        one_run(side, folder, Path(name) / str(run), options)
                found = time.perf_counter() - started
            seconds.setdefault(side.tool, []).append(found)
            print(f"repeat {repeat + 1}/{options.repeats} {side.tool}: {found:.0f} s", file=sys.stderr, flush=True)
    ratios = {
        tool: [a / b for a, b in zip(values, seconds["spurbench"], strict=True)]
        for tool, values in seconds.items()
        if tool != "spurbench"
    }
    document = {
        "times_as_long": ratios,
        "seconds": seconds,
        "settings": settings_of(options),
        **machine(),
    }
    if options.json:
        print(json.dumps(document, indent=1))
        return
    for tool, values in seconds.items():
        print(f"{tool:12} {statistics.median(values):6.0f} s")
    for tool, pairs in ratios.items():
        print(f"{tool} / spurbench  {statistics.median(pairs):.2f}  [{min(pairs):.2f}, {max(pairs):.2f}]")


def one_run(side: Side, folder: Path, scratch: Path, options: argparse.Namespace) -> None:
    """A process that trains for some epochs."""
    loop = side.start(folder, scratch, options)
    hear(loop)
    for _ in range(options.epochs):
        ask(loop)
    end(loop)


def sweep(folder: Path, scratch: Path, options: argparse.Namespace, jobs: str = "auto", threads: int = 1) -> None:
    """The same by our launcher, decoding included where the images are not cached yet."""
    spec = scratch / "sweep.yaml"
    spec.write_text(
        f"""
datasets: [{folder}]
backbones: [{options.backbone}]
methods: [erm, rwg, groupdro]
seeds: 0-3
preset: convnext
train:
  epochs: {options.epochs}
  batch_size: {options.batch_size}
  num_threads: {threads}
  optimizer: {{name: sgd, lr: 1.0e-3, weight_decay: 1.0e-4, schedule: constant}}
set:
  backbone.weights: none
  input.image_size: {options.image_size}
  input.resize: {round(options.image_size * 256 / 224)}
"""
    )
    command = [sys.executable, "-m", "spurbench", "sweep", str(spec), "--jobs", jobs]
    environment = os.environ | {"SPURBENCH_CACHE": str(scratch / "cache")}
    done = subprocess.run(
        [*command, "--results", str(scratch / "results")], env=environment, capture_output=True, text=True, check=False
    )
    finished = len(list((scratch / "results" / "runs").glob("*/result.json")))
    if done.returncode or finished != RUNS:
        raise SystemExit(f"the sweep brought {finished} of {RUNS} runs: {done.stderr[-2000:]}")


if __name__ == "__main__":
    main()
