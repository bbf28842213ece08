"""GroupDRO against the paper's formula in float64, its sampler, and groups that have no sample."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from spurbench.backbone import build_backbone
from spurbench.config import BackboneConfig, TrainConfig
from spurbench.data.cache import Frames
from spurbench.data.view import make_view
from spurbench.method import Phase, Progress, TaskInfo, Views
from spurbench.methods.groupdro import GroupDRO, GroupDROConfig
from spurbench.testing import check_method
from spurbench.testing.workbench import CPU, SIZE, Workbench
from spurbench.types import GroupedBatch

CLASSES, GROUPS = 3, 5
PROGRESS = Progress(phase="train", epoch=0, num_epochs=1, step=0, num_steps=1, seed=0, position=0, device=CPU)
SAYS_ITS_INPUT = nn.Identity()
"""A model whose images are its logits."""


def make(groups: int = GROUPS, **options: Any) -> GroupDRO:
    method = GroupDRO(GroupDROConfig(**options))
    task = TaskInfo(
        num_classes=CLASSES,
        num_groups=groups,
        num_train=8,
        class_counts=(1,) * CLASSES,
        image_size=SIZE,
        train=TrainConfig(),
    )
    method.build(build_backbone(BackboneConfig(name="test_convnext", weights="none"), None), task)
    return method


def batch(seed: int, groups: Sequence[int], n: int = 12) -> GroupedBatch:
    """Random logits as images, samples of the given groups only."""
    g = torch.Generator().manual_seed(seed)
    return GroupedBatch(
        images=2 * torch.randn(n, CLASSES, generator=g),
        y=torch.randint(CLASSES, (n,), generator=g),
        index=torch.arange(n),
        weight=torch.ones(n),
        group=torch.tensor(groups)[torch.randint(len(groups), (n,), generator=g)],
    )


def start(method: GroupDRO, group: Tensor) -> Views:
    """The method after ``start_phase`` on training data with these groups; the first view is what it trains on."""
    bench = Workbench.make(GroupDRO(GroupDROConfig()), "test_convnext")
    frames = Frames(images=torch.zeros(len(group), SIZE, SIZE, 3, dtype=torch.uint8), masks=None, boxes=None)
    train = make_view("train", frames, group % 2, group, method.access, bench.views.train.settings)
    phase = Phase(name="train", epochs=1, optimizer=bench.config.train.optimizer)
    view = method.start_phase(phase, bench.model, Views(train, bench.views.val), bench.store)
    return Views(view, bench.views.val)


class Transcription:
    """The paper's algorithm, sample by sample in float64."""

    def __init__(self, groups: int, eta: float, margin: Sequence[float] | None = None) -> None:
        self.q = np.full(groups, 1 / groups)
        self.eta = eta
        self.margin = np.zeros(groups) if margin is None else np.array(margin)

    def step(self, batch: GroupedBatch) -> tuple[float, np.ndarray]:
        """The loss and its gradient with respect to the logits."""
        logits, y, group = batch.images.double().numpy(), batch.y.numpy(), batch.group.numpy()
        probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        losses = [-np.log(p[label]) for p, label in zip(probabilities, y, strict=True)]
        means = np.zeros(len(self.q))
        for g in range(len(self.q)):
            own = [loss for loss, other in zip(losses, group, strict=True) if other == g]
            means[g] = sum(own) / len(own) if own else 0.0
        for g in range(len(self.q)):
            self.q[g] *= np.exp(self.eta * (means[g] + self.margin[g]))
        self.q /= self.q.sum()
        sizes = np.bincount(group, minlength=len(self.q))
        gradient = (self.q[group] / sizes[group])[:, None] * (probabilities - np.eye(logits.shape[1])[y])
        return float(np.dot(self.q, means)), gradient


BATCHES = [batch(0, range(5)), batch(1, [0, 3]), batch(2, [4]), batch(3, [1, 2, 3]), batch(4, [0, 1, 2, 4])]


@pytest.mark.parametrize("eta", [0.01, 0.7])
def test_agrees_with_the_formula_over_several_steps(eta: float) -> None:
    method, oracle = make(eta=eta), Transcription(GROUPS, eta)
    for now in BATCHES:
        now.images.requires_grad_()
        loss = method.training_step(SAYS_ITS_INPUT, now, PROGRESS).loss
        (gradient,) = torch.autograd.grad(loss, now.images)
        now.images.requires_grad_(False)
        expected, expected_gradient = oracle.step(now)
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
        np.testing.assert_allclose(gradient.numpy(), expected_gradient, atol=1e-6)
        np.testing.assert_allclose(method.q.numpy(), oracle.q, rtol=1e-5)


def test_weights_follow_their_own_group() -> None:
    """Renaming the groups renames q, and nothing else; the group with the highest loss gains most."""
    order = torch.tensor([3, 0, 4, 1, 2])
    one, other = make(eta=0.5), make(eta=0.5)
    for now in BATCHES:
        renamed = replace(now, group=order[now.group])
        left = one.training_step(SAYS_ITS_INPUT, now, PROGRESS).loss
        right = other.training_step(SAYS_ITS_INPUT, renamed, PROGRESS).loss
        torch.testing.assert_close(left, right)
    torch.testing.assert_close(other.q[order], one.q)
    assert not torch.allclose(other.q, one.q)

    method, wrong_in_one = make(eta=0.5), batch(0, range(5), n=40)
    logits = 4.0 * F.one_hot(wrong_in_one.y, CLASSES)
    logits[wrong_in_one.group == 1] *= -1
    method.training_step(SAYS_ITS_INPUT, replace(wrong_in_one, images=logits), PROGRESS)
    assert int(method.q.argmax()) == 1


def test_no_step_size_is_the_mean_over_groups() -> None:
    method, now = make(eta=0.0), batch(0, range(5), n=40)
    losses = F.cross_entropy(now.images, now.y, reduction="none")
    mean = torch.stack([losses[now.group == g].mean() for g in range(GROUPS)]).mean()
    torch.testing.assert_close(method.training_step(SAYS_ITS_INPUT, now, PROGRESS).loss, mean)
    torch.testing.assert_close(method.q, torch.full((GROUPS,), 1 / GROUPS))


def test_loss_weights_are_honoured() -> None:
    now = BATCHES[0]
    twice = replace(now, weight=2 * now.weight)
    plain, double = (make(eta=0.0).training_step(SAYS_ITS_INPUT, b, PROGRESS).loss for b in (now, twice))
    torch.testing.assert_close(double, 2 * plain)


def test_adjustment_acts_on_q_alone_and_leaves_empty_groups_finite() -> None:
    """n = 1, 4, 0, 9, 16 and C = 6: margins 6, 3, none, 2, 1.5."""
    group = torch.tensor([0, 1, 3, 4]).repeat_interleave(torch.tensor([1, 4, 9, 16]))
    method = make(eta=0.1, adjustment=6.0)
    start(method, group)
    oracle = Transcription(GROUPS, 0.1, [6.0, 3.0, 0.0, 2.0, 1.5])
    for now in (batch(0, [0, 1, 3, 4]), batch(1, [3]), batch(2, [0, 4])):
        loss = method.training_step(SAYS_ITS_INPUT, now, PROGRESS).loss
        assert float(loss) == pytest.approx(oracle.step(now)[0], rel=1e-5)
    np.testing.assert_allclose(method.q.numpy(), oracle.q, rtol=1e-5)


def test_autocast_does_not_round_losses_and_weights() -> None:
    method, oracle, now = make(eta=0.5), Transcription(GROUPS, 0.5), BATCHES[0]
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.training_step(SAYS_ITS_INPUT, now, PROGRESS).loss
    assert float(loss) == pytest.approx(oracle.step(now)[0], rel=1e-5)
    np.testing.assert_allclose(method.q.numpy(), oracle.q, rtol=1e-5)


def test_no_step_size_overflows() -> None:
    method = make(eta=1e4)
    for now in BATCHES:
        assert method.training_step(SAYS_ITS_INPUT, now, PROGRESS).loss.isfinite()
        assert float(method.q.sum()) == pytest.approx(1)


def test_state_goes_on_where_it_was() -> None:
    method, resumed = make(eta=0.5), make(eta=0.5)
    for now in BATCHES[:3]:
        method.training_step(SAYS_ITS_INPUT, now, PROGRESS)
    resumed.load_state_dict({"q": method.state_dict()["q"].clone()})
    for now in BATCHES[3:]:
        losses = [m.training_step(SAYS_ITS_INPUT, now, PROGRESS).loss for m in (method, resumed)]
        assert torch.equal(*losses)
    assert torch.equal(method.q, resumed.q)


def test_groups_are_drawn_equally_often() -> None:
    """Sizes 300, 60, 0, 30, 10: each of the four is a quarter of the draws, with replacement."""
    group = torch.tensor([0, 1, 3, 4]).repeat_interleave(torch.tensor([300, 60, 30, 10]))
    view = start(make(), group).train
    drawn = torch.cat(
        [b.index for epoch in range(4) for b in view.at(position=0, epoch=epoch).loader(shuffle=True, augment=False)]
    )
    assert len(drawn) == 4 * len(group)
    shares = torch.bincount(group[drawn], minlength=GROUPS) / len(drawn)
    torch.testing.assert_close(shares, torch.tensor([0.25, 0.25, 0.0, 0.25, 0.25]), atol=0.04, rtol=0)


def test_empty_groups_are_named_and_only_dilute(caplog: pytest.LogCaptureFixture) -> None:
    """Under full correlation two of four groups have no sample; the loss stays finite and their share shrinks."""
    method = make(groups=4, eta=0.5)
    start(method, torch.tensor([0, 3] * 4))
    assert "GroupDRO: group(s) 1, 2 have no training sample" in caplog.text
    shares = [float(method.q[1])]
    for seed in range(4):
        out = method.training_step(SAYS_ITS_INPUT, batch(seed, [0, 3]), PROGRESS)
        assert out.loss.isfinite()
        shares.append(float(method.q[1]))
    assert sorted(shares, reverse=True) == shares
    assert shares[0] == 0.25
    assert float(method.q[1]) == float(method.q[2])


def test_nothing_is_said_when_every_group_has_samples(caplog: pytest.LogCaptureFixture) -> None:
    start(make(groups=4), torch.tensor([0, 1, 2, 3] * 2))
    assert not caplog.text


@pytest.mark.parametrize("options", [{"eta": -0.1}, {"adjustment": -1.0}, {"eta": float("nan")}, {"step": 1}])
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        GroupDROConfig(**options)


def test_with_large_steps_and_adjustment_conforms() -> None:
    check_method(GroupDRO, backbones=("test_convnext",), eta=1.0, adjustment=2.0)
