"""Where a number comes from: library versions, commit, machine."""

import importlib.metadata
import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch

import spurbench
from spurbench.engine.device import device_name

__all__ = ["git_state", "now_utc", "this_machine", "versions_json"]

_LIBRARIES = ("torch", "torchvision", "timm", "numpy")


def now_utc() -> str:
    """The current time, ISO 8601 with seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def this_machine(device: torch.device) -> dict[str, Any]:
    """Where and with which code something is measured now; columns of a record's ``machine``."""
    commit, dirty = git_state()
    return {
        "host": os.uname().nodename,
        "device": device.type,
        "device_name": device_name(device),
        "versions_json": versions_json(),
        "git_commit": commit,
        "git_dirty": dirty,
        "finished_at": now_utc(),
    }


@cache
def versions_json() -> str:
    """Versions of Python, spurbench and the libraries that shape numbers."""
    versions = {"python": platform.python_version(), "spurbench": spurbench.__version__}
    versions |= {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return json.dumps(versions, sort_keys=True)


@cache
def git_state() -> tuple[str | None, bool | None]:
    """Commit of the checkout that this package runs from, and whether it has changes; None if it is none."""
    folder = Path(spurbench.__file__).parent
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None or _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None, None
    return commit, bool(_git(folder, "status", "--porcelain", "--untracked-files=no", ":/"))


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
