"""Masks that are decided inside a trunk, where no method can pass an argument."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

from spurbench.nn.gumbel import hard_mask

__all__ = ["Decision"]


class Decision:
    """Turns mask logits [B, 2, h, w] (channel 0 = keep) into masks [B, 1, h, w], without noise unless told otherwise.

    Modules in the trunk hold it and call it; the method says how to decide, and gets the masks of a pass.
    """

    def __init__(self) -> None:
        self._decide: Callable[[Tensor], Tensor] = hard_mask
        self._masks: list[Tensor] | None = None

    def __call__(self, logits_B2hw: Tensor) -> Tensor:
        """The mask, also noted down if someone listens."""
        mask_B1hw = self._decide(logits_B2hw)
        if self._masks is not None:
            self._masks.append(mask_B1hw)
        return mask_B1hw

    @contextmanager
    def by(self, decide: Callable[[Tensor], Tensor]) -> Iterator[list[Tensor]]:
        """Decide by ``decide`` within the context; yields the list that the masks are put in, in order of execution.

        Nothing of it stays behind: a model that holds tensors of a graph could not be copied.
        """
        masks: list[Tensor] = []
        self._decide, self._masks = decide, masks
        try:
            yield masks
        finally:
            self._decide, self._masks = hard_mask, None
