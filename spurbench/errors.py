"""Errors that a user can act on: what was wrong, where, and what to type next."""

import difflib
from collections.abc import Iterable
from pathlib import Path

__all__ = [
    "AccessDenied",
    "ConfigError",
    "DataError",
    "DataMissing",
    "ResultConflict",
    "RunFailed",
    "SpurbenchError",
    "cannot_write_results",
    "data_missing",
    "did_you_mean",
    "install_line",
    "require_split",
]


class SpurbenchError(Exception):
    """Base of all errors that are shown as one message, without a traceback."""

    exit_code = 1


class ConfigError(SpurbenchError, ValueError):
    """Wrong usage or an impossible setting; nothing was started."""

    exit_code = 2


class DataMissing(SpurbenchError):
    """A dataset, mask or weight file is not where it is expected."""

    exit_code = 2


def data_missing(what: str, *, looked_for: str = "", get: str = "", then: str = "", instead: str = "") -> DataMissing:
    """Data that are not there, in a line each: what is missing, where it was looked for, how to get it, the command to
    type then, and what does without.
    """
    lines = [("looked for:", looked_for), ("get it:", get), ("then type:", then), ("or try:", instead)]
    return DataMissing("\n".join([what, *(f"  {name:<12}{text}" for name, text in lines if text)]))


class DataError(SpurbenchError):
    """A file is there but damaged or malformed; the message names the file and row."""

    exit_code = 2


class AccessDenied(SpurbenchError):
    """A method asked for supervision that it did not declare."""


class ResultConflict(SpurbenchError):
    """A record exists that may not be reused or resumed here (other data or device)."""


class RunFailed(SpurbenchError):
    """A run stopped; its directory holds the last good state and a failed record."""


def cannot_write_results(results: Path, error: OSError) -> ConfigError:
    """What to say of a results folder that refuses to be written."""
    return ConfigError(
        f"cannot write to the results folder {results}: {error.strerror or error}; choose another with --results DIR"
    )


def install_line(extra: str) -> str:
    """What to type for an optional part; spurbench itself is installed from its checkout."""
    return f"pip install -e '.[{extra}]' -c constraints.txt (in the folder of spurbench's checkout)"


def require_split(name: str, known: Iterable[str]) -> None:
    """Refuse a split that a dataset does not have.

    Raises:
        ConfigError: with the closest name and all of them.
    """
    known = list(known)
    if name not in known:
        raise ConfigError(f"unknown split '{name}'{did_you_mean(name, known)} available: {', '.join(known)}")


def did_you_mean(word: str, known: Iterable[str], *, most: int = 1) -> str:
    """``"; did you mean 'aim'?"`` for a near miss, otherwise ``";"``: to be followed by what is available.

    Args:
        word: what was typed.
        known: what could have been meant.
        most: how many of them to name at most, the closest first.
    """
    known = list(known)
    close = sorted((name for name in known if name.startswith(word)), key=len)  # swin_tiny for swin_tiny_patch4_...
    close = close or difflib.get_close_matches(word, known, n=most, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, close[:most]))}?" if close else ";"
