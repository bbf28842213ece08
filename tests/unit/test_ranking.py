"""Which lines are ranked together, and when the first is called the best."""

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from records import write_run

from spurbench.fold import fold
from spurbench.leaderboard import best_draws, lines_of
from spurbench.ranking import clearly_best, rankable


def table(results: Path) -> list[dict[str, Any]]:
    return lines_of(fold([results]).rows("val_wga"))


def seeds(results: Path, name: str, count: int = 3, **changes: Any) -> None:
    for seed in range(count):
        write_run(results, f"{name}{seed}", seed=seed, label=name, **changes)


def test_lines_alike_are_all_ranked(tmp_path: Path) -> None:
    seeds(tmp_path, "A")
    seeds(tmp_path, "B", options={"lr": 1})
    seeds(tmp_path, "C", backbone="big", epochs=9)  # another place has its own recipe
    seeds(tmp_path, "D", dataset="cows", dataset_fingerprint="g")
    lines = table(tmp_path)
    assert rankable(lines) == (lines, [])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dataset_fingerprint": "other"}, "other data: fingerprint other instead of f"),
        ({"epochs": 30}, "another recipe: train.epochs=30 instead of 3"),
    ],
)
def test_the_fewer_runs_are_left_out_and_told(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    seeds(tmp_path, "A")
    seeds(tmp_path, "B")
    seeds(tmp_path, "C", **changes)
    lines, left = rankable(table(tmp_path))
    assert [line["label"] for line in lines] == ["A", "B"]
    assert [(one.label, one.runs, one.reason) for one in left] == [("C", 3, reason)]


def test_of_a_tie_the_newer_one_stays(tmp_path: Path) -> None:
    seeds(tmp_path, "A", finished_at="2026-01-01")
    seeds(tmp_path, "B", finished_at="2026-01-02", epochs=9)
    assert [line["label"] for line in rankable(table(tmp_path))[0]] == ["B"]


def test_of_a_method_only_the_newest_version_stays(tmp_path: Path) -> None:
    seeds(tmp_path, "AIM[1,25%]", 6, method_version=1, options={"v": 1})
    seeds(tmp_path, "AIM[1,35%]", 3, method_version=2)
    seeds(tmp_path, "ERM", 3, method_version=1)
    lines, left = rankable(table(tmp_path))
    assert sorted(line["label"] for line in lines) == ["AIM[1,35%]", "ERM"]
    assert [one.reason for one in left] == ["version 1 of aim instead of 2"]


def test_lines_chosen_from_more_draws_are_not_ranked_with_others(tmp_path: Path) -> None:
    seeds(tmp_path, "A")
    seeds(tmp_path, "B")
    for draw in range(4):
        for seed in range(3):
            write_run(tmp_path, f"c{draw}{seed}", seed=seed, label="C", options={"lr": draw})
    lines, left = rankable(best_draws(table(tmp_path), "val_wga"))
    assert [line["label"] for line in lines] == ["A", "B"]
    assert [one.reason for one in left] == ["another tuning budget: best of 4 draws instead of 1"]


def test_the_order_of_lines_does_not_matter(tmp_path: Path) -> None:
    for number, changes in enumerate(
        itertools.product([{}, {"dataset_fingerprint": "g"}], [{}, {"epochs": 9}], [{}, {"method_version": 2}])
    ):
        write_run(tmp_path, f"r{number}", label="ERM", **{k: v for change in changes for k, v in change.items()})
    lines = table(tmp_path)
    expected = rankable(lines)[0]
    for seed in range(5):
        mixed = random.Random(seed).sample(lines, len(lines))
        kept, left = rankable(mixed)
        assert {line["setting"] for line in kept} == {line["setting"] for line in expected}
        assert len(kept) + len(left) == len(lines)


# --- clearly the best ---


def line(label: str, values: list[float], first: int = 0) -> dict[str, Any]:
    return {
        "label": label,
        "seeds": list(range(first, first + len(values))),
        "worst_group_accuracy_values": values,
        "worst_group_accuracy_mean": sum(values) / len(values) if values else None,
    }


def test_best_where_paired_differences_are_sure() -> None:
    seeds_alike = [0.5, 0.6, 0.7, 0.8, 0.9]  # seeds differ widely, differences hardly
    block = [line("low", seeds_alike), line("high", [value + 0.02 + 0.001 * i for i, value in enumerate(seeds_alike)])]
    assert clearly_best(block)[0] == 1
    assert "high is above all others" in clearly_best(block)[1]


def test_not_where_they_are_not() -> None:
    best, why = clearly_best([line("a", [0.9, 0.8, 0.95, 0.7]), line("b", [0.85, 0.88, 0.9, 0.71])])
    assert best is None
    assert "a is not clearly above b" in why


@pytest.mark.parametrize(
    "other", [line("b", [0.1, 0.11, 0.12]), line("b", [0.1, 0.11, 0.12, 0.1], first=2), line("b", [0.1])]
)
def test_too_few_seeds_in_common_are_no_proof(other: dict[str, Any]) -> None:
    best, why = clearly_best([line("a", [0.9, 0.91, 0.92, 0.93]), other])
    assert best is None
    assert "seeds in common, 4 are needed" in why


def test_alone_or_without_numbers_nothing_is_best() -> None:
    assert clearly_best([])[0] is None
    assert clearly_best([line("a", [0.9] * 5)])[0] is None
    assert clearly_best([line("a", [0.9] * 5), line("b", [])])[0] is None


@given(
    st.lists(
        st.lists(st.floats(0, 1, allow_subnormal=False), min_size=5, max_size=5, unique=True), min_size=2, max_size=5
    )
)
def test_as_scipys_paired_t_tests_with_holms_step_down(values: list[list[float]]) -> None:
    block = [line(str(number), column) for number, column in enumerate(values)]
    best = max(range(len(values)), key=lambda number: block[number]["worst_group_accuracy_mean"])
    differences = [
        [ours - theirs for ours, theirs in zip(values[best], column, strict=True)]
        for number, column in enumerate(values)
        if number != best
    ]
    if any(max(column) - min(column) < 1e-6 for column in differences):
        return  # scipy warns of what is no spread but rounding
    p = sorted(scipy.stats.ttest_1samp(column, 0).pvalue for column in differences)
    steps = [(len(p) - rank) * value for rank, value in enumerate(p)]
    if any(abs(step - 0.05) < 1e-6 for step in steps):
        return
    assert (clearly_best(block)[0] is not None) == all(step < 0.05 for step in steps)
