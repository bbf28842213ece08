"""One run on two processes, as torchrun starts them: the numbers of one process, one record, and no loose ends.

What may differ is the order of float32 sums. Measured over nine steps: losses by 2e-7 of their size, weights by 2e-6
with SGD. AdamW divides by a gradient's size, so that a weight whose gradient is nothing but rounding can move by the
learning rate in either direction, which no loss notices; there weights are not compared.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from spurbench.checkpoint import load_tensors
from spurbench.config import InputConfig, RunConfig, RunPaths
from spurbench.data.cache import Frames
from spurbench.data.view import LoaderSettings, make_view
from spurbench.engine import run_one
from spurbench.engine.distributed import Team
from spurbench.lease import owner_of
from spurbench.resolve import RunRequest, resolve_run
from spurbench.types import Access

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")

TOYS = Path(__file__).with_name("toys.py")
LOSS, WEIGHT = {"float32": 1e-5, "bf16": 1e-3}, 2e-5
PATIENCE = 240.0
"""Seconds; a busy machine needs a minute for what takes ten."""
RECIPE: dict[str, Any] = {
    "train.epochs": 2,
    "train.batch_size": 24,  # of 64 toys: the last batch has 16, and a batch of 21 leaves one sample for two processes
    "train.optimizer.lr": 1e-3,
    "train.optimizer.name": "sgd",
    "input.resize": 32,
    "input.image_size": 32,
    "evaluation.attributions": [],
    "evaluation.erasure": False,
}
SPLIT: dict[str, dict[str, Any]] = {
    "erm": {"train.optimizer.name": "adamw", "train.precision": "bf16"},
    "aim[2,35%]": {"train.optimizer.name": "adamw"},
    "aim[3,35%]": {"train.optimizer.clip": 0.5, "input.crop_scale": [0.5, 1.0]},
    "aim[1,auto]": {"train.batch_size": 21, "method.keep_one": True},
    "rwg": {},
    "suby": {"method.passes": "steps", "backbone.name": "test_convnext"},
    "dfr": {"method.num_retrains": 2},
}
"""What is compared, with the options that make it differ from the others."""

PLUGIN = '''
"""ERM that can stop at a step of the second epoch."""
import os
import time
from pathlib import Path

from spurbench.method import BaseMethod

HERE = Path(__file__).parent


class Patient(BaseMethod):
    data_parallel = True

    def training_step(self, model, batch, progress):
        rank, place = os.environ.get("RANK", "0"), (progress.epoch, progress.step)
        if os.environ.get("HALT") == rank and place == (1, 1):
            (HERE / "halted").write_text(str(os.getpid()))
            time.sleep(600)
        if os.environ.get("SLOW") and place >= (1, 1):
            (HERE / "slow").touch()
            time.sleep(0.1)
        return super().training_step(model, batch, progress)


class Drawing(BaseMethod):
    data_parallel = True

    def training_step(self, model, batch, progress):
        import torch
        torch.rand(1)
        return super().training_step(model, batch, progress)


METHODS = {"patient": Patient, "drawing": Drawing}
'''

SCRIPT = '''
"""Several runs one after another in the same two processes."""
import json
import sys
from pathlib import Path

from spurbench.config import RunConfig, RunPaths
from spurbench.engine import run_one
from spurbench.engine.distributed import is_first_process
from spurbench.errors import SpurbenchError

request = json.loads(Path(sys.argv[1]).read_text())
paths = RunPaths.model_validate(request["paths"])
told = []
for document, wait in request["runs"]:
    config = RunConfig.model_validate(document)
    try:
        record = run_one(config, paths, device="cpu", plugins=tuple(map(Path, request["plugins"])), wait=wait)
        told.append("record" if record else "nothing")
    except SpurbenchError as error:
        told.append(f"{type(error).__name__} {error.exit_code} {error}")
rank = 0 if is_first_process() else 1
(Path(sys.argv[1]).parent / f"told{rank}.json").write_text(json.dumps(told))
'''


class Bench:
    """Results, data and plugins of one test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plugin = folder / "patient.py"
        self.plugin.write_text(PLUGIN)
        self.plugins = (TOYS, self.plugin)
        edition = folder / "data" / "toys" / "edition"
        edition.parent.mkdir(parents=True)
        edition.write_text("first")
        self.started: list[subprocess.Popen[str]] = []

    def paths(self, name: str) -> RunPaths:
        return RunPaths(results=self.folder / name, cache=self.folder / "cache", data_root=self.folder / "data")

    def config(self, method: str, **changes: Any) -> RunConfig:
        request = RunRequest(
            method=method,
            dataset="toys",
            weights="none",
            backbone=changes.pop("backbone.name", None),
            overrides={**RECIPE, **changes},
            plugins=self.plugins,
        )
        return resolve_run(request, self.paths("one"))[0]

    def alone(self, config: RunConfig, name: str = "one") -> Path:
        """The folder of the run by one process."""
        assert run_one(config, self.paths(name), device="cpu", plugins=self.plugins) is not None
        return self.paths(name).run(config.run_id())

    def start(self, *command: str, **environment: str) -> "subprocess.Popen[str]":
        """Two processes, in a session of their own."""
        launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        variables = {**os.environ, **threads, "SPURBENCH_CACHE": str(self.folder / "cache"), **environment}
        number = len(self.started)
        with (self.folder / f"out{number}").open("w") as out, (self.folder / f"err{number}").open("w") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", *launcher, *command], stdout=out, stderr=err, text=True,
                env=variables, start_new_session=True,
            )  # fmt: skip
        self.started.append(process)
        return process

    def run(self, method: str, **environment: str) -> "subprocess.Popen[str]":
        """``spurbench run`` on two processes."""
        settings = [argument for key, value in RECIPE.items() for argument in ("--set", f"{key}={json.dumps(value)}")]
        plugins = [argument for plugin in self.plugins for argument in ("--plugin", str(plugin))]
        where = ("--data-root", str(self.folder / "data"), "--results", str(self.folder / "two"))
        what = ("--method", method, "--dataset", "toys", "--weights", "none", "--device", "cpu", "--json")
        return self.start("-m", "spurbench", "run", *what, *settings, *plugins, *where, **environment)

    def out(self) -> str:
        return (self.folder / f"out{len(self.started) - 1}").read_text()

    def err(self) -> str:
        return (self.folder / f"err{len(self.started) - 1}").read_text()

    def close(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.terminate()
                process.wait(PATIENCE)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[str]", bench: Bench) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, bench.err()
        assert time.monotonic() < end, bench.err()
        time.sleep(0.05)


def assert_same_numbers(run: Path, reference: Path) -> None:
    """As far as the order of sums allows."""
    ours, theirs = (json.loads((folder / "result.json").read_text()) for folder in (run, reference))
    assert ours["status"] == "finished", ours["error"]
    assert ours["config"] == theirs["config"]
    for row, other in zip(ours["rows"], theirs["rows"], strict=True):
        for name in ("run_id", "selection", "selected_epoch", "n_correct", "worst_group_accuracy", "groups"):
            assert row[name] == other[name], name
    epochs, others = (pq.read_table(folder / "epochs.parquet").to_pylist() for folder in (run, reference))
    assert len(epochs) == len(others)
    rel = LOSS[ours["config"]["train"]["precision"]]
    for row, other in zip(epochs, others, strict=True):
        assert row["val_correct"] == other["val_correct"]
        for name in (name for name in other if name.startswith("train_")):
            assert (row[name] is None) == (other[name] is None)  # a phase without epochs has no loss
            assert other[name] is None or row[name] == pytest.approx(other[name], rel=rel, abs=1e-9), (
                row["epoch"],
                name,
            )
    names = sorted(path.name for path in (reference / "weights").iterdir())
    assert names == sorted(path.name for path in (run / "weights").iterdir())
    for name in names if ours["config"]["train"]["optimizer"]["name"] == "sgd" else ():
        here, there = (load_tensors(folder / "weights" / name) for folder in (run, reference))
        assert here is not None
        assert there is not None
        for key, value in there.items():
            torch.testing.assert_close(here[key], value, rtol=WEIGHT, atol=WEIGHT, msg=lambda text, key=key: key + text)
    assert not (run / "checkpoint").exists()
    assert not (run / "lease").exists()
    assert not list(run.rglob("*.tmp"))


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(bench: Bench) -> None:
    configs = [bench.config(method, **changes) for method, changes in SPLIT.items()]
    refused = [bench.config("drawing"), bench.config("erm", **{"train.compile": True})]
    script, request = bench.folder / "several.py", bench.folder / "request.json"
    script.write_text(SCRIPT)
    document: dict[str, Any] = {
        "paths": bench.paths("two").model_dump(mode="json"),
        "plugins": [str(plugin) for plugin in bench.plugins],
        "runs": [(config.model_dump(mode="json"), True) for config in (*configs, *refused, configs[0])],
    }
    document["runs"].append((configs[0].model_dump(mode="json"), False))
    request.write_text(json.dumps(document))
    process = bench.start(str(script), str(request))
    expected = [bench.alone(config) for config in configs]
    assert process.wait(PATIENCE) == 0, bench.err()
    first, second = (json.loads((bench.folder / f"told{rank}.json").read_text()) for rank in (0, 1))
    assert first[: len(configs)] == ["record"] * len(configs)
    assert second[: len(configs)] == ["nothing"] * len(configs)
    for told in (first.pop(), second.pop()):
        assert told.startswith("ConfigError 2 ")
        assert "`spurbench run`" in told, "a sweep would leave it for later"
    for told, why in zip(first[len(configs) : -1], ("random numbers of its own", "train.compile=false"), strict=True):
        assert told.startswith("ConfigError 2 ")
        assert why in told
    assert all(told.startswith("Elsewhere 2 ") for told in second[len(configs) : -1])
    assert (first[-1], second[-1]) == ("record", "nothing"), "a finished record is reused"
    for config, reference in zip(configs, expected, strict=True):
        run = bench.paths("two").run(config.run_id())
        assert_same_numbers(run, reference)
        machine = json.loads((run / "result.json").read_text())["machine"]
        assert (machine["num_devices"], machine["attempts"]) == (2, 1)
        assert json.loads((reference / "result.json").read_text())["machine"]["num_devices"] == 1
    assert not (bench.folder / "two" / "phases").exists(), "what rounds differently is not offered as equal"


@pytest.mark.slow
def test_a_method_that_cannot_be_split_is_refused_once(bench: Bench) -> None:
    process = bench.run("groupdro")
    assert process.wait(PATIENCE) == 1
    error = bench.err()
    assert error.count("cannot share its batches between 2 processes") == 1
    codes = re.findall(r"exitcode +: (-?\d+) \(pid", error)  # torchrun's report; it ends who is late with SIGTERM
    assert "2" in codes, error
    assert set(codes) <= {"2", "-15", "143"}, error
    assert bench.out() == ""
    assert not (bench.folder / "two").exists()


@pytest.mark.slow
def test_a_killed_process_ends_the_run_and_the_same_command_resumes_it(bench: Bench) -> None:
    process = bench.run("patient", HALT="1")
    reference = bench.alone(bench.config("patient"))
    wait_for((bench.folder / "halted").exists, process, bench)
    run = bench.paths("two").run(reference.name)
    owner = owner_of(run)
    victim = int((bench.folder / "halted").read_text())
    assert owner is not None
    assert owner["pid"] != victim, "only the first process has the lease"
    os.kill(victim, signal.SIGKILL)
    began = time.monotonic()
    assert process.wait(PATIENCE) == 1
    assert time.monotonic() - began < 60
    assert json.loads((run / "result.json").read_text())["status"] == "failed"
    assert (run / "checkpoint" / "state.pt").exists()
    assert owner_of(run) is None

    process = bench.run("patient")
    assert process.wait(PATIENCE) == 0, bench.err()
    record = json.loads(bench.out())  # one document, from one process
    assert record["machine"]["attempts"] == 2
    assert bench.err().count("resuming run") == 1
    assert bench.err().count("train epoch 2  loss") == 1
    assert [path.name for path in (bench.folder / "two" / "runs").iterdir()] == [run.name]
    assert_same_numbers(run, reference)


@pytest.mark.slow
def test_a_signal_saves_and_one_process_can_go_on(bench: Bench) -> None:
    process = bench.run("patient", SLOW="yes")
    reference = bench.alone(bench.config("patient"))
    wait_for((bench.folder / "slow").exists, process, bench)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) != 0
    assert bench.err().count("stopped by SIGTERM; the run is saved") == 1, bench.err()
    run = bench.paths("two").run(reference.name)
    saved = load_tensors(run / "checkpoint" / "state.pt")
    assert saved is not None
    assert (saved["epoch"], saved["step"]) >= (1, 2), "saved where the signal came, not at the last epoch's end"
    assert not (run / "result.json").exists()
    assert not (run / "lease").exists()
    assert_same_numbers(bench.alone(bench.config("patient"), "two"), reference)


def test_parts_make_up_the_batch() -> None:
    pixels = torch.randint(256, (20, 40, 40, 3), dtype=torch.uint8)
    settings = LoaderSettings(
        batch_size=9, input=InputConfig(resize=40, image_size=32), mean=(0.5,) * 3, std=(0.5,) * 3,
        channels_last=False, device=torch.device("cpu"), seed=0,
    )  # fmt: skip
    frames = Frames(images=pixels, masks=None, boxes=None)
    view = make_view("train", frames, torch.arange(20), None, Access.NONE, settings)
    whole = list(view.loader(shuffle=True, augment=True))
    assert [len(batch.y) for batch in whole] == [9, 9, 2]
    teams = [Team(rank, 3) for rank in range(3)]
    parts = [list(view.parts(shuffle=True, augment=True, start=0, cut=team.cut)) for team in teams]
    for step, batch in enumerate(whole):
        mine = [part[step] for part in parts]
        assert all(part is not None and part.size == len(batch.y) for _, part in mine)
        assert sum(part.share for _, part in mine if part is not None) == pytest.approx(1)
        if len(batch.y) < 3:
            assert all(torch.equal(own.images, batch.images) for own, _ in mine)
        else:
            assert torch.equal(torch.cat([own.images for own, _ in mine]), batch.images)
            assert torch.equal(torch.cat([own.index for own, _ in mine]), batch.index)
