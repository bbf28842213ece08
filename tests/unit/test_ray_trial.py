"""What a Ray trial reports, without a cluster."""

from pathlib import Path

import pytest

from spurbench.config import RunPaths
from spurbench.engine.stop import StopFlag
from spurbench.sweep import MethodGrid, SweepFile, plan

NO_OP = Path(__file__).parents[2] / "benchmarks" / "no_op.py"


def test_a_method_without_epochs_can_be_observed(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from spurbench.launch.ray_trial import Desk, _Remote

    sweep = SweepFile(
        datasets=["no_op"], methods=[MethodGrid(name="no_op")], set={"evaluation.attributions": []}
    )  # fmt: skip
    (run,) = plan(sweep, RunPaths(results=tmp_path, cache=tmp_path), (NO_OP,))
    desk = Desk(mailbox="none", device="cpu", plugins=(NO_OP,), patient=False, stop_early=None)
    assert _Remote(run, desk, None, StopFlag())._epochs == 0
