"""How many runs go at once."""

from typing import Any

import pytest
import torch

from spurbench.launch import room as rooms
from spurbench.launch.room import Room, room_for

GIB = 1 << 30


def record(peak: int | None, device: str = "cuda") -> dict[str, Any]:
    return {"machine": {"device": device, "peak_memory_bytes": peak}}


def test_a_gpu_has_one_run_until_one_was_seen_to_its_end() -> None:
    room = Room("auto", {"cuda:0": 80 * GIB, "cuda:1": 80 * GIB}, cores=32, threads=1)
    assert room.places() == ["cuda:0", "cuda:1"]
    room.learn(record(10 * GIB))
    # 72 GiB to give out on each, 13.8 GiB per run
    assert room.places() == ["cuda:0", "cuda:1"] * 5
    room.learn(record(4 * GIB))
    assert len(room.places()) == 10, "the largest counts"


def test_gpus_of_different_size_and_too_large_runs() -> None:
    room = Room("auto", {"cuda:0": 16 * GIB, "cuda:1": 80 * GIB}, cores=64, threads=1, largest=20 * GIB)
    assert room.places() == ["cuda:0", "cuda:1", "cuda:1"], "each GPU has at least one, whatever was seen elsewhere"


def test_cores_limit_small_runs() -> None:
    assert len(Room("auto", {"cuda:0": 80 * GIB}, cores=16, threads=1, largest=130 << 20).places()) == 16


def test_what_a_cpu_run_took_says_nothing_about_gpus() -> None:
    room = Room("auto", {"cuda:0": 80 * GIB}, cores=8, threads=1)
    room.learn(record(3 * GIB, "cpu"))
    room.learn(record(None))
    assert room.places() == ["cuda:0"]


@pytest.mark.parametrize(("cores", "threads", "number"), [(8, 1, 8), (8, 3, 2), (2, 8, 1)])
def test_a_cpu_is_divided_by_threads(cores: int, threads: int, number: int) -> None:
    assert Room("cpu", {}, cores, threads).places() == ["cpu"] * number


def test_a_named_gpu_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("P", (), {"total_memory": 80 * GIB}))
    monkeypatch.setattr(rooms, "available_cores", lambda: 4)
    assert room_for("cuda:1", []).places() == ["cuda:1"]
    assert room_for("cuda:1", [], largest=GIB).places() == ["cuda:1"] * 4
    assert room_for("cpu", []).places() == ["cpu"], "a run without a number of threads takes all cores"
    assert room_for("auto", []).places() == ["cuda:0", "cuda:1"]
    assert room_for("auto", [], largest=GIB).places() == ["cuda:0", "cuda:1"] * 2
