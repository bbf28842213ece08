"""Named seed streams.

Every random draw is a pure function of (run seed, stream name, phase position, epoch, step). There is no
generator state to save: a run restarted anywhere draws what it would have drawn. Drawing more from one stream
leaves the others unchanged, and two methods with equal seeds see the same batches in the same order.
"""

import hashlib

import torch

__all__ = ["generator", "seed_for"]


def seed_for(run_seed: int, stream: str, *position: int | str) -> int:
    """A 63-bit seed for one named stream at one position, equal on every machine."""
    text = f"{run_seed}/{stream}/{'/'.join(map(str, position))}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(run_seed: int, stream: str, *position: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator on ``device``, seeded by ``seed_for``."""
    return torch.Generator(device=device).manual_seed(seed_for(run_seed, stream, *position))
