"""Run configurations: what is in them, what changes their identity, and how mistakes are answered."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from spurbench.backbone import check_backbone
from spurbench.cli.common import overrides_of
from spurbench.config import (
    BackboneConfig,
    DatasetRef,
    EvaluationConfig,
    InputConfig,
    MethodRef,
    OptimizerConfig,
    RunConfig,
    RunPaths,
    TrainConfig,
)
from spurbench.errors import ConfigError, DataMissing
from spurbench.registry import load_registry
from spurbench.resolve import RunRequest, load_preset, make_method, parse_method, preset_names, resolve_run

GOLDEN = Path(__file__).parents[1] / "golden" / "run_ids.json"


def resolve(method: str = "erm", dataset: str = "minibirds100", **options: Any) -> RunConfig:
    return resolve_run(RunRequest(method=method, dataset=dataset, **options), paths())[0]


def paths() -> RunPaths:
    return RunPaths(results=Path("results"), cache=Path("cache"))


def refusal(method: str = "erm", dataset: str = "minibirds100", **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(method, dataset, **options)
    return str(caught.value)


@pytest.fixture
def config() -> RunConfig:
    return RunConfig(
        method=MethodRef(name="aim", version=1, config={"num_stages": 2, "tau": 0.35}),
        dataset=DatasetRef(name="minibirds100", version="1"),
        backbone=BackboneConfig(name="resnet18", weights="none"),
        input=InputConfig(),
        train=TrainConfig(),
    )


# --- identity ---


def test_canonical_form_round_trips(config: RunConfig) -> None:
    document = json.loads(config.canonical())
    assert document.pop("identity_version") == 1
    again = RunConfig(**document)
    assert again == config
    assert again.canonical() == config.canonical()
    assert config.canonical() == json.dumps(json.loads(config.canonical()), sort_keys=True, separators=(",", ":"))
    through_file = RunConfig(**json.loads(json.dumps(config.model_dump(mode="json"))))
    assert through_file.run_id() == config.run_id()
    assert len(config.run_id()) == 16


def test_defaults_are_written_out(config: RunConfig) -> None:
    spelled = config.model_copy(update={"train": TrainConfig(**TrainConfig().model_dump()), "seed": 0})
    assert spelled.run_id() == config.run_id()
    assert '"clip":null' in config.canonical()


def test_equal_numbers_give_equal_ids() -> None:
    assert TrainConfig(optimizer={"lr": "1e-3"}).model_dump() == TrainConfig(optimizer={"lr": 0.001}).model_dump()
    assert resolve("aim[1,1]").run_id() == resolve("aim[1,100%]").run_id() == resolve("aim[1,1.0]").run_id()
    assert resolve("aim", overrides={"method.tau": 1}).run_id() == resolve("aim[1,1.0]").run_id()


def test_order_of_options_does_not_matter(config: RunConfig) -> None:
    turned = MethodRef(name="aim", version=1, config={"tau": 0.35, "num_stages": 2})
    assert config.model_copy(update={"method": turned}).run_id() == config.run_id()


def leaves(model: BaseModel, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from leaves(value, (*path, name))
        else:
            yield (*path, name)


CHANGED: dict[str, Any] = {
    "method.name": "erm",
    "method.version": 2,
    "method.source": "sha256:0",
    "method.config": {"num_stages": 2, "tau": 0.25},
    "dataset.name": "minibirds95",
    "dataset.version": "2",
    "backbone.name": "resnet50",
    "backbone.weights": "tag:a1_in1k",
    "input.resize": 320,
    "input.image_size": 192,
    "input.crop_scale": (0.5, 1.0),
    "input.flip": False,
    "train.epochs": 31,
    "train.batch_size": 32,
    "train.optimizer.name": "sgd",
    "train.optimizer.lr": 1e-4,
    "train.optimizer.head_lr": 1e-3,
    "train.optimizer.weight_decay": 0.0,
    "train.optimizer.decay_vectors": True,
    "train.optimizer.momentum": 0.8,
    "train.optimizer.schedule": "constant",
    "train.optimizer.warmup": 0.05,
    "train.optimizer.clip": 1.0,
    "train.precision": "bf16",
    "train.channels_last": True,
    "train.compile": True,
    "train.num_threads": 1,
    "evaluation.batch_size": 128,
    "evaluation.attributions": ("uniform",),
    "evaluation.erasure": False,
    "evaluation.oracle": True,
    "seed": 1,
}


def test_every_field_changes_the_id(config: RunConfig) -> None:
    fields = [".".join(path) for path in leaves(config)]
    assert set(fields) == set(CHANGED), "a new field needs a line above: is it part of what a run is?"
    ids = {config.run_id()}
    for field in fields:
        tree = config.model_dump()
        node = tree
        *sections, key = field.split(".")
        for section in sections:
            node = node[section]
        assert node[key] != CHANGED[field], field
        node[key] = CHANGED[field]
        ids.add(RunConfig(**tree).run_id())
    assert len(ids) == len(fields) + 1


def test_nothing_about_the_machine_is_part_of_a_run(config: RunConfig) -> None:
    words = {part for path in leaves(config) for name in path for part in name.split("_")}
    assert not words & {
        "path",
        "paths",
        "root",
        "folder",
        "cache",
        "results",
        "launcher",
        "device",
        "host",
        "log",
        "level",
    }
    assert not set(RunPaths.model_fields) & {path[-1] for path in leaves(config)}


def test_paths_do_not_change_the_id(tmp_path: Path) -> None:
    request = RunRequest(method="aim", dataset="minibirds100")
    one, _ = resolve_run(request, RunPaths(results=tmp_path / "a", cache=tmp_path / "b"))
    other, other_paths = resolve_run(request, RunPaths(results=tmp_path, cache=tmp_path, data_root=tmp_path))
    assert one.run_id() == other.run_id()
    assert other_paths.weights_path is not None
    assert other_paths.run("abc") == tmp_path / "runs" / "abc"


def golden_requests() -> list[dict[str, Any]]:
    document: list[dict[str, Any]] = json.loads(GOLDEN.read_text())["runs"]
    return document


def test_golden_ids() -> None:
    """Another id orphans every finished run: raise a version on purpose, or find what changed by accident."""
    for entry in golden_requests():
        assert resolve(**entry["request"]).run_id() == entry["run_id"], entry["request"]
    assert len({entry["run_id"] for entry in golden_requests()}) == len(golden_requests()) >= 6


def test_ids_are_equal_in_other_processes() -> None:
    code = (
        "import json, sys\n"
        "from spurbench.config import RunConfig\n"
        "print(json.dumps([RunConfig(**tree).run_id() for tree in json.load(sys.stdin)]))"
    )
    configs = [resolve(**entry["request"]) for entry in golden_requests()]
    for hash_seed in ("0", "4711"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps([config.model_dump(mode="json") for config in configs]),
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "LC_ALL": "C"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(done.stdout) == [config.run_id() for config in configs]


def test_resolving_in_another_process_gives_the_same_ids() -> None:
    code = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from spurbench.config import RunPaths\n"
        "from spurbench.resolve import RunRequest, resolve_run\n"
        "where = RunPaths(results=Path('elsewhere'), cache=Path('there'))\n"
        "print(json.dumps([resolve_run(RunRequest(**r), where)[0].run_id() for r in json.load(sys.stdin)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([entry["request"] for entry in golden_requests()]),
        env={**os.environ, "PYTHONHASHSEED": "99"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [entry["run_id"] for entry in golden_requests()]


def test_configurations_are_immutable(config: RunConfig) -> None:
    for model, field in ((config, "seed"), (config.train, "epochs"), (config.train.optimizer, "lr")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(model, field, 3)


# --- the bracket notation ---


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("erm", ("erm", ())),
        ("aim[2,35%]", ("aim", (2, 0.35))),
        ("AIM[2,35%]", ("AIM", (2, 0.35))),
        (" aim [ 2 , 0.35 ] ", ("aim", (2, 0.35))),
        ("aim[2,33.3%]", ("aim", (2, 0.333))),
        ("aim[2,0.7 %]", ("aim", (2, 0.007))),
        ("aim[2]", ("aim", (2,))),
        ("my-method[literal,1e-4]", ("my-method", ("literal", 1e-4))),
    ],
)
def test_brackets(text: str, parsed: tuple[str, tuple[Any, ...]]) -> None:
    assert parse_method(text) == parsed


def test_percentages_are_the_nearest_fraction() -> None:
    for n in range(1, 1001):  # float("33.3") / 100 is not 0.333
        assert parse_method(f"aim[1,{n / 10:g}%]") == ("aim", (1, float(f"{n / 1000:.3f}")))


def test_notations_of_one_run_have_one_id() -> None:
    one = resolve("aim[2,35%]")
    same = [
        resolve("AIM[2,0.35]"),
        resolve("aim[2]", overrides={"method.tau": 0.35}),
        resolve("aim", overrides={"method.tau": 0.35, "method.num_stages": 2}),
        resolve("aim", overrides=overrides_of(["method.num-stages=2", "method.tau=3.5e-1"])),
        resolve("aim", overrides={"method.num-stages": 2, "method.tau": "0.35"}),
    ]
    assert {config.run_id() for config in same} == {one.run_id()}
    assert resolve("aim[2,25%]").run_id() != one.run_id()
    assert make_method(one).label == "AIM[2,35%]"


@pytest.mark.parametrize(
    "text", ["aim[", "aim]", "aim[2", "aim[2,]", "aim[]", "aim[2,35%%]", "", "a im", "aim[1][2]", "aim[2;3]"]
)
def test_malformed_brackets(text: str) -> None:
    message = refusal(text)
    assert "cannot read" in message
    assert "aim[2,35%]" in message or "expected a number or a percentage" in message


def test_too_many_brackets() -> None:
    assert "its form is aim[num_stages,tau]" in refusal("aim[1,0.5,3]")
    assert "its form is erm" in refusal("erm[1]")


@pytest.mark.parametrize("tau", ["0", "1.5", "35", "-1%", "nan", "inf", "literal"])
def test_bad_values_in_brackets_name_the_option(tau: str) -> None:
    assert "method.tau:" in refusal(f"aim[1,{tau}]")


# --- mistakes ---


@pytest.mark.parametrize(
    ("key", "suggestion", "among"),
    [
        ("method.ta", "tau", "num_stages"),
        ("train.epoch", "epochs", "batch_size"),
        ("train.optimizer.learning_rate", None, "head_lr"),
        ("train.optimizer.head-lrr", "head_lr", "weight_decay"),
        ("input.imagesize", "image_size", "crop_scale"),
        ("evaluation.attribution", "attributions", "oracle"),
        ("backbone.weight", "weights", "name"),
    ],
)
def test_unknown_options_offer_the_closest(key: str, suggestion: str | None, among: str) -> None:
    message = refusal("aim", overrides={key: 1})
    assert f"unknown option '{key.replace('-', '_')}'" in message
    assert ("did you mean" in message) == (suggestion is not None)
    assert suggestion is None or f"did you mean '{suggestion}'?" in message
    available = message.partition("available: ")[2]
    assert among in available
    assert "precision" not in available or key == "train.epoch", "only what stands beside it"


def test_unknown_sections_offer_the_closest() -> None:
    assert "unknown section 'trian'; did you mean 'train'?" in refusal(overrides={"trian.epochs": 1})
    assert "needs a section" in refusal(overrides={"epochs": 1})
    assert "'epochs' is a value, not a section" in refusal(overrides={"train.epochs.x": 1})


def test_unknown_keys_are_refused_at_every_level(config: RunConfig) -> None:
    for path in [(), *{path[:-1] for path in leaves(config)}]:
        tree = config.model_dump()
        node = tree
        for section in path:
            node = node[section]
        node["no_such_key"] = 1
        with pytest.raises(ValidationError, match="no_such_key"):
            RunConfig(**tree)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.epochs", 0),
        ("train.epochs", 1.5),
        ("train.epochs", "many"),
        ("train.batch_size", -1),
        ("train.num_threads", 0),
        ("train.precision", "fp16"),
        ("train.optimizer.lr", 0),
        ("train.optimizer.lr", float("nan")),
        ("train.optimizer.lr", float("inf")),
        ("train.optimizer.name", "adam"),
        ("train.optimizer.momentum", 1.0),
        ("train.optimizer.weight_decay", -0.1),
        ("train.optimizer.warmup", 1.0),
        ("train.optimizer.schedule", "step"),
        ("train.optimizer.clip", 0),
        ("input.image_size", 0),
        ("evaluation.batch_size", 0),
        ("evaluation.oracle", "perhaps"),
        ("evaluation.erasure", "perhaps"),
        ("evaluation.attributions", ["gradcam", "gradcam"]),
        ("evaluation.attributions", 1),
        ("method.tau", 0.0),
        ("method.fusion", "mean"),
    ],
)
def test_bad_ranges_name_the_field_and_the_value(key: str, value: Any) -> None:
    message = refusal("aim", overrides={key: value})
    assert message.startswith(f"{key}: ")
    assert f"(got {value!r})" in message


def test_bad_geometry() -> None:
    assert "image_size 96 is larger than the cached frame, resize 64" in refusal(overrides={"input.image_size": 96})
    for scale in ([0, 1], [0.8, 0.5], [0.5, 1.1]):
        assert "crop_scale must satisfy" in refusal(overrides={"input.crop_scale": scale})
    assert "seed" in refusal(seed=-1)


def test_several_mistakes_are_told_at_once() -> None:
    message = refusal("aim", overrides={"method.tau": 2, "method.stages": 1})
    assert len(message.splitlines()) == 2


def test_unknown_names() -> None:
    assert "unknown method 'amm'; did you mean 'aim'? available: afr, aim, " in refusal("amm")
    assert "unknown method 'zzzz'; available: afr, aim, " in refusal("zzzz")
    assert "unknown dataset 'minibird100'; did you mean 'minibirds100' or " in refusal(dataset="minibird100")
    assert "unknown preset 'minibird'; did you mean 'minibirds'?" in refusal(preset="minibird")
    assert "unknown backbone 'resnet_18'; did you mean 'resnet18'?" in refusal(backbone="resnet_18")


def test_case_does_not_matter_in_names() -> None:
    assert resolve("ERM", "MiniBirds100").run_id() == resolve().run_id()


# --- --set ---


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.0e-4", 1e-4),
        ("1E5", 1e5),
        ("5", 5),
        ("0.5", 0.5),
        ("true", True),
        ("null", None),
        ("[0.5, 1]", [0.5, 1]),
        ("literal", "literal"),
        ("'a=b'", "a=b"),
        ("", None),
    ],
)
def test_values_of_set(text: str, value: Any) -> None:
    overrides = overrides_of([f"a.b={text}"])
    assert overrides == {"a.b": value}
    assert type(overrides["a.b"]) is type(value)


def test_set_reaches_the_run() -> None:
    config = resolve(
        overrides=overrides_of(["train.optimizer.lr=1e-4", "train.optimizer.head-lr=null", "input.flip=no"])
    )
    assert config.train.optimizer.lr == 1e-4
    assert config.train.optimizer.head_lr is None
    assert not config.input.flip
    assert config.train.epochs == load_preset("minibirds")["train"]["epochs"], "the rest stays"


@pytest.mark.parametrize("pair", ["method.tau", "method.tau=[1", "method.tau={"])
def test_malformed_set(pair: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        overrides_of([pair])


# --- presets ---


@pytest.mark.parametrize("name", preset_names())
def test_presets_resolve(name: str) -> None:
    config = resolve(preset=name)
    tree = load_preset(name)
    assert config.backbone.name == tree["backbone"]["name"]
    assert config.train.epochs == tree["train"]["epochs"]
    check_backbone(config.backbone.name)
    assert RunConfig(**config.model_dump()).run_id() == config.run_id()


def test_every_dataset_names_a_preset() -> None:
    for name, entry in load_registry("datasets").entries.items():
        assert entry.value.info.preset in preset_names(), name


def test_a_loaded_preset_is_a_fresh_copy() -> None:
    load_preset("minibirds")["train"]["epochs"] = 1
    assert load_preset("minibirds")["train"]["epochs"] != 1


def test_preset_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    tree = load_preset("minibirds")
    tree["train"]["epochs"] = 3
    path.write_text(yaml.safe_dump(tree))
    assert resolve(preset=str(path)).train.epochs == 3
    expected = resolve(overrides={"train.epochs": 3})
    assert resolve(preset=str(path)).run_id() == expected.run_id(), "a preset's name is not part of a run"


def test_a_preset_may_leave_sections_out(tmp_path: Path) -> None:
    path = tmp_path / "short.yml"
    path.write_text("train: {epochs: 2, optimizer: {lr: 1e-3}}\n")
    config = resolve(preset=str(path), weights="none")
    assert config.train.optimizer == OptimizerConfig(lr=1e-3)
    assert config.backbone == BackboneConfig(name=BackboneConfig().name, weights="none")
    assert config.evaluation == EvaluationConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: [", "is not valid YAML"),
        ("- 1", "must hold sections"),
        ("", "must hold sections"),
        ("train:", "section 'train' must hold options"),
        ("trains: {epochs: 2}", "unknown section 'trains'; did you mean 'train'?"),
        ("train: {epoch: 2}", "unknown option 'train.epoch'; did you mean 'epochs'?"),
        ("train: {1: 2}", "section 'train'"),
        ("method: {tau: 0.1}", "must not hold options of a method"),
        ("backbone: resnet18", "section 'backbone' must hold options"),
    ],
)
def test_malformed_presets(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert message in refusal("aim", preset=str(path))


def test_missing_files() -> None:
    assert "no preset file at nowhere.yaml" in refusal(preset="nowhere.yaml")
    with pytest.raises(DataMissing, match=r"no weights file at .*nowhere\.pth"):
        resolve(weights="nowhere.pth")


def test_another_backbone_does_not_inherit_weights(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("backbone: {name: resnet18, weights: none}\n")
    assert resolve(preset=str(path)).backbone == BackboneConfig(name="resnet18", weights="none")
    assert resolve(preset=str(path), backbone="resnet50").backbone.weights == "tag:a1_in1k"
    config = resolve(backbone="resnet50")
    assert config.backbone == BackboneConfig(name="resnet50", weights="tag:a1_in1k")
    assert resolve(backbone="resnet50", weights="none").backbone.weights == "none"
    assert resolve().backbone.weights.startswith("sha256:")


def test_recipe_that_a_method_cannot_follow_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="at least two epochs"):
        resolve("aim[1,auto]", overrides={"train.epochs": 1})


def test_rule_between_fields_prints_no_python_and_a_method_without_options_says_so() -> None:
    message = refusal("erm", overrides={"input.image_size": 96})
    assert "larger than the cached frame" in message
    assert "{" not in message
    assert "there are no options" in refusal("rwg", overrides={"method.passes": "steps"})
