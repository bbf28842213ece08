"""Accuracy per group, and the averages and the minimum that are made of it.

Everything starts from counts: integers add up exactly, so merging batches or ranks equals one pass over all samples.
A class is a group too where a dataset has no attribute; count with ``y`` for worst-class accuracy.

Shape letters: N samples, G groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "GroupCounts",
    "WorstGroup",
    "accuracy",
    "adjusted_accuracy",
    "group_accuracies",
    "group_counts",
    "group_mean_accuracy",
    "worst_group",
]


@dataclass(frozen=True, slots=True, eq=False)
class GroupCounts:
    """Samples and correct predictions per group; ``+`` merges disjoint samples."""

    n: Tensor
    """int64 [G]."""
    correct: Tensor
    """int64 [G], between 0 and ``n``."""

    @property
    def num_groups(self) -> int:
        """G, empty groups included."""
        return len(self.n)

    def __add__(self, other: "GroupCounts") -> "GroupCounts":
        if self.num_groups != other.num_groups:
            raise ValueError(f"cannot merge counts of {self.num_groups} and {other.num_groups} groups")
        return GroupCounts(self.n + other.n, self.correct + other.correct)

    def to_rows(self, names: Sequence[str]) -> list[dict[str, int | str]]:
        """One ``{group, name, n, correct}`` per group, empty ones with n = 0; the form stored in result rows."""
        groups = zip(names, self.n.tolist(), self.correct.tolist(), strict=True)
        return [{"group": g, "name": name, "n": n, "correct": correct} for g, (name, n, correct) in enumerate(groups)]


class WorstGroup(NamedTuple):
    """The lowest accuracy, 0..1, and the index of its group."""

    accuracy: float
    group: int


def group_counts(correct_N: Tensor, group_N: Tensor, num_groups: int) -> GroupCounts:
    """Count on the device of the input, without stopping it.

    Args:
        correct_N: bool.
        group_N: int64, 0..num_groups-1.
        num_groups: G, with the groups that have no sample here.

    Raises:
        ValueError: arguments of different length.
        RuntimeError: a group outside the range (on CUDA: a device-side assertion).
    """
    if correct_N.shape != group_N.shape:
        raise ValueError(f"correct has shape {tuple(correct_N.shape)}, group {tuple(group_N.shape)}")
    # Not bincount: on CUDA it reads the largest group back to the host.
    zeros_G = torch.zeros(num_groups, dtype=torch.int64, device=group_N.device)
    n_G = zeros_G.scatter_add(0, group_N, torch.ones_like(group_N))
    correct_G = zeros_G.scatter_add(0, group_N, correct_N.long())
    return GroupCounts(n_G, correct_G)


def group_accuracies(counts: GroupCounts) -> tuple[float | None, ...]:
    """Accuracy per group, 0..1; None for an empty group, never 0."""
    pairs = zip(counts.n.tolist(), counts.correct.tolist(), strict=True)
    return tuple(correct / n if n else None for n, correct in pairs)


def accuracy(counts: GroupCounts) -> float | None:
    """Share of correct samples, 0..1: groups count by their size in the evaluated split. None without samples."""
    n = int(counts.n.sum())
    return int(counts.correct.sum()) / n if n else None


def group_mean_accuracy(counts: GroupCounts) -> float | None:
    """Unweighted mean over the non-empty groups, 0..1. None without samples."""
    present = [value for value in group_accuracies(counts) if value is not None]
    return fmean(present) if present else None


def adjusted_accuracy(counts: GroupCounts, train_n: Sequence[int] | Tensor) -> float | None:
    """Sum of acc_g n_g(train) / sum of n_g(train), 0..1: test accuracy at the training frequencies of groups.

    As in Sagawa et al. (arXiv 1911.08731), called ``adj_acc_avg`` by WILDS. A group without training samples has
    weight 0, so the value exists at 100 % correlation. It does not exist, and None is returned, where a group with
    training samples is empty in the evaluated split, or where there is no training sample at all.

    Args:
        counts: of the evaluated split.
        train_n: training samples per group, [G].

    Raises:
        ValueError: numbers of groups differ.
    """
    if len(train_n) != counts.num_groups:
        raise ValueError(f"{len(train_n)} training counts for {counts.num_groups} groups")
    weighted = [(value, int(n)) for value, n in zip(group_accuracies(counts), train_n, strict=True) if int(n) > 0]
    terms = [value * n for value, n in weighted if value is not None]
    if not weighted or len(terms) < len(weighted):
        return None
    return sum(terms) / sum(n for _, n in weighted)


def worst_group(counts: GroupCounts) -> WorstGroup | None:
    """The minimum over non-empty groups, at the lower index in a tie. None without samples."""
    present = [(value, index) for index, value in enumerate(group_accuracies(counts)) if value is not None]
    return WorstGroup(*min(present)) if present else None
