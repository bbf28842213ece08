"""LISA: who is paired with whom, how often, what happens where pairs are missing, and the mixed loss."""

import logging
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from scipy import stats
from torch import Tensor, nn

from spurbench.backbone import build_backbone
from spurbench.config import BackboneConfig, TrainConfig
from spurbench.data.pairs import Pairs
from spurbench.data.view import View
from spurbench.method import Progress, TaskInfo, Views
from spurbench.methods.erm import ERM
from spurbench.methods.lisa import LISA, LISAConfig
from spurbench.registry import load_registry
from spurbench.testing import check_method
from spurbench.testing.workbench import Workbench
from spurbench.types import GroupedBatch

Pair = tuple[int, int]


def groups(counts: dict[Pair, int], num_attributes: int) -> Tensor:
    """Labels and attributes to group numbers, in a shuffled order."""
    column = torch.tensor([y * num_attributes + a for (y, a), n in counts.items() for _ in range(n)])
    return column[torch.randperm(len(column), generator=torch.Generator().manual_seed(5))]


UNEVEN = {(0, 0): 50, (0, 1): 10, (0, 2): 4, (1, 0): 6, (1, 1): 30, (1, 2): 20}
"""Two classes, three attributes: taking one for the other would show."""


def sampler(counts: dict[Pair, int] = UNEVEN, num_attributes: int = 3, **options: Any) -> Pairs:
    settings: dict[str, Any] = {"p_label": 0.5, "batch_size": 12, "balanced": True, **options}
    return Pairs(group=groups(counts, num_attributes), num_attributes=num_attributes, **settings)


def epoch(pairs: Pairs, seed: int = 0) -> list[list[tuple[int, int]]]:
    """Batches of (sample, partner)."""
    batches = pairs(torch.Generator().manual_seed(seed))
    return [list(zip(b[: len(b) // 2], b[len(b) // 2 :], strict=True)) for b in batches]


def label_and_attribute(pairs: Pairs, sample: int) -> Pair:
    return divmod(int(pairs.group[sample]), pairs.num_attributes)


def kind(pairs: Pairs, sample: int, partner: int) -> str:
    (y, a), (other_y, other_a) = (label_and_attribute(pairs, i) for i in (sample, partner))
    if y == other_y and a != other_a:
        return "intra-label"
    if y != other_y and a == other_a:
        return "intra-domain"
    return "itself" if sample == partner else f"wrong: {(y, a)} with {(other_y, other_a)}"


# --- pairs ---


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("p_label", [0.0, 0.3, 1.0])
def test_every_batch_is_of_one_kind_as_often_as_wanted(balanced: bool, p_label: float) -> None:
    pairs = sampler(p_label=p_label, balanced=balanced)
    batches = [b for seed in range(40) for b in epoch(pairs, seed)]
    kinds = [{kind(pairs, *pair) for pair in b} for b in batches]
    assert all(len(k) == 1 for k in kinds)
    assert {next(iter(k)) for k in kinds} <= {"intra-label", "intra-domain"}
    intra_label = sum(k == {"intra-label"} for k in kinds)
    assert stats.binomtest(intra_label, len(kinds), p_label).pvalue > 1e-3


@pytest.mark.parametrize("balanced", [True, False])
def test_an_epoch_has_as_many_pairs_as_samples(balanced: bool) -> None:
    pairs = sampler(balanced=balanced, batch_size=32)
    assert [len(b) for b in epoch(pairs)] == [32, 32, 32, 24]
    assert epoch(pairs, 1) == epoch(pairs, 1)
    assert epoch(pairs, 1) != epoch(pairs, 2)


def test_uniform_takes_every_sample_once_and_partners_as_they_are() -> None:
    pairs = sampler(balanced=False, p_label=1.0)
    assert sorted(sample for b in epoch(pairs) for sample, _ in b) == list(range(120))
    drawn = Counter(
        label_and_attribute(pairs, partner)
        for seed in range(100)
        for b in epoch(pairs, seed)
        for sample, partner in b
        if label_and_attribute(pairs, sample) == (1, 0)
    )
    # Partners of (1, 0) with its label: 30 of (1, 1) and 20 of (1, 2).
    assert stats.binomtest(drawn[1, 1], drawn.total(), 0.6).pvalue > 1e-3
    assert set(drawn) == {(1, 1), (1, 2)}


def test_balanced_batches_have_equally_many_of_every_group() -> None:
    pairs = sampler(p_label=0.5)
    for b in epoch(pairs):
        assert set(Counter(label_and_attribute(pairs, sample) for sample, _ in b).values()) == {2}
    # Twenty turns each: a group of 4 is used five times, one of 50 does not repeat.
    uses = Counter(sample for b in epoch(pairs) for sample, _ in b)
    by_group = {g: {uses[i] for i in range(120) if label_and_attribute(pairs, i) == g} for g in UNEVEN}
    assert by_group[0, 2] == {5}
    assert by_group[0, 1] == {2}
    assert by_group[0, 0] == {0, 1}
    drawn = Counter(
        label_and_attribute(pairs, partner)
        for seed in range(100)
        for b in epoch(replace(pairs, p_label=1.0), seed)
        for sample, partner in b
        if label_and_attribute(pairs, sample) == (1, 0)
    )
    assert stats.binomtest(drawn[1, 1], drawn.total(), 0.5).pvalue > 1e-3


def test_two_by_two_is_the_authors_batch() -> None:
    """Half of a batch mixes the attributes of one class, half those of the other; or classes, by attribute."""
    pairs = sampler({(0, 0): 40, (0, 1): 3, (1, 0): 5, (1, 1): 20}, 2, batch_size=16)
    for seed in range(10):
        for b in epoch(pairs, seed)[:-1]:
            mixes = Counter(frozenset(label_and_attribute(pairs, i) for i in pair) for pair in b)
            intra_label = {frozenset({(y, 0), (y, 1)}): 8 for y in (0, 1)}
            intra_domain = {frozenset({(0, a), (1, a)}): 8 for a in (0, 1)}
            assert mixes in (intra_label, intra_domain)


@pytest.mark.parametrize("balanced", [True, False])
def test_who_has_no_partner_of_the_kind_stays_alone(balanced: bool) -> None:
    pairs = sampler({(0, 0): 30, (1, 0): 10, (1, 1): 20}, 2, balanced=balanced)
    assert pairs.exist(intra_label=True)
    assert pairs.exist(intra_label=False)
    seen = {
        (label_and_attribute(pairs, s), kind(pairs, s, p))
        for seed in range(5)
        for b in epoch(pairs, seed)
        for s, p in b
    }
    assert seen == {
        ((0, 0), "itself"), ((0, 0), "intra-domain"),
        ((1, 0), "intra-label"), ((1, 0), "intra-domain"),
        ((1, 1), "intra-label"), ((1, 1), "itself"),
    }  # fmt: skip


# --- missing pairs ---


def with_groups(bench: Workbench, group: Tensor) -> Views:
    columns = replace(bench.views.train._columns, y=group // 2, group=group)
    return Views(replace(bench.views.train, _columns=columns), bench.views.val)


def start(group: Tensor, **options: Any) -> tuple[LISA, View, Views]:
    bench = Workbench.make(LISA(LISAConfig(**options)), "test_convnext")
    views = with_groups(bench, group)
    (phase,) = bench.method.phases(bench.config.train)
    assert isinstance(bench.method, LISA)
    return bench.method, bench.method.start_phase(phase, bench.model, views, bench.store), views


def kinds_of(view: View) -> set[str]:
    assert isinstance(view._sampler, Pairs)
    return {kind(view._sampler, *pair) for seed in range(8) for b in epoch(view._sampler, seed) for pair in b}


ALL = torch.arange(16) % 4
CORRELATED = torch.arange(16) % 2 * 3
ONE_ATTRIBUTE = torch.arange(16) % 2 * 2
ONE_CLASS = torch.arange(16) % 2


def test_attributes_are_counted_from_the_task() -> None:
    method = LISA(LISAConfig())
    task = TaskInfo(
        num_classes=3, num_groups=6, num_train=6, class_counts=(2, 2, 2), image_size=64, train=TrainConfig()
    )
    method.build(build_backbone(BackboneConfig(name="test_convnext", weights="none"), None), task)
    assert method.num_attributes == 2


def test_complete_groups_need_no_words(caplog: pytest.LogCaptureFixture) -> None:
    method, view, views = start(ALL)
    assert method.mixes
    assert kinds_of(view) == {"intra-label", "intra-domain"}
    assert not caplog.records
    batch = next(view.at(position=0, epoch=0).loader(shuffle=True, augment=False))
    assert len(batch.y) == 2 * views.train.settings.batch_size
    assert view.num_batches() == views.train.num_batches()


@pytest.mark.parametrize(
    ("group", "kept", "missing"),
    [(ONE_ATTRIBUTE, "intra-domain", "intra-label"), (ONE_CLASS, "intra-label", "intra-domain")],
)
def test_without_a_kind_the_other_is_used(
    group: Tensor, kept: str, missing: str, caplog: pytest.LogCaptureFixture
) -> None:
    method, view, _ = start(group)
    assert method.mixes
    assert kinds_of(view) == {kept}
    assert f"no {missing} pair; all are {kept}" in caplog.text
    assert "have no training sample" in caplog.text


@pytest.mark.parametrize(
    ("group", "p_sel", "named"),
    [
        (CORRELATED, 0.5, "no intra-label or intra-domain pair"),
        (ONE_ATTRIBUTE, 1.0, "no intra-label pair"),
        (ONE_CLASS, 0.0, "no intra-domain pair"),
    ],
)
def test_without_pairs_it_says_that_it_is_erm(
    group: Tensor, p_sel: float, named: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        method, view, views = start(group, p_sel=p_sel)
    assert not method.mixes
    assert view is views.train
    assert len(caplog.records) == 1
    assert f"LISA: the training set has {named} to mix, so this is ERM" in caplog.text


def test_under_full_correlation_training_is_erms_bit_for_bit() -> None:
    states = []
    for method in (LISA(LISAConfig()), ERM(ERM.Config())):
        bench = Workbench.make(method, "test_convnext")
        # The workbench's y is 0, 1, 0, 1, ... as CORRELATED's.
        if isinstance(method, LISA):
            bench.views = with_groups(bench, CORRELATED)
        bench.train(2)
        states.append(bench.model.state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


# --- a step ---


class Recorder(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        self.images = images
        return images.flatten(1)[:, :2] * 3


def pair_batch(weight: Tensor | None = None) -> GroupedBatch:
    """Four samples and their partners, 1 at one pixel each; the last is its own partner, in another crop."""
    images = torch.eye(8, 3 * 4 * 4).reshape(8, 3, 4, 4)
    return GroupedBatch(
        images=images,
        y=torch.tensor([0, 1, 0, 1, 1, 1, 0, 1]),
        index=torch.tensor([0, 1, 2, 3, 4, 5, 6, 3]),
        weight=torch.ones(8) if weight is None else weight,
        group=torch.tensor([0, 2, 0, 3, 2, 3, 1, 3]),
    )


def progress(step: int = 0) -> Progress:
    return Progress(
        phase="train", epoch=0, num_epochs=1, step=step, num_steps=9, seed=0, position=0, device=torch.device("cpu")
    )


def test_step_mixes_each_with_its_partner() -> None:
    weight = torch.linspace(0.5, 2, 8)
    weight[7] = weight[3]  # the same sample
    shares = []
    for number in range(200):
        model = Recorder()
        data = pair_batch(weight)
        loss = LISA(LISAConfig()).training_step(model, data, progress(number)).loss
        matrix = model.images.flatten(1)[:, :8]
        assert matrix.shape == (4, 8)
        share, rest = matrix.diagonal(), matrix[torch.arange(4), torch.arange(4, 8)]
        assert torch.allclose(matrix.sum(1), torch.ones(4))
        assert torch.allclose(share + rest, torch.ones(4))
        assert share[3] == 1, "unmixed, and in the first crop"
        logits = 3 * matrix[:, :2]
        one = F.cross_entropy(logits, data.y[:4], reduction="none") * weight[:4]
        other = F.cross_entropy(logits, data.y[4:], reduction="none") * weight[4:]
        assert float(loss) == pytest.approx(float((share * one + rest * other).mean()), rel=1e-5)
        shares.append(share[:3])
    drawn = torch.stack(shares).double()
    assert stats.kstest(drawn.flatten().numpy(), stats.beta(2, 2).cdf).pvalue > 1e-3
    assert (drawn[:, 0] != drawn[:, 1]).all(), "one lambda per sample"


def test_cut_mix_step_uses_the_area_as_label() -> None:
    for number in range(20):
        model = Recorder()
        data = pair_batch()
        images = torch.arange(8.0).reshape(8, 1, 1, 1).expand(8, 3, 16, 16)
        data = replace(data, images=images)
        loss = LISA(LISAConfig(mix="cutmix")).training_step(model, data, progress(number)).loss
        mixed = model.images
        boxes = mixed[:, 0] != torch.arange(4.0)[:, None, None]
        assert torch.equal(mixed[:3, 0][boxes[:3]], (images[4:7, 0])[boxes[:3]])
        assert torch.equal(boxes[0], boxes[1]), "one box per batch"
        assert not boxes[3].any()
        share = 1 - boxes[0].float().mean()
        logits = mixed.flatten(1)[:, :2] * 3
        onehot = F.one_hot(data.y, 2)
        target = share * onehot[:4] + (1 - share) * onehot[4:]
        assert float(loss) == pytest.approx(float(F.cross_entropy(logits, target)), rel=1e-4, abs=1e-6)


def test_other_options_conform() -> None:
    check_method(LISA, backbones=("test_convnext",), mix="cutmix", sampling="uniform", p_sel=0.8)


# --- options ---


@pytest.mark.parametrize(
    "option", [{"p_sel": -0.1}, {"p_sel": 1.1}, {"alpha": 0.0}, {"mix": "manifold"}, {"sampling": "natural"}]
)
def test_impossible_options_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(option))):
        LISAConfig(**option)


def test_registered() -> None:
    assert load_registry("methods").get("lisa").value is LISA
    assert LISA(LISAConfig()).label == "LISA"
