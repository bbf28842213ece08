"""How many runs fit on this machine at once: by cores, and on GPUs by the memory that runs were seen to take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from spurbench.data.decoding import available_cores
from spurbench.sweep import Planned

__all__ = ["Room", "room_for"]

_CONTEXT = 800 << 20
"""Bytes that a process takes on a GPU beside its tensors."""
_FRAGMENTS = 1.3
"""Memory that the allocator holds for each byte in use."""
_USABLE = 0.9
"""Part of a GPU's memory that is given out."""


@dataclass(slots=True)
class Room:
    """What there is, and the largest run so far."""

    device: str
    """What was asked for; it stands where there is no GPU to choose."""
    memory: Mapping[str, int]
    """Bytes of every GPU that may be used, by its name; empty on a CPU."""
    cores: int
    threads: int
    """Of each run."""
    largest: int = 0
    """Peak device memory of the largest run seen, bytes; 0: none seen yet."""

    def learn(self, record: Mapping[str, Any]) -> None:
        """Take in what a finished run needed."""
        machine = record["machine"]
        if machine.get("device") == "cuda":
            self.largest = max(self.largest, machine.get("peak_memory_bytes") or 0)

    def places(self) -> list[str]:
        """A device name for every run that fits now; GPUs in turn, one run on each until one was seen to its end."""
        if not self.memory:
            return [self.device] * max(1, self.cores // self.threads)
        need = _FRAGMENTS * self.largest + _CONTEXT
        each = max(1, self.cores // self.threads // len(self.memory))
        fit = {gpu: min(each, max(1, int(_USABLE * total / need))) for gpu, total in self.memory.items()}
        turns = max(fit.values()) if self.largest else 1
        return [gpu for turn in range(turns) for gpu, number in fit.items() if turn < number]


def room_for(device: str, runs: Sequence[Planned], largest: int = 0) -> Room:
    """The room on this machine.

    Args:
        device: as the user named it.
        largest: peak device memory of runs that are done, bytes; 0 if there are none.
    """
    names = [f"cuda:{gpu}" for gpu in range(torch.cuda.device_count())] if device in ("auto", "cuda") else [device]
    memory = {name: torch.cuda.get_device_properties(name).total_memory for name in names if name.startswith("cuda:")}
    cores = available_cores()
    # Runs without a number of their own take all cores of a CPU; on a GPU a run keeps one core busy.
    threads = 1 if memory else max((run.config.train.num_threads or cores for run in runs), default=cores)
    return Room(device, memory, cores, threads, largest)
