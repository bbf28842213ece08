"""Grid files: random draws and dotted options; the rest is tested through the command."""

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from spurbench import backbone, resolve
from spurbench.config import RunPaths
from spurbench.errors import ConfigError
from spurbench.lease import Lease
from spurbench.resolve import RunRequest, resolve_run
from spurbench.schema import SCHEMA_VERSION
from spurbench.sweep import (
    MethodGrid,
    Planned,
    RandomDraws,
    SweepFile,
    draws_of,
    load_sweep,
    name_of,
    options_of,
    plan,
)


def places(folder: Path) -> RunPaths:
    return RunPaths(results=folder / "results", cache=folder / "cache")


def draws(number: int, seed: int = 0, **sources: Any) -> list[dict[str, Any]]:
    return list(RandomDraws(draws=number, seed=seed, **sources).settings())


def test_draws_are_those_of_the_seed_and_do_not_depend_on_their_number() -> None:
    source = {"low": 1e-4, "high": 1e-2}
    assert draws(5, lr=source)[:3] == draws(3, lr=source)
    assert draws(3, seed=1, lr=source) != draws(3, lr=source)


def test_draws_stay_in_their_range_and_span_decades() -> None:
    values = [setting["lr"] for setting in draws(400, lr={"low": 1e-4, "high": 1e-2})]
    assert all(1e-4 <= value <= 1e-2 for value in values)
    below = sum(value < 1e-3 for value in values)
    assert 150 < below < 250, "half of the draws lie in the lower decade"
    flat = [setting["p"] for setting in draws(400, p={"low": 0, "high": 1, "log": False})]
    assert 150 < sum(value < 0.5 for value in flat) < 250


def test_choices_are_drawn_from_a_list() -> None:
    flat = {"low": 0, "high": 1, "log": False}
    assert {setting["width"] for setting in draws(50, width=[8, 16], p=flat)} == {8, 16}


def test_draws_stand_beside_the_first_setting_for_every_point_of_the_grid() -> None:
    grid = MethodGrid(
        name="aim", grid={"tau": [0.2, 0.3]}, set={"width": 8},
        random=RandomDraws(draws=2, **{"train.optimizer.lr": {"low": 1e-5, "high": 1e-3}}),
    )  # fmt: skip
    options = list(options_of(grid))
    assert len(options) == 2 * 3
    assert options[0] == {"method.width": 8, "method.tau": 0.2}
    assert {frozenset(option) for option in options[1:3]} == {
        frozenset({"method.width", "method.tau", "train.optimizer.lr"})
    }


@pytest.mark.parametrize(
    "entry",
    [
        {"draws": 0, "lr": [1]},
        {"draws": 5, "lr": [1, 2], "width": [8, 16]},
        {"draws": 2, "lr": {"low": 1, "high": 0.1}},
        {"draws": 2, "lr": {"low": 0, "high": 1}},
        {"draws": 2, "lr": []},
        {"draws": 2, "lr": 3},
        {"draws": 2},
    ],
)
def test_impossible_draws_are_refused(entry: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SweepFile(datasets=["a"], methods=[{"name": "erm", "random": entry}])


# --- the plan ---


def planned(tmp_path: Path, **file: Any) -> list[Planned]:
    sweep = SweepFile(**{"datasets": ["minibirds100"], "methods": ["erm"], **file})
    return plan(sweep, RunPaths(results=tmp_path / "results", cache=tmp_path / "cache"))


def facts(runs: list[Planned]) -> set[tuple[str, str, int]]:
    return {(run.config.method.name, run.config.dataset.name, run.config.seed) for run in runs}


def test_a_methods_own_recipe_goes_before_the_shared_one(tmp_path: Path) -> None:
    methods = ["erm", {"name": "mixup", "train": {"epochs": 3, "optimizer": {"lr": 1e-3}}}]
    runs = planned(tmp_path, methods=methods, train={"epochs": 2})
    recipes = {run.config.method.name: run.config.train for run in runs}
    assert (recipes["erm"].epochs, recipes["mixup"].epochs) == (2, 3)
    assert recipes["mixup"].optimizer.lr == 1e-3
    assert recipes["mixup"].optimizer.head_lr == recipes["erm"].optimizer.head_lr, "the rest is the preset's"


def test_exclude_takes_out_what_matches_in_all_its_parts(tmp_path: Path) -> None:
    runs = planned(
        tmp_path,
        datasets=["minibirds95", "minibirds100"],
        methods=["erm", {"name": "aim", "grid": {"tau": [0.25, 0.5]}}],
        seeds="0-1",
        exclude=[{"dataset": "minibirds95", "seed": [1, 7]}, {"method.tau": 0.5}],
    )
    expected = {("minibirds95", 0), ("minibirds100", 0), ("minibirds100", 1)}
    assert facts(runs) == {(method, *rest) for method in ("erm", "aim") for rest in expected}
    assert len(runs) == 6


def test_include_adds_runs_that_the_grid_has_not(tmp_path: Path) -> None:
    include = [
        {"method": "rwg", "datasets": ["minibirds95"], "seeds": [5]},
        {"method": "erm", "datasets": ["minibirds100"]},  # is there already
    ]
    runs = planned(tmp_path, seeds="0-1", include=include)
    assert facts(runs) == {
        ("erm", "minibirds100", 0), ("erm", "minibirds100", 1), ("rwg", "minibirds95", 5),
    }  # fmt: skip


@pytest.mark.parametrize("pattern", [{"method": "emr"}, {"method": "erm", "seed": 3}, {"method.tua": 0.25}])
def test_exclude_that_matches_nothing_is_a_mistake(tmp_path: Path, pattern: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="matches no run"):
        planned(tmp_path, exclude=[pattern])


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ({"methd": "erm"}, "unknown key 'methd'; did you mean 'method'? available: dataset, backbone, method, seed,"),
        ({"method.tua": 0.25}, "unknown key 'method.tua'; did you mean 'method.tau'?"),
        ({"method": ["emr"]}, "no run has this method; did you mean 'erm'? there are: erm, aim"),
        ({"method": "erm", "seed": 3}, "no run has this seed; there are: 0"),
        ({"method": "erm", "method.tau": 0.25}, "each part is that of some run, but no run has all of them"),
        ({"method": []}, "no run has this method; there are: erm, aim"),
    ],
)
def test_an_exclude_that_matches_nothing_says_which_part_is_wrong(
    tmp_path: Path, pattern: dict[str, Any], words: str
) -> None:
    methods = ["erm", {"name": "aim", "grid": {"tau": [0.25]}}]
    with pytest.raises(ConfigError, match=re.escape(words)):
        planned(tmp_path, methods=methods, exclude=[pattern])


def test_weights_of_a_backbone_that_the_sweep_names_can_be_set(tmp_path: Path) -> None:
    """As prefetch advises where there is no network."""
    (run,) = planned(tmp_path, backbones=["resnet18"], set={"backbone.weights": "none"})
    assert (run.config.backbone.name, run.config.backbone.weights) == ("resnet18", "none")


def test_a_run_is_called_by_its_label(tmp_path: Path) -> None:
    runs = planned(tmp_path, methods=[{"name": "aim", "grid": {"num_stages": [1, 2]}, "set": {"tau": 0.25}}], seeds=[3])
    assert [name_of(run) for run in runs] == [f"AIM[{n},25%] on minibirds100, seed 3" for n in (1, 2)]
    assert name_of(pickle.loads(pickle.dumps(runs[1]))) == "AIM[2,25%] on minibirds100, seed 3"


def test_draws_are_counted_by_method() -> None:
    random = {"draws": 2, "upweight": [20, 50, 100]}
    include = [{"method": {"name": "jtt", "random": random}, "datasets": ["a"]}]
    methods = ["erm", {"name": "jtt", "random": random}]
    sweep = SweepFile.model_validate({"datasets": ["a"], "methods": methods, "include": include})
    assert draws_of(sweep) == {"erm": 0, "jtt": 4}


def test_states(tmp_path: Path) -> None:
    (run,) = planned(tmp_path)
    folder = run.paths.run(run.config.run_id())
    assert run.state == "waiting"
    with Lease.try_take(folder) or pytest.fail("no lease"):
        assert run.state == "running"
    assert run.state == "stopped"
    record = {"status": "failed", "rows": [{}], "machine": {"attempts": 1}, "schema_version": SCHEMA_VERSION}
    result = folder / "result.json"
    result.write_text(json.dumps(record))
    assert run.state == "failed"
    result.write_text(json.dumps({**record, "status": "finished"}))
    assert (run.state, run.finished) == ("done", True)
    result.write_text(json.dumps({**record, "status": "finished", "schema_version": SCHEMA_VERSION - 1}))
    assert (run.state, run.finished) == ("stale", True)
    result.write_text("{")
    assert run.state == "stopped"


def test_seconds_are_those_of_one_attempt(tmp_path: Path) -> None:
    (run,) = planned(tmp_path)
    assert run.seconds() is None
    folder = run.paths.run(run.config.run_id())
    folder.mkdir(parents=True)
    machine = {"attempts": 1, "started_at": "2026-01-01T00:00:00+00:00", "finished_at": "2026-01-01T00:01:30+00:00"}
    record = {"status": "finished", "rows": [{}], "machine": machine}
    (folder / "result.json").write_text(json.dumps(record))
    assert run.seconds() == 90
    (folder / "result.json").write_text(json.dumps({**record, "machine": {**machine, "attempts": 2}}))
    assert run.seconds() is None


def test_a_large_grid_is_planned_without_reading_anything_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Any] = []
    parsed: list[Any] = []
    hash_file, safe_load = backbone.hash_file, yaml.safe_load
    monkeypatch.setattr(backbone, "hash_file", lambda path: (hashed.append(path), hash_file(path))[1])
    monkeypatch.setattr(yaml, "safe_load", lambda text: (parsed.append(text), safe_load(text))[1])
    taus = [round(0.001 * number, 3) for number in range(1, 401)]
    sweep = SweepFile(
        datasets=["minibirds95", "minibirds100"],
        methods=[MethodGrid(name="aim", grid={"num_stages": [1], "tau": taus})],
        seeds=list(range(25)),
    )
    backbone._hashed.cache_clear()
    resolve._parsed.cache_clear()
    runs = plan(sweep, places(tmp_path))
    assert len(runs) == len({run.run_id for run in runs}) == 20_000
    assert len(hashed) == 1
    assert len(parsed) == 1
    assert [run.config.seed for run in runs[:801:800]] == [0, 1]


def test_a_run_of_a_plan_is_what_its_seed_alone_resolves_to(tmp_path: Path) -> None:
    sweep = SweepFile(datasets=["minibirds100"], methods=[MethodGrid(name="aim[1,25%]")], seeds=[3])
    (run,) = plan(sweep, places(tmp_path))
    alone, _ = resolve_run(RunRequest(method="aim[1,25%]", dataset="minibirds100", seed=3), places(tmp_path))
    assert run.config == alone
    assert run.run_id == alone.run_id()


def test_a_negative_seed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        SweepFile(datasets=["minibirds100"], methods=[MethodGrid(name="erm")], seeds=[-1])


CLUSTER = Path(__file__).parents[2] / "cluster"


@pytest.mark.parametrize(
    "file", sorted(path.name for path in CLUSTER.glob("*.yaml") if "datasets:" in path.read_text())
)
def test_every_ready_sweep_is_planned_without_data_and_listed(file: str, tmp_path: Path) -> None:
    runs = plan(load_sweep(CLUSTER / file), places(tmp_path))
    (line,) = (line for line in (CLUSTER / "README.md").read_text().splitlines() if line.startswith(f"| `{file}`"))
    assert f"| {len(runs)}" in line


def loaded(folder: Path, text: str) -> SweepFile:
    path = folder / "grid.yaml"
    path.write_text(text)
    return load_sweep(path)


def test_methods_as_a_mapping_are_the_list_of_their_grids_in_the_same_order(tmp_path: Path) -> None:
    mapping = """
        erm:
        aim: {num_stages: [1, 2], tau: [0.25], fusion: literal}
        mixup: {train: {epochs: 12}, alpha: 0.3}
        dfr: {random: {draws: 2, penalties: [a, b, c]}, set: {validation: all}}
    """
    as_list = [
        {"name": "erm"},
        {"name": "aim", "grid": {"num_stages": [1, 2], "tau": [0.25]}, "set": {"fusion": "literal"}},
        {"name": "mixup", "train": {"epochs": 12}, "set": {"alpha": 0.3}},
        {"name": "dfr", "random": {"draws": 2, "penalties": ["a", "b", "c"]}, "set": {"validation": "all"}},
    ]
    expected = SweepFile.model_validate({"datasets": ["a"], "methods": as_list}).methods
    assert loaded(tmp_path, f"datasets: [a]\nmethods:{mapping}").methods == expected
    items = "\n".join(f"  - {{{line.strip()}}}" for line in mapping.strip().splitlines())
    assert loaded(tmp_path, f"datasets: [a]\nmethods:\n{items}").methods == expected


def test_the_form_of_the_issue_is_planned(tmp_path: Path) -> None:
    sweep = loaded(tmp_path, "datasets: [minibirds100]\nmethods: {aim: {num_stages: [1,2,3], tau: [0.25,0.35]}}\n")
    options = [run.config.method.config for run in plan(sweep, places(tmp_path))]
    assert [(one["num_stages"], one["tau"]) for one in options] == [(n, t) for n in (1, 2, 3) for t in (0.25, 0.35)]


D, M = "datasets: [a]\n", "methods: [erm]\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (M, "datasets: is missing"),
        ("datasets: minibirds100\n" + M, r"datasets: must be a list, such as \[a, b\] \(got 'minibirds100'\)"),
        ("datasets: []\n" + M, r"datasets: needs at least 1 \(got \[\]\)"),
        (D + "methods: erm", r"methods: must be a list, such as \[a, b\] \(got 'erm'\)"),
        (D + "methods: {}", "methods: needs at least 1"),
        (D + "methods: [3]", r"methods\.0: must hold options, such as {name: value} \(got 3\)"),
        (D + "methods: {aim: 3}", r"methods\.0\.grid: must hold options, such as {name: value} \(got 3\)"),
        (D + "methods: [{nam: erm}]", "unknown option 'methods.0.nam'; did you mean 'name'"),
        (D + "methods: {aim: {tau: [0.5]}, erm: , aim: {tau: [1]}}", "'aim' is there twice; methods may be a list"),
        (D + "methods: [{name: aim, grid: {tau: 0.25}}]", r"methods\.0\.grid\.tau: must be a list"),
        (
            D + "methods: [{name: aim, random: {draws: x, tau: [1]}}]",
            r"methods\.0\.random\.draws: must be a whole number",
        ),
        (D + "methods: [{name: aim, random: {draws: 2, tau: {low: 1}}}]", r"methods\.0\.random\.tau\.high: is missing"),
        (D + M + "seeds: many", r"seeds: must be a number, a list of numbers, or a range such as 0-5 \(got 'many'\)"),
        (D + M + "seeds: [true]", r"seeds\.0: must be a whole number \(got True\)"),
        (D + M + "seeds: [0, x]", r"seeds\.1: must be a whole number \(got 'x'\)"),
        (D + M + "seeds: -1", r"seeds\.0: must be greater than or equal to 0 \(got -1\)"),
        (D + M + "backbones: []", "backbones: needs at least 1"),
        (D + M + "train: 3", r"train: must hold options, such as {name: value} \(got 3\)"),
        (D + M + "include: [{method: erm}]", r"include\.0\.datasets: is missing"),
        (D + M + "1: 2", "line 3: a key must be text, YAML reads this one as 1"),
        (D + M + "exclude: [{no: 2}]", "line 3: a key must be text, YAML reads this one as False"),
        ("- a", "must hold datasets: and methods:; cluster"),
    ],
)
def test_a_wrong_file_is_explained_in_plain_words(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"grid\.yaml(?s:.*){words}") as caught:
        loaded(tmp_path, text)
    assert not any(raw in str(caught.value) for raw in ("Input should", "a valid", "Field required", "function-after"))


def test_a_folder_is_no_sweep_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*directory"):
        load_sweep(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seeds": "5-0"}, "a range goes upwards, as in 0-5"),
        ({"methods": [{"name": "aim", "grid": {"tau": []}}]}, "at least 1 item"),
    ],
)
def test_empty_grids_name_their_cause(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        SweepFile.model_validate({"datasets": ["minibirds100"], "methods": ["erm"], **change})
