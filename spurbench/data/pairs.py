"""Batches of pairs: samples and partners that share the label but not the attribute, or the reverse."""

from dataclasses import dataclass

import torch
from torch import Tensor

from spurbench.data.balance import balanced_weights

__all__ = ["Pairs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """``BatchSampler`` of pairs by label and attribute; one coin per batch says which of the two they share."""

    group: Tensor
    """int64 [N], label * num_attributes + attribute."""
    num_attributes: int
    p_label: float
    """Probability that a batch's pairs are intra-label: same label, other attribute. Otherwise intra-domain: same
    attribute, other label."""
    batch_size: int
    """Pairs per batch."""
    balanced: bool
    """Whether groups that have a sample are equally frequent, in every batch as far as it divides, and equally likely
    among the partners; if not, samples are."""

    def partners(self, group: int, *, intra_label: bool) -> Tensor:
        """Who may be paired with a sample of this group, bool [N]."""
        same_label = self.group // self.num_attributes == group // self.num_attributes
        same_attribute = self.group % self.num_attributes == group % self.num_attributes
        return same_label & ~same_attribute if intra_label else same_attribute & ~same_label

    def exist(self, *, intra_label: bool) -> bool:
        """Whether there is any pair of this kind."""
        return any(bool(self.partners(group, intra_label=intra_label).any()) for group in self._groups())

    def __call__(self, rng: torch.Generator) -> list[list[int]]:
        """One epoch of N pairs: each batch lists its samples, then their partners in the same order.

        A sample that nobody can be paired with is its own partner.
        """
        num = len(self.group)
        first = self._in_turns(rng) if self.balanced else torch.randperm(num, generator=rng)
        coins = torch.rand(-(-num // self.batch_size), generator=rng) < self.p_label
        intra_label = coins.repeat_interleave(self.batch_size)[:num]
        chance = balanced_weights(self.group) if self.balanced else torch.ones(num)
        second = first.clone()
        for group in self._groups():
            for kind in (True, False):
                slots = (self.group[first] == group) & (intra_label == kind)
                fits = self.partners(group, intra_label=kind)
                if slots.any() and fits.any():
                    second[slots] = torch.multinomial(chance * fits, int(slots.sum()), replacement=True, generator=rng)
        halves = zip(*(torch.split(side, self.batch_size) for side in (first, second)), strict=True)
        return [torch.cat(pair).tolist() for pair in halves]

    def _groups(self) -> list[int]:
        """Those with a sample."""
        return torch.unique(self.group).tolist()  # type: ignore[no-any-return]

    def _in_turns(self, rng: torch.Generator) -> Tensor:
        """int64 [N]: one sample of every group after the other; a group is shuffled again when it is used up."""
        groups = self._groups()
        turn = torch.arange(len(self.group)) % len(groups)
        order = torch.empty_like(turn)
        for number, group in enumerate(groups):
            members, slots = torch.nonzero(self.group == group)[:, 0], turn == number
            rounds = -(-int(slots.sum()) // len(members))
            shuffled = [members[torch.randperm(len(members), generator=rng)] for _ in range(rounds)]
            order[slots] = torch.cat([*shuffled, members[:0]])[: int(slots.sum())]
        return order
