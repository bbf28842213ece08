import json
import math
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from spurbench.checkpoint import load_tensors, save_tensors
from spurbench.errors import RunFailed
from spurbench.io import atomic_write, hash_file, read_json, remove_leftovers, write_json

NO_SPACE = OSError(28, "No space left on device")


def refuse(*_: Any, **__: Any) -> None:
    raise NO_SPACE


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestAtomicWrite:
    def test_makes_folders_and_writes_the_whole(self, tmp_path: Path) -> None:
        path = tmp_path / "a" / "b"
        with atomic_write(path) as stream:
            stream.write(b"new")
        assert path.read_bytes() == b"new"
        assert names(path.parent) == ["b"]

    def test_old_content_is_there_until_the_block_ends(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"old")
        with atomic_write(path) as stream:
            stream.write(b"new")
            stream.flush()
            assert path.read_bytes() == b"old"
        assert path.read_bytes() == b"new"

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
    def test_error_in_the_block_keeps_the_old_and_leaves_nothing(
        self, tmp_path: Path, error: type[BaseException]
    ) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"old")

        def write() -> None:
            with atomic_write(path) as stream:
                stream.write(b"new")
                raise error

        with pytest.raises(error):
            write()
        assert path.read_bytes() == b"old"
        assert names(tmp_path) == ["file"]

    @pytest.mark.parametrize("call", ["fsync", "replace"])
    def test_system_error_keeps_the_old_and_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
    ) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"old")
        monkeypatch.setattr(os, call, refuse)
        with pytest.raises(OSError, match="No space"), atomic_write(path) as stream:
            stream.write(b"new")
        assert path.read_bytes() == b"old"
        assert names(tmp_path) == ["file"]

    def test_is_on_disk_before_it_is_in_place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = []
        fsync, replace = os.fsync, os.replace
        monkeypatch.setattr(os, "fsync", lambda descriptor: (calls.append("fsync"), fsync(descriptor))[1])
        monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("replace"), replace(*paths))[1])
        with atomic_write(tmp_path / "file") as stream:
            stream.write(b"new")
        assert calls == ["fsync", "replace"]

    def test_respects_the_umask(self, tmp_path: Path) -> None:
        before = os.umask(0o027)
        try:
            with atomic_write(tmp_path / "file"):
                pass
            assert os.umask(0o027) == 0o027
        finally:
            os.umask(before)
        assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640

    def test_readers_never_see_a_part(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        contents = [bytes([letter]) * 100_000 for letter in b"ab"]
        path.write_bytes(contents[0])
        done = threading.Event()

        def write() -> None:
            for number in range(40):
                with atomic_write(path) as stream:
                    for start in range(0, 100_000, 1000):
                        stream.write(contents[number % 2][start : start + 1000])
            done.set()

        writer = threading.Thread(target=write)
        writer.start()
        seen = set()
        while not done.is_set():
            seen.add(path.read_bytes())
        writer.join()
        assert seen <= set(contents)


def test_leftovers_of_killed_writers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    for name in ("file", ".hidden", "mine.tmp", ".clock.host.1", "inner/other"):
        (tmp_path / name).write_text("kept")
    for name in (".file.k3j2h1.tmp", "inner/.other.abc_def0.tmp"):
        (tmp_path / name).write_text("half")
    remove_leftovers(tmp_path)
    kept = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert kept == {"file", ".hidden", "mine.tmp", ".clock.host.1", "inner/other"}


def test_json_goes_through(tmp_path: Path) -> None:
    document = {"b": [1, 2.5, None, True], "a": "grün", "c": 0.1 + 0.2}
    write_json(tmp_path / "file", document)
    assert read_json(tmp_path / "file") == document
    assert list(read_json(tmp_path / "file")) == ["b", "a", "c"]
    assert (tmp_path / "file").read_bytes().endswith(b"\n")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_refuses_what_is_no_number_and_keeps_the_old(tmp_path: Path, value: float) -> None:
    path = tmp_path / "file"
    write_json(path, {"old": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"new": [value]})
    assert json.loads(path.read_text()) == {"old": 1}
    assert names(tmp_path) == ["file"]


def test_hash_of_a_file_reports_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc" * 1_000_000)
    blocks: list[int] = []
    assert hash_file(path, blocks.append) == hash_file(path)
    assert sum(blocks) == 3_000_000
    path.write_bytes(b"")
    assert hash_file(path) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


class TestTensors:
    def test_go_through_bit_for_bit(self, tmp_path: Path) -> None:
        state = {
            "weights": torch.randn(7, 3),
            "half": torch.randn(5).bfloat16(),
            "epoch": 3,
            "rows": "[1]",
            "none": None,
        }
        save_tensors(tmp_path / "state.pt", state)
        loaded = load_tensors(tmp_path / "state.pt")
        assert loaded is not None
        assert torch.equal(loaded.pop("weights"), state.pop("weights"))
        assert torch.equal(loaded.pop("half"), state.pop("half"))
        assert loaded == state

    def test_absent_is_none(self, tmp_path: Path) -> None:
        assert load_tensors(tmp_path / "state.pt") is None

    @pytest.mark.parametrize("keep", [0, 1, 10, 0.5, 0.99])
    def test_cut_off_is_none(self, tmp_path: Path, keep: float) -> None:
        path = tmp_path / "state.pt"
        save_tensors(path, {"weights": torch.zeros(1000)})
        content = path.read_bytes()
        path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
        assert load_tensors(path) is None

    def test_what_cannot_be_read_now_is_not_taken_for_damaged(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Starting over because of a hiccup of the file server would overwrite hours of training."""

        def stale(*_: Any, **__: Any) -> None:
            raise OSError(116, "Stale file handle")

        monkeypatch.setattr(torch, "load", stale)
        with pytest.raises(OSError, match="Stale"):
            load_tensors(tmp_path / "state.pt")

    def test_full_disk_keeps_the_old_and_says_what_to_do(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "state.pt"
        save_tensors(path, {"epoch": 1})
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", refuse)
            with pytest.raises(RunFailed, match="no space left on the device; mend that and start the same command"):
                save_tensors(path, {"epoch": 2})
        assert load_tensors(path) == {"epoch": 1}
        assert names(tmp_path) == ["state.pt"]

    def test_code_in_a_checkpoint_is_not_run(self, tmp_path: Path) -> None:
        class Evil:
            def __reduce__(self) -> tuple[Any, ...]:
                return (os.mkdir, (str(tmp_path / "evil"),))

        torch.save({"epoch": Evil()}, tmp_path / "state.pt")
        assert load_tensors(tmp_path / "state.pt") is None
        assert not (tmp_path / "evil").exists()
