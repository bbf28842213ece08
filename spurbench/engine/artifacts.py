"""What a method keeps from one phase to the next: files in the run's folder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from spurbench.checkpoint import load_tensors, save_tensors
from spurbench.errors import AccessDenied, ConfigError
from spurbench.rng import seed_for
from spurbench.types import Access

__all__ = ["FolderStore"]


@dataclass(frozen=True, slots=True)
class FolderStore:
    """``ArtifactStore`` on the run's folder; holds plain values, since from here a method could reach all the rest."""

    folder: Path
    weights: Mapping[str, Path]
    """What the previous phase kept, by rule."""
    access: Access
    seed: int
    position: int

    def once(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """The tensor called ``name``: computed now, or reloaded if it was computed before."""
        path = self.folder / f"{name}.pt"
        saved = load_tensors(path)
        if saved is None:
            saved = {"value": make().cpu()}
            save_tensors(path, saved)
        # What follows draws the same whether the value was computed or reloaded.
        torch.manual_seed(seed_for(self.seed, "global", self.position, name))
        value: Tensor = saved["value"]
        return value

    def candidate(self, rule: str) -> dict[str, Tensor]:
        """The weights that a rule kept in the previous phase.

        Raises:
            ConfigError: a rule that the phase does not offer.
            AccessDenied: a rule that reads groups which the method did not declare.
        """
        if rule not in self.weights:
            offered = ", ".join(self.weights) or "none"
            raise ConfigError(f"no weights were kept for rule '{rule}'; the phase offers {offered}")
        if rule == "val_wga" and Access.VAL_GROUPS not in self.access:
            raise AccessDenied(
                "choosing weights by val_wga reads validation groups: add Access.VAL_GROUPS to the method"
            )
        state = load_tensors(self.weights[rule])
        assert state is not None, rule
        return state
