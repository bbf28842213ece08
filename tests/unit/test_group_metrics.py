"""Group accuracies against scikit-learn, against the evaluator of WILDS, and by their properties."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score
from torch import Tensor

from spurbench.metrics.group import (
    GroupCounts,
    accuracy,
    adjusted_accuracy,
    group_accuracies,
    group_counts,
    group_mean_accuracy,
    worst_group,
)

WATERBIRDS_TRAIN = (3498, 184, 56, 1057)
NAMES = ("landbird/land", "landbird/water", "waterbird/land", "waterbird/water")


def example(counts: dict[int, tuple[int, int]], num_groups: int = 4) -> GroupCounts:
    """From {group: (correct, n)}."""
    n, correct = ([counts.get(g, (0, 0))[i] for g in range(num_groups)] for i in (1, 0))
    return GroupCounts(torch.tensor(n), torch.tensor(correct))


@st.composite
def samples(draw: st.DrawFn, min_size: int = 0) -> tuple[Tensor, Tensor, int]:
    """(correct, group, num_groups); often with empty groups."""
    num_groups = draw(st.integers(1, 6))
    pairs = draw(st.lists(st.tuples(st.booleans(), st.integers(0, num_groups - 1)), min_size=min_size, max_size=40))
    correct = torch.tensor([pair[0] for pair in pairs], dtype=torch.bool)
    return correct, torch.tensor([pair[1] for pair in pairs], dtype=torch.int64), num_groups


@pytest.fixture
def random_labels() -> tuple[Tensor, Tensor, Tensor]:
    """(y, background, predicted), with a predictor that is worse on the minority groups."""
    draw = torch.Generator().manual_seed(0)
    y = torch.randint(2, (800,), generator=draw)
    background = torch.where(torch.rand(800, generator=draw) < 0.8, y, 1 - y)
    right = torch.rand(800, generator=draw) < torch.where(y == background, 0.95, 0.6)
    return y, background, torch.where(right, y, 1 - y)


def test_counts_match_scikit_learn(random_labels: tuple[Tensor, Tensor, Tensor]) -> None:
    y, background, predicted = random_labels
    group = 2 * y + background
    counts = group_counts(predicted == y, group, 4)
    expected = [accuracy_score(y[group == g], predicted[group == g]) for g in range(4)]
    assert group_accuracies(counts) == pytest.approx(expected, abs=1e-12)
    assert accuracy(counts) == pytest.approx(accuracy_score(y, predicted), abs=1e-12)
    assert worst_group(counts) == (pytest.approx(min(expected), abs=1e-12), expected.index(min(expected)))


@pytest.mark.usefixtures("torch_scatter")
def test_worst_group_matches_wilds(random_labels: tuple[Tensor, Tensor, Tensor]) -> None:
    from wilds.common.metrics.all_metrics import Accuracy

    y, background, predicted = random_labels
    group = 2 * y + background + 1  # group 0 stays empty
    theirs = Accuracy().compute_group_wise(predicted, y, group, 6)
    ours = group_counts(predicted == y, group, 6)
    assert [theirs[f"count_group:{g}"] for g in range(6)] == ours.n.tolist()
    for g, value in enumerate(group_accuracies(ours)):
        assert value is None if ours.n[g] == 0 else value == pytest.approx(theirs[f"acc_group:{g}"], abs=1e-6)
    worst = worst_group(ours)
    assert worst is not None
    assert worst.accuracy == pytest.approx(theirs["acc_wg"], abs=1e-6)
    assert worst.accuracy == pytest.approx(theirs[f"acc_group:{worst.group}"], abs=1e-6)


# WILDS makes tensors of the read-only arrays of recent pandas.
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning")
@pytest.mark.usefixtures("torch_scatter")
def test_adjusted_accuracy_matches_wilds_waterbirds(
    tmp_path: Path, random_labels: tuple[Tensor, Tensor, Tensor]
) -> None:
    from wilds.datasets.waterbirds_dataset import WaterbirdsDataset

    folder = tmp_path / "waterbirds_v1.0"
    folder.mkdir()
    (folder / "RELEASE_v1.0.txt").touch()
    rows = [f"{i},a.jpg,{i // 2},{i % 3},{i % 2}" for i in range(4)]
    (folder / "metadata.csv").write_text("\n".join(["img_id,img_filename,y,split,place", *rows]))
    y, background, predicted = random_labels
    theirs, _ = WaterbirdsDataset(root_dir=str(tmp_path)).eval(predicted, y, torch.stack([background, y], dim=1))
    counts = group_counts(predicted == y, 2 * y + background, 4)
    assert adjusted_accuracy(counts, WATERBIRDS_TRAIN) == pytest.approx(theirs["adj_acc_avg"], abs=1e-6)
    worst = worst_group(counts)
    assert worst is not None
    assert worst.accuracy == pytest.approx(theirs["acc_wg"], abs=1e-6)


def test_numbers_by_hand_at_the_sizes_of_waterbirds() -> None:
    counts = example({0: (2210, 2255), 1: (1466, 2255), 2: (424, 642), 3: (622, 642)})
    assert accuracy(counts) == (2210 + 1466 + 424 + 622) / 5794
    assert group_mean_accuracy(counts) == pytest.approx((2210 / 2255 + 1466 / 2255 + 424 / 642 + 622 / 642) / 4)
    by_hand = (3498 * 2210 / 2255 + 184 * 1466 / 2255 + 56 * 424 / 642 + 1057 * 622 / 642) / 4795
    assert adjusted_accuracy(counts, WATERBIRDS_TRAIN) == pytest.approx(by_hand, abs=1e-12)
    assert worst_group(counts) == (1466 / 2255, 1)


def test_two_swapped_groups_are_noticed() -> None:
    """Every number but accuracy and the unweighted mean tells groups apart."""
    y = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    background = torch.tensor([0, 0, 1, 0, 1, 1, 1])
    correct = torch.tensor([True, True, False, True, True, True, False])
    counts = group_counts(correct, 2 * y + background, 4)
    assert counts.n.tolist() == [2, 1, 1, 3]
    assert counts.correct.tolist() == [2, 0, 1, 2]
    assert counts.to_rows(NAMES) == [
        {"group": 0, "name": "landbird/land", "n": 2, "correct": 2},
        {"group": 1, "name": "landbird/water", "n": 1, "correct": 0},
        {"group": 2, "name": "waterbird/land", "n": 1, "correct": 1},
        {"group": 3, "name": "waterbird/water", "n": 3, "correct": 2},
    ]
    assert adjusted_accuracy(counts, (10, 4, 3, 3)) == pytest.approx((10 + 0 + 3 + 2) / 20)
    assert worst_group(counts) == (0.0, 1)


@given(samples(min_size=1))
def test_worst_group_and_best_group_enclose_every_average(data: tuple[Tensor, Tensor, int]) -> None:
    counts = group_counts(*data)
    worst, plain, mean = worst_group(counts), accuracy(counts), group_mean_accuracy(counts)
    adjusted = adjusted_accuracy(counts, counts.n)
    best = max(value for value in group_accuracies(counts) if value is not None)
    assert worst is not None
    assert plain is not None
    assert mean is not None
    assert adjusted is not None
    assert worst.accuracy <= plain <= best
    assert worst.accuracy - 1e-12 <= mean <= best + 1e-12
    assert adjusted == pytest.approx(plain, abs=1e-12), "weighted by its own frequencies"


@given(samples(), st.randoms(use_true_random=False))
def test_order_of_samples_does_not_matter(data: tuple[Tensor, Tensor, int], random: st.DataObject) -> None:
    correct, group, num_groups = data
    order = list(range(len(group)))
    random.shuffle(order)  # type: ignore[attr-defined]
    counts, shuffled = group_counts(*data), group_counts(correct[order], group[order], num_groups)
    assert counts.n.equal(shuffled.n)
    assert counts.correct.equal(shuffled.correct)


@given(samples(), st.integers(0, 40))
def test_merging_batches_equals_one_batch(data: tuple[Tensor, Tensor, int], cut: int) -> None:
    correct, group, num_groups = data
    first = group_counts(correct[:cut], group[:cut], num_groups)
    merged = first + group_counts(correct[cut:], group[cut:], num_groups)
    whole = group_counts(*data)
    assert merged.n.equal(whole.n)
    assert merged.correct.equal(whole.correct)
    assert whole.n.dtype == whole.correct.dtype == torch.int64


def test_an_empty_group_is_null_and_never_the_worst() -> None:
    counts = example({0: (3, 4), 3: (1, 2)})
    assert group_accuracies(counts) == (0.75, None, None, 0.5)
    assert worst_group(counts) == (0.5, 3)
    assert group_mean_accuracy(counts) == 0.625
    assert counts.to_rows(NAMES)[1] == {"group": 1, "name": "landbird/water", "n": 0, "correct": 0}


def test_a_group_of_one_sample_counts() -> None:
    assert worst_group(example({0: (99, 100), 2: (0, 1)})) == (0.0, 2)


def test_without_samples_everything_is_null() -> None:
    counts = group_counts(torch.zeros(0, dtype=torch.bool), torch.zeros(0, dtype=torch.int64), 4)
    assert counts.num_groups == 4
    assert (accuracy(counts), group_mean_accuracy(counts), worst_group(counts)) == (None, None, None)
    assert adjusted_accuracy(counts, WATERBIRDS_TRAIN) is None


def test_the_lower_index_wins_a_tie() -> None:
    assert worst_group(example({1: (1, 2), 2: (3, 6), 3: (1, 1)})) == (0.5, 1)


def test_adjusted_accuracy_at_full_correlation() -> None:
    """Groups that training never showed have weight 0, however badly they do."""
    counts = example({0: (9, 10), 1: (0, 10), 2: (0, 10), 3: (8, 10)})
    assert adjusted_accuracy(counts, (75, 0, 0, 25)) == pytest.approx(0.875)


def test_adjusted_accuracy_needs_every_group_of_training() -> None:
    counts = example({0: (9, 10), 3: (8, 10)})
    assert adjusted_accuracy(counts, (75, 1, 0, 25)) is None
    assert adjusted_accuracy(counts, torch.tensor([75, 0, 0, 25])) == pytest.approx(0.875)
    assert adjusted_accuracy(counts, (0, 0, 0, 0)) is None


def test_arguments_that_do_not_fit_are_refused() -> None:
    counts = example({0: (1, 1)})
    with pytest.raises(ValueError, match="3 training counts for 4 groups"):
        adjusted_accuracy(counts, (1, 2, 3))
    with pytest.raises(ValueError, match="4 and 2 groups"):
        counts + example({0: (1, 1)}, num_groups=2)
    with pytest.raises(ValueError, match="shape"):
        group_counts(torch.ones(3, dtype=torch.bool), torch.zeros(2, dtype=torch.int64), 2)
    for group in (-1, 2):
        with pytest.raises(RuntimeError):
            group_counts(torch.ones(1, dtype=torch.bool), torch.tensor([group]), 2)
