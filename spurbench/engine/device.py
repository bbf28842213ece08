"""The few places where devices differ."""

import contextlib
import resource
import sys
from collections.abc import Iterator

import torch

from spurbench.config import RunConfig
from spurbench.errors import ConfigError

__all__ = ["choose_device", "device_name", "peak_memory_bytes", "run_threads", "synchronize"]


def choose_device(name: str) -> torch.device:
    """``auto`` takes CUDA, then MPS, then the CPU; otherwise a torch device name. A GPU gets its number.

    Raises:
        ConfigError: a device that this machine does not have.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    try:
        device = torch.device(("cuda" if cuda else "mps" if mps else "cpu") if name == "auto" else name)
    except RuntimeError as error:
        raise ConfigError(f"unknown device '{name}'; use auto, cpu, cuda, cuda:1 or mps") from error
    present = {"cpu": True, "cuda": cuda, "mps": mps}.get(device.type, False)
    if not present or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise ConfigError(f"device '{name}' is not available on this machine; use --device auto or cpu")
    return torch.device("cuda", torch.cuda.current_device()) if device == torch.device("cuda") else device


def device_name(device: torch.device) -> str:
    """The model of a device, as people know it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        try:
            with open("/proc/cpuinfo") as stream:  # noqa: PTH123  a pseudo file, read line by line
                for line in stream:
                    if line.startswith("model name"):
                        return line.partition(":")[2].strip()
        except OSError:
            pass
    return device.type


def peak_memory_bytes(device: torch.device) -> int:
    """Largest device memory on CUDA, largest resident set of this process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextlib.contextmanager
def run_threads(config: RunConfig, device: torch.device) -> Iterator[None]:
    """The run's number of threads; the next run in this process gets the machine's default back."""
    default = torch.get_num_threads()
    if config.train.num_threads is not None and device.type == "cpu":
        torch.set_num_threads(config.train.num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(default)


def synchronize(device: torch.device) -> None:
    """Wait for the device; nothing to wait for on the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
