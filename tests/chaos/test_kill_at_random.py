"""A trial of each kind of ``kill_at_random.py``, or ``$SPURBENCH_KILLS``; fifty are in ``kill_at_random.log``.

A trial takes up to a minute, and what it finds it finds at random: many belong into a sitting of their own.
"""

import importlib.util
import os
import shutil
from pathlib import Path

import pytest
from kill_at_random import KINDS, trials

TIMES = int(os.environ.get("SPURBENCH_KILLS", "1"))
LAUNCHERS = {
    "local": [kind for kind in KINDS if "-" not in kind],
    "ray": [kind for kind in KINDS if kind.startswith("ray-")],
    "slurm": [kind for kind in KINDS if kind.startswith("slurm-")],
}
NEEDS = {"ray": "ray", "slurm": "submitit"}


def test_every_kind_is_tried() -> None:
    assert sorted(kind for kinds in LAUNCHERS.values() for kind in kinds) == sorted(KINDS)


@pytest.mark.slow
@pytest.mark.timeout(1200 * TIMES)
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_nothing_is_lost_or_done_twice(launcher: str, tmp_path: Path) -> None:
    if launcher in NEEDS and importlib.util.find_spec(NEEDS[launcher]) is None:
        pytest.skip(f"needs the package {NEEDS[launcher]}")
    if launcher == "slurm" and shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin") is None:
        assert not os.environ.get("SPURBENCH_REQUIRE_SLURM"), "SLURM is required here and is not installed"
        pytest.skip("needs SLURM: apt-get install -y slurm-wlm munge")
    kinds = LAUNCHERS[launcher]
    lines = list(trials(kinds, times=TIMES * len(kinds), seed=1, folder=tmp_path))
    print(*lines, sep="\n")
    assert len(lines) == TIMES * len(kinds)
    assert any("killed" in line for line in lines)
