"""AFR against the loss written out, torch's own SGD one setting at a time, and scipy's minimum."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pixels import Store, make_model, make_views
from pydantic import ValidationError
from scipy.optimize import minimize
from torch import Tensor, nn

from spurbench.config import OptimizerConfig, TrainConfig
from spurbench.errors import ConfigError
from spurbench.inference import extract
from spurbench.method import BaseMethod, Phase, Views
from spurbench.nn.classifier import Classifier
from spurbench.registry import load_registry
from spurbench.types import Access

AFR: type[BaseMethod[Any]] = load_registry("methods").get("afr").value
ERM = Phase(name="erm", epochs=1, optimizer=OptimizerConfig())
REFIT = Phase(name="refit", epochs=0, optimizer=OptimizerConfig(), trainable="none")


def run(views: Views | None = None, store: Store | None = None, **options: Any) -> Classifier:
    model = make_model()
    torch.manual_seed(7)
    AFR(AFR.Config(**options)).start_phase(REFIT, model, views or make_views(AFR.access), store or Store())
    return model


def matrix(model: Classifier) -> Tensor:
    return torch.cat([model.head.weight, model.head.bias[:, None]], 1).detach()


def held_out(views: Views) -> tuple[Tensor, Tensor]:
    """Features and classes of the last fifth of the random order, features in float64."""
    torch.manual_seed(7)
    n = len(views.train)
    index = torch.randperm(n)[int(0.8 * n) :].sort().values
    view = views.train.subset(index)
    return extract(AFR(AFR.Config()), make_model(), view).features.double(), view.y


def weights_by_hand(x: Tensor, y: Tensor, gamma: float) -> Any:
    model = make_model()
    logits = (x @ model.head.weight.double().T + model.head.bias.double()).detach().numpy()
    w = []
    for row, label in zip(logits, y.tolist(), strict=True):
        p = np.exp(row - row.max())
        p /= p.sum()
        w.append(np.exp(-gamma * p[label]) / (y == label).sum().item())
    return np.array(w) / sum(w)


def loss_by_hand(head: Any, x: Any, y: Any, w: Any, first: Any, strength: float) -> float:
    logits = x @ head[:, :-1].T + head[:, -1]
    logits = logits - logits.max(1, keepdims=True)
    ce = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]
    return float((w * ce).sum() + strength * ((head - first) ** 2).sum())


# --- oracles ---


@pytest.mark.parametrize("gamma", [0.0, 4.0, 20.0])
def test_sample_weights_are_the_papers(gamma: float) -> None:
    from spurbench.methods.afr import sample_weights

    x, y = held_out(make_views(AFR.access))
    logits = x.float() @ make_model().head.weight.T + make_model().head.bias
    p = logits.softmax(1).gather(1, y[:, None])[:, 0].detach()
    (ours,) = sample_weights(p, y, torch.tensor([gamma]))
    assert np.allclose(ours, weights_by_hand(x, y, gamma), rtol=1e-4)
    if gamma == 0:
        assert [float(ours[y == k].sum()) for k in (0, 1)] == pytest.approx([0.5, 0.5])


def test_objective_is_the_papers() -> None:
    from spurbench.methods.afr import objective

    rng = torch.Generator().manual_seed(0)
    x, heads, first = (torch.randn(size, generator=rng).double() for size in ((9, 5), (4, 3, 6), (4, 3, 6)))
    y = torch.randint(3, (9,), generator=rng)
    w, strengths = torch.rand(4, 9, generator=rng).double(), torch.tensor([0.0, 0.1, 0.5, 3.0]).double()
    ours = objective(heads, first, x, y, w, strengths)
    for k in range(4):
        parts = (a.numpy() for a in (heads[k], x, y, w[k], first[k]))
        assert float(ours[k]) == pytest.approx(loss_by_hand(*parts, float(strengths[k])), rel=1e-10)


def test_long_descent_reaches_the_minimum() -> None:
    views = make_views(AFR.access)
    model = run(views, gammas=[3.0], lambdas=[0.5], steps=3000, lr=0.02, clip=None, early_stop=False)
    x, y = held_out(views)
    first, w = matrix(make_model()).double().numpy(), weights_by_hand(x, y, 3.0)
    best = minimize(
        lambda flat: loss_by_hand(flat.reshape(2, -1), x.numpy(), y.numpy(), w, first, 0.5), first.ravel(), tol=1e-10
    )
    assert np.allclose(matrix(model), best.x.reshape(2, -1), atol=2e-4)


@pytest.mark.parametrize("clip", [0.5, None])
def test_tuning_is_what_sgd_setting_by_setting_finds(clip: float | None) -> None:
    views = make_views(AFR.access)
    grid, steps, lr = [(g, s) for g in (0.0, 5.0, 12.0) for s in (0.0, 0.3)], 40, 0.05
    x, y = held_out(views)
    val = extract(AFR(AFR.Config()), make_model(), views.val).features
    best_score, best_head = -1.0, torch.zeros(0)
    for gamma, strength in grid:
        w = torch.from_numpy(weights_by_hand(x, y, gamma)).float()
        head = make_model().head
        w0, b0 = head.weight.detach().clone(), head.bias.detach().clone()
        optimizer = torch.optim.SGD(head.parameters(), lr=lr)
        for _ in range(steps):
            optimizer.zero_grad()
            ce = F.cross_entropy(head(x.float()), y, reduction="none")
            pull = (head.weight - w0).square().sum() + (head.bias - b0).square().sum()
            ((w * ce).sum() + strength * pull).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(head.parameters(), clip)
            optimizer.step()
            right = head(val).argmax(1) == views.val.y
            score = min(right[views.val.group == g].double().mean().item() for g in range(4))
            if score > best_score:
                best_score = score
                best_head = torch.cat([head.weight, head.bias[:, None]], 1).detach().clone()
    model = run(views, gammas=[0, 5, 12], lambdas=[0, 0.3], steps=steps, lr=lr, clip=clip)
    assert torch.allclose(matrix(model), best_head, atol=1e-5)
    assert not torch.allclose(matrix(model), matrix(make_model()), atol=1e-3)


def test_without_early_stopping_the_last_step_counts() -> None:
    options: dict[str, Any] = {"gammas": [8.0], "lambdas": [0.0], "lr": 0.05}
    late = run(steps=60, early_stop=False, **options)
    assert not torch.equal(matrix(late), matrix(run(steps=60, **options)))
    assert torch.equal(matrix(late), matrix(run(steps=60, early_stop=False, **options)))


def test_the_first_of_equally_good_steps_counts() -> None:
    options: dict[str, Any] = {"gammas": [8.0], "lambdas": [0.0], "lr": 1e-5}
    one, many, last = (run(steps=1, **options), run(steps=20, **options), run(steps=20, early_stop=False, **options))
    assert torch.equal(matrix(one), matrix(many)), "no prediction changes in so short a way"
    assert not torch.equal(matrix(one), matrix(last))


def test_a_strong_pull_keeps_the_first_head() -> None:
    model = run(gammas=[8.0], lambdas=[40.0], steps=50, clip=None)
    assert torch.allclose(matrix(model), matrix(make_model()), atol=0.02)


# --- the split ---


def test_stages_share_the_training_set() -> None:
    views, store = make_views(AFR.access), Store()
    method = AFR(AFR.Config(gammas=[4.0], steps=2))
    torch.manual_seed(3)
    first = method.start_phase(ERM, make_model(), views, store)
    assert len(first) == 160
    assert not torch.equal(first.index, torch.arange(160)), "a random share"
    torch.manual_seed(4)
    again = method.start_phase(REFIT, make_model(), views, store)
    assert torch.equal(again.index, first.index), "after a restart too"


def test_the_second_stage_sees_held_out_samples_only() -> None:
    plain, changed = make_views(AFR.access), make_views(AFR.access)
    store = Store()
    store.made["order"] = torch.arange(200).flip(0)  # the last 40 in this order are samples 0 to 39
    changed.train._frames[40:] = 0
    options: dict[str, Any] = {"gammas": [4.0], "steps": 5}
    one = run(plain, store, **options)
    fresh = Store()
    fresh.made["order"] = store.made["order"]
    assert torch.equal(matrix(run(changed, fresh, **options)), matrix(one))
    fresh = Store()
    fresh.made["order"] = store.made["order"]
    changed.train._frames[:40] = 0
    assert not torch.equal(matrix(run(changed, fresh, **options)), matrix(one))


@pytest.mark.parametrize("n", [1, 0])
def test_too_few_samples_are_refused(n: int) -> None:
    views = make_views(AFR.access)
    with pytest.raises(ConfigError, match=f"split {n} training samples"):
        AFR(AFR.Config()).start_phase(ERM, make_model(), Views(views.train.subset(torch.arange(n)), views.val), Store())


# --- what must hold ---


def test_only_the_head_changes_and_a_restart_takes_the_stored_one() -> None:
    views, store = make_views(AFR.access), Store()
    before, model = make_model().state_dict(), run(views, store, gammas=[4.0], steps=5)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"head.weight", "head.bias"}
    again = model
    again.head.reset_parameters()
    stored = store.made["refit"]
    AFR(AFR.Config(gammas=[4.0], steps=5)).start_phase(REFIT, again, views, store)
    assert torch.equal(matrix(again), stored)


def test_validation_groups_decide() -> None:
    sizes = (80, 20, 20, 80)
    truth, mixed = (make_views(AFR.access, sizes, sizes, mix=mix) for mix in (False, True))
    options: dict[str, Any] = {"gammas": [0.0, 8.0, 16.0], "steps": 60, "lr": 0.05}
    one, other = run(truth, **options), run(mixed, **options)
    assert not torch.equal(matrix(one), matrix(other))
    assert worst_of(one, truth) > worst_of(other, truth)


def worst_of(model: Classifier, views: Views) -> float:
    right = extract(AFR(AFR.Config()), model, views.val).predicted() == views.val.y
    return min(right[views.val.group == g].double().mean().item() for g in range(4))


@pytest.mark.parametrize("val", [(40, 0, 30, 30), (40, 40, 40, 0)])
def test_empty_groups_are_no_worst_group(val: tuple[int, ...]) -> None:
    model = run(make_views(AFR.access, train=(60, 0, 0, 50), val=val), gammas=[4.0], steps=5)
    assert matrix(model).isfinite().all()
    assert not torch.equal(matrix(model), matrix(make_model()))


def test_a_certain_model_gives_finite_weights() -> None:
    views = make_views(AFR.access)
    model = make_model()
    nn.init.constant_(model.head.bias, 0)
    model.head.bias.data[0] = 1e4
    AFR(AFR.Config(gammas=[1000.0], steps=5)).start_phase(REFIT, model, views, Store())
    assert matrix(model).isfinite().all()


def test_supervision_is_declared() -> None:
    assert AFR.access == Access.VAL_LABELS | Access.VAL_GROUPS
    assert type(AFR(AFR.Config())).training_step is BaseMethod.training_step


@pytest.mark.parametrize(
    "options",
    [{"gammas": []}, {"gammas": [-1]}, {"lambdas": []}, {"lambdas": [-0.1]}, {"erm_fraction": 1.0}, {"erm_fraction": 0},
     {"steps": 0}, {"lr": 0}, {"clip": 0}],
)  # fmt: skip
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(options))):
        AFR.Config(**options)


def test_defaults_are_the_authors() -> None:
    config = AFR.Config()
    assert np.allclose(config.gammas, np.linspace(4, 20, 33))
    assert config.lambdas == (0, 0.1, 0.2, 0.3)
    assert (config.lr, config.steps, config.clip, config.erm_fraction) == (0.01, 500, 1.0, 0.8)
    erm, refit = AFR(config).phases(TrainConfig(epochs=3))
    assert (erm.epochs, refit.epochs) == (3, 0)
