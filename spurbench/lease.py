"""One process works on a run; others wait for it. A dead owner's lease is taken over.

The lease is a small JSON file with the owner's host, process and a heartbeat. Every change of it happens under an
advisory lock on a sibling file, so two processes cannot both decide that the owner is dead.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spurbench.io import read_json, write_json

__all__ = ["HEARTBEAT_SECONDS", "Lease", "owner_of"]

HEARTBEAT_SECONDS = 10.0
_DEAD_AFTER_SECONDS = 90.0
"""Silence after which an owner on another machine counts as dead."""


class Lease:
    """Exclusive work on one folder, as a context: ``with Lease.take(folder) as lease``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @classmethod
    def try_take(cls, folder: Path) -> "Lease | None":
        """The lease, or None while a living process holds it."""
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            if owner_of(folder) is not None:
                return None
            lease = cls(folder)
            lease._write()
        lease._thread = threading.Thread(target=lease._beat, daemon=True, name="lease-heartbeat")
        lease._thread.start()
        return lease

    def release(self) -> None:
        """Give the folder free."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with _locked(self.folder):
            if _is_me(_read(self.folder)):
                (self.folder / "lease").unlink(missing_ok=True)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def _write(self) -> None:
        write_json(self.folder / "lease", {**_me(), "heartbeat": time.time()})

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):  # a full disk must not end the run that could finish
                if _is_me(_read(self.folder)):  # after a long sleep another machine may have taken over
                    os.utime(self.folder / "lease")


def owner_of(folder: Path) -> dict[str, Any] | None:
    """The living process that holds the folder, as ``{host, pid, ...}``; None if there is none."""
    owner = _read(folder)
    if owner is None:
        return None
    if owner["host"] == _host():
        alive = owner["process_start"] == _process_start(owner["pid"])
    else:
        alive = _age(folder) < _DEAD_AFTER_SECONDS
    return owner if alive else None


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        document = read_json(folder / "lease")
    except (FileNotFoundError, ValueError):
        return None
    return document if isinstance(document, dict) and {"host", "pid", "process_start"} <= set(document) else None


def _age(folder: Path) -> float:
    """Seconds since the last heartbeat by the file server's own clock, so skew between machines does not matter."""
    probe = folder / f".clock.{_host_slug()}.{os.getpid()}"
    try:
        probe.touch()
        return probe.stat().st_mtime - (folder / "lease").stat().st_mtime
    except FileNotFoundError:
        return float("inf")
    finally:
        probe.unlink(missing_ok=True)


def _me() -> dict[str, Any]:
    return {"host": _host(), "pid": os.getpid(), "process_start": _process_start(os.getpid())}


def _is_me(owner: dict[str, Any] | None) -> bool:
    return owner is not None and {key: owner[key] for key in ("host", "pid", "process_start")} == _me()


def _host() -> str:
    """Host and process namespace: equal process numbers in two containers are two processes."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")  # noqa: PTH115  not a path
    except OSError:
        namespace = ""
    return f"{socket.gethostname()}{namespace and ' '}{namespace}"


def _host_slug() -> str:
    return "".join(c if c.isalnum() else "_" for c in _host())


def _process_start(pid: int) -> str | None:
    """Start time of a process; None if it does not run. Tells a reused process number from the old owner."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except ProcessLookupError:  # it ended between opening and reading
        return None
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    try:  # systems without /proc
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "unknown"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's advisory lock; it falls with its process."""
    import fcntl

    with (folder / "lease.lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
