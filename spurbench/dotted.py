"""Nested options as dotted keys, ``train.optimizer.lr``."""

from collections.abc import Mapping
from typing import Any

__all__ = ["dotted"]


def dotted(prefix: str, tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested options as dotted keys, so that a partial section does not replace a whole one."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}.{key}"
        flat |= dotted(path, value) if isinstance(value, dict) else {path: value}
    return flat
