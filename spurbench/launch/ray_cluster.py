"""A Ray cluster to run on: one that is there, or one on this machine for as long as the sweep lasts."""

import contextlib
import importlib.util
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spurbench.errors import ConfigError, install_line
from spurbench.launch.options import LaunchOptions

__all__ = ["connected", "require_ray", "resources_for"]

_REACH_SECONDS = 5.0
_OBJECT_STORE_BYTES = 100_000_000
"""Of a local cluster: only configurations and numbers pass through it."""
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output cannot be turned off altogether
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}
_SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
"""An empty settings frame of HTTP/2, with which both sides of gRPC begin."""


def require_ray(options: LaunchOptions) -> None:
    """Find out that something answers, and import Ray, told to be quiet, and to show a token where there is one.

    Raises:
        ConfigError: it is not installed, or nothing answers at the address.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    address = _address(options)
    _require_answer(address)  # before anything that waits for an answer longer
    may_show = "ray" not in sys.modules and address not in ("local", "auto") and _has_token()
    if may_show and _asks_for_token(address):
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # read once, at the import; ``auto`` does it by itself
    try:
        import ray.tune  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"--launcher ray needs Ray Tune ({error}); install it with: {install_line('ray')}") from error


@contextlib.contextmanager
def connected(options: LaunchOptions, cpus: int) -> Iterator[None]:
    """Within the block this process is a driver of the cluster; a connection that was there before stays.

    Args:
        cpus: of each run; a local cluster has as many as all jobs take together.

    Raises:
        ConfigError: no cluster at the address, or one that refuses.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    address = _address(options)
    local: dict[str, Any] = {}
    if address == "local":
        local = {
            "num_cpus": options.jobs * cpus,
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
        }
    with _own_signals():
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL, **local)
        except Exception as error:
            raise _refused(address, str(error)) from error
    try:
        yield
    finally:
        ray.shutdown()


def resources_for(options: LaunchOptions, cpus: int) -> dict[str, float]:
    """What to ask Ray for per run, once connected: whole GPUs by default where the cluster has some.

    Raises:
        ConfigError: more than any node has; Ray would wait for such a node for ever.
    """
    import ray

    everyone = ray.nodes()  # type: ignore[no-untyped-call, unused-ignore]
    nodes = [node["Resources"] for node in everyone if node["Alive"]]
    gpus = options.gpus_per_run
    if options.device.startswith("cuda:"):
        raise ConfigError(f"--launcher ray chooses the GPU itself; use --device cuda, not {options.device}")
    if gpus is None:
        wanted = options.device == "cuda" or (options.device == "auto" and any(node.get("GPU") for node in nodes))
        gpus = 1.0 if wanted else 0.0
    if options.device == "cuda" and not gpus:
        raise ConfigError("--device cuda needs GPUs; give --gpus-per-run 1 or a fraction, or use --device cpu")
    if gpus > 1 and gpus != int(gpus):
        raise ConfigError(f"--gpus-per-run above 1 must be a whole number, got {gpus:g}")
    if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        there = ", ".join(sorted({f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes}))
        raise ConfigError(
            f"a run asks for {cpus} CPUs (train.num_threads) and {gpus:g} GPUs, which no node of the Ray cluster has; "
            f"nodes: {there}; give a smaller --gpus-per-run (0: none), or add a node with: "
            "ray start --address=HOST:6379 --num-gpus=N"
        )
    return {"cpu": cpus, "gpu": gpus} if gpus else {"cpu": cpus}


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Ray sets a handler of SIGTERM that would end this process before its runs are saved."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _require_answer(address: str) -> None:
    """Ask the port before Ray does, which would keep asking for minutes, or end the process."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if address in ("local", "auto"):
        return
    if not (colon and host and port.isdigit()):
        raise ConfigError(f"--address is auto, HOST:PORT or ray://HOST:PORT, got '{address}'")
    if address.startswith("ray://") and importlib.util.find_spec("grpc") is None:
        raise ConfigError(f"{address} needs Ray Client; install it with: pip install 'ray[client]', or use HOST:PORT")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _SETTINGS)
            head = connection.recv(9)
    except (OSError, OverflowError) as error:
        raise _unreachable(address, str(error)) from error
    if len(head) < 4 or head[3] != _SETTINGS[3]:
        raise _unreachable(address, "what listens there is not Ray")


def _address(options: LaunchOptions) -> str:
    return options.address or os.environ.get("RAY_ADDRESS") or "local"


def _asks_for_token(address: str) -> bool:
    """Whether a cluster wants to see a token. A driver that shows one elsewhere is taken for dead by the cluster.

    Asked in another process, because this one can choose only once. A ``ray://`` server is taken to want it.
    """
    if "://" in address:
        return True
    ask = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1]).get_all_node_info(timeout=5)"
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    try:
        asked = subprocess.run(
            [sys.executable, "-c", ask, address], env=environment, capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return True
    return asked.returncode != 0 and "token" in asked.stderr


def _has_token() -> bool:
    """Whether Ray would find a token to show to a cluster, of its own making or copied here."""
    places = [os.environ.get("RAY_AUTH_TOKEN_PATH"), Path.home() / ".ray" / "auth_token"]
    return "RAY_AUTH_TOKEN" in os.environ or any(place and Path(place).is_file() for place in places)


def _refused(address: str, why: str) -> ConfigError:
    """What Ray says, once something has answered."""
    why = why.strip().splitlines()[0] if why.strip() else "no reason given"
    if address == "local":
        return ConfigError(f"Ray did not start on this machine: {why}")
    if address == "auto":
        return _unreachable(address, why)
    return ConfigError(
        f"cannot join a Ray cluster at {address}: {why}\n"
        f"either no cluster is there (any more), or it does not let this process in. `ray status --address {address}` "
        "tells which; `ray start --head` starts one. One that is there must have the same versions of Python and Ray; "
        "if it asks for a token, copy ~/.ray/auth_token from its head node"
    )


def _unreachable(address: str, why: str) -> ConfigError:
    return ConfigError(
        f"no Ray cluster answers at {address} ({why}); start one with: ray start --head (it prints its address; port "
        "10001 is for ray://, 6379 for HOST:PORT), or leave out --address for one on this machine"
    )
