"""The ``spurbench`` command: thin calls into library functions; all rendering is here."""

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, dispatch, and turn errors into one readable message.

    Returns:
        0 done, 1 a run failed, 2 wrong usage or bad input, 130 Ctrl-C.
    """
    from spurbench.cli.parser import parse

    options = parse(sys.argv[1:] if arguments is None else list(arguments))
    try:
        return _dispatch(options)
    except BrokenPipeError:  # the reader of a pipe has closed it
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        if options.debug:
            raise
        print("spurbench: stopped by Ctrl-C; a run that was training resumes with the same command", file=sys.stderr)
        return 130
    except Exception as error:
        if options.debug:
            raise
        return _explain(error)


def _dispatch(options) -> int:  # type: ignore[no-untyped-def]
    from importlib import import_module

    # Each command imports what it needs, so that --help and errors are instant.
    command = import_module(f"spurbench.cli.{options.module}")
    code: int = command.execute(options)
    return code


def _explain(error: Exception) -> int:
    from spurbench.errors import SpurbenchError

    if isinstance(error, SpurbenchError):
        print(f"spurbench: {error}", file=sys.stderr)
        return error.exit_code
    if isinstance(error, OSError):
        print(f"spurbench: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return 1
    print(
        f"spurbench: internal error: {type(error).__name__}: {error}\n"
        "This is a defect; --debug shows where. Please report it with the command you typed.",
        file=sys.stderr,
    )
    return 1
