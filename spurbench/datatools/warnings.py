"""What loaders log while they open a dataset, kept instead of shown."""

import contextlib
import logging
from collections.abc import Iterator

__all__ = ["kept_warnings"]


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextlib.contextmanager
def kept_warnings() -> Iterator[list[logging.LogRecord]]:
    """Collect the warnings that spurbench logs within the block; nobody else sees them."""
    logger = logging.getLogger("spurbench")
    handler, propagate = _Kept(), logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield handler.records
    finally:
        logger.propagate = propagate
        logger.removeHandler(handler)
