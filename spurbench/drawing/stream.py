"""Random numbers that are the same on every machine and under every NumPy version.

Only the raw 64-bit output of PCG64 and its seeding are used: NumPy guarantees both for good, whereas the numbers of
``Generator.normal``, ``integers`` or ``permutation`` may change with a release. Everything derived from the raw bits
is integer arithmetic or a float64 operation that IEEE 754 rounds exactly, so no library or processor can differ.
"""

import hashlib
from collections.abc import Iterable
from typing import TypeVar

import numpy as np
import numpy.typing as npt

__all__ = ["Stream"]

T = TypeVar("T")

_LOW_16 = np.uint64(0xFFFF)
_SUM_MEAN = 131070.0  # of four uniform 16-bit integers
_SUM_DEVIATION = 37837.227  # sqrt(4 (65536² - 1) / 12)


class Stream:
    """One independent sequence of random numbers, named by ``key``."""

    def __init__(self, *key: str | int) -> None:
        digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
        self._bits = np.random.PCG64(int.from_bytes(digest[:16], "big"))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number in [low, high)."""
        return low + (high - low) * ((int(self._bits.random_raw()) >> 11) * 2.0**-53)

    def below(self, n: int) -> int:
        """An integer in 0..n-1."""
        return ((int(self._bits.random_raw()) >> 32) * n) >> 32

    def normal(self, mean: float = 0.0, deviation: float = 1.0) -> float:
        """A bell-shaped number, never further than 3.47 deviations from the mean."""
        return mean + deviation * float(self.normals(1)[0])

    def normals(self, *shape: int) -> npt.NDArray[np.float64]:
        """Bell-shaped numbers of mean 0 and deviation 1: sums of four uniform ones, added as integers."""
        count = 1
        for length in shape:
            count *= length
        raw = self._bits.random_raw(count)
        total = raw & _LOW_16
        for shift in (16, 32, 48):
            total += (raw >> np.uint64(shift)) & _LOW_16
        return ((total.astype(np.float64) - _SUM_MEAN) / _SUM_DEVIATION).reshape(shape)

    def shuffled(self, items: Iterable[T]) -> list[T]:
        """The items in random order (Fisher-Yates)."""
        order = list(items)
        for last in range(len(order) - 1, 0, -1):
            other = self.below(last + 1)
            order[last], order[other] = order[other], order[last]
        return order
