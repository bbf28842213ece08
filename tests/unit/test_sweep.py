"""Grid files: random draws and dotted options; the rest is tested through the command."""

from typing import Any

import pytest
from pydantic import ValidationError

from spurbench.sweep import MethodGrid, RandomDraws, SweepFile, options_of


def draws(number: int, seed: int = 0, **sources: Any) -> list[dict[str, Any]]:
    return list(RandomDraws(draws=number, seed=seed, **sources).settings())


def test_draws_are_those_of_the_seed_and_do_not_depend_on_their_number() -> None:
    source = {"low": 1e-4, "high": 1e-2}
    assert draws(5, lr=source)[:3] == draws(3, lr=source)
    assert draws(3, seed=1, lr=source) != draws(3, lr=source)


def test_draws_stay_in_their_range_and_span_decades() -> None:
    values = [setting["lr"] for setting in draws(400, lr={"low": 1e-4, "high": 1e-2})]
    assert all(1e-4 <= value <= 1e-2 for value in values)
    below = sum(value < 1e-3 for value in values)
    assert 150 < below < 250, "half of the draws lie in the lower decade"
    flat = [setting["p"] for setting in draws(400, p={"low": 0, "high": 1, "log": False})]
    assert 150 < sum(value < 0.5 for value in flat) < 250


def test_choices_are_drawn_from_a_list() -> None:
    assert {setting["width"] for setting in draws(50, width=[8, 16])} == {8, 16}


def test_draws_stand_beside_the_first_setting_for_every_point_of_the_grid() -> None:
    grid = MethodGrid(
        name="aim", grid={"tau": [0.2, 0.3]}, set={"width": 8},
        random=RandomDraws(draws=2, **{"train.optimizer.lr": {"low": 1e-5, "high": 1e-3}}),
    )  # fmt: skip
    options = list(options_of(grid))
    assert len(options) == 2 * 3
    assert options[0] == {"method.width": 8, "method.tau": 0.2}
    assert {frozenset(option) for option in options[1:3]} == {
        frozenset({"method.width", "method.tau", "train.optimizer.lr"})
    }


@pytest.mark.parametrize(
    "entry",
    [
        {"draws": 0, "lr": [1]},
        {"draws": 2, "lr": {"low": 1, "high": 0.1}},
        {"draws": 2, "lr": {"low": 0, "high": 1}},
        {"draws": 2, "lr": []},
        {"draws": 2, "lr": 3},
        {"draws": 2},
    ],
)
def test_impossible_draws_are_refused(entry: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SweepFile(datasets=["a"], methods=[{"name": "erm", "random": entry}])
