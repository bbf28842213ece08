"""DFR against scikit-learn called directly, on features that are the pixels of tiny images."""

import warnings
from itertools import product
from typing import Any

import numpy as np
import pytest
import sklearn
import torch
from pixels import Store, make_model, make_views
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from spurbench.config import OptimizerConfig, TrainConfig
from spurbench.errors import AccessDenied, ConfigError
from spurbench.inference import extract
from spurbench.method import BaseMethod, Phase, Views
from spurbench.nn.classifier import Classifier
from spurbench.registry import load_registry
from spurbench.types import Access

DFR: type[BaseMethod[Any]] = load_registry("methods").get("dfr").value
DFR_TR: type[BaseMethod[Any]] = load_registry("methods").get("dfr_tr").value
L1: dict[str, Any] = (
    {"l1_ratio": 1.0} if tuple(map(int, sklearn.__version__.split(".")[:2])) >= (1, 8) else {"penalty": "l1"}
)
REFIT = Phase(name="refit", epochs=0, optimizer=OptimizerConfig(), trainable="none")
ERM = Phase(name="erm", epochs=1, optimizer=OptimizerConfig())


def refit(cls: type[BaseMethod[Any]], views: Views | None = None, num_classes: int = 2, **options: Any) -> Classifier:
    model = make_model(num_classes)
    method = cls(cls.Config(**options))
    torch.manual_seed(7)
    method.start_phase(REFIT, model, views or make_views(cls.access), Store())
    return model


def features(views: Views) -> tuple[Any, Any]:
    method = BaseMethod(BaseMethod.Config())
    train, val = (extract(method, make_model(), view).features.double().numpy() for view in (views.train, views.val))
    return train, val


# --- oracle ---


def draw_balanced(group: Any) -> Any:
    """As many of every group as the smallest has."""
    members = [np.flatnonzero(group == g) for g in np.unique(group)]
    smallest = min(map(len, members))
    return np.concatenate([m[torch.randperm(len(m)).numpy()[:smallest]] for m in members])


def logreg(c: float, **options: Any) -> Any:
    seed = int(torch.randint(2**31 - 1, ()))
    return LogisticRegression(C=c, solver="liblinear", random_state=seed, **L1, **options)


def worst(model: Any, x: Any, y: Any, group: Any) -> float:
    right = model.predict(x) == y
    return min(right[group == g].mean() for g in np.unique(group))


def oracle_val(views: Views, grid: list[float], retrains: int) -> tuple[float, Any, Any]:
    """C, decision function's coefficients on plain features, intercept: DFR^Val_Tr step by step."""
    train, x = features(views)
    y, group = views.val.y.numpy(), views.val.group.numpy()
    torch.manual_seed(7)
    half = len(x) // 2
    order = torch.randperm(len(x)).numpy()
    fit, judge = order[half:], order[:half]
    fit = fit[draw_balanced(group[fit])]
    scaler = StandardScaler().fit(x[fit])
    scores = []
    for c in grid:
        model = logreg(c).fit(scaler.transform(x[fit]), y[fit])
        scores.append(worst(model, scaler.transform(x[judge]), y[judge], group[judge]))
    best = grid[int(np.argmax(scores))]
    scaler = StandardScaler().fit(train)
    models = []
    for _ in range(retrains):
        index = draw_balanced(group)
        models.append(logreg(best).fit(scaler.transform(x[index]), y[index]))
    w = np.mean([m.coef_[0] for m in models], axis=0)
    b = np.mean([m.intercept_[0] for m in models])
    return best, w / scaler.scale_, b - (w * scaler.mean_ / scaler.scale_).sum()


@pytest.mark.parametrize("grid", [[1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01], [0.03, 1.0]])
def test_val_variant_is_scikit_learns(grid: list[float]) -> None:
    views = make_views(DFR.access)
    model = refit(DFR, views, num_retrains=5, c_grid=grid)
    _, w, b = oracle_val(views, grid, 5)
    margin = (model.head.weight[1] - model.head.weight[0]).detach().double().numpy()
    assert np.allclose(margin, w, rtol=1e-5, atol=1e-7)
    assert float((model.head.bias[1] - model.head.bias[0]).detach()) == pytest.approx(b, rel=1e-5)
    assert torch.equal(model.head.weight[0], -model.head.weight[1]), "both classes have a gradient"
    val = features(views)[1]
    logits = model.head(torch.from_numpy(val).float())
    assert torch.allclose(
        logits.softmax(1)[:, 1].double(), torch.from_numpy(1 / (1 + np.exp(-(val @ w + b)))), atol=1e-5
    )


def test_the_first_best_c_wins_and_is_used() -> None:
    views = make_views(DFR.access)
    best, w, _ = oracle_val(views, [1e-5, 2e-5, 0.5], 2)
    assert best == 0.5, "the smaller ones fit nothing"
    model = refit(DFR, views, num_retrains=2, c_grid=[1e-5, 2e-5, 0.5])
    assert np.allclose((model.head.weight[1] - model.head.weight[0]).detach().numpy(), w, rtol=1e-5, atol=1e-7)
    nothing = refit(DFR, views, num_retrains=2, c_grid=[1e-5, 2e-5])
    assert not nothing.head.weight.any()


@pytest.mark.parametrize("tune_class_weights", [False, True])
def test_train_variant_is_scikit_learns(tune_class_weights: bool) -> None:
    views = make_views(DFR_TR.access)
    grid = [0.3, 0.03]
    model = refit(DFR_TR, views, num_retrains=3, c_grid=grid, tune_class_weights=tune_class_weights)
    train, val = features(views)
    y, group, val_y, val_group = (t.numpy() for t in (views.train.y, views.train.group, views.val.y, views.val.group))
    torch.manual_seed(7)
    scaler = StandardScaler().fit(train)
    index = draw_balanced(group)
    weights: list[Any] = [None]
    if tune_class_weights:
        steps = [1, 2, 3, 10, 100, 300, 1000]
        weights = [{0: 1, 1: w} for w in steps] + [{0: w, 1: 1} for w in steps]
    scores = {}
    for c, (k, weight) in product(grid, enumerate(weights)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 20 iterations are few
            fitted = logreg(c, class_weight=weight, max_iter=20).fit(scaler.transform(train[index]), y[index])
        scores[c, k] = worst(fitted, scaler.transform(val), val_y, val_group)
    best = max(scores.values())
    c, k = next(key for key, score in scores.items() if score == best)
    models = []
    for _ in range(3):
        index = draw_balanced(group)
        models.append(logreg(c, class_weight=weights[k]).fit(scaler.transform(train[index]), y[index]))
    w = np.mean([m.coef_[0] for m in models], axis=0) / scaler.scale_
    assert np.allclose((model.head.weight[1] - model.head.weight[0]).detach().numpy(), w, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("cls", [DFR, DFR_TR])
def test_scaler_and_iterations_of_tuning_differ_from_the_final_fits(
    cls: type[BaseMethod[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, int]] = []
    plain = LogisticRegression.fit

    def fit(self: Any, x: Any, y: Any) -> Any:
        calls.append((x, self.max_iter))
        return plain(self, x, y)

    monkeypatch.setattr(LogisticRegression, "fit", fit)
    refit(cls, c_grid=[1.0, 0.1], num_retrains=3)
    tuning, final = calls[:2], calls[2:]
    assert len(final) == 3
    own_scaler = [bool(np.abs(x.mean(0)).max() < 1e-9) for x, _ in calls]
    assert own_scaler == [cls is DFR] * 2 + [False] * 3
    assert {rounds for _, rounds in tuning} == {100 if cls is DFR else 20}
    assert {rounds for _, rounds in final} == {100}


def test_several_classes_are_fitted_one_against_the_rest() -> None:
    sizes = (20, 8, 15, 12, 9, 18)
    views = make_views(DFR.access, train=sizes, val=sizes)
    model = refit(DFR, views, num_classes=3, num_retrains=1, c_grid=[0.5])
    train, val = features(views)
    torch.manual_seed(7)
    scaler = StandardScaler().fit(train)
    index = draw_balanced(views.val.group.numpy())
    seed = int(torch.randint(2**31 - 1, ()))
    for k in range(3):
        fitted = LogisticRegression(C=0.5, solver="liblinear", random_state=seed, **L1)
        fitted.fit(scaler.transform(val[index]), (views.val.y.numpy() == k)[index].astype(int))
        logit = model.head(torch.from_numpy(val).float())[:, k].detach().numpy()
        assert np.allclose(logit, fitted.decision_function(scaler.transform(val)), atol=1e-4)


# --- what must hold ---


def worst_of(model: Classifier, views: Views) -> float:
    x = torch.from_numpy(features(views)[1]).float()
    right = (model.head(x).argmax(1) == views.val.y).numpy()
    return float(min(right[views.val.group.numpy() == g].mean() for g in range(4)))


@pytest.mark.parametrize("cls", [DFR, DFR_TR])
def test_groups_matter(cls: type[BaseMethod[Any]]) -> None:
    sizes = (200, 20, 20, 200)  # Class and attribute agree in most samples.
    truth, mixed = (make_views(cls.access, sizes, sizes, mix=mix) for mix in (False, True))
    balanced, mixed_up = (refit(cls, views, c_grid=[0.1], num_retrains=10) for views in (truth, mixed))
    assert worst_of(balanced, truth) > worst_of(mixed_up, truth) + 0.1


@pytest.mark.parametrize("cls", [DFR, DFR_TR])
def test_only_the_head_changes(cls: type[BaseMethod[Any]]) -> None:
    before = make_model().state_dict()
    after = refit(cls, num_retrains=2).state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {"head.weight", "head.bias"}


def test_a_restart_takes_the_stored_head_whatever_the_model_has_become() -> None:
    method, views, store = DFR(DFR.Config(num_retrains=2)), make_views(DFR.access), Store()
    model = make_model()
    torch.manual_seed(7)
    method.start_phase(REFIT, model, views, store)
    other = make_model()
    torch.manual_seed(8)
    nn.init.normal_(other.head.weight)
    DFR(DFR.Config(num_retrains=2)).start_phase(REFIT, other, views, store)
    assert torch.equal(other.head.weight, model.head.weight)
    assert torch.equal(other.head.bias, model.head.bias)


def test_global_seed_decides_and_numpys_does_not() -> None:
    np.random.seed(0)  # noqa: NPY002
    first = refit(DFR, num_retrains=2)
    np.random.seed(1)  # noqa: NPY002
    assert torch.equal(refit(DFR, num_retrains=2).head.weight, first.head.weight)


def test_erm_phase_is_plain() -> None:
    views = make_views(DFR.access)
    method = DFR(DFR.Config())
    assert method.start_phase(ERM, make_model(), views, Store()) is views.train
    erm, last = method.phases(TrainConfig(epochs=3))
    assert (erm.epochs, erm.init, erm.trainable, last.epochs) == (3, "continue", "all", 0)
    assert type(method).training_step is BaseMethod.training_step


def test_empty_training_groups_are_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    views = make_views(DFR_TR.access, train=(60, 0, 0, 50))
    assert refit(DFR_TR, views, num_retrains=2).head.weight.isfinite().all()
    assert "DFR-Tr" in caplog.text
    assert "1, 2" in caplog.text
    assert refit(DFR, make_views(DFR.access, train=(60, 0, 0, 50)), num_retrains=2).head.weight.isfinite().all()


def test_empty_validation_groups_are_no_worst_group() -> None:
    for cls in (DFR, DFR_TR):
        model = refit(cls, make_views(cls.access, val=(40, 0, 30, 30)), num_retrains=2)
        assert model.head.weight.isfinite().all()
        assert model.head.weight.any()


@pytest.mark.parametrize(("cls", "sizes"), [(DFR, {"val": (20, 20, 0, 0)}), (DFR_TR, {"train": (0, 0, 20, 20)})])
def test_a_missing_class_is_refused_before_training(cls: type[BaseMethod[Any]], sizes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"class [01] has no sample among 40 to fit.*c_grid"):
        cls(cls.Config()).start_phase(ERM, make_model(), make_views(cls.access, **sizes), Store())


def test_class_weights_are_for_two_classes() -> None:
    sizes = (9,) * 6
    with pytest.raises(ConfigError, match="tune_class_weights"):
        refit(DFR_TR, make_views(DFR_TR.access, sizes, sizes), num_classes=3, tune_class_weights=True)


def test_supervision_is_declared() -> None:
    assert DFR.access == Access.VAL_LABELS | Access.VAL_GROUPS
    assert DFR_TR.access == DFR.access | Access.TRAIN_GROUPS
    with pytest.raises(AccessDenied):
        refit(DFR_TR, make_views(DFR.access))


@pytest.mark.parametrize(
    "options", [{"num_retrains": 0}, {"c_grid": []}, {"c_grid": [0.0]}, {"c_grid": [1, -1]}, {"tune_class_weights": 1}]
)
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DFR.Config(**options)


def test_defaults_are_the_authors() -> None:
    assert DFR.Config().num_retrains == 20
    assert DFR_TR.Config().num_retrains == 10
    assert DFR.Config().c_grid == (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01)
    assert (DFR(DFR.Config()).label, DFR_TR(DFR_TR.Config()).label) == ("DFR", "DFR-Tr")
