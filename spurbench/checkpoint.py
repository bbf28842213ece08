"""A run's resumable state in one file, written whole or not at all."""

import errno
import io
from pathlib import Path
from typing import Any

import torch

from spurbench.errors import RunFailed
from spurbench.io import atomic_write

__all__ = ["load_tensors", "save_tensors"]


def save_tensors(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values atomically.

    Raises:
        RunFailed: disk full or folder not writable; what was there before stays valid.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    try:
        with atomic_write(path) as stream:
            stream.write(buffer.getbuffer())
    except OSError as error:
        reason = "no space left on the device" if error.errno == errno.ENOSPC else str(error)
        raise RunFailed(
            f"cannot write {path} ({buffer.tell() / 1e6:.0f} MB): {reason}; "
            "mend that and start the same command again: it resumes from the previous checkpoint"
        ) from error


def load_tensors(path: Path) -> dict[str, Any] | None:
    """The state in ``path`` on the CPU; None when there is none or its content is damaged.

    Raises:
        OSError: the file is there but the system does not give it now; starting over would lose it.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.EINVAL:  # this is what torch seeks its way into when a file was cut off
            raise
        return None
    except Exception:  # damaged by something else than us: start over rather than stop
        return None
    return state
