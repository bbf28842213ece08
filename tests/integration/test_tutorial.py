"""The tutorial builds a method that works: its files are written, its commands run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from spurbench.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "add_a_method.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.slow
def test_every_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Training is cut to one epoch; nothing else is changed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPURBENCH_CACHE", str(tmp_path / "cache"))
    method, test = blocks("python")
    Path("spectral.py").write_text(method)
    Path("test_spectral.py").write_text(test)
    command = [sys.executable, "-m", "pytest", "-q", "--import-mode=importlib", "test_spectral.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    assert len(lines) >= 4
    for line in lines:
        arguments = shlex.split(line)[1:]
        short = ["--epochs", "1"] if arguments[0] == "run" else []
        assert main([*arguments, *short]) == 0, (line, capsys.readouterr().err)
    assert "SD[0.01]" in capsys.readouterr().out


def test_method_is_as_short_as_the_title_says() -> None:
    assert len(blocks("python")[0].splitlines()) <= 60


def test_new_method_conforms_and_its_test_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new", "method", "My-Idea"]) == 0
    assert capsys.readouterr().out.split() == ["my_idea.py", "test_my_idea.py"]
    command = [sys.executable, "-m", "pytest", "-q", "--import-mode=importlib", "test_my_idea.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("erm", "exists already"),
        ("2nd", "is no name"),
        ("class", "is no name"),
        ("torch", "would hide"),
        ("a b", "no name"),
    ],
)
def test_bad_names_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new", "method", name]) == 2
    assert expected in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_existing_files_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test_mine.py").write_text("precious")
    assert main(["new", "method", "mine", "--to", str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["test_mine.py"]


def test_broken_method_is_reported_by_requirement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "forgetful.py"
    path.write_text(
        "from spurbench.method import BaseMethod\n"
        "from spurbench.types import StepOutput\n"
        "class Forgetful(BaseMethod):\n"
        "    count = 1.0\n"
        "    def training_step(self, model, batch, progress):\n"
        "        self.count *= 1.5\n"
        "        out = super().training_step(model, batch, progress)\n"
        "        return StepOutput(loss=out.loss * self.count, scalars={})\n"
        "METHOD = Forgetful\n"
    )
    assert main(["check-method", str(path), "--backbone", "test_convnext"]) == 1
    out, err = capsys.readouterr()
    assert "BROKEN test_convnext: A run that stops inside every phase" in err
    assert re.search(r"\d+ of 11 checks hold", out)


def test_file_without_a_method_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "empty.py"
    path.write_text("DATASETS = {}\n")
    assert main(["check-method", str(path)]) == 2
    assert "exports no method" in capsys.readouterr().err
