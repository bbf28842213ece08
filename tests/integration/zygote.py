"""Starts ``spurbench`` processes within milliseconds: imports everything once, then forks on request.

A child is an ordinary process with its own signals, memory and exit status. Requests are JSON lines on stdin:
``{arguments, environment, stdout, stderr}`` is answered by the child's process number, ``{pid}`` by its exit status
(negative for a signal), null while it runs.
"""

import json
import os
import sys
from typing import Any

import pandas  # noqa: F401
import pyarrow.parquet  # noqa: F401
import scipy.stats  # noqa: F401

import spurbench.cli.live
import spurbench.cli.render
import spurbench.cli.run
import spurbench.engine.run
import spurbench.zoo  # noqa: F401
from spurbench.cli import main
from spurbench.registry import load_registry


def start(request: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ.update(request["environment"])
        for name, target in (("/dev/null", 0), (request["stdout"], 1), (request["stderr"], 2)):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), target)
        code = main(request["arguments"])
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def poll(pid: int) -> int | None:
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


if __name__ == "__main__":
    load_registry("methods")
    load_registry("datasets")
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(poll(request["pid"]) if "pid" in request else start(request)), flush=True)
