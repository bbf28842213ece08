"""The wheel holds everything: installed alone in a fresh environment it lists, resolves and explains itself."""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # From a copy of what git tracks, so that neither build leftovers help nor this checkout is touched.
    source = folder / "source"
    files = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True, capture_output=True,
    ).stdout.split(b"\0")  # fmt: skip
    for name in filter(None, (file.decode() for file in files)):
        original = ROOT / name
        if not original.exists() and not original.is_symlink():
            continue
        copy = source / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if original.is_symlink():
            copy.symlink_to(original.readlink())
        else:
            copy.write_bytes(original.read_bytes())
    flags = ("-q", "--no-deps", "--no-build-isolation")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *flags, "-w", str(folder), str(source)],
        check=True, capture_output=True,
    )  # fmt: skip
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_contains_every_module_and_data_file(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    for folder, prefix in (("spurbench", ""), ("methods", "spurbench/"), ("datasets", "spurbench/")):
        for path in (ROOT / folder).rglob("*.py"):
            assert f"{prefix}{path.relative_to(ROOT).as_posix()}" in inside
    assert {f"spurbench/assets/minibirds_{net}.safetensors" for net in ("resnet", "vit")} <= inside
    assert "spurbench/templates/method.py.txt" in inside
    assert "spurbench/presets/minibirds.yaml" in inside
    assert {f"spurbench/report/page.{kind}" for kind in ("html", "css", "js")} <= inside
    assert "spurbench/py.typed" in inside
    assert not [name for name in inside if name.startswith(("methods/", "datasets/", "tests/"))]


@pytest.mark.slow
def test_wheel_works_in_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    fresh = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True, capture_output=True, text=True,
        ).stdout.strip()
    )  # fmt: skip
    zipfile.ZipFile(wheel).extractall(fresh)
    # Third-party packages come from this environment; torch alone would take minutes to install again.
    (fresh / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    code = (
        "import sys, spurbench, spurbench.methods.aim, spurbench.datasets.minibirds\n"
        "from spurbench.cli import main\n"
        "print(spurbench.__file__)\n"
        "sys.exit(main(['show', '--method', 'aim[2,35%]', '--dataset', 'minibirds100']))\n"
    )
    done = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(fresh) in done.stdout
    assert "num_stages: 2" in done.stdout
