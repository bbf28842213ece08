"""Balanced cells: how often each is drawn, how many of each are kept, and what groups without a sample do."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from sklearn.utils.class_weight import compute_sample_weight
from torch import Tensor

from spurbench.data.balance import balanced_subset, balanced_weights, warn_of_empty_groups
from spurbench.data.cache import Frames
from spurbench.data.view import View, make_view
from spurbench.errors import AccessDenied
from spurbench.method import Phase, Views
from spurbench.methods.balancing import METHODS, RWG, RWY, SUBG, SUBY
from spurbench.registry import load_registry
from spurbench.testing import check_method
from spurbench.testing.workbench import SIZE, Workbench
from spurbench.types import Access

ALL = (RWG, RWY, SUBG, SUBY)
GROUP = torch.tensor([0, 1, 2, 3]).repeat_interleave(torch.tensor([60, 12, 8, 160]))
Y = GROUP // 2
CORRELATED = torch.tensor([0, 3]).repeat_interleave(torch.tensor([20, 30]))


class Started:
    """A method after ``start_phase`` on a training set with the given groups; y is group // 2."""

    def __init__(self, cls: Any, group: Tensor = GROUP, **options: Any) -> None:
        self.bench = Workbench.make(cls(cls.Config(**options)), "test_convnext")
        frames = Frames(images=torch.zeros(len(group), SIZE, SIZE, 3, dtype=torch.uint8), masks=None, boxes=None)
        settings, access = self.bench.views.train.settings, self.bench.method.access
        self.train = make_view("train", frames, group // 2, group, access, settings)
        self.view = self.start()

    def start(self, seed: int = 0) -> View:
        phase = Phase(name="train", epochs=1, optimizer=self.bench.config.train.optimizer)
        torch.manual_seed(seed)
        return self.bench.method.start_phase(
            phase, self.bench.model, Views(self.train, self.bench.views.val), self.bench.store
        )

    def drawn(self, epochs: int = 1) -> Tensor:
        """Positions in the order of training."""
        views = [self.view.at(position=0, epoch=epoch) for epoch in range(epochs)]
        return torch.cat([batch.index for view in views for batch in view.loader(shuffle=True, augment=False)])


# --- cells ---


def test_weights_are_those_of_scikit_learn() -> None:
    labels = torch.tensor([4, 0, 0, 2, 4, 4, 0, 0])
    theirs = torch.from_numpy(compute_sample_weight("balanced", labels.numpy()))
    ours = balanced_weights(labels)
    torch.testing.assert_close(ours / ours.sum(), theirs / theirs.sum())
    assert ours.tolist() == [1 / 3, 1 / 4, 1 / 4, 1, 1 / 3, 1 / 3, 1 / 4, 1 / 4]


def test_subset_has_equal_cells_of_distinct_positions() -> None:
    labels = torch.tensor([5, 0, 0, 2, 5, 5, 0, 2, 0])
    torch.manual_seed(0)
    seen = set()
    for _ in range(50):
        kept = balanced_subset(labels)
        assert labels[kept].tolist() == [0, 0, 2, 2, 5, 5]
        assert len(set(kept.tolist())) == len(kept)
        seen |= set(kept.tolist())
    assert seen == set(range(len(labels)))  # every sample has its chance


def test_subset_is_a_function_of_the_global_stream() -> None:
    torch.manual_seed(3)
    one = balanced_subset(GROUP)
    torch.manual_seed(3)
    assert torch.equal(one, balanced_subset(GROUP))
    assert not torch.equal(one, balanced_subset(GROUP))


def test_warning_names_the_empty_groups(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_empty_groups("Mine", torch.tensor([0, 3, 3]), 4)
    warn_of_empty_groups("Other", torch.tensor([0, 1]), 2)
    assert caplog.messages == [
        "Mine: group(s) 1, 2 have no training sample; only the other 2 of 4 can be balanced",
    ]


# --- the four methods ---


def test_names_and_supervision() -> None:
    assert METHODS == {"rwg": RWG, "rwy": RWY, "subg": SUBG, "suby": SUBY}
    for name, cls in METHODS.items():
        assert load_registry("methods").get(name).value is cls
        assert cls.access == (Access.TRAIN_GROUPS if name.endswith("g") else Access.NONE)
        assert cls(cls.Config()).label == name.upper()


@pytest.mark.parametrize("cls", [RWY, SUBY])
def test_class_balancing_cannot_see_groups(cls: Any) -> None:
    with pytest.raises(AccessDenied):
        Started(cls).train.group  # noqa: B018


@pytest.mark.parametrize(("cls", "cells"), [(RWG, GROUP), (RWY, Y)])
def test_cells_are_drawn_equally_often(cls: Any, cells: Tensor) -> None:
    drawn = Started(cls).drawn(epochs=20)
    assert len(drawn) == 20 * len(GROUP)
    shares = torch.bincount(cells[drawn]) / len(drawn)
    torch.testing.assert_close(shares, torch.full_like(shares, 1 / len(shares)), atol=0.03, rtol=0)
    # With replacement: 240 draws cannot be a permutation.
    assert len(set(drawn[: len(GROUP)].tolist())) < len(GROUP)


def test_class_balance_keeps_proportions_inside_a_class() -> None:
    """Class 1 has groups of 8 and 160: RWY draws the small one 20 times less often, RWG equally often."""
    by_class, by_group = (torch.bincount(GROUP[Started(cls).drawn(epochs=20)]) for cls in (RWY, RWG))
    assert float(by_class[3] / by_class[2]) == pytest.approx(20, rel=0.25)
    assert float(by_group[3] / by_group[2]) == pytest.approx(1, rel=0.15)


@pytest.mark.parametrize(
    ("cls", "group_counts", "class_counts"),
    [(SUBG, [8, 8, 8, 8], [16, 16]), (SUBY, None, [72, 72])],
)
def test_one_pass_over_the_smallest_size_of_every_cell(
    cls: Any, group_counts: list[int] | None, class_counts: list[int]
) -> None:
    drawn = Started(cls).drawn()
    assert torch.bincount(Y[drawn]).tolist() == class_counts
    assert group_counts is None or torch.bincount(GROUP[drawn]).tolist() == group_counts
    assert len(set(drawn.tolist())) == len(drawn)


@pytest.mark.parametrize("cls", [SUBG, SUBY])
def test_subset_is_the_same_in_every_epoch_and_after_a_restart(cls: Any) -> None:
    started = Started(cls)
    kept = set(started.drawn().tolist())
    assert set(started.drawn(epochs=5).tolist()) == kept
    assert torch.equal(started.start(seed=99).index, started.view.index)
    again = Started(cls)
    again.bench.store.artifacts.clear()
    assert set(again.start(seed=99).index.tolist()) != kept  # another run draws another one


def test_steps_repeats_the_subset_to_the_size_of_the_full_set() -> None:
    once, often = Started(SUBG), Started(SUBG, passes="steps")
    assert often.view.index.tolist() == once.view.index.tolist() * 8  # 240 / 32 = 7.5
    assert often.view.num_batches() == 8 * once.view.num_batches()
    assert len(Started(SUBY, passes="steps").view) == 2 * 144  # 240 / 144 = 1.7


def test_steps_never_drops_the_only_pass() -> None:
    balanced = torch.tensor([0, 1, 2, 3] * 3)
    assert sorted(Started(SUBG, balanced, passes="steps").view.index.tolist()) == list(range(12))


@pytest.mark.parametrize(("by_group", "by_class"), [(RWG, RWY), (SUBG, SUBY)])
def test_under_full_correlation_groups_are_classes(
    by_group: Any, by_class: Any, caplog: pytest.LogCaptureFixture
) -> None:
    left = Started(by_group, CORRELATED)
    assert caplog.messages == [
        f"{by_group.__name__}: group(s) 1, 2 have no training sample; only the other 2 of 4 can be balanced"
    ]
    caplog.clear()
    right = Started(by_class, CORRELATED)
    assert not caplog.messages
    assert torch.equal(left.drawn(epochs=2), right.drawn(epochs=2))


def test_options() -> None:
    with pytest.raises(ValidationError):
        SUBG.Config(passes="batches")
    with pytest.raises(ValidationError):
        RWG.Config(passes="steps")


@pytest.mark.parametrize("cls", [SUBG])
def test_with_repeated_passes_conforms(cls: Any) -> None:
    check_method(cls, backbones=("test_convnext",), passes="steps")
