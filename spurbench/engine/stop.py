"""Stopping at a safe point: signals set a flag, the loops look at it between steps."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from spurbench.errors import SpurbenchError

__all__ = ["Interrupted", "StopFlag", "stop_on_signals"]


class Interrupted(SpurbenchError):
    """A signal ended the run between two steps; its state is saved."""

    def __init__(self, signal_number: int) -> None:
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number
        name = "Ctrl-C" if signal_number == signal.SIGINT else signal.Signals(signal_number).name
        super().__init__(f"stopped by {name}; the run is saved, start the same command again to resume it")


class StopFlag:
    """Set by a signal handler, read by the loops."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def check(self) -> None:
        """Raise ``Interrupted`` if a signal has come."""
        if self.signal_number is not None:
            raise Interrupted(self.signal_number)


@contextmanager
def stop_on_signals(flag: StopFlag | None = None) -> Iterator[StopFlag]:
    """Within the block Ctrl-C, SIGTERM and SIGUSR2 set the flag; a second Ctrl-C stops at once.

    Outside the main thread, where Python allows no handlers, only the caller can set it.

    Args:
        flag: the one to set; a new one if not given.
    """
    flag = flag or StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and flag.signal_number is not None:
            raise KeyboardInterrupt
        flag.signal_number = number

    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2]
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
