import errno
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from spurbench import lease as module
from spurbench.lease import Lease, owner_of


def write_lease(folder: Path, *, age: float = 0.0, **changes: Any) -> None:
    """A lease as another process would have left it, ``age`` seconds after its last heartbeat."""
    me = {"host": module._host(), "pid": os.getpid(), "process_start": module._process_start(os.getpid())}
    path = folder / "lease"
    path.write_text(json.dumps({**me, "heartbeat": 0.0, **changes}))
    os.utime(path, (time.time() - age, time.time() - age))


def dead_pid() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def test_lease_excludes_until_released(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "on the way"
    first = Lease.try_take(folder)
    assert first is not None
    with first:
        owner = owner_of(folder)
        assert owner is not None
        assert owner["pid"] == os.getpid()
        assert owner["host"].split()[0] == socket.gethostname()
        assert Lease.try_take(folder) is None
    assert owner_of(folder) is None
    assert not (folder / "lease").exists()
    second = Lease.try_take(folder)
    assert second is not None
    second.release()


def test_lease_is_released_by_an_error(tmp_path: Path) -> None:
    lease = Lease.try_take(tmp_path)
    assert lease is not None
    with pytest.raises(KeyError), lease:
        raise KeyError
    assert owner_of(tmp_path) is None


class TestOwnerOnThisHost:
    def test_living_process_is_respected_however_silent(self, tmp_path: Path) -> None:
        write_lease(tmp_path, age=1e6)
        assert Lease.try_take(tmp_path) is None

    def test_dead_process_is_replaced_at_once(self, tmp_path: Path) -> None:
        write_lease(tmp_path, pid=dead_pid())
        assert owner_of(tmp_path) is None
        self.assert_taken(tmp_path)

    def test_reused_process_number_is_not_the_owner(self, tmp_path: Path) -> None:
        write_lease(tmp_path, process_start="1")
        self.assert_taken(tmp_path)

    def test_zombie_is_dead(self, tmp_path: Path) -> None:
        process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        write_lease(tmp_path, pid=process.pid, process_start=module._process_start(process.pid))
        assert Lease.try_take(tmp_path) is None
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet collected by its parent
        self.assert_taken(tmp_path)
        process.communicate()

    def test_process_that_ends_while_it_is_looked_at_is_dead(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_lease(tmp_path, pid=dead_pid(), process_start="1")

        def vanish(path: Path) -> str:
            raise ProcessLookupError(errno.ESRCH, "No such process")

        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_text", lambda self, **more: vanish(self))
            assert module._process_start(1) is None

    @staticmethod
    def assert_taken(folder: Path) -> None:
        lease = Lease.try_take(folder)
        assert lease is not None
        with lease:
            owner = owner_of(folder)
            assert owner is not None
            assert owner["pid"] == os.getpid()


class TestOwnerOnAnotherHost:
    ELSEWHERE = "node17 pid:[4026531836]"

    def test_fresh_heartbeat_is_respected(self, tmp_path: Path) -> None:
        write_lease(tmp_path, host=self.ELSEWHERE, pid=dead_pid(), age=module._DEAD_AFTER_SECONDS - 30)
        owner = owner_of(tmp_path)
        assert owner is not None
        assert owner["host"] == self.ELSEWHERE
        assert Lease.try_take(tmp_path) is None

    def test_stale_heartbeat_is_replaced(self, tmp_path: Path) -> None:
        write_lease(tmp_path, host=self.ELSEWHERE, age=module._DEAD_AFTER_SECONDS + 1)
        TestOwnerOnThisHost.assert_taken(tmp_path)

    def test_the_text_of_the_heartbeat_does_not_count(self, tmp_path: Path) -> None:
        """Clocks of machines differ: only the file server's own time is compared."""
        write_lease(tmp_path, host=self.ELSEWHERE, heartbeat=time.time() + 1e6, age=module._DEAD_AFTER_SECONDS + 1)
        assert owner_of(tmp_path) is None

    def test_equal_process_number_in_another_container_is_another_process(self, tmp_path: Path) -> None:
        write_lease(tmp_path, host=f"{socket.gethostname()} pid:[1]", age=0)
        assert Lease.try_take(tmp_path) is None

    def test_looking_leaves_nothing_behind(self, tmp_path: Path) -> None:
        write_lease(tmp_path, host=self.ELSEWHERE)
        owner_of(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["lease"]


def test_heartbeat_renews_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.01)
    lease = Lease.try_take(tmp_path)
    assert lease is not None
    with lease:
        path = tmp_path / "lease"
        os.utime(path, (1.0, 1.0))
        await_that(lambda: path.stat().st_mtime > 1.0)


def test_owner_that_lost_its_lease_neither_renews_nor_removes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.001)
    lease = Lease.try_take(tmp_path)
    assert lease is not None
    beats = threading.Event()
    written = (tmp_path / "lease").read_text()
    document = {**json.loads(written), "host": "node17"}
    with lease:
        # As a machine would that saw no heartbeat for long: the new owner's file replaces the old.
        (tmp_path / "new").write_text(json.dumps(document))
        os.utime(tmp_path / "new", (1.0, 1.0))
        (tmp_path / "new").replace(tmp_path / "lease")
        beats.wait(0.05)  # many heartbeats; there is nothing to wait for when none may happen
        assert (tmp_path / "lease").stat().st_mtime == 1.0
    assert json.loads((tmp_path / "lease").read_text()) == document


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": "x"}', "\0\0\0\0"])
def test_damaged_lease_belongs_to_nobody(tmp_path: Path, text: str) -> None:
    (tmp_path / "lease").write_text(text)
    assert owner_of(tmp_path) is None
    TestOwnerOnThisHost.assert_taken(tmp_path)


def await_that(condition: Any) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def _compete(folder: Path, start: Any, taken: Any) -> None:
    start.wait()
    lease = Lease.try_take(folder)
    taken.put(None if lease is None else os.getpid())
    start.wait()  # nobody ends before all have tried


def test_of_many_that_try_at_once_one_succeeds(tmp_path: Path) -> None:
    """Also when all of them find a dead owner."""
    context = multiprocessing.get_context("fork")
    write_lease(tmp_path, pid=dead_pid())
    start, taken = context.Barrier(8), context.SimpleQueue()
    children = [context.Process(target=_compete, args=(tmp_path, start, taken)) for _ in range(8)]
    for child in children:
        child.start()
    results = [taken.get() for _ in children]
    for child in children:
        child.join()
    assert sum(result is not None for result in results) == 1
