"""Memory that batches lie in, and their way to the device without stopping the host.

From pageable memory CUDA waits for everything before it and then copies; from pinned memory the host goes on at once.
"""

import math
import weakref

import torch
from torch import Tensor

from spurbench.data.ondemand import Rows

__all__ = ["empty", "gather", "send"]

RECYCLED_FROM = 1 << 20
"""Bytes from which memory of results is used again; the allocator is good at smaller ones."""
RECYCLED_LIMIT = 512 << 20
"""Bytes that may be kept unused."""


def gather(rows: Rows, index: Tensor, device: torch.device) -> Tensor:
    """A copy of some rows on the device, [N, ...] and int64 [B] on the CPU -> [B, ...].

    Args:
        rows: memory-mapped, already on the device, or not yet decoded.
        index: positions, on the CPU.
        device: where the copy is wanted.
    """
    if not isinstance(rows, Tensor):
        return send(rows[index], device)
    if rows.device.type != "cpu":
        return rows[send(index, rows.device)].to(device)
    shape = (len(index), *rows.shape[1:])
    if device.type == "cuda":
        # Straight into pinned memory: one copy on the host instead of two.
        pinned = torch.empty(shape, dtype=rows.dtype, pin_memory=True)
        return torch.index_select(rows, 0, index, out=pinned).to(device, non_blocking=True)
    return torch.index_select(rows, 0, index, out=empty(shape, rows.dtype, rows.device)).to(device)


def send(values: Tensor, device: torch.device) -> Tensor:
    """Values of the CPU on the device."""
    if device.type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


_unused: dict[int, Tensor] = {}
"""Blocks of memory that no tensor uses any more, by identity, oldest first."""


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialized tensor; on a CPU a large one lies in memory that an earlier one has left.

    Fresh pages from the kernel cost more time than cropping or normalizing into them, and allocators give blocks of
    this size back each time. A block comes free when its tensor, all views of it and all graphs that saved it are
    gone, so nobody ever sees a tensor change.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or num_bytes < RECYCLED_FROM:
        return torch.empty(shape, dtype=dtype, device=device)
    block = _take_block(num_bytes)
    owner = block.numpy()  # a new object, which lives exactly as long as the storage made of it
    weakref.finalize(owner, _leave_block, block).atexit = False
    return torch.from_numpy(owner)[:num_bytes].view(dtype).view(shape)


def _take_block(num_bytes: int) -> Tensor:
    # Single dict operations only: they are atomic, and a lock could be held when the collector frees a block.
    for key, block in list(_unused.items()):
        if num_bytes <= block.numel() <= 2 * num_bytes and _unused.pop(key, None) is not None:
            return block
    return torch.empty(num_bytes, dtype=torch.uint8)


def _leave_block(block: Tensor) -> None:
    _unused[id(block)] = block
    while sum(unused.numel() for unused in list(_unused.values())) > RECYCLED_LIMIT:
        _unused.pop(next(iter(list(_unused)), 0), None)
