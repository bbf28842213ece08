"""LfF: weights against a transcription sample by sample, who gets which gradient, what predicts, and restarts."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from spurbench.backbone import build_backbone
from spurbench.config import BackboneConfig, OptimizerConfig, TrainConfig
from spurbench.costs import model_costs
from spurbench.engine.training import make_optimizer
from spurbench.method import Progress, TaskInfo
from spurbench.methods.erm import ERM
from spurbench.methods.lff import LfF, LfFConfig, TwoClassifiers
from spurbench.registry import load_registry
from spurbench.testing.workbench import Workbench
from spurbench.types import Batch

N, CLASSES = 12, 3
LABELS = torch.arange(N) % CLASSES


def task(num_classes: int = CLASSES) -> TaskInfo:
    return TaskInfo(
        num_classes=num_classes,
        num_groups=num_classes,
        num_train=N,
        class_counts=(N // num_classes,) * num_classes,
        image_size=64,
        train=TrainConfig(),
    )


def make(y: Tensor = LABELS, num_classes: int = CLASSES, **options: Any) -> tuple[LfF, TwoClassifiers]:
    method = LfF(LfFConfig(**options))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = build_backbone(BackboneConfig(name="test_convnext", weights="none"), None)
        model = method.build(backbone, task(num_classes))
    assert isinstance(model, TwoClassifiers)
    method.y = y
    return method, model


def batch(index: Tensor, y: Tensor = LABELS) -> Batch:
    rng = torch.Generator().manual_seed(int(index.sum()))
    return Batch(
        images=torch.randn(len(index), 3, 64, 64, generator=rng), y=y[index], index=index, weight=torch.ones(len(index))
    )


def progress() -> Progress:
    return Progress(
        phase="train", epoch=0, num_epochs=1, step=0, num_steps=1, seed=0, position=0, device=torch.device("cpu")
    )


def transcription(
    batches: list[tuple[list[int], np.ndarray]], y: list[int], alpha: float, class_max: bool
) -> list[list[float]]:
    """The authors' order of operations in plain Python, float64: update, read, divide by the class maximum, weigh."""
    average: list[dict[int, float]] = [{}, {}]  # of samples visited so far
    weights = []
    for index, losses in batches:
        for net in (0, 1):
            for i, loss in zip(index, losses[net], strict=True):
                average[net][i] = alpha * average[net][i] + (1 - alpha) * loss if i in average[net] else loss
        row = []
        for i in index:
            b, d = (average[net][i] for net in (0, 1))
            if class_max:
                b, d = (
                    value / max(a for j, a in average[net].items() if y[j] == y[i]) for net, value in ((0, b), (1, d))
                )
            row.append(b / (b + d + 1e-8))
        weights.append(row)
    return weights


# --- relative difficulty ---


@pytest.mark.parametrize("average", [0.7, 0.0, 0.95])
@pytest.mark.parametrize("class_max", [True, False])
def test_weights_are_the_transcriptions(average: float, class_max: bool) -> None:
    method, _ = make(average=average, class_max=class_max)
    rng = np.random.default_rng(0)
    batches = [(rng.permutation(N)[:size].tolist(), rng.exponential(size=(2, size))) for size in (5, 4, 7, 1, 6, 12, 3)]
    expected = transcription(batches, LABELS.tolist(), average, class_max)
    for (index, losses), row in zip(batches, expected, strict=True):
        ours = method.relative_difficulty(torch.tensor(losses, dtype=torch.float32), batch(torch.tensor(index)))
        assert torch.allclose(ours.double(), torch.tensor(row, dtype=torch.float64), atol=1e-6)


def test_weights_by_hand() -> None:
    y = torch.zeros(N, dtype=torch.int64)
    method, _ = make(y=y, num_classes=1)
    first = method.relative_difficulty(torch.tensor([[2.0, 1.0], [1.0, 4.0]]), batch(torch.tensor([0, 1]), y))
    # Class maxima 2 and 4: b = (1, 1/2), d = (1/4, 1).
    assert first.tolist() == pytest.approx([1 / 1.25, 0.5 / 1.5])
    second = method.relative_difficulty(torch.tensor([[3.0], [0.0]]), batch(torch.tensor([1]), y))
    # b = 0.7 * 1 + 0.3 * 3 = 1.6 of 2, which sample 0 still has; d = 0.7 * 4 = 2.8, the maximum.
    assert second.tolist() == pytest.approx([0.8 / 1.8])
    assert method.average[:, :2].flatten().tolist() == pytest.approx([2.0, 1.6, 1.0, 2.8])
    assert method.visited.tolist() == [1, 1] + [0] * (N - 2)


def test_what_only_the_biased_network_finds_hard_weighs_more() -> None:
    method, _ = make()
    losses = torch.tensor([[2.0, 0.1, 1.0], [0.1, 2.0, 1.0]])
    weights = method.relative_difficulty(losses, batch(torch.tensor([0, 3, 6])))  # one class
    assert weights[0] > 0.9
    assert weights[1] < 0.1
    assert ((weights >= 0) & (weights <= 1)).all()


def test_losses_of_zero_get_weight_zero() -> None:
    method, _ = make()
    weights = method.relative_difficulty(torch.zeros(2, N), batch(torch.arange(N)))
    assert torch.equal(weights, torch.zeros(N))
    lone = method.relative_difficulty(torch.tensor([[0.0], [3.0]]), batch(torch.tensor([1])))
    assert lone.tolist() == [0]


def test_classes_without_samples_do_not_matter() -> None:
    method, _ = make(y=torch.ones(N, dtype=torch.int64))
    weights = method.relative_difficulty(torch.ones(2, 4), batch(torch.arange(4), torch.ones(N, dtype=torch.int64)))
    assert weights.tolist() == pytest.approx([0.5] * 4)


# --- generalized cross-entropy ---


@pytest.mark.parametrize("q", [0.05, 0.7, 1.0])
def test_generalized_cross_entropy(q: float) -> None:
    logits = torch.randn(8, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.arange(8) % CLASSES
    p = logits.softmax(1)[torch.arange(8), y]

    def value_and_gradient(gce: str) -> tuple[Tensor, Tensor]:
        leaf = logits.clone().requires_grad_()
        value = make(q=q, gce=gce)[0].generalized_cross_entropy(F.cross_entropy(leaf, y, reduction="none"))
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), gradient

    code, code_gradient = value_and_gradient("code")
    assert torch.allclose(code, -torch.log(p) * q * p**q)
    # Of cross-entropy, p - onehot, times the factor.
    assert torch.allclose(code_gradient, (q * p**q)[:, None] * (logits.softmax(1) - F.one_hot(y, CLASSES)))
    paper, paper_gradient = value_and_gradient("paper")
    assert torch.allclose(paper, (1 - p**q) / q)
    assert torch.allclose(q * paper_gradient, code_gradient)


# --- a step ---


def test_each_network_gets_its_own_loss_only() -> None:
    method, model = make()
    data = batch(torch.arange(6))
    method.training_step(model, data, progress()).loss.backward()
    ours = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    with torch.no_grad():
        losses = [F.cross_entropy(net(data.images), data.y, reduction="none").numpy() for net in (model.biased, model)]
    (weights,) = transcription([(list(range(6)), np.array(losses))], LABELS.tolist(), 0.7, True)
    p = model.biased(data.images).softmax(1)[torch.arange(6), data.y].detach()
    (0.7 * p**0.7 * F.cross_entropy(model.biased(data.images), data.y, reduction="none")).mean().backward()
    assert not any(p.grad is not None for name, p in model.named_parameters() if not name.startswith("biased."))
    (torch.tensor(weights) * F.cross_entropy(model(data.images), data.y, reduction="none")).mean().backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(ours[name], parameter.grad, rtol=1e-4, atol=1e-7), name


def test_loss_weights_samples() -> None:
    data = batch(torch.arange(4))
    plain = make()[0].training_step(make()[1], data, progress()).loss.item()
    tripled = Batch(images=data.images, y=data.y, index=data.index, weight=torch.full((4,), 3.0))
    assert make()[0].training_step(make()[1], tripled, progress()).loss.item() / plain == pytest.approx(3, rel=1e-5)


# --- two networks ---


def test_the_debiased_network_predicts_and_starts_as_erm_does() -> None:
    method, model = make()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = build_backbone(BackboneConfig(name="test_convnext", weights="none"), None)
        plain = ERM(ERM.Config()).build(backbone, task())
    for name, value in plain.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
        if name.startswith("backbone."):
            assert torch.equal(value, model.state_dict()[f"biased.{name}"]), name
    assert not torch.equal(model.head.weight, model.biased.head.weight)
    images = batch(torch.arange(4)).images
    model.eval()
    with torch.no_grad():
        before = method.evaluate(model, images).logits
        for parameter in model.biased.parameters():
            parameter.fill_(7.0)
        assert torch.equal(before, method.evaluate(model, images).logits)
    assert method.head(model) is model.head
    assert method.cam_layer(model) is model.backbone.last_map


def test_both_backbones_and_both_heads_have_their_rates() -> None:
    _, model = make()
    optimizer = make_optimizer(OptimizerConfig(lr=1e-4, head_lr=1e-2), model)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rate) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert rate[id(parameter)] == (1e-4 if "backbone." in name else 1e-2), name


def test_prediction_costs_one_network() -> None:
    ours, plain = model_costs(LfF(LfFConfig()), "test_convnext", 64, 10)
    assert ours.gmacs == plain.gmacs


# --- restart ---


def test_state_goes_on_in_another_instance() -> None:
    method, _ = make()
    method.relative_difficulty(torch.rand(2, 8, generator=torch.Generator().manual_seed(0)), batch(torch.arange(8)))
    other, _ = make()
    other.load_state_dict({name: value.clone() for name, value in method.state_dict().items()})
    losses = torch.rand(2, 6, generator=torch.Generator().manual_seed(1))
    data = batch(torch.arange(4, 10))
    assert torch.equal(method.relative_difficulty(losses, data), other.relative_difficulty(losses, data))
    fresh = make()[0].relative_difficulty(losses, data)
    assert not torch.equal(fresh, other.relative_difficulty(losses, data))


def test_averages_follow_training() -> None:
    bench = Workbench.make(LfF(LfFConfig()), "test_convnext")
    bench.train(1)
    assert bench.method.visited.all()
    assert (bench.method.average > 0).all()
    assert torch.equal(bench.method.y, bench.views.train.y)


# --- options ---


@pytest.mark.parametrize(
    "option", [{"q": 0.0}, {"q": 1.1}, {"average": 1.0}, {"average": -0.1}, {"gce": "exact"}, {"q": float("nan")}]
)
def test_impossible_options_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(option))):
        LfFConfig(**option)


def test_registered() -> None:
    assert load_registry("methods").get("lff").value is LfF
    assert LfF(LfFConfig()).label == "LfF"
