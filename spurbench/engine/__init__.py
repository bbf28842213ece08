"""The one function that every launcher calls, whatever machine it is on: ``run_one``."""

from spurbench.engine.observer import Observer, Silent
from spurbench.engine.run import run_one
from spurbench.engine.stop import Interrupted

__all__ = ["Interrupted", "Observer", "Silent", "run_one"]
