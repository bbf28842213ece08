"""Where runs are executed. Launchers differ in nothing else: all of them call ``engine.run_one``."""

from collections.abc import Callable, Sequence
from importlib import import_module

from spurbench.launch.options import Board, LaunchOptions, Outcomes
from spurbench.sweep import Planned

__all__ = ["LAUNCHERS", "launch"]

LAUNCHERS = {"local": "pool", "slurm": "slurm", "ray": "ray_tune"}
"""Names that users know, and the modules that export ``launch``."""


def launch(name: str, runs: Sequence[Planned], options: LaunchOptions, board: Board) -> Outcomes:
    """Execute runs and yield each as it ends.

    Raises:
        ConfigError: the launcher is not installed or cannot be reached.
        Interrupted: a signal; what was running is saved.
    """
    function: Callable[[Sequence[Planned], LaunchOptions, Board], Outcomes]
    function = import_module(f"spurbench.launch.{LAUNCHERS[name]}").launch
    return function(runs, options, board)
