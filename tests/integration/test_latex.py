"""The leaderboard's LaTeX in a real pdflatex: it compiles, and the names and numbers stand on the page.

Skipped without the packages texlive-latex-recommended and poppler-utils; ``$SPURBENCH_REQUIRE_LATEX`` makes that a
failure.
"""

import os
import re
import shutil
import subprocess
import unicodedata
from pathlib import Path

import pytest
from records import write_run

from spurbench.cli import main
from spurbench.cli.latex import escaped, latex_table

METHODS = str(Path(__file__).parents[2] / "results" / "minibirds_methods.parquet")
PREAMBLE = r"\usepackage{booktabs,graphicx}"
FITTED = r"\resizebox{\textwidth}{!}{%s}"
SHRUNK = r"\resizebox*{!}{0.9\textheight}{%s}"


@pytest.fixture(scope="module")
def tools() -> None:
    absent = [name for name in ("pdflatex", "pdftotext") if shutil.which(name) is None]
    if not absent and subprocess.run(["kpsewhich", "booktabs.sty"], capture_output=True, check=False).returncode:
        absent = ["booktabs.sty"]
    if absent:
        words = f"no {', '.join(absent)} here: apt-get install texlive-latex-recommended poppler-utils"
        if os.environ.get("SPURBENCH_REQUIRE_LATEX") == "1":
            pytest.fail(words)
        pytest.skip(words)


@pytest.fixture
def folder(tools: None, tmp_path: Path) -> Path:
    return tmp_path


def latex(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["leaderboard", *arguments, "--format", "latex"]) == 0
    return capsys.readouterr().out


def printed(folder: Path, body: str, preamble: str = PREAMBLE) -> str:
    """Text on the page of a document with this body; LaTeX must have nothing to say against it."""
    source = folder / "table.tex"
    source.write_text(
        f"\\documentclass{{article}}\n{preamble}\n\\pagestyle{{empty}}\n\\begin{{document}}\n"
        f"\\noindent {body}\n\\end{{document}}\n"
    )
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", source.name]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, timeout=120, check=False)
    log = (folder / "table.log").read_text(errors="replace")
    assert done.returncode == 0, log[-3000:]
    faults = [line for line in log.splitlines() if re.match("!|Overfull|Underfull|Missing character|LaTeX Warn", line)]
    assert not faults
    text = ["pdftotext", "-layout", "-enc", "UTF-8", "table.pdf", "-"]
    page = subprocess.run(text, cwd=folder, capture_output=True, text=True, check=True).stdout
    return unicodedata.normalize("NFC", page)  # the default fonts put accents over letters


def numbers(text: str) -> list[str]:
    """Means and deviations of a table, in its order."""
    plain = re.sub(r"\\mathbf\{(.*?)\}", r"\1", text)
    return re.findall(r"\d+\.\d ?(?:±|\\pm) ?\d+\.\d", plain.replace("$", ""))


def test_the_shipped_methods_compile_and_every_number_is_on_the_page(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = latex(capsys, METHODS)
    assert len(numbers(table)) == 2 * 48
    page = printed(folder, SHRUNK % table)
    assert numbers(page) == [number.replace(r"\pm", "±") for number in numbers(table)]
    for name in ("AIM[1,100%]", "SUBG passes=epochs", "CB-LLR", "minibirds95, minibirds"):
        assert name in page


def test_a_table_of_one_rule_is_no_wider_than_a_page(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = latex(capsys, METHODS).splitlines()
    second = [number for number, line in enumerate(lines) if line == r"\midrule"][1]
    assert "CB-LLR" in printed(folder, "\n".join(lines[:second] + lines[-2:]))


def test_several_rules_side_by_side_compile(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = latex(capsys, METHODS, "--select", "val_wga,val_accuracy,last")
    page = printed(folder, FITTED % table)
    assert numbers(page) == [number.replace(r"\pm", "±") for number in numbers(table)]
    assert "accuracy val accuracy" in re.sub("[ _]+", " ", page)


def test_what_is_clearly_best_is_bold(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(4):
        write_run(folder / "r", f"a{seed}", seed=seed, label="A", wga=0.9 + 0.01 * seed)
        write_run(folder / "r", f"b{seed}", seed=seed, label="B", wga=0.7 + 0.011 * seed)
    table = latex(capsys, str(folder / "r"))
    assert r"\mathbf{91.5} \pm 1.3" in table
    assert "91.5 ± 1.3" in printed(folder, table)


@pytest.mark.parametrize(
    "name",
    [
        r"a % & # $ { } \ < > | z",
        "Hüpfer ßæøÅéñ",
        "[2em] of",
        "* starred",
        "*",
        r"\\ \hline \input{/etc/passwd} $x$ %",
        "two\nlines\x07\u2028and",
    ],
)
def test_names_are_printed_as_they_are(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    write_run(folder / "r", "a", label=name, dataset=name)
    page = printed(folder, latex(capsys, str(folder / "r")))
    plain = "".join(letter for letter in name if letter.isprintable()).replace(" ", "")  # pdftotext guesses at spaces
    (row,) = [line for line in page.splitlines() if "80.0" in line]
    assert row.replace(" ", "") == f"{plain}80.093.51"
    assert f"{plain},net" in "".join(page.split())


def test_marks_that_fonts_draw_in_their_own_way_compile(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(folder / "r", "a", label="_x_ ~x~ ^x^ ± \"x\" 'x' `x` -- ... x", dataset="_", backbone="~")
    (row,) = [line for line in printed(folder, latex(capsys, str(folder / "r"))).splitlines() if "80.0" in line]
    assert row.count("x") == 7


def test_letters_in_two_parts_are_put_together(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As some file systems write umlauts."""
    write_run(folder / "r", "a", label=unicodedata.normalize("NFD", "Vögel é"))
    assert "Vögel é " in printed(folder, latex(capsys, str(folder / "r")))


@pytest.mark.parametrize("name", ["x" * 10_240, "long _%& " * 1200], ids=["one word", "words"])
def test_very_long_names_are_cut_so_that_the_table_can_be_scaled(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    write_run(folder / "r", "a", label=name + "a", dataset=name)
    write_run(folder / "r", "b", label=name + "b", dataset=name, wga=0.7)
    page = printed(folder, FITTED % latex(capsys, str(folder / "r")))
    rows = [line for line in page.splitlines() if "93.5" in line or "91.0" in line]
    assert [re.findall(r"\d\d\.\d", row) for row in rows] == [["80.0", "93.5"], ["70.0", "91.0"]]
    assert len({row.split("  ")[0] for row in rows}) == 2, "what was cut still tells them apart"


def test_a_dash_stands_where_there_is_no_number(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(folder / "r", "a", label="A")
    write_run(folder / "r", "b", label="B", selection="oracle_test_wga")
    page = printed(folder, FITTED % latex(capsys, str(folder / "r"), "--select", "val_wga,oracle_test_wga"))
    (row,) = [line for line in page.splitlines() if line.lstrip().startswith("A ")]
    assert re.fullmatch(r" *A +80\.0 +93\.5 +– +– +1", row)


def test_a_table_without_lines_compiles(folder: Path) -> None:
    table = latex_table([escaped("method"), "WGA"], {}, ["a % note\nin two lines \\undefined"])
    assert "WGA" in printed(folder, table)
