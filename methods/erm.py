"""Empirical risk minimization (Vapnik, 1992): the mean cross-entropy, nothing else."""

from spurbench.method import BaseMethod, MethodConfig

__all__ = ["METHOD"]


class ERM(BaseMethod[MethodConfig]):
    """Fine-tune the backbone and a linear head on the cross-entropy."""

    paper = "Vapnik, 1992"
    data_parallel = True


METHOD = ERM
