"""Pickles that hold nothing but data: no code of theirs is run.

Some sets of the field are published as pickles. Python's own loader would call whatever a file names; this one knows
containers, numbers, text and numpy arrays, and refuses a file that asks for anything else.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from spurbench.errors import DataError

__all__ = ["load_plain_pickle"]


def _encode_latin1(text: str, encoding: str) -> bytes:
    """What bytes are written as in protocols 0 to 2; any other encoding is not that."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in {encoding}")
    return text.encode("latin1")


_RECONSTRUCT = np.zeros(0).__reduce__()[0]
_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode_latin1,
}


def load_plain_pickle(path: Path) -> Any:
    """The content of a pickle of plain data; texts that Python 2 wrote are read as latin 1.

    Raises:
        DataError: damaged, or it holds something else than containers, numbers, text and numpy arrays.
        OSError: the system cannot read the file.
    """
    with path.open("rb") as stream:
        try:
            return _PlainUnpickler(stream, encoding="latin1").load()
        except (OSError, MemoryError):
            raise
        except Exception as error:  # damaged bytes raise nearly anything
            raise DataError(f"{path} is not a pickle of plain data: {error}; is the file damaged?") from error


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is refused") from None
