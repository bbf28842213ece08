"""The protocol of a loop that takes turns with others: train one round when told, say how long it took.

Standard library and nothing else at the top, since every peer's environment imports it.
"""

import argparse
import contextlib
import ctypes
import json
import resource
import signal
import sys
import time
from collections.abc import Callable

__all__ = ["arguments", "take_turns"]


def arguments() -> argparse.Namespace:
    """What every loop is told; from here on it ends with the script that started it, even while it is stopped."""
    with contextlib.suppress(OSError, AttributeError):  # Linux
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True, help="folder in the WaterBirds layout")
    parser.add_argument("--scratch", required=True, help="folder of this loop's own")
    parser.add_argument("--peer", help="checkout of the tool, where it is not a package")
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--image-size", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--mode", default="", help="a variant of the loop")
    return parser.parse_args()


def take_turns(train_round: Callable[[], int]) -> None:
    """Say ``ready``; for every line on standard input train one round, and answer with images, seconds and memory (MB).

    Args:
        train_round: trains, waits for the device, and returns how many images it has seen.
    """
    answers = sys.stdout
    sys.stdout = sys.stderr  # what the tool prints is not an answer
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        images = train_round()
        answer = {
            "images": images,
            "seconds": time.perf_counter() - started,
            "own_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "largest_worker_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
        }
        torch = sys.modules.get("torch")  # every loop has imported it by now
        if torch is not None and torch.cuda.is_available():
            answer["device_mb"] = torch.cuda.max_memory_reserved() / 2**20
        print(json.dumps(answer), file=answers, flush=True)
