"""Training throughput, end to end, beside other suites' own loops: ERM on CUB-sized JPEGs in WaterBirds' layout.

Every side is a process in the environment of its tool (``loops/``) and trains one round, an epoch, when it is its
turn, so that the sides alternate within a repeat and a machine whose speed drifts does not matter much:

    spurbench-default  frame cache, bf16, channels_last, as `spurbench run` does it
    spurbench-matched  PIL decodes each image in each epoch, float32, NCHW, as the peers do it
    NAME-default       the peer as it is shipped
    NAME-matched       the peer with as many workers as all others

    python benchmarks/training_throughput.py --peer spuco=/path/to/its/python --peer domainbed=PYTHON:CHECKOUT \\
        --peer subpopbench=PYTHON:CHECKOUT --peer groupdro=PYTHON:CHECKOUT --json \\
        > benchmarks/results/training_throughput_resnet18_96_cpu.json

Ratios are taken within a repeat; medians and ranges are printed. The first round of every side warms up.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from input_path import write_jpegs
from loops.sides import add_flags, ask, end, hear, settings_of, sides_of
from machine import machine

from spurbench.engine.device import choose_device


def main() -> None:
    """Start all sides, let them take turns, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, images=648)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    rounds: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = write_jpegs(Path(name) / "birds", options.images)
        loops = {side.name: side.start(folder, Path(name) / side.name, options) for side in sides_of(options)}
        try:
            for loop in loops.values():
                hear(loop)
            for repeat in range(options.repeats + 1):
                for side, loop in loops.items():
                    found = ask(loop)
                    found["images_per_second"] = found["images"] / found["seconds"]
                    if repeat > 0:
                        rounds.setdefault(side, []).append(found)
                    rate = found["images_per_second"]
                    print(f"repeat {repeat}/{options.repeats} {side}: {rate:.1f} images/s", file=sys.stderr, flush=True)
        finally:
            end(*loops.values())
    report(rounds, options)


def report(rounds: dict[str, list[dict[str, float]]], options: argparse.Namespace) -> None:
    """Medians, and ratios taken within each repeat."""
    rates = {side: [found["images_per_second"] for found in values] for side, values in rounds.items()}
    ratios: dict[str, list[float]] = {}
    for mode in ("default", "matched"):
        peers = [side for side in rates if side.endswith(mode) and not side.startswith("spurbench")]
        for side in peers:
            ratios[f"spurbench-{mode} / {side}"] = spread(rates[f"spurbench-{mode}"], rates[side])
        if peers:
            fastest = [max(values) for values in zip(*(rates[side] for side in peers), strict=True)]
            ratios[f"spurbench-{mode} / fastest peer"] = spread(rates[f"spurbench-{mode}"], fastest)
    document: dict[str, Any] = {
        "ratios": ratios,
        "images_per_second": {side: statistics.median(values) for side, values in rates.items()},
        "device_mb": {
            side: max(found["device_mb"] for found in values)
            for side, values in rounds.items()
            if "device_mb" in values[0]
        },
        "rounds": rounds,
        "settings": settings_of(options),
        **machine(choose_device("auto")),
    }
    if options.json:
        print(json.dumps(document, indent=1))
        return
    for side, values in rates.items():
        print(f"{side:22} {statistics.median(values):8.1f} images/s")
    for name, (middle, low, high) in ratios.items():
        print(f"{name:50} {middle:.2f}  [{low:.2f}, {high:.2f}]")


def spread(ours: list[float], theirs: list[float]) -> list[float]:
    """Median, smallest and largest ratio of pairs."""
    pairs = [a / b for a, b in zip(ours, theirs, strict=True)]
    return [statistics.median(pairs), min(pairs), max(pairs)]


if __name__ == "__main__":
    main()
