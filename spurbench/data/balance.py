"""Cells of equal weight or equal size, where a cell is all samples of one label (a group or a class)."""

from logging import getLogger

import torch
from torch import Tensor

__all__ = ["balanced_subset", "balanced_weights", "warn_of_empty_groups"]

_log = getLogger(__name__)


def balanced_weights(labels: Tensor) -> Tensor:
    """1 / size of the own cell: drawn by these weights, every cell that has a sample is equally likely.

    Args:
        labels: int64 [N], not negative.

    Returns:
        float64 [N].
    """
    return 1.0 / torch.bincount(labels)[labels].double()


def balanced_subset(labels: Tensor) -> Tensor:
    """Positions of a random subset in which every cell that has a sample is as large as the smallest of them.

    Draws from torch's global stream.

    Args:
        labels: int64 [N], not negative.

    Returns:
        int64 [cells * smallest], cell by cell in the order of their labels, without repetition.
    """
    cells, sizes = torch.unique(labels, return_counts=True)
    return torch.cat(
        [
            members[torch.randperm(len(members))[: int(sizes.min())]]
            for members in (torch.nonzero(labels == cell)[:, 0] for cell in cells)
        ]
    )


def warn_of_empty_groups(method: str, group: Tensor, num_groups: int) -> None:
    """Log once which groups have no sample, so that balancing cannot reach them; say nothing if all have one.

    Args:
        method: how the method calls itself.
        group: int64 [N], the samples' groups.
        num_groups: how many there could be.
    """
    counts = torch.bincount(group, minlength=num_groups)
    empty = torch.nonzero(counts == 0)[:, 0].tolist()
    if empty:
        _log.warning(
            "%s: group(s) %s have no training sample; only the other %d of %d can be balanced",
            method,
            ", ".join(map(str, empty)),
            num_groups - len(empty),
            num_groups,
        )
