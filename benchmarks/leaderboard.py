"""Folding and printing very many runs, beside a plain pandas loop over the same files.

    python benchmarks/leaderboard.py --json benchmarks/results/leaderboard_cpu.json

Writes synthetic results: the runs of ``results/minibirds_methods.parquet`` with other learning rates, seeds and
numbers, as the engine writes them, six seeds to a setting. Every step runs in a process of its own, whose time and
peak memory (all its processes together, at most) are reported; all files are in the page cache.
"""

import argparse
import hashlib
import json
import os
import platform
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow

from spurbench.io import write_json
from spurbench.schema import COLUMNS

ROOT = Path(__file__).parents[1]
SEEDS = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100_000, help="of the largest folder (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="of a fold after one new run (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where results are made (default: a temporary folder)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here")
    parser.add_argument("--step", nargs=2, metavar=("STEP", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(STEPS[options.step[0]](Path(options.step[1]))))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        lines = list(measured(Path(name), sizes(options.runs), options.repeats))
    document = {
        "sizes": lines,
        "processor": processor(),
        "load": os.getloadavg()[1],
        "cores": cores(),
        "versions": {"python": platform.python_version(), "pyarrow": pyarrow.__version__},
    }
    if options.json:
        write_json(options.json, document)
    print(json.dumps(document, indent=1))


def sizes(runs: int) -> list[int]:
    """A quarter too shows how time and memory grow."""
    return [runs // 4, runs]


def measured(results: Path, steps: Sequence[int], repeats: int) -> Iterator[dict[str, Any]]:
    """All steps on a folder that grows."""
    records = synthetic(max(steps) + repeats * len(steps))
    made = 0
    for runs in steps:
        for _ in range(runs - made):
            put(results, next(records))
        made = runs
        print(f"{runs} runs made", file=sys.stderr, flush=True)
        line: dict[str, Any] = {"runs": runs}
        line["bytes"] = sum(path.stat().st_size for path in results.glob("runs/*/result.json"))
        line["pandas_loop"] = step("pandas", results)
        shutil.rmtree(results / ".leaderboard", ignore_errors=True)
        line["full_fold"] = step("fold", results)
        again = []
        for _ in range(repeats):
            put(results, next(records))
            again.append(step("fold", results))
        made += repeats
        line["fold_after_one_new_run"] = {
            **{name: statistics.median(one[name] for one in again) for name in ("seconds", "cpu_seconds")},
            "all_seconds": [one["seconds"] for one in again],
            "peak_mb": max(one["peak_mb"] for one in again),
        }
        line["fold_of_nothing_new"] = step("fold", results)
        line["one_parquet_file"] = step("write", results)
        line["command_that_prints"] = step("print", results)
        yield line


def step(name: str, results: Path) -> dict[str, Any]:
    """Run one step in a new process."""
    command = [sys.executable, __file__, "--step", name, str(results)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    print(f"  {name}: {found}", file=sys.stderr, flush=True)
    return found


def timed(work: Callable[[], Any]) -> dict[str, Any]:
    started, before = time.perf_counter(), cpu_seconds()
    extra = work() or {}
    seconds, cpu = time.perf_counter() - started, cpu_seconds() - before
    own, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    # A child's peak is that of the largest one; as many as cores may have been there.
    pool, command = extra.pop("pool", False), extra.pop("command", False)
    peak = children if command else own + children * (cores() if pool else 1)
    return {"seconds": round(seconds, 3), "cpu_seconds": round(cpu, 3), "peak_mb": round(peak / 1024), **extra}


def cpu_seconds() -> float:
    """Of this process and its children: what a busy machine does to the time on the clock is not in it."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in usage)


def step_fold(results: Path) -> dict[str, Any]:
    from spurbench.fold import fold

    def work() -> dict[str, Any]:
        folded = fold([results], workers=cores())
        return {"rows": len(folded), "read": folded.fresh, "pool": folded.fresh > 2000}

    return timed(work)


def step_write(results: Path) -> dict[str, Any]:
    from spurbench.fold import fold

    folded = fold([results])
    target = results / "all.parquet"
    line = timed(lambda: folded.write(target))
    return {**line, "mb": round(target.stat().st_size / 1e6)}


def step_print(results: Path) -> dict[str, Any]:
    def work() -> dict[str, Any]:
        command = [sys.executable, "-m", "spurbench", "leaderboard", str(results), "--select", "val_wga"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return {"lines": len(done.stdout.splitlines()), "command": True}

    return timed(work)


def step_pandas(results: Path) -> dict[str, Any]:
    """What one would write without this project: the same rows, and the means of one rule."""
    import pandas as pd

    def work() -> dict[str, Any]:
        rows = []
        for path in results.glob("runs/*/result.json"):
            record = json.loads(path.read_text())
            rows += [row | record["machine"] for row in record["rows"]]
        frame = pd.DataFrame(rows)
        chosen = frame[frame["selection"] == "val_wga"]
        chosen.groupby(["dataset", "backbone", "label"])["worst_group_accuracy"].agg(["mean", "std", "count"])
        return {"rows": len(frame)}

    return timed(work)


STEPS = {"fold": step_fold, "write": step_write, "print": step_print, "pandas": step_pandas}


def synthetic(count: int) -> Iterator[dict[str, Any]]:
    """Records as the engine writes them."""
    import pyarrow.parquet as pq

    lists = [column.name for column in COLUMNS if column.kind == "list"]
    templates: dict[str, list[dict[str, Any]]] = {}
    for row in pq.read_table(ROOT / "results" / "minibirds_methods.parquet").to_pylist():
        if row["seed"] == 0:
            row |= {name: json.loads(row[name]) for name in lists if row.get(name)}
            templates.setdefault(row["run_id"], []).append(row)
    kinds = list(templates.values())
    rng = random.Random(0)
    for number in range(count):
        setting, seed = divmod(number, SEEDS)
        yield record(kinds[setting % len(kinds)], seed, 1e-5 * (1 + setting // len(kinds)), rng)


def record(template: list[dict[str, Any]], seed: int, lr: float, rng: random.Random) -> dict[str, Any]:
    config = json.loads(template[0]["config_json"])
    config["seed"], config["train"]["optimizer"]["lr"] = seed, lr
    text = json.dumps(config, sort_keys=True, separators=(",", ":"))
    run = hashlib.sha256(text.encode()).hexdigest()[:16]
    names = {where: [column.name for column in COLUMNS if column.where == where] for where in ("row", "machine")}
    rows = []
    for known in template:
        row = {name: known.get(name) for name in names["row"]} | {"run_id": run, "config_json": text, "seed": seed}
        groups = [{**group, "correct": rng.randint(group["n"] // 2, group["n"])} for group in known["groups"]]
        shares = [group["correct"] / group["n"] for group in groups]
        right = sum(group["correct"] for group in groups)
        row |= {
            "groups": groups,
            "n_correct": right,
            "accuracy": right / row["n"],
            "group_mean_accuracy": statistics.fmean(shares),
            "worst_group_accuracy": min(shares),
            "val_wga": rng.random(),
        }
        for name in ("epg_all", "stage_masks"):
            for entry in row[name] or ():
                entry |= {key: rng.random() for key, value in entry.items() if isinstance(value, float)}
        for entry in row["erasure"] or ():
            entry["agree"] = rng.randint(0, entry["n"])
        rows.append(row)
    machine = {name: template[0].get(name) for name in names["machine"]}
    machine |= {"images_per_second": rng.uniform(3e4, 4e4), "train_seconds": rng.uniform(5, 9)}
    head = {"schema_version": rows[0]["schema_version"], "run_id": run, "status": "finished", "error": None}
    return {**head, "config": config, "rows": rows, "machine": machine}


def put(results: Path, document: dict[str, Any]) -> None:
    """As the engine writes it, but without waiting for the disk."""
    path = results / "runs" / document["run_id"] / "result.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def cores() -> int:
    return len(os.sched_getaffinity(0))


def processor() -> str:
    facts = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in facts if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
