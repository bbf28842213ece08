"""Nested options as dotted keys, ``train.optimizer.lr``, and those in which several settings differ."""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["ABSENT", "differing", "dotted"]

ABSENT = "(absent)"
"""Stands for the value of an option that a setting does not have."""


def dotted(prefix: str, tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested options as dotted keys, so that a partial section does not replace a whole one."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}.{key}"
        flat |= dotted(path, value) if isinstance(value, dict) else {path: value}
    return flat


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys of flat options that have not the same value everywhere, sorted; a missing one counts as a value."""
    keys = dict.fromkeys(key for setting in settings for key in setting)
    return sorted(key for key in keys if len({repr(setting.get(key, ABSENT)) for setting in settings}) > 1)
