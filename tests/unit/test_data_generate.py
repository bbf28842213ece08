"""``spurbench data generate`` of drawn sets: whole or not at all, beside what is there."""

from dataclasses import replace
from pathlib import Path

import pytest

from spurbench.dataset import DatasetSpec, find_dataset
from spurbench.datatools.drawn import write_drawn
from spurbench.errors import ConfigError
from spurbench.lease import Lease

WORKPLACE = ".spurbench-drawing-minibirds95"


def drawn(fail_after: int = 99) -> DatasetSpec:
    """A set of two folders that is drawn in no time, or ends before the end as if it was killed."""

    def write(folder: Path) -> None:
        for number, name in enumerate(("birds", "masks")):
            if number == fail_after:
                raise KeyboardInterrupt
            (folder / name).mkdir(parents=True)
            (folder / name / "1.png").write_bytes(name.encode())

    return replace(find_dataset("minibirds95"), write=write)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


DRAWN = {"birds/1.png": b"birds", "masks/1.png": b"masks"}


def test_a_new_folder_and_one_with_other_things(tmp_path: Path) -> None:
    assert write_drawn(drawn(), tmp_path / "new") == (tmp_path / "new/birds", tmp_path / "new/masks")
    assert content(tmp_path / "new") == DRAWN
    (tmp_path / "used").mkdir()
    (tmp_path / "used/notes.txt").write_bytes(b"mine")
    write_drawn(drawn(), tmp_path / "used")
    assert content(tmp_path / "used") == DRAWN | {"notes.txt": b"mine"}


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks/1.png").write_bytes(b"mine")
    with pytest.raises(ConfigError, match="has masks already, which minibirds95 would write; name another folder"):
        write_drawn(drawn(), tmp_path)
    assert content(tmp_path) == {"masks/1.png": b"mine"}
    assert [path.name for path in tmp_path.iterdir()] == ["masks"]
    with pytest.raises(ConfigError, match="is a file"):
        write_drawn(drawn(), tmp_path / "masks/1.png")


def test_clashes_are_found_before_anything_is_drawn(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    with pytest.raises(ConfigError, match="has masks already, which minibirds95 would write; name another folder"):
        write_drawn(replace(drawn(fail_after=0), writes=("birds", "masks")), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["masks"]


def test_after_a_kill_the_same_command_writes_it_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_drawn(drawn(fail_after=1), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [WORKPLACE]  # nothing that looks like a dataset
    rename = Path.rename

    def killed_at_the_second(self: Path, target: Path) -> Path:
        if self.name == "masks":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        write_drawn(drawn(), tmp_path)
    monkeypatch.undo()
    write_drawn(replace(drawn(), writes=("birds", "masks")), tmp_path)  # birds is there, as it left it
    assert content(tmp_path) == DRAWN


def test_one_at_a_time(tmp_path: Path) -> None:
    lease = Lease.try_take(tmp_path / WORKPLACE)
    assert lease is not None
    with lease, pytest.raises(ConfigError, match="another process is writing minibirds95"):
        write_drawn(drawn(), tmp_path)
    assert content(tmp_path).keys() & DRAWN.keys() == set()


def test_a_folder_that_refuses(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot write minibirds95 to"):
        write_drawn(drawn(), tmp_path / "file/below")
