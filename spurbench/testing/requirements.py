"""How a broken requirement is reported."""

from collections.abc import Callable

__all__ = ["broken", "found", "require", "requirement_of"]


def broken(what: str, check: Callable[..., None], error: Exception) -> AssertionError:
    """What is told: the thing, the requirement, and what was found."""
    return AssertionError(f"{what}: {requirement_of(check)}\n{found(error)}")


def requirement_of(check: Callable[..., None]) -> str:
    """The first line of the check's docstring."""
    return (check.__doc__ or check.__name__).strip().splitlines()[0]


def found(error: Exception) -> str:
    """What was found instead; an unexpected exception with its type."""
    return str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"


def require(condition: object, message: str) -> None:
    """An assertion that ``python -O`` keeps."""
    if not condition:
        raise AssertionError(message)
