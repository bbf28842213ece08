"""What the engine tells while it works; how it is shown is the caller's business."""

from collections.abc import Mapping
from typing import Any, Protocol

__all__ = ["Observer", "Silent"]


class Observer(Protocol):
    """Receives what happens; must return quickly."""

    def note(self, text: str) -> None:
        """Something a person should read once."""

    def progress(self, task: str, done: int, total: int, values: Mapping[str, float]) -> None:
        """A step of something that takes a while, ``done`` of ``total``."""

    def epoch(self, row: Mapping[str, Any]) -> None:
        """An epoch has ended, with its numbers."""


class Silent:
    """Shows nothing."""

    def note(self, text: str) -> None:
        """Ignore."""

    def progress(self, task: str, done: int, total: int, values: Mapping[str, float]) -> None:
        """Ignore."""

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Ignore."""
