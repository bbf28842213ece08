"""Starting loops and talking to them, for the scripts that compare tools."""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Side", "add_flags", "sides_of"]

LOOPS = Path(__file__).parent


@dataclass(frozen=True)
class Side:
    """A tool, the way it is run, and where."""

    tool: str
    mode: str
    python: str
    checkout: str | None

    @property
    def name(self) -> str:
        """``"spuco-default"``."""
        return f"{self.tool}-{self.mode}"

    def start(self, folder: Path, scratch: Path, options: argparse.Namespace) -> "subprocess.Popen[str]":
        """A process that waits for its turns; see ``turns.take_turns``."""
        flags = {
            "--data": folder,
            "--scratch": scratch,
            "--backbone": options.backbone,
            "--image-size": options.image_size,
            "--batch-size": options.batch_size,
            "--workers": options.workers,
            "--threads": options.threads,
            "--mode": self.mode,
            **({"--peer": self.checkout} if self.checkout else {}),
        }
        script = str(LOOPS / f"{self.tool}_loop.py")
        command = [self.python, script, *(str(part) for pair in flags.items() for part in pair)]
        leave_on_sigterm()
        with open(f"{scratch}.log", "ab") as log:  # noqa: PTH123
            return subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                stderr=log,
                start_new_session=True,  # a group of its own, so that `rest` reaches its workers
            )


def leave_on_sigterm() -> None:
    """As with Ctrl-C, so that what stands still is woken and can end."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def ask(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """Let a loop train one round and wait for its answer; between its turns it rests."""
    os.killpg(process.pid, signal.SIGCONT)
    tell(process)
    found: dict[str, Any] = json.loads(hear(process))
    rest(process)
    return found


def rest(process: "subprocess.Popen[str]") -> None:
    """Stop a loop and its workers where they stand.

    Workers that decode ahead would otherwise take the cores from the side whose turn it is, and have their own next
    round half done before its clock starts.
    """
    os.killpg(process.pid, signal.SIGSTOP)


def tell(process: "subprocess.Popen[str]") -> None:
    """Let a loop train one round."""
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def hear(process: "subprocess.Popen[str]") -> str:
    """The next line that a loop says."""
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line:
        arguments = list(map(str, process.args))  # type: ignore[arg-type]
        log = Path(arguments[arguments.index("--scratch") + 1] + ".log")
        said = log.read_text(errors="replace")[-1500:]
        raise SystemExit(f"{Path(arguments[1]).name} ended with exit code {process.wait()}:\n{said}")
    return line


def end(*processes: "subprocess.Popen[str]") -> None:
    """No more turns; wait for the processes. All are woken before the first is waited for."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):  # it may have ended by itself
            os.killpg(process.pid, signal.SIGCONT)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    for process in processes:
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def add_flags(parser: argparse.ArgumentParser, *, images: int) -> None:
    """Flags of all comparisons."""
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=PYTHON[:CHECKOUT]",
        help="spuco, domainbed, groupdro or subpopbench, with the interpreter of its environment",
    )  # fmt: skip
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--images", type=int, default=images, help="JPEGs to write; 8 of them are not for training")
    parser.add_argument("--workers", type=int, default=2, help="worker processes of every matched side")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true")


def sides_of(options: argparse.Namespace, modes: tuple[str, ...] = ("default", "matched")) -> list[Side]:
    """All sides, ours first."""
    tools: list[tuple[str, str, str | None]] = [("spurbench", sys.executable, None)]
    for text in options.peer:
        name, _, rest = text.partition("=")
        python, _, checkout = rest.partition(":")
        if not (LOOPS / f"{name}_loop.py").is_file() or not Path(python).is_file():
            raise SystemExit(
                f"--peer {text}: give a known name (spuco, domainbed, groupdro, subpopbench) and its python"
            )
        if name != "spuco" and not (checkout and Path(checkout).is_dir()):
            raise SystemExit(f"--peer {text}: {name} is no package; add its checkout: {name}=PYTHON:CHECKOUT")
        tools.append((name, python, checkout or None))
    return [Side(tool, mode, python, checkout) for tool, python, checkout in tools for mode in modes]


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """The flags for the record, without this machine's paths."""
    return vars(options) | {"peer": [text.partition("=")[0] for text in options.peer]}
