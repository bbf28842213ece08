"""Work done by threads, its results in order."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from spurbench.data.decoding import available_cores

__all__ = ["in_order"]

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_THREADS = 32


def in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Generator[Result, None, None]:
    """``function`` of every item, first to last; at most a few per thread are done ahead."""
    threads = min(available_cores(), MAX_THREADS)
    pending: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="data")
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
