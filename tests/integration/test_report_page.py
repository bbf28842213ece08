"""The report in a real headless Chromium: what people click and type changes what they see, and data stays data.

Skipped without the packages chromium and plotly; ``$SPURBENCH_REQUIRE_CHROMIUM`` makes that a failure.
"""

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Page, browser, chromium
from records import write_run

from spurbench.cli import main

TEN_KB = "long " * 2000
HOSTILE = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(2)>",
    "\"quoted\" 'twice' `${alert(3)}`",
    "<b>bold</b> %{x} $x^2$ &lt;",
    "<!-- <script>",
    TEN_KB,
)
PLOTS = ("pareto", "groups", "heat", "density", "curves", "erasure")


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    absent = None
    if importlib.util.find_spec("plotly") is None:
        absent = "plotly is not installed: pip install 'spurbench[plots]'"
    program = chromium()
    if program is None:
        absent = "there is no chromium: apt-get install chromium fonts-dejavu-core"
    if absent or program is None:
        if os.environ.get("SPURBENCH_REQUIRE_CHROMIUM") == "1":
            pytest.fail(absent or "")
        pytest.skip(absent or "")
    with browser(program) as tab:
        tab.ask("Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1, mobile=False)
        yield tab


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ERM, AIM at some taus and stages on two datasets and backbones; the rule changes who is best."""
    folder = tmp_path_factory.mktemp("results")
    for seed in range(2):
        write_run(folder, f"erm{seed}", seed=seed, wga=0.7 + 0.02 * seed)
        write_run(folder, f"dfr{seed}", seed=seed, wga=0.8, label="DFR", epg=None, epg_source=None)
        write_run(folder, f"deep{seed}", seed=seed, wga=0.75, backbone="deep_net", overhead=0.5)
        write_run(folder, f"cows{seed}", seed=seed, wga=0.5, dataset="cows", label="GroupDRO")
        for stages, tau in ((1, 0.25), (1, 0.5), (2, 0.25)):
            write_run(
                folder, f"aim{stages}{tau}{seed}", seed=seed, wga=0.9 + 0.02 * stages + 0.01 * tau,
                label=f"AIM[{stages},{tau:.0%}]", stages=stages, tau=tau, overhead=0.01 * stages,
            )  # fmt: skip
    out = folder / "report.html"
    assert main(["report", str(folder), "-o", str(out)]) == 0
    return out


def names(page: Page) -> list[str]:
    return [row[0] for row in page.rows()]


def settled(page: Page, plot: str, what: str) -> None:
    """Until a plot's table has a text in its first row; plots follow the table after a pause."""
    page.wait(
        f"document.querySelector('#plot-{plot}').parentElement.querySelector('tbody tr')"
        f"?.textContent.includes({json.dumps(what)})"
    )


def column(page: Page, title: str) -> int:
    titles: list[str] = page.run("[...document.querySelectorAll('#board thead th')].map(cell => cell.textContent)")
    return titles.index(title)


def header(page: Page, title: str) -> str:
    return f"#board thead th:nth-child({column(page, title) + 1})"


def test_it_opens_without_a_network_and_without_a_complaint(page: Page, report: Path) -> None:
    page.open(report)
    assert names(page) == ["ERM", "AIM[2,25%]", "AIM[1,50%]", "AIM[1,25%]", "DFR", "ERM"]
    assert page.run("document.querySelector('#summary').textContent") == "14 runs of 7 settings"
    for plot in PLOTS:
        drawn = page.run(f"document.querySelectorAll('#plot-{plot} .main-svg').length")
        assert drawn > 0, f"{plot} is not drawn"
        rows = page.run(f"document.querySelector('#plot-{plot}').parentElement.querySelectorAll('tbody tr').length")
        assert rows > 0, f"{plot} has no numbers"
    assert page.complaints == []
    assert [url for url in page.requests if not url.startswith(("file:", "data:", "blob:"))] == []


def test_a_columns_button_sorts_both_ways_and_says_so(page: Page, report: Path) -> None:
    page.open(report)
    button = header(page, "EPG") + " button"
    page.click(button)
    order = names(page)
    assert order[0] == "AIM[2,25%]"
    assert order[-1] == "DFR", "what is unknown comes last"
    assert page.run(f"document.querySelector({json.dumps(header(page, 'EPG'))}).ariaSort") == "descending"
    settled(page, "groups", "AIM[2,25%]")
    page.click(button)
    assert names(page)[0].startswith("ERM")
    assert names(page)[-1] == "DFR"
    assert page.run(f"document.querySelector({json.dumps(header(page, 'EPG'))}).ariaSort") == "ascending"
    page.click(header(page, "method") + " button")
    assert names(page) == sorted(names(page))
    assert page.run("document.querySelectorAll('#board [aria-sort]').length") == 1
    assert page.complaints == []


def test_filters_change_the_table_and_the_plots(page: Page, report: Path) -> None:
    page.open(report)
    page.click("#method")
    page.type("aim[1,50%]")
    assert names(page) == ["AIM[1,50%]"]
    page.run("document.querySelector('#method').select()")
    page.type("aim, dfr")
    assert names(page) == ["AIM[2,25%]", "AIM[1,50%]", "AIM[1,25%]", "DFR"]
    assert page.run("document.querySelector('#count').textContent") == "4 of 7 settings"
    settled(page, "groups", "AIM[2,25%]")
    page.choose("#dataset", "cows")
    assert names(page) == []
    page.run("(box => { box.value = ''; box.dispatchEvent(new Event('input')) })(document.querySelector('#method'))")
    assert names(page) == ["GroupDRO"]
    settled(page, "groups", "GroupDRO")
    assert page.run("document.querySelector('#plot-erasure').hidden"), "no method with masks is in view"
    page.choose("#dataset", "*")
    page.choose("#backbone", "deep_net")
    assert names(page) == ["ERM"]
    assert page.complaints == []


def test_the_rule_is_chosen_in_the_page(page: Page, report: Path) -> None:
    page.open(report)
    wga = column(page, "WGA")
    assert page.rows()[1][wga] == "94.2 ± 0.0"
    page.choose("#rule", "last")
    assert page.rows()[1][wga] == "84.2 ± 0.0"
    assert page.rows()[1][column(page, "rule")] == "last"
    settled(page, "groups", "65.0")
    assert page.complaints == []


def test_plots_have_switches(page: Page, report: Path) -> None:
    page.open(report)
    settled(page, "heat", "92")
    page.choose("#heat", "stage_density")
    settled(page, "heat", "30.0")
    page.choose("#pareto", "epg")
    page.wait("document.querySelector('#plot-pareto .ytitle').textContent === 'EPG, percent'")
    page.choose("#curve", "train_loss")
    page.wait("document.querySelector('#plot-curves .ytitle').textContent === 'training loss'")
    assert page.complaints == []


def test_a_view_can_be_linked_to(page: Page, report: Path) -> None:
    page.open(report, "#rule=last&sort=WGA&order=ascending&method=AIM&toString=x&dataset=nowhere")
    assert names(page) == ["AIM[1,25%]", "AIM[1,50%]", "AIM[2,25%]"]
    assert page.run("document.querySelector('#rule').value") == "last"
    page.choose("#rule", "val_wga")
    assert page.run("location.hash") == "#method=AIM&sort=WGA&order=ascending"
    page.run("location.hash = '#method=erm'")
    page.wait("document.querySelectorAll('#board tbody tr').length === 2")
    assert page.complaints == []


def test_the_keyboard_is_enough(page: Page, report: Path) -> None:
    page.open(report)
    reached: list[str] = []
    for _ in range(40):
        page.key("Tab", 9)
        reached.append(page.run("document.activeElement.id || document.activeElement.textContent.slice(0, 40)"))
        if reached[-1] == "EPG":
            break
    assert reached[:6] == ["Skip to the leaderboard", "theme", "rule", "dataset", "backbone", "method"]
    assert reached[-1] == "EPG"
    assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid", "one sees where one is"
    page.key("Enter", 13, "\r")
    assert names(page)[0] == "AIM[2,25%]"
    assert page.run("document.activeElement.textContent") == "EPG", "the focus stays"


def test_what_a_screen_reader_needs_is_there(page: Page, report: Path) -> None:
    page.open(report)
    assert page.run("document.documentElement.lang") == "en"
    assert page.run("[...document.querySelectorAll('select, input')].filter(box => !box.labels.length).length") == 0
    assert page.run("document.querySelectorAll('th:not([scope])').length") == 0
    assert page.run("document.querySelectorAll('.plot[role=img][aria-label]').length") == len(PLOTS)
    assert page.run("document.querySelectorAll('img:not([alt])').length") == 0
    identifiers = page.run("[...document.querySelectorAll('[id]')].map(element => element.id).filter(id => id)")
    ours = [name for name in identifiers if not name.startswith(("clip", "topdefs", "defs", "legend"))]
    assert len(ours) == len(set(ours))
    tree = page.ask("Accessibility.getFullAXTree")["nodes"]
    unnamed = [
        node
        for node in tree
        if not node["ignored"] and node["role"]["value"] in ("button", "combobox", "searchbox", "table", "img")
        and not node.get("name", {}).get("value")
    ]  # fmt: skip
    assert not [node["role"]["value"] for node in unnamed if node["role"]["value"] != "table"]


def test_light_and_dark_follow_the_system_and_the_button(page: Page, report: Path) -> None:
    def paper() -> Any:
        return page.run("getComputedStyle(document.body).backgroundColor")

    page.emulate(prefers_color_scheme="dark")
    try:
        page.open(report)
        dark = paper()
        page.click("#theme")
        light = paper()
        assert (light, dark) == ("rgb(255, 255, 255)", "rgb(15, 20, 25)")
        assert page.run("document.querySelector('#theme').textContent") == "Dark colours"
        page.wait("getComputedStyle(document.querySelector('#plot-pareto .ytitle')).fill === 'rgb(27, 31, 36)'")
        page.click("#theme")
        assert paper() == dark
        page.wait("getComputedStyle(document.querySelector('#plot-pareto .ytitle')).fill === 'rgb(230, 237, 243)'")
    finally:
        page.emulate(prefers_color_scheme="light")
    page.open(report)
    assert paper() == light


def test_it_prints_on_white_and_is_as_it_was_afterwards(page: Page, report: Path) -> None:
    page.open(report, "#theme=dark")
    page.run("addEventListener('beforeprint', () => { window.paper = document.documentElement.dataset.theme })")
    assert page.pdf().startswith(b"%PDF")
    assert page.run("window.paper") == "light"
    page.wait("document.documentElement.dataset.theme === 'dark'")
    assert page.complaints == []


def test_hostile_names_change_nothing(page: Page, tmp_path: Path) -> None:
    for number, evil in enumerate(HOSTILE):
        write_run(
            tmp_path, f"run{number}", label=evil, dataset="birds", access=evil, epg_source=evil, stages=1, tau=evil,
            group_names=(evil, f"{evil}2"), options={evil: evil}, wga=0.9 - 0.05 * number,
        )  # fmt: skip
        write_run(tmp_path, f"twin{number}", label=evil, dataset=evil, backbone=evil, selection=evil)
    out = tmp_path / "hostile.html"
    assert main(["report", str(tmp_path), "-o", str(out)]) == 0
    assert out.stat().st_size < 8_000_000
    page.open(out, "#dataset=birds")
    shown = names(page)
    assert len(shown) == len(HOSTILE)
    for text, evil in zip(shown[:-1], HOSTILE[:-1], strict=True):
        assert text.startswith(evil)
    assert len(shown[-1]) < 200
    assert page.run("document.querySelectorAll('script').length") == 3
    assert page.run("document.querySelectorAll('main img, main b, main a[href], main svg a').length") == 0
    ticks = page.run("[...document.querySelectorAll('#plot-groups .ytick text')].map(tick => tick.textContent)")
    assert any(tick.startswith("<script>alert(1)</script>") for tick in ticks), ticks
    assert any(tick.startswith("<b>bold</b> %{x} $x^2$ &lt;") for tick in ticks), ticks
    page.choose("#dataset", "*")
    page.click(header(page, "access") + " button")
    page.wait("document.querySelector('#board [aria-sort]') !== null")
    for rule in page.run("[...document.querySelector('#rule').options].map(option => option.value)"):
        page.choose("#rule", rule)
        assert len(rule) < 200
    page.choose("#rule", "val_wga")
    page.click("#method")
    page.type("<script>")
    assert names(page), "the filter finds it as text"
    width = page.run("document.documentElement.scrollWidth")
    assert width <= 1280, f"the page is {width} px wide"
    assert page.complaints == [], "a script ran or broke"
    assert [url for url in page.requests if not url.startswith(("file:", "data:", "blob:"))] == []


@pytest.mark.slow
def test_a_run_with_weights_gets_a_picture_of_its_failures(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPURBENCH_CACHE", str(tmp_path / "cache"))
    edition = tmp_path / "data" / "toys" / "edition"
    edition.parent.mkdir(parents=True)
    edition.write_text("first")
    where = ["--results", str(tmp_path / "results"), "--plugin", str(Path(__file__).with_name("toys.py"))]
    where += ["--data-root", str(tmp_path / "data"), "--device", "cpu"]
    small = ["input.resize=32", "input.image_size=32", "backbone.weights=none", "train.batch_size=16", "train.epochs=1"]
    options = [text for pair in small for text in ("--set", pair)]
    assert main(["run", "--method", "aim[1,50%]", "--dataset", "toys", *where, *options]) == 0
    out = tmp_path / "report.html"
    assert main(["report", "-o", str(out), *where]) == 0
    assert "1 galleries" in capsys.readouterr().out
    (folder,) = (tmp_path / "results" / "runs").iterdir()
    row = json.loads((folder / "result.json").read_text())["rows"][0]
    wrong = min(8, max(group["n"] - group["correct"] for group in row["groups"] if group["name"] == row["worst_group"]))
    page.open(out)
    assert page.run("document.querySelector('#galleries img').naturalWidth") == 110 + wrong * 132
    words = page.run("document.querySelector('#galleries img').alt")
    assert words.startswith(f"{wrong} test images of the group {row['worst_group']} that AIM[1,50%] seed 0 gets wrong")
    assert page.complaints == []
    assert main(["report", "-o", str(out), "--gallery", "0", *where]) == 0
    assert "0 galleries" in capsys.readouterr().out
