"""Seed streams: equal everywhere, independent of each other and of what is drawn elsewhere."""

import subprocess
import sys

import pytest
import torch

from spurbench.rng import generator, seed_for


def test_seeds_are_pinned() -> None:
    """Another value here means that every run in the world would draw other numbers."""
    assert seed_for(0, "init") == 6_840_176_420_249_542_129
    assert seed_for(0, "loader", 0, 3) == 3_286_303_599_750_158_126


def test_seeds_are_equal_in_another_process() -> None:
    code = "from spurbench.rng import seed_for; print(seed_for(7, 'augment', 1, 2, 3))"
    for hash_seed in ("1", "2"):
        shown = subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True
        )
        assert int(shown.stdout) == seed_for(7, "augment", 1, 2, 3)


def test_seeds_differ_in_every_part_and_fit_torch() -> None:
    seeds = [
        seed_for(seed, stream, *position)
        for seed in range(6)
        for stream in ("init", "loader", "augment", "gumbel", "global")
        for position in ((), (0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 11), (1, 1), (11,))
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_generators_repeat_and_touch_nothing_else() -> None:
    before = torch.get_rng_state()
    first, second = generator(3, "gumbel", 0, 1, 2), generator(3, "gumbel", 0, 1, 2)
    assert torch.equal(torch.rand(100, generator=first), torch.rand(100, generator=second))
    assert not torch.equal(torch.rand(100, generator=first), torch.rand(100, generator=generator(3, "gumbel", 0, 1, 3)))
    assert torch.equal(before, torch.get_rng_state())
    assert generator(0, "x").device == torch.device("cpu")


@pytest.mark.parametrize("stream", ["loader", "augment"])
def test_draws_of_different_positions_are_uncorrelated(stream: str) -> None:
    draws = torch.stack([torch.rand(2000, generator=generator(0, stream, 0, epoch)) for epoch in range(8)])
    correlation = torch.corrcoef(draws) - torch.eye(8)
    assert correlation.abs().max() < 0.1
