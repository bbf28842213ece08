"""Memory of one run and of four at once, beside other suites' loops on the same folder.

The sum over all processes of a side of their proportional set size (a page that n processes map counts 1/n in each), at
its highest while every loop trains one round. What four runs take beyond one is what a run costs once the first is
there: spurbench's decoded frames are pages of one file, so they are not among it.

    python benchmarks/memory.py --peer spuco=/path/to/its/python --json > benchmarks/results/memory_cpu.json
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from input_path import write_jpegs
from loops.sides import Side, add_flags, end, hear, settings_of, sides_of, tell
from machine import machine


def main() -> None:
    """Measure every side alone and four times at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, images=1208)
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    peaks: dict[str, dict[str, list[float]]] = {}
    mapped: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = write_jpegs(Path(name) / "birds", options.images)
        for repeat in range(options.repeats):
            for side in sides_of(options, modes=("default",)):
                for count in (1, options.runs):
                    found, frames_mb = peak_mb(side, count, folder, Path(name), options)
                    if side.tool == "spurbench":
                        mapped.setdefault(str(count), []).append(frames_mb)
                    peaks.setdefault(side.name, {}).setdefault(str(count), []).append(found)
                    print(
                        f"repeat {repeat + 1}/{options.repeats} {side.name}, {count} at once: {found:,.0f} MB",
                        file=sys.stderr,
                        flush=True,
                    )
    frames = (options.images - 8) * round(options.image_size * 256 / 224) ** 2 * 3 / 1e6
    document = {
        "peak_mb": peaks,
        "frames_mb": frames,
        "frame_file_mapped_and_resident_mb": mapped,
        "settings": settings_of(options),
        **machine(),
    }
    if options.json:
        print(json.dumps(document, indent=1))
        return
    for side_name, by_count in peaks.items():
        one, several = (sorted(values)[len(values) // 2] for values in by_count.values())
        each = (several - one) / (options.runs - 1)
        print(f"{side_name:20} 1: {one:7,.0f} MB, {options.runs}: {several:7,.0f} MB, each further {each:7,.0f} MB")


def peak_mb(
    side: Side, count: int, folder: Path, scratch: Path, options: argparse.Namespace
) -> tuple[float, tuple[float, float]]:
    """The highest sum while ``count`` loops train one round side by side; and of the file of frames what all processes
    map of it together and what it takes, which is less by what they share.
    """
    loops = [side.start(folder, scratch / f"{side.name}", options) for _ in range(count)]
    try:
        for loop in loops:
            hear(loop)
        watched = Watch(loops)
        with watched:
            for loop in loops:
                tell(loop)
            for loop in loops:
                hear(loop)
        return watched.peak, watched.frames
    finally:
        end(*loops)


class Watch:
    """Adds up memory while its block runs."""

    def __init__(self, loops: "list[subprocess.Popen[str]]") -> None:
        self.loops, self.peak, self._done = loops, 0.0, threading.Event()
        self.frames = (0.0, 0.0)
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.is_set():
            pids = [pid for loop in self.loops for pid in family(loop.pid)]
            self.peak = max(self.peak, sum(map(proportional_mb, pids)))
            self.frames = max(self.frames, tuple(map(sum, zip(*map(frame_file_mb, pids), strict=True))))
            time.sleep(0.25)


def family(pid: int) -> list[int]:
    """A process with all below it."""
    found = [pid]
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += family(int(child))
    return found


def proportional_mb(pid: int) -> float:
    """Its proportional set size; 0 for a process that has just ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


def frame_file_mb(pid: int) -> tuple[float, float]:
    """Of the frame cache's file: resident set and proportional set of this process."""
    found, ours = {"Rss:": 0.0, "Pss:": 0.0}, False
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
            name, *values = line.split()
            if "-" in name:  # the first line of a mapping, its path at the end
                ours = line.endswith("/images.u8")
            elif ours and name in found:
                found[name] += int(values[0]) / 1024
    return found["Rss:"], found["Pss:"]


if __name__ == "__main__":
    main()
