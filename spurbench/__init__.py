"""spurbench: a benchmarking harness for spurious-correlation methods in image classification."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spurbench.saved import load_run

__all__ = ["__version__", "load_run"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is asked for."""
    if name == "load_run":
        from spurbench.saved import load_run

        return load_run
    raise AttributeError(f"module 'spurbench' has no attribute '{name}'")
