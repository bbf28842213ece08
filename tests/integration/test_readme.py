"""The README tells the truth: its commands run, its links lead somewhere."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from spurbench.cli import main

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    *("README.md", "CONTRIBUTING.md", "cluster/README.md", "results/README.md", "results/reference/README.md"),
    *("benchmarks/README.md", "docs/add_a_method.md", "docs/slurm.md", "docs/ray.md", "docs/several_gpus.md"),
    *("docs/finished_runs.md", "docs/datasets.md"),
]


def commands() -> list[list[str]]:
    """Every ``spurbench`` line of the README's bash blocks, in order."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("spurbench ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In order, in a folder with the sweep files; training is cut to one epoch, nothing else is changed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPURBENCH_CACHE", str(tmp_path / "cache"))
    shutil.copytree(ROOT / "cluster", "cluster")
    ran = 0
    for arguments in commands():
        short = ["--epochs", "1"] if arguments[0] == "run" else []
        if arguments == ["--help"]:
            with pytest.raises(SystemExit, match="0"):
                main(arguments)
        else:
            assert main([*arguments, *short]) == 0, (arguments, capsys.readouterr().err)
        ran += 1
    assert ran >= 12
    assert (tmp_path / "masks.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_and_pictures_exist(name: str) -> None:
    document = ROOT / name
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{name} links to {target}"
