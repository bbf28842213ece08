"""Whole runs of a toy method on toy data, in processes that can be stopped at a chosen place and killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

HERE = Path(__file__).parent
TOYS = HERE / "toys.py"
RECIPE = (
    *("--plugin", str(TOYS), "--device", "cpu", "--weights", "none", "--epochs", "3", "--batch-size", "16"),
    *("--lr", "1e-3", "--set", "input.resize=32", "--set", "input.image_size=32"),
)
PATIENCE = 120.0
"""Seconds after which a condition that is waited for will not come."""


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.01)


@dataclass
class Zygote:
    """The process that all others are forked from."""

    process: "subprocess.Popen[str]"
    lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, **request: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with self.lock:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())


@dataclass
class Child:
    """One ``spurbench`` process."""

    zygote: Zygote
    pid: int
    folder: Path
    """For its output and for talking to the toys in it."""
    code: int | None = None

    @property
    def out(self) -> str:
        return (self.folder / "stdout").read_text()

    @property
    def err(self) -> str:
        return (self.folder / "stderr").read_text()

    def has_ended(self) -> bool:
        if self.code is None:
            self.code = self.zygote.ask(pid=self.pid)
        return self.code is not None

    def is_halted(self) -> bool:
        assert not self.has_ended(), f"ended with {self.code} before the place was reached:\n{self.err}"
        return (self.folder / "halted").exists()

    def await_halt(self) -> "Child":
        wait_for(self.is_halted, "the place to halt")
        return self

    def await_turn(self) -> "Child":
        """Wait while it waits, so that a signal sent before has been handled."""
        for _ in range(2):
            before = (self.folder / "halted").stat().st_mtime_ns
            wait_for(lambda before=before: (self.folder / "halted").stat().st_mtime_ns > before, "a sign of life")
        return self

    def let_go(self) -> "Child":
        (self.folder / "go").touch()
        return self

    def send(self, number: signal.Signals) -> "Child":
        os.kill(self.pid, number)
        return self

    def wait(self) -> int:
        wait_for(self.has_ended, f"the end of the process in {self.folder}")
        assert self.code is not None
        return self.code

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL

    def record(self) -> dict[str, Any]:
        """What it printed, once it has ended well."""
        assert self.wait() == 0, self.err
        document: dict[str, Any] = json.loads(self.out)
        return document


@dataclass
class Bench:
    """A results folder, a cache and a data folder of one test."""

    zygote: Zygote
    folder: Path
    method: str = "noisy"
    results: Path = Path()
    children: list[Child] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.results = self.folder / "results"
        self.set_edition("first")

    def set_edition(self, text: str) -> None:
        path = self.folder / "data" / "toys" / "edition"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def arguments(self, *more: str) -> list[str]:
        where = ("--data-root", str(self.folder / "data"), "--results", str(self.results))
        return ["run", "--method", self.method, "--dataset", "toys", *RECIPE, *where, "--json", *more]

    def environment(self, halt: str, folder: Path) -> dict[str, str]:
        return {"SPURBENCH_CACHE": str(self.folder / "cache"), "TOYS_HALT": halt, "TOYS_DIR": str(folder)}

    def start(self, *more: str, halt: str = "") -> Child:
        return self.spawn(self.arguments(*more), halt)

    def start_sweep(self, seeds: str, *more: str, halt: str = "") -> Child:
        """The same run with several seeds, as a sweep file."""
        file = self.folder / f"sweep {seeds}.yaml"
        file.write_text(
            f"datasets: [toys]\nmethods: [{self.method}]\nseeds: {seeds}\n"
            "train: {epochs: 3, batch_size: 16, optimizer: {lr: 1.0e-3}}\n"
            "set: {input.resize: 32, input.image_size: 32, backbone.weights: none}\n"
        )
        where = ("--data-root", str(self.folder / "data"), "--results", str(self.results))
        return self.spawn(["sweep", str(file), "--plugin", str(TOYS), "--device", "cpu", *where, *more], halt)

    def spawn(self, arguments: list[str], halt: str = "") -> Child:
        folder = self.folder / f"process{len(self.children)}"
        folder.mkdir()
        for stream in ("stdout", "stderr"):
            (folder / stream).touch()
        pid = self.zygote.ask(
            arguments=arguments,
            environment=self.environment(halt, folder),
            stdout=str(folder / "stdout"),
            stderr=str(folder / "stderr"),
        )
        self.children.append(Child(self.zygote, pid, folder))
        return self.children[-1]

    def kill_at(self, place: str, *more: str) -> None:
        self.start(*more, halt=place).await_halt().kill()

    def finish(self, *more: str) -> dict[str, Any]:
        return self.start(*more).record()

    @property
    def run(self) -> Path:
        (run,) = (self.results / "runs").iterdir()
        return run

    def result(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.run / "result.json").read_text())
        return document

    def close(self) -> None:
        for child in self.children:
            if not child.has_ended():
                child.kill()


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def leftovers(folder: Path) -> list[Path]:
    return list(folder.rglob("*.tmp"))


def assert_same_run(run: Path, reference: Path) -> None:
    """Bit for bit, except for what may depend on machine and attempts, and nothing half is left."""
    ours, theirs = (json.loads((folder / "result.json").read_text()) for folder in (run, reference))
    assert ours.pop("machine").keys() == theirs.pop("machine").keys()
    assert ours == theirs
    for name in ("epochs.parquet", "predictions.parquet"):
        assert pq.read_table(run / name).equals(pq.read_table(reference / name)), name
    weights = sorted(path.name for path in (reference / "weights").iterdir())
    assert sorted(path.name for path in (run / "weights").iterdir()) == weights
    for name in weights:
        here, there = (torch.load(folder / "weights" / name, weights_only=True) for folder in (run, reference))
        assert all(torch.equal(here[key], there[key]) for key in there), name
    assert not leftovers(run)
    assert not (run / "checkpoint").exists()
    assert not (run / "lease").exists()


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, str(HERE / "zygote.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **threads},
        start_new_session=True,  # Ctrl-C in the terminal is for pytest alone
    ) as process:
        yield Zygote(process)


@pytest.fixture
def bench(zygote: Zygote, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(zygote, tmp_path)
    with contextlib.closing(bench):
        yield bench


@pytest.fixture(scope="session")
def reference(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of an uninterrupted run of a method."""
    runs: dict[str, Path] = {}

    def of(method: str) -> Path:
        if method not in runs:
            bench = Bench(zygote, tmp_path_factory.mktemp(method), method)
            bench.finish()
            runs[method] = bench.run
        return runs[method]

    return of
