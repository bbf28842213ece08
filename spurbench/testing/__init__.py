"""The public conformance suite: what every method and dataset must do, for the tests here and for plugins.

    from spurbench.testing import check_method

    def test_mine():
        check_method(MyMethod)

Each check is a function whose docstring states the requirement; a failure names the requirement that broke.
"""

from spurbench.testing.datasets import DATASET_CHECKS, OpenedTwice, check_dataset
from spurbench.testing.methods import METHOD_CHECKS, check_method, method_outcomes
from spurbench.testing.workbench import Workbench

__all__ = [
    "DATASET_CHECKS",
    "METHOD_CHECKS",
    "OpenedTwice",
    "Workbench",
    "check_dataset",
    "check_method",
    "method_outcomes",
]
