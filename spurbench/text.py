"""Text from data, such as names in somebody's files, made fit to be shown."""

import hashlib
from typing import Any

__all__ = ["clip", "printable"]

_LONGEST = 120
"""Characters of one string from data that a page carries."""


def clip(value: Any) -> str:
    """A string short enough for a page; what was cut still tells two apart."""
    text = str(value)
    if len(text) <= _LONGEST:
        return text
    return f"{text[:_LONGEST]}…{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:6]}"


def printable(text: str) -> str:
    """Control characters, line breaks among them, and invisible ones as spaces: a terminal would obey them."""
    return text if text.isprintable() else "".join(letter if letter.isprintable() else " " for letter in text)
