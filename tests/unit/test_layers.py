"""The whole tree: imports point one way, heavy packages stay where they are used, no method is special."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from spurbench.registry import load_registry

ROOT = Path(__file__).parents[2]

LAYERS = (
    ("errors", "text", "types"),
    ("config", "dotted", "schema", "registry", "rng", "io"),
    ("nn", "metrics", "attribution", "data", "backbone", "classifiers", "checkpoint", "lease", "zoo"),
    ("method", "dataset", "inference"),
    ("image_dataset", "image_tree", "composites", "drawing"),
    ("methods", "datasets"),
    ("costs", "resolve"),
    ("engine",),
    (
        "leaderboard",
        "records",
        "kept",
        "fold",
        "ranking",
        "intervals",
        "sweep",
        "pairing",
        "predictions",
        "compare",
        "saved",
        "tracking",
    ),
    ("survey", "estimate", "clean", "reported", "evaluate", "audit"),
    ("launch", "report", "testing", "datatools"),
    ("cli",),
)
"""Lowest first. A part may import its own layer and those below; circles are refused by a test of their own."""
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}
NOT_LAYERED = {"assets", "reference", "presets", "templates", "__init__", "__main__"}
"""Scripts and data files; the version number."""

EXTERNAL = {
    "ray": {"launch"},
    "submitit": {"launch"},
    "wilds": {"datasets"},
    "rich": {"cli"},
    "pandas": {"leaderboard", "report", "cli", "metrics"},
    "timm": {"backbone", "classifiers", "zoo", "costs", "cli", "assets"},
    "pydantic": {"config", "resolve", "sweep", "costs", "methods", "launch"},
    "yaml": {"resolve", "sweep", "launch", "cli"},
    "matplotlib": {"report"},
    "plotly": {"report"},
    "sklearn": {"methods"},
    "wandb": {"tracking"},
    "mlflow": {"tracking"},
}
"""Who may import what."""


def files() -> Iterator[tuple[str, Path]]:
    """Every Python file with the part it belongs to; ``methods`` and ``datasets`` once, at the top level."""
    for path in sorted((ROOT / "spurbench").rglob("*.py")):
        part = path.relative_to(ROOT / "spurbench").parts[0].removesuffix(".py")
        if part not in ("methods", "datasets"):
            yield part, path
    for part in ("methods", "datasets"):
        for path in sorted((ROOT / part).rglob("*.py")):
            yield part, path


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Absolute names of imported modules, wherever in the file they stand."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            yield node.module, node.lineno
            if node.module == "spurbench":
                yield from ((f"spurbench.{alias.name}", node.lineno) for alias in node.names)


def strings_that_import(path: Path) -> Iterator[str]:
    """Constant arguments of import_module and __import__."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str))


def part_of(module: str) -> str | None:
    """The part of spurbench that a module belongs to; None for the package itself and for others."""
    names = module.split(".")
    if names[0] != "spurbench" or len(names) == 1 or names[1] == "__version__":
        return None
    return names[1]


def edges() -> Iterator[tuple[str, str, str]]:
    for part, path in files():
        found = [*imports(path), *((name, 0) for name in strings_that_import(path))]
        for module, line in found:
            target = part_of(module)
            if target is not None and target != part:
                yield part, target, f"{path.relative_to(ROOT)}:{line} imports {module}"


def test_every_part_has_its_layer() -> None:
    parts = {part for part, _ in files()}
    assert parts - NOT_LAYERED == set(RANK), "a new part needs its place in LAYERS"


def test_imports_point_one_way() -> None:
    upward = [
        place for part, target, place in edges() if part in RANK and (target not in RANK or RANK[target] > RANK[part])
    ]
    assert not upward, "\n".join(upward)


def test_no_circles_among_the_parts() -> None:
    below: dict[str, set[str]] = {}
    for part, target, _ in edges():
        below.setdefault(part, set()).add(target)

    def reach(part: str, path: tuple[str, ...]) -> None:
        assert part not in path, f"circle: {' > '.join((*path, part))}"
        for target in below.get(part, ()):
            reach(target, (*path, part))

    for part in RANK:
        reach(part, ())


def test_methods_and_datasets_know_neither_each_other_nor_what_drives_them() -> None:
    assert RANK["methods"] == RANK["datasets"]
    forbidden = {"methods": "datasets", "datasets": "methods"}
    wrong = [place for part, target, place in edges() if forbidden.get(part) == target]
    assert not wrong, "\n".join(wrong)
    by_name = [
        place
        for part, target, place in edges()
        if target in ("methods", "datasets") and part not in ("assets", "methods", "datasets")
    ]
    assert not by_name, "only the registry knows them, by name: " + "\n".join(by_name)


def test_heavy_packages_stay_where_they_are_used() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for part, path in files()
        for module, line in imports(path)
        if part not in EXTERNAL.get(module.split(".")[0], {part})
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_imports_the_folders_by_their_bare_names() -> None:
    """``import datasets`` would be a second copy of the module, or Hugging Face's."""
    for folder in ("spurbench", "methods", "datasets", "tests", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for module, line in imports(path):
                assert module.split(".")[0] not in ("methods", "datasets"), f"{path}:{line}"


def test_no_tests_or_optional_oracles_in_the_package() -> None:
    wrong = [
        f"{path}:{line}"
        for _, path in files()
        for module, line in imports(path)
        if module.split(".")[0] in ("tests", "pytest", "hypothesis", "fvcore", "pytorch_grad_cam", "captum", "xdist")
    ]
    assert not wrong


# --- no name is special ---


def compared_strings(path: Path) -> Iterator[tuple[str, int]]:
    """Texts that decide something: in comparisons, ``match`` cases and ``startswith``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        inside: list[ast.AST] = []
        if isinstance(node, ast.Compare | ast.MatchValue):
            inside = [node]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith((".startswith", ".endswith")):
            inside = list(node.args)
        elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Dict):
            inside = [key for key in node.value.keys if key is not None]
        for part in inside:
            for constant in ast.walk(part):
                if isinstance(constant, ast.Constant) and isinstance(constant.value, str):
                    yield constant.value, constant.lineno


def test_no_branch_on_the_name_of_a_method_or_dataset() -> None:
    owners = {
        name: entry.origin.removeprefix("spurbench.").split(".")
        for kind in ("methods", "datasets")
        for name, entry in load_registry(kind).entries.items()
    }
    assert {"aim", "erm", "minibirds100", "waterbirds95"} <= set(owners)
    wrong = [
        f"{path.relative_to(ROOT)}:{line} decides by '{text}'"
        for _, path in files()
        for text, line in compared_strings(path)
        if text.lower() in owners
        and list(path.relative_to(ROOT).with_suffix("").parts[:2]) != owners[text.lower()]  # its own file or folder
    ]
    assert not wrong, "\n".join(wrong)


def test_no_branch_on_the_name_of_a_backbone() -> None:
    import timm

    names = set(timm.list_models()) | {"minibirds_resnet", "minibirds_vit"}
    wrong = [
        f"{path.relative_to(ROOT)}:{line} decides by '{text}'"
        for part, path in files()
        for text, line in compared_strings(path)
        if text in names and part not in ("zoo", "assets")
    ]
    assert not wrong, "\n".join(wrong)


def test_the_search_for_branches_finds_them(tmp_path: Path) -> None:
    path = tmp_path / "branches.py"
    path.write_text(
        "if method.name == 'aim': pass\n"
        "if name in ('erm', 'x'): pass\n"
        "match name:\n    case 'aim': pass\n"
        "name.startswith('erm')\n"
        "value = {'aim': 1}[name]\n"
        "other = 'aim'\n"
    )
    assert sorted((line, text) for text, line in compared_strings(path)) == [
        (1, "aim"),
        (2, "erm"),
        (2, "x"),
        (4, "aim"),
        (5, "erm"),
        (6, "aim"),
    ]


# --- in processes of their own ---


HEAVY = ("torch", "torchvision", "pandas", "numpy", "ray", "pydantic", "timm", "rich", "yaml", "pyarrow", "scipy")


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["sweep", "--help"], ["--version"], ["rnu"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import json, sys\n"
        "from spurbench.cli import main\n"
        "try:\n    main(json.loads(sys.argv[1]))\n"
        "except SystemExit:\n    pass\n"
        f"print(json.dumps([name for name in {HEAVY} if name in sys.modules]), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stderr.splitlines()[-1]) == []


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("spurbench", HEAVY),
        ("spurbench.config", ("torch", "pandas", "ray", "timm", "rich")),
        ("spurbench.registry", ("torch", "pandas", "ray", "timm", "pydantic")),
        ("spurbench.resolve", ("pandas", "ray", "timm", "rich", "submitit", "wilds")),
        ("spurbench.leaderboard", ("torch", "ray", "timm", "rich", "pydantic")),
        ("spurbench.cli.leaderboard", ("torch", "ray", "timm", "pydantic", "pandas", "scipy")),
        ("spurbench.fold", ("torch", "ray", "timm", "rich", "pydantic", "pandas")),
        ("spurbench.compare", ("torch", "ray", "timm", "rich", "pydantic", "scipy", "pyarrow")),
    ],
)
def test_light_modules_stay_light(module: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([name for name in {absent} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_datasets_is_not_ours_under_the_pytest_script(tmp_path: Path) -> None:
    test = tmp_path / "test_bare.py"
    test.write_text(
        "from importlib.util import find_spec\n"
        "from pathlib import Path\n\n"
        "def test_bare():\n"
        "    for name in ('datasets', 'methods'):\n"
        "        spec = find_spec(name)\n"
        f"        assert spec is None or not Path(spec.origin or '').is_relative_to({str(ROOT)!r}), spec\n"
    )
    script = Path(sys.executable).with_name("pytest")
    done = subprocess.run(
        [
            str(script),
            "-q",
            "-c",
            str(ROOT / "pyproject.toml"),
            "--rootdir",
            str(ROOT),
            "-p",
            "no:cacheprovider",
            str(test),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_public_names_exist() -> None:
    """Every module's ``__all__`` lists what is there."""
    import importlib

    for part, path in files():
        if part in ("assets", "launch", "__init__"):
            continue
        base = ROOT if part in ("methods", "datasets") else ROOT / "spurbench"
        names = path.relative_to(base).with_suffix("").parts
        module = importlib.import_module(".".join(("spurbench", *(n for n in names if n != "__init__"))))
        missing = [name for name in getattr(module, "__all__", ()) if not hasattr(module, name)]
        assert not missing, f"{module.__name__}: {missing}"
