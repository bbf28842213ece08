"""Which runs a picture is made of."""

import json
from pathlib import Path

import pytest

from spurbench.errors import ConfigError, DataMissing
from spurbench.report.gallery import find_runs


def finished(results: Path, run_id: str, dataset: str) -> None:
    folder = results / "runs" / run_id
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    record = {"status": "finished", "rows": [{"dataset": dataset}], "machine": {"device": "cpu"}}
    (folder / "result.json").write_text(json.dumps(record))


def names(folders: list[Path]) -> list[str]:
    return [folder.name for folder in folders]


def test_all_runs_of_one_dataset_or_those_that_are_named(tmp_path: Path) -> None:
    for run_id, dataset in (("a1", "birds"), ("a2", "birds"), ("b1", "cows")):
        finished(tmp_path, run_id, dataset)
    assert names(find_runs(tmp_path, [], "birds")) == ["a1", "a2"]
    assert names(find_runs(tmp_path, ["b", "a2"])) == ["b1", "a2"]


def test_several_datasets_are_refused_with_what_to_type(tmp_path: Path) -> None:
    finished(tmp_path, "a1", "birds")
    finished(tmp_path, "b1", "cows")
    with pytest.raises(ConfigError, match=r"on birds, cows, .*--dataset birds"):
        find_runs(tmp_path, [])


def test_nothing_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="no finished run below"):
        find_runs(tmp_path, [])
    finished(tmp_path, "a1", "birds")
    with pytest.raises(DataMissing, match="no finished run on cows below"):
        find_runs(tmp_path, [], "cows")
