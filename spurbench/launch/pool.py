"""Several runs at once in warm worker processes: torch is imported once, and a death costs one run.

The parent sends a worker one run after the other and hears what happens in it. Only the parent hears signals of the
terminal; it passes them on once, and every worker saves its run. A worker whose parent is gone does the same.
"""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from spurbench.engine import Interrupted, run_one
from spurbench.engine.stop import StopFlag, stop_on_signals
from spurbench.errors import RunFailed, SpurbenchError
from spurbench.launch.options import Board, LaunchOptions, Outcomes, bury
from spurbench.launch.room import Room, room_for
from spurbench.sweep import Planned, name_of

__all__ = ["devices_for", "launch", "run_pool"]

_LOOK_SECONDS = 0.5
"""Time between two looks for signals."""


def devices_for(device: str, jobs: int) -> list[str]:
    """One device name per worker: GPUs in turn if the user leaves the choice, else what was asked for."""
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    return [f"cuda:{worker % gpus}" if gpus else device for worker in range(jobs)]


def launch(runs: Sequence[Planned], options: LaunchOptions, board: Board) -> Outcomes:
    """The launcher ``local`` with several jobs."""
    room = room_for(options.device, runs, options.peak_bytes) if options.pack else None
    return run_pool(runs, jobs=options.jobs, device=options.device, plugins=options.plugins, board=board, room=room)


def run_pool(
    runs: Sequence[Planned],
    *,
    jobs: int,
    device: str,
    plugins: tuple[Path, ...],
    board: Board,
    room: Room | None = None,
) -> Outcomes:
    """Yield each run with its record, or with the error that stopped it, as they end.

    Runs that another process holds are left to it and looked at again at the end.

    Args:
        room: decides how many run at once, and may find place for more as it sees what they need; then ``jobs`` is the
            most.

    Raises:
        Interrupted: a signal; every worker has saved its run.
        RunFailed: workers that do not even start.
    """
    waiting: list[Planned] = []
    threads = max(1, torch.get_num_threads() // jobs)
    workers: list[_Worker] = []

    def enlarge(places: Sequence[str]) -> None:
        for place in places[len(workers) : jobs]:
            workers.append(_Worker(len(workers), place, plugins, threads))

    enlarge(devices_for(device, jobs) if room is None else room.places())
    with stop_on_signals() as stop:
        try:
            for queue, blocking in ((deque(runs), False), (waiting, True)):
                for run, outcome in _work_off(deque(queue), workers, blocking, waiting, board, stop):
                    if room is not None and isinstance(outcome, dict):
                        room.learn(outcome)
                        enlarge(room.places())
                    yield run, outcome
        finally:
            for worker in workers:
                worker.stop()


def _work_off(
    queue: "deque[Planned]",
    workers: Sequence["_Worker"],
    blocking: bool,
    waiting: list[Planned],
    board: Board,
    stop: StopFlag,
) -> Outcomes:
    """Keep all workers busy until the queue is empty and they are idle."""
    while True:
        if stop.signal_number is not None:
            _interrupt(workers, stop)
        for worker in workers:
            if worker.run is None and queue:
                worker.begin(queue.popleft(), blocking)
        busy = {worker.connection: worker for worker in workers if worker.run is not None}
        if not busy:
            return
        for connection in wait(list(busy), timeout=_LOOK_SECONDS):
            assert isinstance(connection, Connection)
            worker = busy[connection]
            run = worker.run
            assert run is not None
            kind, content = worker.hear()
            if kind in ("note", "progress", "epoch"):
                _tell(board, worker, run, kind, content)
                continue
            worker.run = None
            if kind == "held":
                board.note(f"{name_of(run)}: waits for what another run or process is computing")
                waiting.append(run)
            elif kind == "done":
                yield run, content
            else:
                board.note(f"failed: {name_of(run)}: {content}")
                yield run, content


@dataclass(slots=True)
class _Worker:
    """The parent's end of a worker process."""

    number: int
    device: str
    plugins: tuple[Path, ...]
    threads: int
    """For runs whose recipe does not fix the number."""
    run: Planned | None = None
    process: Any = None
    connection: Any = None

    def begin(self, run: Planned, blocking: bool) -> None:
        """Send a run, to a new process if the old one has died."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.connection, theirs = context.Pipe()
            self.process = context.Process(
                target=_serve, args=(theirs, self.device, self.plugins, self.threads), name="spurbench-worker"
            )
            self.process.start()
            theirs.close()
        self.run = run
        self.connection.send((run, blocking))

    def hear(self) -> tuple[str, Any]:
        """The next message; a death is one too, and leaves a failed record."""
        try:
            message: tuple[str, Any] = self.connection.recv()
        except (EOFError, OSError):
            return "died", self._bury()
        return message

    def _bury(self) -> SpurbenchError:
        self.process.join()
        code, self.process = self.process.exitcode, None
        assert self.run is not None
        if code is not None and code < 0 and -code != signal.SIGKILL:
            how = f"by {signal.Signals(-code).name}"
        elif code == -signal.SIGKILL:
            how = "by SIGKILL, perhaps because memory ran out: try fewer --jobs"
        else:
            how = f"with exit code {code}"
        error = RunFailed(f"the worker process ended {how}; --retry-failed resumes the run from its last checkpoint")
        bury(self.run, error, {"launcher": "local"})
        return error

    def stop(self) -> None:
        """Let an idle process end; one that works is told to save."""
        if self.process is None:
            return
        if self.run is not None:
            self.signal(signal.SIGTERM)
        self.connection.close()
        self.process.join()
        self.process = None

    def signal(self, number: int) -> None:
        """Send a signal to the process if it lives."""
        if self.process is not None and self.process.is_alive():
            os.kill(self.process.pid, number)


def _interrupt(workers: Sequence[_Worker], stop: StopFlag) -> None:
    """Pass the signal on, wait until all have saved, and say so."""
    assert stop.signal_number is not None
    for worker in workers:
        if worker.run is not None:
            worker.signal(signal.SIGTERM)
    for worker in workers:
        while worker.run is not None:
            if worker.connection.poll(_LOOK_SECONDS) and worker.hear()[0] not in ("note", "progress", "epoch"):
                worker.run = None
    raise Interrupted(stop.signal_number)


def _tell(board: Board, worker: _Worker, run: Planned, kind: str, content: Any) -> None:
    if kind == "note":
        board.note(f"{name_of(run)}: {content}")
    elif kind == "progress":
        board.show(worker.number, name_of(run), *content)
    else:
        board.epoch_of(worker.number, name_of(run), content)


# ---------------------------------------------------------------------------------------------- in the worker process


class _Remote:
    """An observer that tells the parent. Without a parent the run is saved and ends."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def note(self, text: str) -> None:
        self._send("note", text)

    def progress(self, task: str, done: int, total: int, values: Mapping[str, float]) -> None:
        self._send("progress", (task, done, total, dict(values)))

    def epoch(self, row: Mapping[str, Any]) -> None:
        self._send("epoch", dict(row))

    def _send(self, kind: str, content: Any) -> None:
        try:
            self._connection.send((kind, content))
        except OSError:
            os.kill(os.getpid(), signal.SIGTERM)


def _serve(connection: Any, device: str, plugins: tuple[Path, ...], threads: int) -> None:
    """Do one run after the other until the parent closes the connection."""
    os.setpgid(0, 0)  # Ctrl-C in the terminal reaches the parent alone, which passes it on once
    torch.set_num_threads(threads)
    while True:
        try:
            run, blocking = connection.recv()
        except (EOFError, OSError, KeyboardInterrupt):
            return
        message: tuple[str, Any]
        try:
            record = run_one(
                run.config, run.paths, device=device, plugins=plugins, wait=blocking, observer=_Remote(connection)
            )
            message = ("done", record) if record is not None else ("held", None)
        except Interrupted as error:
            message = ("interrupted", RunFailed(str(error)))
        except SpurbenchError as error:
            message = ("failed", RunFailed(str(error)))
        try:
            connection.send(message)
        except OSError:
            return
        if message[0] == "interrupted":
            return
