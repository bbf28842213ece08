"""The report in a real headless Chromium: what people click and type changes what they see, and data stays data.

Skipped without the packages chromium and plotly; ``$SPURBENCH_REQUIRE_CHROMIUM`` makes that a failure.
"""

import contextlib
import importlib.util
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
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
        absent = "plotly is not installed: pip install -e '.[plots]' -c constraints.txt"
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


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with published rows, two draws of one method, another recipe, a conflict, and a damaged record."""
    folder = tmp_path_factory.mktemp("mixed")
    where: dict[str, Any] = {"dataset": "waterbirds95", "backbone": "resnet50"}
    for seed in range(3):
        write_run(folder, f"jtt{seed}", seed=seed, wga=0.8 + 0.01 * seed, label="JTT", options={"power": 1}, **where)
        write_run(folder, f"lff{seed}", seed=seed, wga=0.7, label="LfF", options={"power": 1}, **where)
        write_run(folder, f"twin{seed}", seed=seed, wga=0.6, label="LfF", options={"power": 2}, val_wga=0.1, **where)
    write_run(folder, "long", wga=0.99, label="ERM", epochs=30, **where)
    (write_run(folder, "half", **where) / "result.json").write_text("{")
    write_run(folder / "again", "jtt0", wga=0.1, label="JTT", options={"power": 1}, **where)
    out = folder / "report.html"
    assert main(["report", str(folder / "again"), str(folder), "-o", str(out)]) == 0
    return out


def test_published_rows_stand_beside_measured_ones_marked_and_can_be_switched_off(page: Page, mixed: Path) -> None:
    page.open(mixed)
    wga = column(page, "WGA")
    measured = [row for row in page.rows() if "(published)" not in row[0]]
    beside = [row for row in page.rows() if "(published)" in row[0]]
    assert len(measured) == 3
    assert page.rows() == [*measured, *beside], "below the measured ones until one sorts"
    assert ["JTT (published)", "86.7"] in [[row[0], row[wga]] for row in beside]
    assert all(row[column(page, "source")] != "measured" for row in beside)
    assert page.run("document.querySelectorAll('#board tr.published').length") == len(beside)
    page.click(header(page, "WGA") + " button")
    assert [row[0] for row in page.rows()].index("JTT") > 0, "sorted among them"
    assert names(page)[0].endswith("(published)")
    source = f"document.querySelector({json.dumps(header(page, 'source'))}).hidden"
    assert page.run(source) is False
    settled(page, "groups", "JTT")
    assert "published" not in page.run("document.querySelector('#plots').textContent")
    page.click("#beside")
    assert page.run("document.querySelectorAll('#board tr.published').length") == 0
    assert names(page) == ["JTT", "LfF power=1", "LfF power=2"]
    assert page.run(source) is True
    assert page.run("location.hash") == "#beside=hidden&sort=WGA"
    assert page.complaints == []


def test_what_is_not_ranked_is_counted_named_and_shown_on_demand(page: Page, mixed: Path) -> None:
    page.open(mixed, "#beside=hidden")
    assert names(page) == ["JTT", "LfF power=1", "LfF power=2"]
    assert page.run("document.querySelector('#count').textContent") == "3 of 4 settings"
    assert page.run("document.querySelector('#apart-lines summary').textContent") == (
        "1 settings (1 runs) are not ranked with the others"
    )
    assert page.run("document.querySelector('#apart-lines li').textContent") == (
        "ERM on waterbirds95, resnet50, 1 runs: another recipe: train.epochs=30 instead of 3"
    )
    page.click("#apart")
    assert names(page) == ["JTT", "LfF power=1", "LfF power=2", "ERM (not ranked)"], "last, though its WGA is highest"
    page.wait("document.querySelectorAll('#plot-pareto ~ details tbody tr').length === 4")
    best = page.run(
        "[...document.querySelector('#plot-pareto').parentElement.querySelectorAll('tbody tr')]"
        ".map(row => [row.cells[0].textContent, row.cells[5].textContent])"
    )
    assert dict(best)["JTT"] == "yes"
    assert dict(best)["ERM"] == "no", "the front is of what is ranked"
    page.choose("#draws", "best")
    draws = column(page, "draws")
    assert [(row[0], row[draws]) for row in page.rows()] == [
        ("LfF power=1", "2"), ("JTT (not ranked)", "1"), ("ERM (not ranked)", "1"),
    ]  # fmt: skip
    assert page.complaints == []


def test_conflicts_and_damaged_records_are_named_on_the_page(page: Page, mixed: Path) -> None:
    page.open(mixed, "#beside=hidden")
    told = page.run("[...document.querySelectorAll('#problems li')].map(item => item.textContent)")
    assert any("conflict: run jtt0 (val_wga)" in text and "worst_group_accuracy 0.1 in" in text for text in told), told
    assert any("half/result.json: it is no JSON" in text for text in told), told
    assert page.run("document.querySelector('#summary').textContent").endswith(f"{len(told)} notes below the table")
    assert page.rows()[0][column(page, "WGA")] == "81.0 ± 1.0", "the later source counts"
    assert page.rows()[0][column(page, "WGA 95 %")] == "[78.5, 83.5]"


def test_of_very_many_groups_the_worst_are_shown_and_the_rest_counted(page: Page, tmp_path: Path) -> None:
    many = tuple(f"class {number}" for number in range(200))
    for label, wga in (("A", 0.5), ("B", 0.6)):
        write_run(tmp_path, label, label=label, wga=wga, group_names=many)
    out = tmp_path / "report.html"
    assert main(["report", str(tmp_path), "-o", str(out)]) == 0
    page.open(out)
    figure = "document.querySelector('#plot-groups').parentElement"
    assert page.run(f"{figure}.querySelector('.note').textContent") == (
        "The worst 20 of 200 groups, by their mean over these settings; the other 180 are at 98.0 percent or above on "
        "average."
    )
    titles = page.run(f"[...{figure}.querySelectorAll('thead th')].map(cell => cell.textContent)")
    assert titles[:2] == ["method", "class 0"]
    assert len(titles) == 21
    assert page.run(f"{figure}.querySelectorAll('.xtick text').length") == 20
    assert page.run("document.documentElement.scrollWidth") <= 1280
    assert page.complaints == []


def test_mask_density_can_be_seen_per_group(page: Page, tmp_path: Path) -> None:
    for seed in range(2):
        folder = write_run(tmp_path, f"aim{seed}", seed=seed, label="AIM[2,25%]", stages=2, tau=0.25)
        rows = pq.read_table(folder / "epochs.parquet").to_pylist()
        for row in rows:
            row["val_density_by_group"] = [[0.1 + 0.1 * seed, 0.3, None, 0.4], [0.5, 0.6, None, 0.7]]
        pq.write_table(pa.Table.from_pylist(rows), folder / "epochs.parquet")
    out = tmp_path / "report.html"
    assert main(["report", str(tmp_path), "-o", str(out)]) == 0
    page.open(out)
    page.choose("#masks", "group")
    settled(page, "density", "land/land stage 0")
    found = page.rows("#plot-density ~ details table")
    assert found[0] == ["land/land stage 0", "1", "train", "15.0", "2"]
    assert {row[0] for row in found} == {
        f"{group} stage {stage}" for group in ("land/land", "land/water", "water/water") for stage in (0, 1)
    }
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
    page.run("document.querySelectorAll('details').forEach(list => { list.open = true })")
    tree = page.ask("Accessibility.getFullAXTree")["nodes"]
    unnamed = [
        node
        for node in tree
        if not node["ignored"] and node["role"]["value"] in ("button", "combobox", "searchbox", "table", "img")
        and not node.get("name", {}).get("value")
    ]  # fmt: skip
    assert not [node["role"]["value"] for node in unnamed]


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


def test_the_table_fits_on_paper_with_published_rows_too(page: Page, mixed: Path) -> None:
    page.ask("Emulation.setEmulatedMedia", media="print")
    page.ask("Emulation.setDeviceMetricsOverride", width=1032, height=900, deviceScaleFactor=1, mobile=False)  # A4
    try:
        page.open(mixed)
        assert page.run("document.querySelector('#board').offsetWidth") <= 1032
    finally:
        page.ask("Emulation.setEmulatedMedia", media="")
        page.ask("Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1, mobile=False)


def test_hostile_names_change_nothing(page: Page, tmp_path: Path) -> None:
    for number, evil in enumerate(HOSTILE):
        write_run(
            tmp_path, f"run{number}", label=evil, dataset="birds", access=evil, epg_source=evil, stages=1, tau=evil,
            group_names=(evil, f"{evil}2"), options={evil: evil}, wga=0.9 - 0.05 * number,
        )  # fmt: skip
        write_run(tmp_path, f"twin{number}", label=evil, dataset=evil, backbone=evil, selection=evil)
    (write_run(tmp_path, "<img src=x onerror=alert(4)>") / "result.json").write_text("")
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


@contextlib.contextmanager
def width(page: Page, pixels: int, media: str = "") -> Iterator[None]:
    page.ask("Emulation.setEmulatedMedia", media=media)
    page.ask("Emulation.setDeviceMetricsOverride", width=pixels, height=900, deviceScaleFactor=1, mobile=False)
    try:
        yield
    finally:
        page.ask("Emulation.setEmulatedMedia", media="")
        page.ask("Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1, mobile=False)


def boxes(page: Page, selector: str) -> list[dict[str, float]]:
    found: list[dict[str, float]] = page.run(
        f"[...document.querySelectorAll({json.dumps(selector)})].map(element => element.getBoundingClientRect())"
        ".map(({left, right, top, bottom}) => ({left, right, top, bottom}))"
    )
    return found


def covered(found: list[dict[str, float]]) -> int:
    """Pairs of boxes of which one lies on the other."""
    return sum(
        a["left"] < b["right"] and b["left"] < a["right"] and a["top"] < b["bottom"] and b["top"] < a["bottom"]
        for a, b in itertools.combinations(found, 2)
    )


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six maps of tau and stages, labels that agree but for their last words, and a parameter list as a name."""
    folder = tmp_path_factory.mktemp("crowded")
    for dataset in ("minibirds100", "minibirds95", "minibirds50"):
        for backbone in ("minibirds_resnet", "minibirds_vit"):
            for stages, tau in ((1, 0.25), (1, 0.5), (2, 0.25), (2, 0.5), (3, 0.25)):
                write_run(
                    folder, f"{dataset}{backbone}{stages}{tau}", label=f"AIM[{stages},{tau:.0%}]", stages=stages,
                    tau=tau, wga=0.9, overhead=0.01 * stages, dataset=dataset, backbone=backbone,
                    access="train_groups+val_groups",
                )  # fmt: skip
    for power in (1, 2):
        where = {"dataset": "minibirds100", "backbone": "minibirds_vit"}
        write_run(folder, f"lff{power}", label="LfF", options={"augmentation": 0.125, "power": power}, **where)
        write_run(folder, f"jtt{power}", label="JTT", options={f"temperature_of_attention{power}": 0.07}, **where)
    out = folder / "report.html"
    assert main(["report", str(folder), "-o", str(out)]) == 0
    return out


@pytest.mark.parametrize("pixels", [1280, 400])
def test_nothing_covers_another_and_all_is_in_the_window(page: Page, crowded: Path, pixels: int) -> None:
    with width(page, pixels):
        page.open(crowded, "#dataset=*")
        maps = boxes(page, "#plot-heat .heatmaplayer image")
        assert (len(maps), covered(maps)) == (6, 0)
        for labels in (
            "#plot-heat .annotation-text", "#plot-heat .xtick text", "#plot-heat .ytick text",
            "#plot-heat .scatterlayer text", "#plot-groups .ytick text", "#plot-pareto .scatterlayer text",
        ):  # fmt: skip
            found = boxes(page, labels)
            assert found, labels
            assert covered([box for box in found if box["right"] > box["left"]]) == 0, labels
            assert min(box["left"] for box in found) >= 0, labels
            assert max(box["right"] for box in found) <= pixels, labels
        ticks = page.run("[...document.querySelectorAll('#plot-groups .ytick text')].map(tick => tick.textContent)")
        assert len({tick for tick in ticks if "AIM[1,25%]" in tick}) >= (6 if pixels == 1280 else 2), ticks
        bars = boxes(page, "#plot-groups .plot .barlayer, #plot-groups .bglayer .bg")
        assert max(box["right"] - box["left"] for box in bars) > 0.4 * pixels
        assert page.run("document.documentElement.scrollWidth") <= pixels
    assert page.complaints == []


def test_plots_follow_the_width_of_the_window(page: Page, crowded: Path) -> None:
    page.open(crowded, "#dataset=*")
    ticks = "[...document.querySelectorAll('#plot-groups .ytick text')].map(tick => tick.textContent.length)"
    page.wait(f"Math.max(...{ticks}) > 30")
    with width(page, 400):
        page.wait(f"Math.max(...{ticks}) < 25")
    assert page.complaints == []


def test_on_a_telephone_names_leave_room_for_numbers_and_the_choices_scroll_away(page: Page, crowded: Path) -> None:
    with width(page, 400):
        page.open(crowded, "#dataset=*&method=JTT")
        (name, *_) = boxes(page, "#board tbody th")
        assert name["right"] - name["left"] < 170
        text = page.run("document.querySelector('#board tbody th').innerText")
        assert text.replace("\n", "") == "JTT temperature_of_attention1=(absent), temperature_of_attention2=0.07"
        box = "document.querySelector('#board tbody th span')"
        assert page.run(f"{box}.scrollWidth <= {box}.clientWidth"), "all of it is there"
        page.run("document.querySelector('#plots').scrollIntoView()")
        assert boxes(page, "#controls")[0]["bottom"] < 0


def test_the_skip_link_leads_to_the_table_and_keeps_the_view(page: Page, report: Path) -> None:
    page.open(report, "#rule=last&method=AIM")
    page.key("Tab", 9)
    assert page.run("document.activeElement.className") == "skip"
    page.key("Enter", 13, "\r")
    assert page.run("document.activeElement.contains(document.querySelector('#board'))")
    assert page.run("location.hash") == "#rule=last&method=AIM"
    assert len(names(page)) == 3


def test_what_has_the_focus_is_not_behind_the_choices(page: Page, report: Path) -> None:
    page.open(report)
    page.run("document.querySelector('#galleries').scrollIntoView()")
    page.run("document.querySelector('#curve').focus({preventScroll: true})")
    for _ in range(12):
        for kind in ("rawKeyDown", "keyUp"):
            page.ask("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9, modifiers=8)
        behind = page.run(
            "(here => document.querySelector('main #controls').contains(here) ? 0 : "
            "document.querySelector('#controls').getBoundingClientRect().bottom - here.getBoundingClientRect().top)"
            "(document.activeElement)"
        )
        assert behind <= 0, page.run("document.activeElement.outerHTML.slice(0, 200)")


def test_an_empty_section_says_what_it_would_take(page: Page, tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path, f"a{seed}", seed=seed)
    table = tmp_path / "table.parquet"
    assert main(["leaderboard", str(tmp_path), "--output", str(table)]) == 0
    out = tmp_path / "report.html"
    assert main(["report", str(table), "-o", str(out)]) == 0
    page.open(out)
    said = page.run("[...document.querySelectorAll('.none')].filter(p => !p.hidden).map(p => p.textContent)")
    assert said == [
        "Nothing to draw: it takes settings in the table that differ in nothing but τ and the number of stages.",
        "Nothing to draw: it takes methods with a mask, and folders of runs; a Parquet table has no epochs.",
        "Nothing to draw: it takes folders of runs; a Parquet table has no epochs.",
        "Nothing to draw: it takes methods with a mask that was tested by erasure.",
    ]


def test_the_page_says_what_its_intervals_are_over(page: Page, report: Path, tmp_path: Path) -> None:
    page.open(report)
    assert page.run("document.querySelector('#intervals').textContent") == (
        "WGA 95 %: Student's t over seeds, for these test images."
    )
    out = tmp_path / "images.html"  # without predictions
    assert main(["report", str(report.parent), "--intervals", "images", "-o", str(out)]) == 0
    page.open(out)
    assert page.run("document.querySelector('#intervals').textContent").endswith(
        "Question marks: not all runs have predictions here: over seeds alone."
    )
    marked = [row[0] for row in page.rows() if row[column(page, "WGA 95 %")].endswith("?")]
    assert marked == ["ERM"], "the others have no spread"
    marked = "[...document.querySelectorAll('#board td')].find(cell => cell.textContent.endsWith('?')).title"
    assert page.run(marked) == "not all runs have predictions here: over seeds alone"


def test_on_paper_every_page_has_the_columns_names_and_no_cell_is_cut(
    page: Page, crowded: Path, tmp_path: Path
) -> None:
    with width(page, 1032, media="print"):
        page.open(crowded, "#dataset=*")
        cut = page.run(
            "[...document.querySelectorAll('#board td, #board th')].filter(cell => !cell.hidden && "
            "cell.scrollWidth > cell.clientWidth + 1).map(cell => cell.textContent)"
        )
        assert cut == []
    page.open(crowded, "#dataset=*")
    if shutil.which("pdftotext") is None:
        pytest.skip("there is no pdftotext: apt-get install poppler-utils")
    (tmp_path / "page.pdf").write_bytes(page.pdf())
    text = subprocess.run(
        ["pdftotext", "-layout", "page.pdf", "-"], cwd=tmp_path, capture_output=True, text=True
    ).stdout
    with_rows = [sheet for sheet in text.split("\f") if "train_groups+val" in sheet]
    assert len(with_rows) > 1
    assert all("seeds" in sheet and "GMACs" in sheet for sheet in with_rows)
    for title in ("Accuracy per group", "Target density", "Mask density through training", "Training curves"):
        (sheet,) = [sheet for sheet in text.split("\f") if title in sheet]
        assert sheet.rstrip().splitlines()[-1].strip() not in ("", title), "a title is not the last of its page"


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
    (epoch,) = pq.read_table(folder / "epochs.parquet").to_pylist()
    ((*by_group,),) = epoch["val_density_by_group"]
    whole = sum(n * density for n, density in zip(epoch["val_n"], by_group, strict=True) if n) / sum(epoch["val_n"])
    assert whole == pytest.approx(epoch["val_density"][0])
    assert [density is None for density in by_group] == [n == 0 for n in epoch["val_n"]]
    page.choose("#masks", "group")
    settled(page, "density", f"{100 * next(density for density in by_group if density is not None):.1f}")
    seen = "[...document.querySelectorAll('#galleries figure')].map((figure) => !figure.hidden)"
    assert page.run(seen) == [True]
    assert main(["run", "--method", "erm", "--dataset", "toys_shuffled_test_labels", *where, *options]) == 0
    assert main(["report", "-o", str(out), *where]) == 0
    page.open(out)
    assert page.run(seen) == [True, False], "of the dataset that is chosen"
    page.choose("#dataset", "toys_shuffled_test_labels")
    assert page.run(seen) == [False, True]
    page.choose("#dataset", "*")
    assert page.run(seen) == [True, True]
    assert page.run("document.querySelector('#no-gallery').hidden")
    assert main(["report", "-o", str(out), "--gallery", "0", *where]) == 0
    assert "0 galleries" in capsys.readouterr().out
    page.open(out)
    assert "they need the weights of a run" in page.run("document.querySelector('#no-gallery').textContent")
