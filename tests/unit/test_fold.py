"""Folding records: equal to reading them all, whatever was kept, changed, damaged or is being written."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from plain_fold import aggregate, collect, write_parquet
from records import write_run

from spurbench.cli import main
from spurbench.fold import Folded, fold
from spurbench.kept import KeptDamaged, fold_folder
from spurbench.leaderboard import lines_of
from spurbench.records import array_of, decoded, table_to_rows
from spurbench.schema import COLUMNS, SCHEMA_VERSION

ALWAYS = 0
"""Keep the rows of folders of any size."""


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for number in range(6):
        write_run(tmp_path / "r", f"run{number}", seed=number % 3, wga=0.5 + 0.05 * number, label="AB"[number // 3])
    return tmp_path / "r"


def table(folded: Folded, rule: str = "val_wga") -> list[dict[str, Any]]:
    return lines_of(folded.rows(rule))


def change(path: Path, **columns: Any) -> None:
    document = json.loads(path.read_text())
    for row in document["rows"]:
        row |= columns
    path.write_text(json.dumps(document))


def home(results: Path) -> Path:
    return results / ".leaderboard"


# --- what is folded ---


@pytest.mark.parametrize("rule", ["val_wga", "last", "val_accuracy"])
def test_the_same_numbers_as_all_records_read_one_by_one(results: Path, rule: str) -> None:
    expected = aggregate(collect([results]).rows, rule)
    assert table(fold([results]), rule) == table(fold([results], ALWAYS), rule) == expected
    assert (expected == []) == (rule == "val_accuracy")


def test_a_method_that_has_only_last_stands_in_under_every_rule_but_oracles(results: Path) -> None:
    path = results / "runs" / "run0" / "result.json"
    document = json.loads(path.read_text())
    document["rows"] = document["rows"][1:]
    path.write_text(json.dumps(document))
    folded = fold([results])
    assert {row["run_id"]: row["selection"] for row in folded.rows("val_wga")}["run0"] == "last"
    assert list(folded.rows("oracle_test_wga")) == []
    assert folded.lacking("val_worst_class") == {("A", "birds", "last, val_wga"): 2, ("B", "birds", "last, val_wga"): 3}
    assert folded.lacking("val_wga") == {}


def test_independent_of_the_order_of_files_and_sources(results: Path, tmp_path: Path) -> None:
    write_parquet(collect([results]).rows, tmp_path / "all.parquet")
    frame = pd.read_parquet(tmp_path / "all.parquet")
    frame.sample(frac=1, random_state=0).to_parquet(tmp_path / "mixed.parquet", index=False)
    parts = [tmp_path / "p0", tmp_path / "p1"]
    runs = sorted((results / "runs").iterdir())
    random.Random(0).shuffle(runs)
    for number, run in enumerate(runs):
        target = parts[number % 2] / "runs" / run.name
        target.mkdir(parents=True)
        (target / "result.json").write_bytes((run / "result.json").read_bytes())
    expected = table(fold([results]))
    assert table(fold([tmp_path / "mixed.parquet"])) == table(fold(parts)) == table(fold(parts[::-1])) == expected


def test_the_parquet_file_is_the_one_that_rows_make(results: Path, tmp_path: Path) -> None:
    write_parquet(collect([results]).rows, tmp_path / "rows.parquet")
    fold([results], ALWAYS).write(tmp_path / "folded.parquet")
    written, expected = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("folded", "rows"))
    assert written.schema.equals(expected.schema)
    order = [("run_id", "ascending"), ("selection", "ascending")]
    assert list(table_to_rows(written.sort_by(order))) == list(table_to_rows(expected.sort_by(order)))
    assert table(fold([tmp_path / "folded.parquet"])) == table(fold([results]))
    assert len(pd.read_parquet(tmp_path / "folded.parquet")) == 12


# --- what is kept ---


def test_only_what_is_new_is_read(results: Path) -> None:
    assert fold([results], ALWAYS).fresh == 6
    assert fold([results], ALWAYS).fresh == 0
    write_run(results, "run9", seed=9)
    assert fold([results], ALWAYS).fresh == 1
    assert table(fold([results], ALWAYS)) == aggregate(collect([results]).rows, "val_wga")


def test_a_fold_after_one_new_run_imports_no_pandas(results: Path) -> None:
    """It takes longer than the fold, and Arrow imports it where it is not avoided."""
    fold([results], ALWAYS)
    write_run(results, "run9", seed=9)
    code = (
        "import sys\nfrom pathlib import Path\nfrom spurbench.fold import fold\n"
        "folded = fold([Path(sys.argv[1])], 0)\n"
        "print(folded.fresh, len(list(folded.rows('val_wga'))), 'pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(results)], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["1", "7", "False"]


def test_small_folders_are_left_as_they_are(results: Path) -> None:
    fold([results])
    assert not home(results).exists()


def rerun(results: Path) -> None:
    write_run(results, "other", seed=0, wga=0.9)
    (results / "runs" / "other" / "result.json").replace(results / "runs" / "run0" / "result.json")
    change_id(results / "runs" / "run0" / "result.json", "run0")


def change_id(path: Path, run: str) -> None:
    text = path.read_text().replace('"other"', f'"{run}"')
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").replace(path)


def same_size(results: Path) -> None:
    path = results / "runs" / "run0" / "result.json"
    before = path.stat()
    path.with_suffix(".new").write_text(
        path.read_text().replace('"worst_group_accuracy": 0.5,', '"worst_group_accuracy": 0.6,')
    )
    os.utime(path.with_suffix(".new"), ns=(before.st_atime_ns, before.st_mtime_ns))
    path.with_suffix(".new").replace(path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def removed(results: Path) -> None:
    (results / "runs" / "run0" / "result.json").unlink()


def failed(results: Path) -> None:
    path = results / "runs" / "run0" / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "status": "failed"}))


def halved(results: Path) -> None:
    path = results / "runs" / "run0" / "result.json"
    path.write_text(path.read_text()[:100])


@pytest.mark.parametrize("event", [rerun, same_size, removed, failed, halved])
def test_what_has_changed_is_seen(results: Path, event: Callable[[Path], None]) -> None:
    before = table(fold([results], ALWAYS))
    event(results)
    after = fold([results], ALWAYS)
    assert table(after) == table(fold([results])) != before
    assert after.failed == fold([results]).failed
    assert after.damaged == fold([results]).damaged


def test_a_record_that_is_mended_is_read_again(results: Path) -> None:
    path = results / "runs" / "run0" / "result.json"
    text = path.read_text()
    path.write_text(text[:50])
    assert list(fold([results], ALWAYS).damaged) == [str(path)]
    assert list(fold([results], ALWAYS).damaged) == [str(path)]  # kept, too
    path.write_text(text)
    assert fold([results], ALWAYS).damaged == {}
    assert table(fold([results], ALWAYS)) == aggregate(collect([results]).rows, "val_wga")


def test_many_small_folds_do_not_leave_many_files(results: Path) -> None:
    for number in range(20):
        write_run(results, f"more{number:02}", seed=number, label="C")
        fold([results], ALWAYS)
    named = pq.read_schema(home(results) / "index.parquet").metadata[b"parts"].split()
    assert len(named) < 8
    for path in home(results).glob("rows-*"):
        os.utime(path, (0, 0))
    write_run(results, "last", seed=99, label="C")
    fold([results], ALWAYS)
    assert len(list(home(results).glob("rows-*"))) <= 8
    assert table(fold([results], ALWAYS)) == aggregate(collect([results]).rows, "val_wga")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[60] ^= 0xFF  # in the first page
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [flip, Path.unlink, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(path.read_bytes()[:99])],
)
@pytest.mark.parametrize("name", ["index.parquet", "rows-*.parquet"])
def test_damage_to_what_was_kept_is_made_good(
    results: Path,
    name: str,
    damage: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fold, "__defaults__", (ALWAYS, 1))
    assert main(["leaderboard", str(results), "--format", "json"]) == 0
    before = capsys.readouterr().out
    for path in home(results).glob(name):
        damage(path)
    assert main(["leaderboard", str(results), "--format", "json"]) == 0
    assert capsys.readouterr().out == before
    assert main(["leaderboard", str(results), "--format", "json"]) == 0
    assert capsys.readouterr() == (before, "")


def test_damaged_rows_are_told(results: Path) -> None:
    fold([results], ALWAYS)
    (path,) = home(results).glob("rows-*")
    flip(path)
    with pytest.raises(KeptDamaged, match="kept rows of"):
        list(fold([results], ALWAYS).rows("val_wga"))


def test_another_version_reads_everything_again(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fold([results], ALWAYS)
    monkeypatch.setattr("spurbench.kept._FORMAT", "2")
    assert fold([results], ALWAYS).fresh == 6


def test_a_folder_that_cannot_be_written_is_folded(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert table(fold([results], ALWAYS)) == aggregate(collect([results]).rows, "val_wga")


def test_several_processes_fold_while_records_are_written(tmp_path: Path) -> None:
    """Every fold sees whole records, at least those that were there when it began; the last sees all."""
    results = tmp_path / "r"
    write_run(results, "first")
    code = (
        "import sys, json\nfrom pathlib import Path\nfrom spurbench.fold import fold\n"
        "results, last = Path(sys.argv[1]), 0\n"
        "for _ in range(6):\n"
        "    there = len(list(results.glob('runs/*/result.json')))\n"
        "    folded = fold([results], 0)\n"
        "    rows = list(folded.rows('val_wga'))\n"
        "    assert folded.damaged == {} and folded.conflicts == [], (folded.damaged, folded.conflicts)\n"
        "    assert len(rows) >= there and len({row['run_id'] for row in rows}) == len(rows)\n"
    )
    others = [subprocess.Popen([sys.executable, "-c", code, str(results)]) for _ in range(2)]
    number = 0
    while any(other.poll() is None for other in others):
        number += 1
        target = results / "runs" / f"run{number:04}"
        write_run(tmp_path / "made", target.name, seed=number)
        target.mkdir()
        (tmp_path / "made" / "runs" / target.name / "result.json").replace(target / "result.json")
        fold([results], ALWAYS)
    assert [other.returncode for other in others] == [0, 0]
    assert table(fold([results], ALWAYS)) == aggregate(collect([results]).rows, "val_wga")


def test_many_records_are_read_by_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (write_run(tmp_path / "r", "run0") / "result.json").read_text()
    for number in range(40):
        target = tmp_path / "r" / "runs" / f"x{number}"
        target.mkdir()
        (target / "result.json").write_text(text.replace('"run0"', f'"x{number}"'))
    alone = fold_folder(tmp_path / "r")
    monkeypatch.setattr("spurbench.kept._ALONE", 1)
    monkeypatch.setattr("spurbench.kept._CHUNK", 20)
    together = fold_folder(tmp_path / "r", workers=2)
    assert pa.concat_tables(together.parts).equals(pa.concat_tables(alone.parts))
    assert together.fresh == 41


# --- values as columns ---


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["a", None, "", "é"], pa.string()),
        ([None, None], pa.string()),
        ([], pa.string()),
        ([2**63 - 1, None, -(2**63)], pa.int64()),
        ([2**64 - 1, 0], pa.uint64()),
        ([0.1, 3, None, -0.0], pa.float64()),
        ([True, None, False] * 7, pa.bool_()),
    ],
)
def test_values_become_the_column_that_arrow_makes_of_them(values: list[Any], kind: pa.DataType) -> None:
    made = array_of(values, kind)
    made.validate(full=True)
    assert made.equals(pa.array(values, kind))
    assert made.to_pylist() == values


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["a", 1], pa.string()),
        (["\ud83d"], pa.string()),
        ([1.0], pa.int64()),
        ([True], pa.int64()),
        ([2**63], pa.int64()),
        (["1"], pa.float64()),
        ([True], pa.float64()),
        ([10**400], pa.float64()),
        ([1], pa.bool_()),
    ],
)
def test_values_that_a_column_cannot_hold_are_refused(values: list[Any], kind: pa.DataType) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError)):
        array_of(values, kind)


@pytest.mark.parametrize(
    "text",
    [
        '{"b": 1, "a": [-0, -0.0, 1E5, 5e-324, 1e999, 123456789012345678901234567890], "b": null}',
        '["\\ud83d", "\\ud83d\\ude00", "\\u0000é"]',
        "[NaN, Infinity, -Infinity]",
        "[" * 300 + "]" * 300,
    ],
)
def test_json_says_what_it_says_to_python(text: str) -> None:
    assert repr(decoded(text)) == repr(decoded(text.encode())) == repr(json.loads(text))


@pytest.mark.parametrize("text", ["", "[1,]", "{'a': 1}", "01", "tru", "[1] 2", '"a\nb"'])
def test_what_is_no_json_is_refused_in_pythons_words(text: str) -> None:
    with pytest.raises(ValueError, match=r".") as expected:
        json.loads(text)
    with pytest.raises(ValueError, match=r".") as found:
        decoded(text)
    assert str(found.value) == str(expected.value)


# --- what is wrong with it ---


def bad(results: Path, text: str) -> Path:
    path = results / "runs" / "bad" / "result.json"
    path.parent.mkdir()
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        ('{"run_id": "ba', "no JSON, or only a part"),
        ("[1, 2]", "no run's record"),
        ('{"run_id": "bad", "status": "finished"}', "no rows"),
        ('{"run_id": "bad", "status": "finished", "rows": [1], "machine": {}}', "no rows"),
        (
            '{"run_id": "elsewhere", "status": "finished", "rows": [], "machine": {}}',
            "of run elsewhere, in another folder",
        ),
        ("[" * 100_000, "no JSON"),
        (
            '{"run_id": "bad", "status": "finished", "schema_version": 99, "rows": [], "machine": {}}',
            "schema 99 is newer",
        ),
    ],
)
@pytest.mark.parametrize("kept_from", [ALWAYS, 1000])
def test_a_damaged_record_is_named_and_the_others_served(results: Path, text: str, reason: str, kept_from: int) -> None:
    path = bad(results, text)
    folded = fold([results], kept_from)
    assert list(folded.damaged) == [str(path)]
    assert reason in folded.damaged[str(path)]
    assert len(folded) == 12


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"worst_group_accuracy": float("nan")}, "worst_group_accuracy is nan"),
        ({"accuracy": float("inf")}, "accuracy is inf"),
        ({"accuracy": "high"}, "accuracy should be float, got 'high'"),
        ({"seed": None}, "seed is missing"),
        ({"seed": 1.5}, "seed should be int"),
        ({"n": True}, "n should be int"),
        ({"groups": "all"}, "groups should be list"),
        ({"n": 10**30}, "does not fit"),
        ({"groups": [1]}, "does not fit"),
        ({"erasure": [{"x": 1}]}, "does not fit"),
        ({"groups": [{"n": 3}]}, "does not fit"),
        ({"groups": [{"group": 0, "name": "\ud83d", "n": 1, "correct": 1}]}, "does not fit"),
        ({"label": "\ud83d"}, "does not fit"),
        ({"run_id": "run1"}, "rows of another run"),
        ({"config_json": "{}"}, "config_json is no run's configuration"),
        ({"config_json": None}, "config_json is no run's configuration"),
        ({"schema_version": SCHEMA_VERSION + 1}, f"schema {SCHEMA_VERSION + 1} is newer than this spurbench's"),
    ],
)
def test_a_row_that_is_none_is_named_with_its_column(results: Path, columns: dict[str, Any], reason: str) -> None:
    path = results / "runs" / "run0" / "result.json"
    change(path, **columns)
    folded = fold([results])
    assert reason in folded.damaged[str(path)]
    assert len(folded) == 10


def test_a_run_without_a_record_is_not_there_yet(results: Path) -> None:
    (results / "runs" / "started").mkdir()
    (results / "runs" / "notes.txt").write_text("mine")
    folded = fold([results], ALWAYS)
    assert folded.damaged == {}
    assert len(folded) == 12


def test_unknown_columns_are_told_and_left_out(results: Path, tmp_path: Path) -> None:
    change(results / "runs" / "run0" / "result.json", flops=1.0)
    folded = fold([results])
    assert folded.notes == [f"{results}: columns that this version does not know are left out: flops"]
    assert len(folded) == 12
    folded.write(tmp_path / "a.parquet")
    known = pq.read_table(tmp_path / "a.parquet")
    pq.write_table(known.append_column("more", pa.array([1] * 12)), tmp_path / "b.parquet")
    assert fold([tmp_path / "b.parquet"]).notes == [
        f"{tmp_path / 'b.parquet'}: columns that this version does not know are left out: more"
    ]
    assert table(fold([tmp_path / "b.parquet"])) == table(folded)


def with_column(source: Path, target: Path, name: str, values: Any) -> None:
    known = pq.read_table(source)
    pq.write_table(known.set_column(known.schema.get_field_index(name), name, values), target)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("schema_version", SCHEMA_VERSION + 1, f"schema {SCHEMA_VERSION + 1} is newer"),
        ("accuracy", float("nan"), "accuracy is no finite number"),
        ("accuracy", float("inf"), "accuracy is no finite number"),
        ("dataset", None, "dataset is missing"),
        ("groups", "{}", "groups cannot be read"),
        ("groups", "[1]", "groups cannot be read"),
        ("config_json", "{}", "config_json cannot be read"),
        ("config_json", "half {", "config_json cannot be read"),
        ("status", "failed", "its status is not 'finished'"),
        ("status", None, "status is missing"),
    ],
)
def test_rows_of_a_table_that_cannot_be_used_are_named(
    results: Path, tmp_path: Path, name: str, value: Any, reason: str
) -> None:
    fold([results]).write(tmp_path / "a.parquet")
    known = pq.read_table(tmp_path / "a.parquet")
    runs = known["run_id"].to_pylist()
    values = [value if run == "run0" else old for run, old in zip(runs, known[name].to_pylist(), strict=True)]
    with_column(tmp_path / "a.parquet", tmp_path / "b.parquet", name, pa.array(values, known[name].type))
    folded = fold([tmp_path / "b.parquet"])
    ((place, why),) = folded.damaged.items()
    assert place == f"{tmp_path / 'b.parquet'}, run run0"
    assert reason in why
    assert len(folded) == 10
    assert {row["run_id"] for row in folded.rows("val_wga")} == {f"run{number}" for number in range(1, 6)}


@pytest.mark.parametrize("name", ["run_id", "selection", "split"])
def test_rows_of_a_table_without_a_key_are_named(results: Path, tmp_path: Path, name: str) -> None:
    fold([results]).write(tmp_path / "a.parquet")
    values = pq.read_table(tmp_path / "a.parquet")[name].to_pylist()
    with_column(tmp_path / "a.parquet", tmp_path / "b.parquet", name, pa.array([None, *values[1:]], pa.string()))
    folded = fold([tmp_path / "b.parquet"])
    assert list(folded.damaged.values()) == [f"{name} is missing"]
    assert len(folded) == 11
    assert folded.rules == ["last", "val_wga"]


@pytest.mark.parametrize("kind", ["text", "half", "other", "mistyped"])
def test_a_file_that_is_no_table_is_named_and_the_others_served(results: Path, tmp_path: Path, kind: str) -> None:
    wrong = tmp_path / "wrong.parquet"
    fold([results]).write(wrong)
    if kind == "text":
        wrong.write_text("method,wga\nerm,0.5\n")
    elif kind == "half":
        wrong.write_bytes(wrong.read_bytes()[:2000])
    elif kind == "other":
        pd.DataFrame({"a": [1]}).to_parquet(wrong)
    else:
        with_column(wrong, wrong, "accuracy", pa.array(["high"] * 12))
    folded = fold([wrong, results])
    assert list(folded.damaged) == [str(wrong)]
    assert "leaderboard's table" in folded.damaged[str(wrong)]
    assert table(folded) == table(fold([results]))


def test_tables_of_the_first_schema_have_nulls(results: Path, tmp_path: Path) -> None:
    fold([results]).write(tmp_path / "new.parquet")
    added = ["erasure", "val_accuracy", "val_wga", "val_worst_class"]
    pq.write_table(pq.read_table(tmp_path / "new.parquet").drop_columns(added), tmp_path / "old.parquet")
    rows = list(fold([tmp_path / "old.parquet"]).rows("val_wga"))
    assert {row[name] for row in rows for name in added} == {None}
    assert {column.name for column in COLUMNS} == set(rows[0])


# --- runs that are there twice ---


def test_a_run_that_is_there_twice_counts_once(results: Path, tmp_path: Path) -> None:
    fold([results]).write(tmp_path / "a.parquet")
    folded = fold([tmp_path / "a.parquet", results, tmp_path / "a.parquet"])
    assert folded.conflicts == []
    assert len(folded) == 12
    assert table(folded) == table(fold([results]))


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("worst_group_accuracy", None, "worst_group_accuracy is missing"),
        ("accuracy", None, "accuracy is missing"),
        ("worst_group_accuracy", 5.0, "worst_group_accuracy is 5.0, not a share from 0 to 1"),
        ("val_wga", -0.1, "val_wga is -0.1, not a share from 0 to 1"),
    ],
)
def test_headline_numbers_are_there_and_shares(
    results: Path, tmp_path: Path, column: str, value: Any, problem: str
) -> None:
    fold([results]).write(tmp_path / "good.parquet")
    write_run(tmp_path / "bad", "bad", **{column: value})
    folded = fold([tmp_path / "bad", results])
    assert list(folded.damaged.values()) == [problem]
    assert table(folded) == table(fold([results]))
    rows = pq.read_table(tmp_path / "good.parquet")
    values = rows[column].to_pylist()
    changed = rows.set_column(rows.schema.names.index(column), column, pa.array([value, *values[1:]], pa.float64()))
    pq.write_table(changed, tmp_path / "bad.parquet")
    (told,) = fold([tmp_path / "bad.parquet"]).damaged.values()
    assert told == problem.replace(f"is {value}, not", "is not")


def test_a_copy_of_an_older_schema_without_a_new_column_is_no_conflict(tmp_path: Path) -> None:
    official = [{"name": "macro_f1", "value": 0.5}]
    write_run(tmp_path / "old", "run", schema_version=2)
    write_run(tmp_path / "new", "run", official=official)
    write_run(tmp_path / "other", "run", official=[])
    assert fold([tmp_path / "old", tmp_path / "new"]).conflicts == []
    found = fold([tmp_path / "new", tmp_path / "other"]).conflicts
    assert {conflict.column for conflict in found} == {"official"}


def test_twice_with_different_numbers_is_a_conflict(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    write_run(other, "run0", seed=0, wga=0.9, label="A")
    folded = fold([results, other])
    worst = [conflict for conflict in folded.conflicts if conflict.selection == "val_wga"]
    assert [(one.run, one.column, one.values) for one in worst] == [
        ("run0", "worst_group_accuracy", ((str(results), 0.5), (str(other), 0.9)))
    ]
    (line,) = [line for line in table(folded) if line["label"] == "A"]
    assert line["worst_group_accuracy_values"] == pytest.approx([0.9, 0.55, 0.6])  # neither twice, nor both
    assert main(["leaderboard", str(results), str(other)]) == 0
    said = capsys.readouterr().err
    assert f"conflict: run run0 (val_wga) is there 2 times with different numbers: worst_group_accuracy 0.5 in {results}, 0.9 in {other}" in said  # fmt: skip  # noqa: E501


def test_a_copied_folder_is_no_second_run(results: Path) -> None:
    copy = results / "runs" / "run0_backup"
    copy.mkdir()
    (copy / "result.json").write_bytes((results / "runs" / "run0" / "result.json").read_bytes())
    folded = fold([results])
    assert len(folded) == 12
    assert folded.damaged == {str(copy / "result.json"): "it is the record of run run0, in another folder"}
