"""Ray Tune as the launcher, on real clusters: equal numbers, deaths of workers and nodes, early stopping, bad input."""

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from spurbench.config import RunPaths
from spurbench.engine import Interrupted
from spurbench.errors import ConfigError, SpurbenchError
from spurbench.launch import launch
from spurbench.launch.local import launch_local
from spurbench.launch.options import LaunchOptions
from spurbench.lease import owner_of
from spurbench.sweep import Planned, SweepFile, plan

TOYS = Path(__file__).with_name("toys.py")
ROOT = Path(__file__).parents[2]
PATIENCE = 90.0
PLACE = "step train 1 1"
"""Where runs of methods made for it halt, unless the file ``go`` is there."""

needs_ray = pytest.mark.skipif(
    subprocess.run([sys.executable, "-c", "import ray.tune"], capture_output=True, check=False).returncode != 0,
    reason="Ray Tune is not installed: pip install -e '.[ray]' -c constraints.txt",
)
pytestmark = [
    needs_ray,
    # Ray leaves sockets and files of its processes to the garbage collector, and announces what it will change.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Board:
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.shown: set[int] = set()
        self.on_epoch: Callable[[], None] = lambda: None

    def note(self, text: str) -> None:
        self.notes.append(text)

    def show(self, worker: int, run: str, task: str, done: int, total: int, values: Mapping[str, float]) -> None:
        self.shown.add(worker)

    def epoch_of(self, worker: int, run: str, row: Mapping[str, Any]) -> None:
        self.shown.add(worker)
        self.on_epoch()

    def epoch(self, row: Mapping[str, Any]) -> None: ...

    def progress(self, task: str, done: int, total: int, values: Mapping[str, float]) -> None: ...


@dataclass
class Toys:
    """A cluster whose workers halt at a place until they may go on."""

    cluster: Any
    folder: Path

    def hold(self) -> None:
        (self.folder / "go").unlink(missing_ok=True)

    def let_go(self) -> None:
        (self.folder / "go").touch()


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toys]:
    """One node with two CPUs and a GPU that exists only in Ray's books."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    folder = tmp_path_factory.mktemp("toys")
    before = dict(os.environ)
    os.environ.update(TOYS_HALT=PLACE, TOYS_DIR=str(folder), OMP_NUM_THREADS="1")
    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
    head = {"num_cpus": 2, "num_gpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**head, "_system_config": quick})
    try:
        toys = Toys(cluster, folder)
        toys.let_go()
        yield toys
    finally:
        cluster.shutdown()
        os.environ.clear()
        os.environ.update(before)


def runs_in(folder: Path, methods: list[Any], seeds: str = "0", **train: Any) -> list[Planned]:
    edition = folder / "data" / "toys" / "edition"
    edition.parent.mkdir(parents=True, exist_ok=True)
    edition.write_text("first")
    sweep = SweepFile(
        datasets=["toys"], methods=methods, seeds=seeds,  # type: ignore[arg-type]
        train={"epochs": 2, "batch_size": 16, "optimizer": {"lr": 1e-3}, **train},
        set={"input.resize": 32, "input.image_size": 32, "backbone.weights": "none"},
    )  # fmt: skip
    paths = RunPaths(results=folder / "results", cache=folder / "cache", data_root=folder / "data")
    return plan(sweep, paths, (TOYS,))


def by_ray(runs: list[Planned], board: Board, **options: Any) -> dict[str, dict[str, Any] | SpurbenchError]:
    how = LaunchOptions(**{"jobs": 2, "device": "cpu", "plugins": (TOYS,), "gpus_per_run": 0, **options})
    return {run.config.run_id(): outcome for run, outcome in launch("ray", runs, how, board)}


def locally(runs: list[Planned]) -> dict[str, dict[str, Any] | SpurbenchError]:
    outcomes = launch_local(runs, device="cpu", plugins=(TOYS,), observer=Board())
    return {run.config.run_id(): outcome for run, outcome in outcomes}


def assert_same_rows(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for run_id, record in ours.items():
        assert isinstance(record, dict), record
        assert record["rows"] == theirs[run_id]["rows"]
        assert record["machine"]["launcher"] == "ray"
        assert record["machine"].keys() == theirs[run_id]["machine"].keys()


def owners(runs: list[Planned]) -> list[int]:
    """Processes that hold runs at this moment."""
    found = (owner_of(run.paths.run(run.config.run_id())) for run in runs)
    return [owner["pid"] for owner in found if owner is not None]


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.1)


class Beside:
    """Something done in another thread while the launcher works; its error becomes the test's."""

    def __init__(self, toys: Toys, action: Callable[[], None]) -> None:
        self._toys, self._action = toys, action
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._do)

    def _do(self) -> None:
        try:
            self._action()
        except BaseException as error:
            self._error = error
        finally:
            self._toys.let_go()

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error


def logged(run: Planned) -> list[dict[str, Any]]:
    """Epochs that a run has done, in order."""
    lines = (run.paths.run(run.config.run_id()) / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


# ----------------------------------------------------------------------------------------------------------- a cluster


@pytest.mark.slow
def test_same_bits_as_local_and_a_failure_stops_nobody(toys: Toys, tmp_path: Path) -> None:
    methods = ["erm", "refit", "noisy", "bad_loss"]
    board = Board()
    outcomes = by_ray(runs_in(tmp_path / "ray", methods), board, address=toys.cluster.address)
    assert board.shown <= {0, 1}
    alone = runs_in(tmp_path / "alone", methods)
    os.environ["TOYS_DIR"] = str(toys.folder)
    reference = locally(alone)
    (bad,) = (run.config.run_id() for run in alone if run.config.method.name == "bad_loss")
    error = outcomes.pop(bad)
    assert isinstance(error, SpurbenchError)
    assert str(error) == str(reference.pop(bad))
    failed = json.loads((tmp_path / "ray" / "results" / "runs" / bad / "result.json").read_text())
    assert failed["status"] == "failed"
    assert failed["machine"]["attempts"] == 1, "Ray must not try again what fails by itself"
    assert_same_rows(outcomes, reference)
    assert all(record["machine"]["attempts"] == 1 for record in outcomes.values())  # type: ignore[index]
    assert len(list((tmp_path / "ray" / "results" / "phases").glob("*/outcome.pt"))) == 1, "one ERM serves two methods"


@pytest.mark.slow
def test_two_share_a_gpu_and_a_killed_one_is_resumed(toys: Toys, tmp_path: Path) -> None:
    runs = runs_in(tmp_path / "ray", ["noisy"], "0-2")
    toys.hold()

    def kill() -> None:
        wait_for(lambda: len(owners(runs)) == 2, "two runs at once on half a GPU each")
        assert sum(run.state == "waiting" for run in runs) == 1, "no more than two"
        victim = owners(runs)[0]
        wait_for(lambda: (toys.folder / f"halted.{victim}").exists(), "the victim to have done an epoch")
        os.kill(victim, signal.SIGKILL)

    board = Board()
    with Beside(toys, kill):
        outcomes = by_ray(runs, board, address=toys.cluster.address, gpus_per_run=0.5)
    assert_same_rows(outcomes, locally(runs_in(tmp_path / "alone", ["noisy"], "0-2")))
    assert sorted(record["machine"]["attempts"] for record in outcomes.values()) == [1, 1, 2]  # type: ignore[index]
    (note,) = (note for note in board.notes if "resumed" in note)
    assert "worker process has died" in note
    assert all(len(logged(run)) == 2 for run in runs), "no epoch is done twice"


@pytest.mark.slow
def test_a_token_of_another_cluster_is_not_shown(toys: Toys, tmp_path: Path) -> None:
    """A driver that shows one to a cluster that has none is taken for dead. Another process: here Ray is imported."""
    toys.let_go()
    token = tmp_path / "token"
    token.write_text("0" * 64)
    runs_in(tmp_path / "ray", ["noisy"])
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(
        "datasets: [toys]\nmethods: [noisy]\ntrain: {epochs: 1, batch_size: 16}\n"
        "set: {input.resize: 32, input.image_size: 32, backbone.weights: none}\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "spurbench", "sweep", str(sweep), "--launcher", "ray", "--plugin", str(TOYS),
         "--address", toys.cluster.address, "--device", "cpu", "--gpus-per-run", "0",
         "--results", str(tmp_path / "results"), "--data-root", str(tmp_path / "ray" / "data")],
        capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "RAY_AUTH_TOKEN_PATH": str(token), "SPURBENCH_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1 of 1 runs done" in done.stderr


@pytest.mark.slow
def test_a_lost_node_costs_nothing(toys: Toys, tmp_path: Path) -> None:
    node = toys.cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
    runs = runs_in(tmp_path / "ray", ["noisy"], "0-2")
    toys.hold()

    def lose() -> None:
        wait_for(lambda: len(owners(runs)) == 3, "three runs on two nodes")
        toys.cluster.remove_node(node, allow_graceful=False)
        wait_for(lambda: len(owners(runs)) == 2, "the end of the node's worker")

    with Beside(toys, lose):
        outcomes = by_ray(runs, Board(), address=toys.cluster.address, jobs=3)
    assert_same_rows(outcomes, locally(runs_in(tmp_path / "alone", ["noisy"], "0-2")))
    assert sorted(record["machine"]["attempts"] for record in outcomes.values()) == [1, 1, 2]  # type: ignore[index]
    assert all(len(logged(run)) == 2 for run in runs)


@pytest.mark.slow
def test_early_stopping_by_asha_and_what_it_leaves(toys: Toys, tmp_path: Path) -> None:
    runs = runs_in(tmp_path / "ray", ["noisy"], "0-4", epochs=3)
    board = Board()
    options = {"address": toys.cluster.address, "jobs": 1, "stop_early": "val_accuracy"}
    outcomes = by_ray(runs, board, **options)
    # The rule again, by hand: at epochs 1 and 2 a run ends that is below the median of those before it.
    rungs: dict[int, list[float]] = {1: [], 2: []}
    expected = {}
    for run in runs:
        for row in logged(run)[:2]:
            rung, score = rungs[row["epoch"] + 1], row["val_accuracy"]
            is_worse = bool(rung) and score < statistics.median(rung)
            rung.append(score)
            if is_worse:
                expected[run.config.run_id()] = row["epoch"]
                break
    assert expected, "the test needs a run that is worse than those before it"
    ended = {}
    for run in runs:
        folder, run_id = run.paths.run(run.config.run_id()), run.config.run_id()
        if run_id in outcomes:
            record = outcomes[run_id]
            assert isinstance(record, dict)
            assert record["machine"]["early_stopping"] == "asha val_accuracy"
        else:
            notice = json.loads((folder / "early_stopped.json").read_text())
            assert notice["by"] == "asha val_accuracy"
            ended[run_id] = notice["epoch"]
            assert len(logged(run)) == notice["epoch"] + 1
            assert run.state == "stopped"
    assert ended == expected
    assert sum("ended early" in note for note in board.notes) == len(ended)
    board = Board()
    assert by_ray([run for run in runs if not run.finished], board, **options) == {}, "the rule still holds"
    assert sum("ended early" in note for note in board.notes) == len(ended)
    late = locally([run for run in runs if not run.finished])
    reference = locally(runs_in(tmp_path / "alone", ["noisy"], "0-4", epochs=3))
    for run_id, record in {**outcomes, **late}.items():
        assert isinstance(record, dict)
        assert record["rows"] == reference[run_id]["rows"]  # type: ignore[index]
    assert all(record["machine"]["early_stopping"] is None for record in late.values())  # type: ignore[index]


@pytest.mark.slow
def test_signal_saves_every_run(toys: Toys, tmp_path: Path) -> None:
    runs = runs_in(tmp_path / "ray", ["noisy", "last_only", "chain"])
    board = Board()
    told: list[float] = []
    board.on_epoch = lambda: (told.append(time.monotonic()), os.kill(os.getpid(), signal.SIGTERM))[1]
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="SIGTERM"):
        by_ray(runs, board, address=toys.cluster.address)
    assert time.monotonic() - told[0] < 25, "they saved themselves, and were not ended for taking too long"
    assert signal.getsignal(signal.SIGTERM) is before
    assert all(run.state in ("stopped", "waiting", "done") for run in runs)
    assert any(run.state == "stopped" for run in runs)
    board.on_epoch = lambda: None
    outcomes = by_ray(runs, board, address=toys.cluster.address)
    assert_same_rows(outcomes, locally(runs_in(tmp_path / "alone", ["noisy", "last_only", "chain"])))


def test_more_than_any_node_has_is_refused(toys: Toys, tmp_path: Path) -> None:
    address = toys.cluster.address
    runs = runs_in(tmp_path, ["noisy"])
    with pytest.raises(ConfigError, match=r"nodes: 2 CPUs and 1 GPUs; give a smaller --gpus-per-run"):
        by_ray(runs, Board(), address=address, gpus_per_run=2)
    with pytest.raises(ConfigError, match=r"whole number, got 1\.5"):
        by_ray(runs, Board(), address=address, gpus_per_run=1.5)
    with pytest.raises(ConfigError, match="asks for 64 CPUs"):
        by_ray(runs_in(tmp_path, ["noisy"], num_threads=64), Board(), address=address)
    with pytest.raises(ConfigError, match="use --device cuda, not cuda:1"):
        by_ray(runs, Board(), address=address, device="cuda:1")
    assert [run.state for run in runs] == ["waiting"]


# --------------------------------------------------------------------------------------------------------- without one


@pytest.mark.slow
def test_command_with_a_cluster_of_its_own(tmp_path: Path) -> None:
    """Two threads by the recipe, although Ray sets one; nothing but the result on stdout; Ray's tools read the grid."""
    runs = runs_in(tmp_path / "ray", ["noisy"], "0-1", num_threads=2)
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(
        "datasets: [toys]\nmethods: [noisy]\nseeds: 0-1\n"
        "train: {epochs: 2, batch_size: 16, optimizer: {lr: 1.0e-3}, num_threads: 2}\n"
        "set: {input.resize: 32, input.image_size: 32, backbone.weights: none}\n"
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "spurbench", "sweep", "sweep.yaml", "--launcher", "ray", "--jobs", "1"),
            *("--plugin", str(TOYS), "--device", "cpu", "--results", "ray/results", "--data-root", "ray/data"),
            "--json",
        ],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "SPURBENCH_CACHE": str(tmp_path / "cache")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["done"] == 2
    assert "Ray" not in done.stderr
    assert "Traceback" not in done.stderr
    reference = locally(runs_in(tmp_path / "alone", ["noisy"], "0-1", num_threads=2))
    for run in runs:
        record = json.loads((run.paths.run(run.config.run_id()) / "result.json").read_text())
        assert record["rows"] == reference[run.config.run_id()]["rows"]  # type: ignore[index]
    (experiment,) = (tmp_path / "ray" / "results" / "ray").iterdir()
    from ray import tune

    analysis = tune.ExperimentAnalysis(str(experiment))
    table = analysis.dataframe()
    assert set(table["config/run/method"]) == {"noisy"}
    assert set(table["config/run/seed"]) == {0, 1}
    assert set(table["config/run/run_id"]) == {run.config.run_id() for run in runs}
    assert set(table["status"]) == {"finished"}
    assert all(len(frame) == 3 for frame in analysis.trial_dataframes.values()), "two epochs and the end"
    from spurbench.launch.ray_trial import train_run

    results = tune.Tuner.restore(str(experiment), trainable=tune.with_parameters(train_run, desk=None)).get_results()
    assert results.num_terminated == 2
    best = results.get_best_result("val_accuracy", "max")
    assert best.config is not None
    assert best.config["run"]["seed"] in (0, 1)


@pytest.mark.parametrize(
    ("address", "match"),
    [
        ("127.0.0.1:{closed}", r"refused.*start one with: ray start --head"),
        ("ray://127.0.0.1:{closed}", r"refused.*start one with: ray start --head|pip install 'ray\[client\]'"),
        ("127.0.0.1:{other}", "what listens there is not Ray"),
        ("127.0.0.1:{silent}", "timed out"),
        ("somewhere", "HOST:PORT or ray://HOST:PORT, got 'somewhere'"),
        ("auto", "start one with: ray start --head"),
    ],
)
def test_unreachable_cluster(tmp_path: Path, address: str, match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spurbench.launch.ray_cluster._REACH_SECONDS", 1.0)
    if address == "auto":
        monkeypatch.setattr("ray._private.services.find_gcs_addresses", set)  # other clusters of this machine
    runs = runs_in(tmp_path, ["noisy"])
    with socket.socket() as closed, socket.socket() as silent, socket.socket() as other:
        for listener in (closed, silent, other):
            listener.bind(("127.0.0.1", 0))
        silent.listen()
        other.listen()

        def answer() -> None:
            try:
                connection, _ = other.accept()
            except OSError:  # closed before anybody came
                return
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        ports = {"closed": closed.getsockname()[1], "silent": silent.getsockname()[1], "other": other.getsockname()[1]}
        started = time.monotonic()
        with pytest.raises(ConfigError, match=match):
            by_ray(runs, Board(), address=address.format(**ports))
        assert time.monotonic() - started < 60, "no endless retry"
        if "{other}" not in address:
            socket.create_connection(other.getsockname()).close()  # the thread has something to accept
    assert [run.state for run in runs] == ["waiting"]


def test_ray_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.tune", None)
    with pytest.raises(ConfigError, match=r"install it with: pip install -e '\.\[ray\]' -c constraints\.txt"):
        by_ray(runs_in(tmp_path, ["noisy"]), Board())


def test_metric_that_no_epoch_has(tmp_path: Path) -> None:
    (run,) = runs_in(tmp_path, ["noisy"])
    sweep = SweepFile(datasets=["toys_plain"], methods=["noisy"])  # type: ignore[list-item]
    (plain,) = plan(sweep, run.paths, (TOYS,))
    with pytest.raises(ConfigError, match=r"toys_plain has no groups.*val_worst_class"):
        by_ray([run, plain], Board(), stop_early="val_wga")
