"""How a broken requirement is reported."""

from collections.abc import Callable

__all__ = ["broken", "require"]


def broken(what: str, check: Callable[..., None], error: Exception) -> AssertionError:
    """What is told: the thing, the requirement (its check's first docstring line), and what was found."""
    requirement = (check.__doc__ or check.__name__).strip().splitlines()[0]
    found = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
    return AssertionError(f"{what}: {requirement}\n{found}")


def require(condition: object, message: str) -> None:
    """An assertion that ``python -O`` keeps."""
    if not condition:
        raise AssertionError(message)
