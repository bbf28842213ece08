"""Methods and datasets are found by file, by entry point and by --plugin; broken ones break nothing else."""

import hashlib
import json
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from spurbench.config import RunConfig, RunPaths
from spurbench.dataset import DatasetInfo, DatasetSpec
from spurbench.errors import ConfigError
from spurbench.method import BaseMethod
from spurbench.registry import Entry, Registry, load_registry, normalize
from spurbench.resolve import RunRequest, make_method, resolve_run

METHOD = """
from spurbench.method import BaseMethod

class Mine(BaseMethod):
    '''ERM under another name.'''

"""
DATASET = """
from spurbench.dataset import DatasetInfo, DatasetSpec

def spec(name):
    info = DatasetInfo(name=name, version="1", classes=("a", "b"), attributes=None, preset="minibirds")
    return DatasetSpec(info=info, open=lambda root: None)

"""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def resolve(method: str, dataset: str = "minibirds100", *plugins: Path) -> RunConfig:
    where = RunPaths(results=Path("results"), cache=Path("cache"))
    return resolve_run(RunRequest(method=method, dataset=dataset, plugins=plugins), where)[0]


# --- what is shipped ---


def test_every_file_is_found_and_loads() -> None:
    root = Path(__file__).parents[2]
    for kind in ("methods", "datasets"):
        registry = load_registry(kind)
        assert not registry.broken
        origins = {entry.origin for entry in registry.entries.values()}
        if kind == "datasets":  # where transforms stand too
            origins |= {entry.origin for entry in load_registry("transforms").entries.values()}
        names = {
            path.stem for path in (root / kind).iterdir() if path.stem[0] not in "_." and path.stem != "__pycache__"
        }
        assert {f"spurbench.{kind}.{name}" for name in names} == origins
        assert all(normalize(name) == name for name in registry.entries)
        assert all(entry.source is None for entry in registry.entries.values())


def test_a_method_is_named_after_its_file() -> None:
    assert load_registry("methods").get("erm").origin == "spurbench.methods.erm"
    assert load_registry("methods").get(" ERM ").name == "erm"


# --- plugin files ---


def test_plugin_method(tmp_path: Path) -> None:
    path = write(tmp_path / "my_method.py", METHOD + "METHOD = Mine\n")
    entry = load_registry("methods", (path,)).get("my-method")
    assert entry.name == "my_method"
    assert entry.origin == str(path)
    assert issubclass(entry.value, BaseMethod)
    assert entry.source == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    assert "my_method" not in load_registry("methods").entries, "for this call alone"
    assert set(load_registry("methods").entries) < set(load_registry("methods", (path,)).entries)


def test_plugin_content_is_part_of_the_identity(tmp_path: Path) -> None:
    one = write(tmp_path / "a" / "mine.py", METHOD + "METHOD = Mine\n")
    same = write(tmp_path / "b" / "mine.py", METHOD + "METHOD = Mine\n")
    other = write(tmp_path / "c" / "mine.py", METHOD + "METHOD = Mine  # changed\n")
    ids = [resolve("mine", "minibirds100", path).run_id() for path in (one, same, other)]
    assert ids[0] == ids[1] != ids[2]
    assert (
        resolve("mine", "minibirds100", one).method.source == f"sha256:{hashlib.sha256(one.read_bytes()).hexdigest()}"
    )
    assert resolve("erm").method.source is None
    assert resolve("erm", "minibirds100", one).run_id() == resolve("erm").run_id(), "a plugin that is not used"


def test_plugin_methods_under_several_names(tmp_path: Path) -> None:
    text = METHOD + "class Other(Mine):\n    pass\n\nMETHODS = {'mine-a': Mine, 'mine_b': Other}\n"
    registry = load_registry("methods", (write(tmp_path / "close.py", text),))
    assert {"mine_a", "mine_b"} <= set(registry.entries)
    assert "close" not in registry.entries
    assert registry.get("mine-b").value is registry.get("mine_b").value


def test_plugin_dataset(tmp_path: Path) -> None:
    path = write(tmp_path / "birds.py", DATASET + "DATASET = spec('birds')\n")
    entry = load_registry("datasets", (path,)).get("birds")
    assert isinstance(entry.value, DatasetSpec)
    assert isinstance(entry.value.info, DatasetInfo)
    assert resolve("erm", "birds", path).dataset.name == "birds"
    assert "birds" not in load_registry("methods", (path,)).entries
    several = write(tmp_path / "more.py", DATASET + "DATASETS = {name: spec(name) for name in ('x1', 'x2')}\n")
    assert {"x1", "x2", "birds"} <= set(load_registry("datasets", (path, several)).entries)


def test_one_plugin_may_bring_both(tmp_path: Path) -> None:
    path = write(tmp_path / "both.py", METHOD + DATASET + "METHOD = Mine\nDATASET = spec('both')\n")
    assert issubclass(load_registry("methods", (path,)).get("both").value, BaseMethod)
    assert isinstance(load_registry("datasets", (path,)).get("both").value, DatasetSpec)


def test_plugin_classes_can_be_pickled(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.py", METHOD + "METHOD = Mine\n")
    method = make_method(resolve("mine", "minibirds100", path), (path,))
    assert type(pickle.loads(pickle.dumps(method))) is type(method)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import no_such_module\n", "failed to load: ModuleNotFoundError: No module named 'no_such_module'"),
        ("def broken(:\n", "failed to load: SyntaxError"),
        ("1 / 0\n", "failed to load: ZeroDivisionError"),
        ("x = 1\n", "exports nothing: define METHOD, METHODS, DATASET, DATASETS or TRANSFORM"),
        ("METHOD = 3\n", "'bad' must be a subclass of BaseMethod, not 3"),
        ("METHODS = ['erm']\n", "METHODS must be a dict of names, not list"),
        ("METHODS = {'a': int}\n", "'a' must be a subclass of BaseMethod"),
        (METHOD + "METHOD = Mine(None)\n", "'bad' must be a subclass of BaseMethod, not "),
    ],
)
def test_broken_plugins_are_one_message(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "bad.py", text)
    with pytest.raises(ConfigError) as caught:
        load_registry("methods", (path,))
    assert str(caught.value).startswith(f"plugin {path}")
    assert message in str(caught.value)


def test_broken_dataset_plugin(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.py", DATASET + "DATASET = spec\n")
    with pytest.raises(ConfigError, match="'bad' must be a DatasetSpec, not <function"):
        load_registry("datasets", (path,))


def test_plugin_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no plugin file at"):
        load_registry("methods", (tmp_path / "nothing.py",))
    with pytest.raises(ConfigError, match="is not a Python file"):
        load_registry("methods", (write(tmp_path / "notes.txt", "hello"),))


# --- names ---


def test_duplicates_name_both_origins(tmp_path: Path) -> None:
    path = write(tmp_path / "erm.py", METHOD + "METHOD = Mine\n")
    with pytest.raises(ConfigError) as caught:
        load_registry("methods", (path,))
    message = str(caught.value)
    assert f"method 'erm' is defined twice: spurbench.methods.erm and {path}" in message
    registry = Registry("datasets")
    registry.add(Entry("a", None, "here"))
    with pytest.raises(ConfigError, match="dataset 'a' is defined twice: here and there"):
        registry.add(Entry("a", None, "there"))


def test_unknown_names_offer_the_closest_and_all() -> None:
    with pytest.raises(ConfigError) as caught:
        load_registry("methods").get("amm")
    message = str(caught.value)
    assert message.startswith("unknown method 'amm'; did you mean 'aim'? available: afr, aim, ")
    assert message.endswith("(see: spurbench list methods)")


def test_of_many_names_only_the_closest_are_offered() -> None:
    datasets = load_registry("datasets")
    number = len(datasets.entries)
    with pytest.raises(ConfigError) as caught:
        datasets.get("minilesions")
    assert str(caught.value) == (
        "unknown dataset 'minilesions'; did you mean 'minilesions95' or 'minilesions100'? "
        f"all {number} names: spurbench list datasets"
    )
    with pytest.raises(ConfigError, match=f"unknown dataset 'qqqq'; all {number} names: spurbench list datasets"):
        datasets.get("qqqq")


# --- folders and entry points, each in a process of its own ---


def in_process(tmp_path: Path, drop_in: Path | None = None) -> dict[str, Any]:
    """What a fresh process finds with ``tmp_path / "site"`` installed and a folder of drop-in methods."""
    code = f"""
        import json, sys
        sys.path.insert(0, {str(tmp_path / "site")!r})
        import spurbench.methods
        if {drop_in is not None}:
            spurbench.methods.__path__.append({str(drop_in)!r})
        from spurbench.errors import ConfigError
        from spurbench.registry import load_registry
        try:
            registries = {{kind: load_registry(kind) for kind in ("methods", "datasets")}}
        except ConfigError as error:
            print(json.dumps({{"error": str(error)}}))
            sys.exit()
        found = {{kind: {{e.name: e.origin for e in r.entries.values()}} for kind, r in registries.items()}}
        broken = {{b.origin: b.error for r in registries.values() for b in r.broken}}
        try:
            registries["methods"].get("no_such_name")
        except ConfigError as error:
            unknown = str(error)
        print(json.dumps({{**found, "broken": broken, "unknown": unknown}}))
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def install(tmp_path: Path, entry_points: str, **modules: str) -> None:
    """A distribution as pip would leave it."""
    info = tmp_path / "site" / "someones_methods-1.0.dist-info"
    write(info / "METADATA", "Metadata-Version: 2.1\nName: someones-methods\nVersion: 1.0\n")
    write(info / "entry_points.txt", textwrap.dedent(entry_points))
    for name, text in modules.items():
        write(tmp_path / "site" / f"{name}.py", text)


def test_drop_ins_and_entry_points_with_broken_ones_among_them(tmp_path: Path) -> None:
    drop_in = tmp_path / "drop_in"
    write(drop_in / "dropped.py", METHOD + "METHOD = Mine\n")
    write(drop_in / "in_a_folder" / "__init__.py", METHOD + "METHOD = Mine\n")
    write(drop_in / "broken_import.py", "import no_such_module\n")
    write(drop_in / "broken_usage.py", "from spurbench.errors import ConfigError\nraise ConfigError('no licence')\n")
    write(drop_in / "broken_export.py", "METHOD = 3\n")
    install(
        tmp_path,
        """
        [spurbench.methods]
        some-method = someones_module:Mine
        not-there = someones_module:Nothing
        no-module = nowhere:Mine
        no-method = someones_module:spec
        [spurbench.datasets]
        some_birds = someones_module:birds
        """,
        someones_module=METHOD + DATASET + "birds = spec('some_birds')\n",
    )
    found = in_process(tmp_path, drop_in)
    methods, datasets, broken = found["methods"], found["datasets"], found["broken"]
    assert methods["dropped"] == "spurbench.methods.dropped"
    assert methods["in_a_folder"] == "spurbench.methods.in_a_folder"
    assert methods["some_method"] == "someones_module:Mine"
    assert datasets["some_birds"] == "someones_module:birds"
    assert methods["erm"] == "spurbench.methods.erm"
    assert datasets["minibirds100"] == "spurbench.datasets.minibirds"
    assert set(broken) == {
        "spurbench.methods.broken_import",
        "spurbench.methods.broken_usage",
        "spurbench.methods.broken_export",
        "someones_module:Nothing",
        "nowhere:Mine",
        "someones_module:spec",
    }
    assert "no_such_module" in broken["spurbench.methods.broken_import"]
    assert broken["spurbench.methods.broken_usage"] == "ConfigError: no licence"
    assert "note: spurbench.methods.broken_import could not be loaded: ModuleNotFoundError" in found["unknown"]


def test_an_entry_point_may_not_take_a_name(tmp_path: Path) -> None:
    install(tmp_path, "[spurbench.methods]\nERM = someones_module:Mine\n", someones_module=METHOD)
    message = in_process(tmp_path)["error"]
    assert "method 'erm' is defined twice: spurbench.methods.erm and someones_module:Mine" in message
