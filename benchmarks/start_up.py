"""How long a command takes to begin: seconds from the start of the process, beside Python and its libraries alone.

    python -c pass
    python -c "import torch, timm"
    spurbench --help
    spurbench leaderboard    of the rows shipped in results/minibirds_methods.parquet
    first step               spurbench run --dataset minibirds95, frames cached, until its first optimizer step is done

Each is a new process; all run within each repeat, after one of each that is not counted (it fills the frame cache and
the disk's). CPU seconds of each are counted too: other work on the cores moves them less than the clock.

    python benchmarks/start_up.py
    python benchmarks/start_up.py --json > benchmarks/results/start_up_cpu.json
    python benchmarks/start_up.py --imports    what the first step's imports take, by -X importtime: own time by package
"""

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import machine

HERE = Path(__file__).parent
SPURBENCH = ("-m", "spurbench")
LEADERBOARD = (*SPURBENCH, "leaderboard", str(HERE.parent / "results" / "minibirds_methods.parquet"))
RUN = ("run", "--dataset", "minibirds95", "--method", "first_step", "--plugin", str(HERE / "first_step.py"))
COMMANDS = {
    "python -c pass": ("-c", "pass"),
    "import torch, timm": ("-c", "import torch, timm"),
    "spurbench --help": (*SPURBENCH, "--help"),
    "spurbench leaderboard": LEADERBOARD,
    "first step": (*SPURBENCH, *RUN, "--device", "cpu"),
}


def main() -> None:
    """Measure and print."""
    options = parse()
    with tempfile.TemporaryDirectory() as cache:
        for arguments in COMMANDS.values():
            timed(arguments, cache)
        if options.imports:
            imports(cache)
            return
        clock: dict[str, list[float]] = {name: [] for name in COMMANDS}
        cpu: dict[str, list[float]] = {name: [] for name in COMMANDS}
        for repeat in range(options.repeats):
            for name, arguments in COMMANDS.items():
                seconds, spent = timed(arguments, cache)
                clock[name].append(seconds)
                cpu[name].append(spent)
                print(
                    f"repeat {repeat + 1}/{options.repeats} {name}: {seconds:.2f} s, {spent:.2f} s CPU",
                    file=sys.stderr,
                    flush=True,
                )
    document = {
        "seconds_median_min_max": {name: spread(values) for name, values in clock.items()},
        "cpu_seconds_median_min_max": {name: spread(values) for name, values in cpu.items()},
        "seconds": clock,
        "cpu_seconds": cpu,
        "settings": vars(options),
        **machine(),
    }
    if options.json:
        print(json.dumps(document, indent=1))
        return
    for name in COMMANDS:
        (middle, low, high), (spent, *_) = spread(clock[name]), spread(cpu[name])
        print(f"{name:22} {middle:6.2f} s [{low:.2f}, {high:.2f}], {spent:.2f} s CPU")


def parse() -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--imports", action="store_true")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def started(arguments: tuple[str, ...], cache: str) -> "subprocess.CompletedProcess[str]":
    """A process that has ended well; a run's results are new each time, its decoded frames are not."""
    with tempfile.TemporaryDirectory() as results:
        env = {**os.environ, "SPURBENCH_CACHE": cache, "SPURBENCH_RESULTS": results}
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, env=env, cwd=results, check=False
        )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stderr}")
    return done


def timed(arguments: tuple[str, ...], cache: str) -> tuple[float, float]:
    """Seconds on the clock, and of the CPU in all threads."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    started(arguments, cache)
    seconds, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def spread(values: list[float]) -> list[float]:
    """Median, least and largest."""
    return [statistics.median(values), min(values), max(values)]


def imports(cache: str) -> None:
    """Print which packages the first step waits for: the time of their own modules, without what those import."""
    done = started(("-X", "importtime", *COMMANDS["first step"]), cache)
    own: dict[str, int] = {}
    for microseconds, name in re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+([\w.]+)", done.stderr):
        package = name.partition(".")[0]
        own[package] = own.get(package, 0) + int(microseconds)
    print(f"{'all imports':22} {sum(own.values()) / 1e6:6.2f} s")
    for package, taken in sorted(own.items(), key=lambda item: -item[1])[:20]:
        print(f"{package:22} {taken / 1e6:6.2f} s")


if __name__ == "__main__":
    main()
