"""DFR: last-layer retraining on group-balanced data (Kirichenko et al., ICLR 2023, arXiv 2204.02937).

    1. erm    the recipe's ERM; its last weights give features x
    2. refit  a new last layer, mean over random subsets S in which all groups are equally large:
              (w, b) = mean_S  argmin ||w||_1 + C sum_{i in S} log(1 + exp(-y_i (w . s(x_i) + b))),  s: StandardScaler

``dfr`` is DFR^Val_Tr: C is tuned on halves of validation, S are subsets of the whole of validation. ``dfr_tr`` is
DFR^Tr_Tr: S are subsets of the training set, C is tuned on validation. Followed in both, as in the authors' code:
* ``dfr`` fits the scaler on the fitted subset while tuning, and on all training features for the final fits;
* the first best C wins; liblinear penalizes the intercept too; ``dfr_tr`` stops each fit of the tuning after 20 rounds.
* 20 subsets for ``dfr`` and 10 for ``dfr_tr``; the paper says 10.
Not from the authors: more than two classes are fitted one against the rest, since liblinear is binary; groups without a
sample are left out of balancing and of the worst group. Scaler and mean are folded into the head in float64; two
classes get the logits -z/2 and z/2, so that both have a gradient to explain.
"""

import inspect
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from logging import getLogger
from typing import Annotated, Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from spurbench.config import TrainConfig
from spurbench.data.balance import balanced_subset, warn_of_empty_groups
from spurbench.data.view import View
from spurbench.errors import ConfigError
from spurbench.inference import extract
from spurbench.method import ArtifactStore, BaseMethod, MethodConfig, Phase, Views
from spurbench.metrics.group import group_counts, worst_group
from spurbench.types import Access

__all__ = ["METHODS"]

_log = getLogger(__name__)
_CLASS_WEIGHTS = (1.0, 2.0, 3.0, 10.0, 100.0, 300.0, 1000.0)
Array = npt.NDArray[np.float64]


class DFRConfig(MethodConfig):
    """Options of DFR on validation."""

    num_retrains: PositiveInt = 20
    """Balanced subsets whose coefficients are averaged; 20 in the authors' code, 10 in the paper."""
    c_grid: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01)
    """Inverse strengths of the l1 penalty to choose from; a single one is taken without tuning."""


class DFRTrConfig(DFRConfig):
    """Options of DFR on training data."""

    num_retrains: PositiveInt = 10
    """Balanced subsets whose coefficients are averaged; 10 in code and paper."""
    tune_class_weights: bool = False
    """Whether weights of 1 to 1000 on either of two classes are tuned along with C; off in the authors' code."""


ConfigT = TypeVar("ConfigT", bound=DFRConfig)
Choice = tuple[float, dict[int, float] | None]
"""C and class weights."""


@dataclass(frozen=True, slots=True)
class Points:
    """Features [n, D] in float64 with classes and groups, int64 [n]."""

    x: Array
    y: Tensor
    group: Tensor

    @classmethod
    def of(cls, method: BaseMethod[Any], model: nn.Module, view: View) -> "Points":
        """Of every sample of a view."""
        return cls(_features(method, model, view), view.y, view.group)

    def take(self, index: Tensor) -> "Points":
        """The points at these positions, int64 [m]."""
        return Points(self.x[index.numpy()], self.y[index], self.group[index])

    def balanced(self) -> "Points":
        """A random subset in which all groups that have a point are equally large."""
        return self.take(balanced_subset(self.group))


def require_classes(y: Tensor, num_classes: int) -> None:
    """Refuse data that lack a class.

    Raises:
        ConfigError: with the class and what to do.
    """
    missing = sorted(set(range(num_classes)) - set(y.tolist()))
    if missing:
        raise ConfigError(
            f"DFR cannot fit a last layer: class {', '.join(map(str, missing))} has no sample among {len(y)} to fit; "
            "it needs more labelled samples, or a single value in c_grid, so that tuning takes none of them away"
        )


def fit(points: Points, x: Array, choice: Choice, num_classes: int, max_iter: int = 100) -> Any:
    """scikit-learn's fitted classifier of the points' classes from ``x``, their scaled features.

    Raises:
        ConfigError: a class without a point.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    require_classes(points.y, num_classes)
    # ``penalty`` is deprecated from scikit-learn 1.8 on, and before that ``l1_ratio`` does not choose the penalty.
    penalty = inspect.signature(LogisticRegression).parameters.get("penalty")
    l1 = {"penalty": "l1"} if penalty is not None and penalty.default == "l2" else {"l1_ratio": 1.0}
    c, class_weight = choice
    model = LogisticRegression(
        C=c,
        solver="liblinear",
        class_weight=class_weight,
        max_iter=max_iter,
        random_state=int(torch.randint(2**31 - 1, ())),
        **l1,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # max_iter is a part of the recipe
        return (model if num_classes == 2 else OneVsRestClassifier(model)).fit(x, points.y.numpy())


def coefficients(fitted: Any) -> tuple[Array, Array]:
    """Coefficients [K, D] and intercepts [K]; K = 1 for two classes, else one per class."""
    parts = getattr(fitted, "estimators_", [fitted])
    return np.concatenate([part.coef_ for part in parts]), np.concatenate([part.intercept_ for part in parts])


def worst_accuracy(fitted: Any, x: Array, points: Points) -> float:
    """Over the groups that have a point."""
    correct = torch.from_numpy(fitted.predict(x)) == points.y
    worst = worst_group(group_counts(correct, points.group, int(points.group.max()) + 1))
    assert worst is not None
    return worst.accuracy


class _DFR(BaseMethod[ConfigT]):
    """What both variants have in common."""

    paper = "Kirichenko et al., ICLR 2023, arXiv 2204.02937"
    data_parallel = True
    only_last = True

    def phases(self, train: TrainConfig) -> Sequence[Phase]:
        """ERM, then the closed form."""
        return (
            Phase(name="erm", epochs=train.epochs, optimizer=train.optimizer),
            Phase(name="refit", epochs=0, optimizer=train.optimizer, trainable="none"),
        )

    def start_phase(self, phase: Phase, model: nn.Module, views: Views, store: ArtifactStore) -> View:
        """The refit is done here; data that would not allow it are refused before training."""
        head = self.head(model)
        require_classes(self.pool(views).y, head.out_features)
        if phase.name == "refit":
            refitted = store.once("refit", lambda: self.refit(model, views, head.out_features))
            with torch.no_grad():
                head.weight.copy_(refitted[:, :-1])
                head.bias.copy_(refitted[:, -1])
        return views.train

    def pool(self, views: Views) -> View:
        """Where balanced subsets are drawn from."""
        raise NotImplementedError

    def refit(self, model: nn.Module, views: Views, num_classes: int) -> Tensor:
        """float64 [C, D + 1]: weights and, in the last column, biases of the head on plain features."""
        raise NotImplementedError

    def choose(self, candidates: Sequence[Choice], points: Points, x: Array, judges: Points, judges_x: Array,
               num_classes: int, max_iter: int = 100) -> Choice:  # fmt: skip
        """The first candidate with the highest worst-group accuracy on ``judges`` after a fit to ``points``."""
        scores = [
            worst_accuracy(fit(points, x, candidate, num_classes, max_iter), judges_x, judges)
            for candidate in candidates
        ]
        best = int(np.argmax(scores))
        _log.info("%s: C %g, class weights %s, worst group %.3f", self.label, *candidates[best], scores[best])
        return candidates[best]

    def average(self, pool: Points, scaler: Any, choice: Choice, num_classes: int) -> Tensor:
        """``refit``'s result: the mean over fits to balanced subsets of ``pool``, with the scaler folded in."""
        fits = []
        for _ in range(self.config.num_retrains):
            points = pool.balanced()
            fits.append(coefficients(fit(points, scaler.transform(points.x), choice, num_classes)))
        w, b = (np.mean(parts, axis=0) for parts in zip(*fits, strict=True))
        # w . (x - mean) / scale + b
        folded = np.column_stack([w / scaler.scale_, b - w @ (scaler.mean_ / scaler.scale_)])
        return torch.from_numpy(np.concatenate([-folded / 2, folded / 2]) if len(folded) == 1 else folded)


class DFR(_DFR[DFRConfig]):
    """ERM, then a last layer for group-balanced validation data."""

    Config = DFRConfig
    access = Access.VAL_LABELS | Access.VAL_GROUPS

    def pool(self, views: Views) -> View:
        """Validation."""
        return views.val

    def refit(self, model: nn.Module, views: Views, num_classes: int) -> Tensor:
        """Tune on halves of validation, fit to all of it."""
        from sklearn.preprocessing import StandardScaler

        val = Points.of(self, model, views.val)
        candidates: list[Choice] = [(c, None) for c in self.config.c_grid]
        choice = candidates[0]
        if len(candidates) > 1:
            half = len(val.y) // 2
            order = torch.randperm(len(val.y))
            points, judges = val.take(order[half:]).balanced(), val.take(order[:half])
            scaler = StandardScaler().fit(points.x)
            choice = self.choose(
                candidates, points, scaler.transform(points.x), judges, scaler.transform(judges.x), num_classes
            )
        scaler = StandardScaler().fit(_features(self, model, views.train))
        return self.average(val, scaler, choice, num_classes)


class DFRTr(_DFR[DFRTrConfig]):
    """ERM, then a last layer for group-balanced training data."""

    Config = DFRTrConfig
    access = Access.TRAIN_GROUPS | Access.VAL_LABELS | Access.VAL_GROUPS

    @property
    def label(self) -> str:
        """``DFR-Tr``."""
        return "DFR-Tr"

    def pool(self, views: Views) -> View:
        """The training set."""
        return views.train

    def refit(self, model: nn.Module, views: Views, num_classes: int) -> Tensor:
        """Tune on validation, fit to the training set."""
        from sklearn.preprocessing import StandardScaler

        if self.config.tune_class_weights and num_classes != 2:
            raise ConfigError(f"tune_class_weights is for two classes, here are {num_classes}; leave it out")
        train, val = Points.of(self, model, views.train), Points.of(self, model, views.val)
        warn_of_empty_groups(self.label, train.group, int(torch.cat([train.group, val.group]).max()) + 1)
        scaler = StandardScaler().fit(train.x)
        weights: list[dict[int, float] | None] = [None]
        if self.config.tune_class_weights:
            weights = [{rest: 1.0, raised: w} for rest, raised in ((0, 1), (1, 0)) for w in _CLASS_WEIGHTS]
        candidates: list[Choice] = list(product(self.config.c_grid, weights))
        choice = candidates[0]
        if len(candidates) > 1:
            points = train.balanced()
            choice = self.choose(
                candidates, points, scaler.transform(points.x), val, scaler.transform(val.x), num_classes, max_iter=20
            )
        return self.average(train, scaler, choice, num_classes)


def _features(method: BaseMethod[Any], model: nn.Module, view: View) -> Array:
    """float64 [n, D]."""
    return extract(method, model, view).features.double().numpy()


METHODS = {"dfr": DFR, "dfr_tr": DFRTr}
