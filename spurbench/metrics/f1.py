"""F1, which counts false alarms of a class beside its misses."""

from torch import Tensor

__all__ = ["macro_f1"]


def macro_f1(y_N: Tensor, predicted_N: Tensor, _group_N: Tensor | None = None) -> float | None:
    """Mean of 2 TP / (2 TP + FP + FN) over the classes that occur in ``y_N``, 0..1. None without samples.

    WILDS' ``F1-macro_all``: a prediction of a class that does not occur is a miss of the true class and no more.

    Args:
        y_N: classes, int64.
        predicted_N: classes, int64.
    """
    n_C = y_N.bincount()
    predicted_C = predicted_N.bincount(minlength=len(n_C))[: len(n_C)]
    right_C = y_N[predicted_N == y_N].bincount(minlength=len(n_C))
    f1_C = 2 * right_C.double() / (n_C + predicted_C)
    return f1_C[n_C > 0].mean().item() if len(y_N) else None
