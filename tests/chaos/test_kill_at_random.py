"""Three trials of each kind of ``kill_at_random.py``; fifty of all kinds are in ``kill_at_random.log``."""

import importlib.util
import os
import shutil
from pathlib import Path

import pytest
from kill_at_random import KINDS, trials

NEEDS = {"ray": "ray", "slurm": "submitit"}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", KINDS)
def test_three_times(kind: str, tmp_path: Path) -> None:
    package = NEEDS.get(kind.partition("-")[0])
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"needs the package {package}")
    if kind.startswith("slurm") and shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin") is None:
        assert not os.environ.get("SPURBENCH_REQUIRE_SLURM"), "SLURM is required here and is not installed"
        pytest.skip("needs SLURM: apt-get install -y slurm-wlm munge")
    lines = list(trials([kind], times=3, seed=1, folder=tmp_path))
    assert len(lines) == 3
