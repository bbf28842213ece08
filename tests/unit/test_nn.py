"""Gumbel masks, the mask estimator and the top-down path against slow references written out by hand."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spurbench.nn.area import AnnealShape, annealed, searched
from spurbench.nn.gumbel import hard_mask, sample_mask
from spurbench.nn.mask_estimator import MaskEstimator, make_norm
from spurbench.nn.topdown import TopDown, TopDownOutput, merge_masks, pool_map

SIZES = (27, 13, 7)
CHANNELS = (8, 12, 16)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stages(batch: int = 2, count: int = 3, seed: int = 0) -> list[Tensor]:
    """Random maps, shallow to deep, with sides that do not divide each other."""
    g = rng(seed)
    shapes = list(zip(CHANNELS, SIZES, strict=True))[-count:]
    return [torch.randn(batch, c, side, side + 1, generator=g) for c, side in shapes]


def topdown(count: int = 3, width: int = 6, **options: Any) -> TopDown:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        defaults: dict[str, Any] = {"estimator_ratio": 8, "feature_kernel": 3, "norm": "batch", "keep_bias": 1.0}
        return TopDown(CHANNELS[-count:], width=width, **(defaults | options))


def random_masks(maps: list[Tensor], seed: int = 1) -> list[Tensor]:
    """One binary mask per stage, deep to shallow."""
    g = rng(seed)
    return [(torch.rand(len(m), 1, *m.shape[2:], generator=g) < 0.5).float() for m in reversed(maps)]


def fixed(masks: list[Tensor]) -> Callable[[Tensor, int], Tensor]:
    return lambda logits, level: masks[level]


# --- sampling ---


@pytest.mark.parametrize("margin", [-3.0, -1.0, 0.0, 0.5, 2.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_probability_of_keeping_is_the_sigmoid_of_the_margin(margin: float, temperature: float) -> None:
    n = 40_000
    logits = torch.zeros(n, 2, 1, 1)
    logits[:, 0], logits[:, 1] = 0.25 + margin, 0.25
    kept = sample_mask(logits, rng(3), temperature).mean()
    p = torch.sigmoid(torch.tensor(margin))
    # Whatever the temperature: it scales logits and noise alike.
    assert abs(float(kept - p)) < 4 * float((p * (1 - p) / n).sqrt())


def test_samples_are_distributed_as_torch_gumbel_softmax() -> None:
    n, logits = 40_000, torch.tensor([0.7, -0.2])
    stacked = logits.view(1, 2, 1, 1).expand(n, 2, 1, 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = F.gumbel_softmax(stacked, tau=1.0, hard=True, dim=1)[:, 0].mean()
        soft_theirs = F.gumbel_softmax(stacked, tau=1.0, hard=False, dim=1)[:, 0].flatten()
    leaf = torch.zeros(1, requires_grad=True)
    sample = sample_mask(torch.cat([stacked[:, :1] + leaf.view(1, 1, 1, 1), stacked[:, 1:]], 1), rng(), 1.0)
    assert float(sample.detach().mean()) == pytest.approx(float(theirs), abs=0.015)
    # d soft / d margin = soft (1 - soft): its mean tells whether the soft sample has the same distribution too.
    (gradient,) = torch.autograd.grad(sample.sum(), leaf)
    assert float(gradient) / n == pytest.approx(float((soft_theirs * (1 - soft_theirs)).mean()), abs=0.003)


def test_gradient_is_that_of_the_soft_sample() -> None:
    logits = torch.randn(3, 2, 4, 5, generator=rng(), dtype=torch.float32, requires_grad=True)
    weights = torch.randn(3, 1, 4, 5, generator=rng(1))
    temperature = 0.7
    (ours,) = torch.autograd.grad((weights * sample_mask(logits, rng(2), temperature)).sum(), logits)
    # Two Gumbel draws whose difference is the logistic draw of the same uniform numbers.
    uniform = torch.rand(3, 1, 4, 5, generator=rng(2))
    noise = torch.cat([torch.logit(uniform), torch.zeros_like(uniform)], 1)
    soft = F.softmax((logits + noise) / temperature, dim=1)[:, :1]
    (theirs,) = torch.autograd.grad((weights * soft).sum(), logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert ours.abs().min() > 0
    assert torch.equal(sample_mask(logits, rng(2), temperature), soft.round())


def test_sample_is_binary_and_repeats_with_its_generator() -> None:
    logits = torch.randn(4, 2, 9, 9, generator=rng())
    one, other = sample_mask(logits, rng(5)), sample_mask(logits, rng(5))
    assert torch.equal(one, other)
    assert one.shape == (4, 1, 9, 9)
    assert set(one.unique().tolist()) == {0.0, 1.0}
    g = rng(5)
    assert not torch.equal(sample_mask(logits, g), sample_mask(logits, g)), "each call draws anew"


@given(
    seed=st.integers(0, 2**32),
    size=st.floats(0, 1e4),
    shift=st.floats(-1e3, 1e3),
    temperature=st.floats(1e-2, 1e2),
    keep_one=st.booleans(),
)
def test_samples_are_exact_zeros_and_ones(
    seed: int, size: float, shift: float, temperature: float, keep_one: bool
) -> None:
    logits = size * torch.randn(3, 2, 7, 6, generator=rng(seed))
    logits[:, 0] += shift
    for leaf in (logits, logits.clone().requires_grad_()):
        mask = sample_mask(leaf, rng(seed), temperature, keep_one=keep_one).detach()
        assert ((mask == 0) | (mask == 1)).all()
        assert not mask.signbit().any(), "no negative zero"


@given(seed=st.integers(0, 2**32), shift=st.floats(-50, 1), temperature=st.floats(0.1, 10))
def test_keep_one_opens_the_best_position_of_empty_masks_alone(seed: int, shift: float, temperature: float) -> None:
    logits = torch.randn(6, 2, 4, 5, generator=rng(seed))
    logits[:, 0] += shift
    margin = logits[:, 0] - logits[:, 1]
    for without, mask in (
        (hard_mask(logits), hard_mask(logits, keep_one=True)),
        (sample_mask(logits, rng(seed), temperature), sample_mask(logits, rng(seed), temperature, keep_one=True)),
    ):
        for image in range(6):
            if without[image].any():
                assert torch.equal(mask[image], without[image])
            else:
                assert mask[image].sum() == 1
                assert mask[image, 0].flatten().argmax() == margin[image].flatten().argmax()


def test_keep_one_takes_the_first_of_equal_margins_and_any_float() -> None:
    big = torch.finfo(torch.float32).max
    for drop in (50.0, big):
        logits = torch.tensor([0.0, drop]).view(1, 2, 1, 1).expand(2, 2, 3, 3)
        for mask in (hard_mask(logits, keep_one=True), sample_mask(logits, rng(), keep_one=True)):
            assert torch.equal(mask.flatten(1), torch.tensor([1.0] + 8 * [0.0]).expand(2, -1))


def test_keep_one_leaves_the_gradient_that_of_the_soft_sample() -> None:
    logits = (torch.randn(3, 2, 4, 5, generator=rng()) - torch.tensor([4.0, 0.0]).view(2, 1, 1)).requires_grad_()
    weights = torch.randn(3, 1, 4, 5, generator=rng(1))
    gradients = [
        torch.autograd.grad((weights * sample_mask(logits, rng(2), keep_one=keep_one)).sum(), logits)[0]
        for keep_one in (False, True)
    ]
    assert torch.equal(*gradients)
    assert gradients[0].abs().min() > 0


def test_sampling_leaves_the_global_stream_alone() -> None:
    before = torch.get_rng_state()
    sample_mask(torch.zeros(2, 2, 8, 8), rng())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [0.0, 1.0, 60.0, 3e4])
def test_sample_and_gradient_stay_finite_in_float32(dtype: torch.dtype, size: float) -> None:
    logits = (size * torch.randn(8, 2, 32, 32, generator=rng()).clamp(-1, 1)).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        mask = sample_mask(logits, rng())
        hard = hard_mask(logits)
    assert mask.dtype == hard.dtype == torch.float32
    assert mask.isfinite().all()
    mask.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_the_largest_floats_give_masks_too() -> None:
    big = torch.finfo(torch.float32).max
    logits = torch.tensor([[big, -big], [-big, big], [big, big]]).view(3, 2, 1, 1).requires_grad_()
    mask = sample_mask(logits, rng())
    assert mask[:2].flatten().tolist() == [1.0, 0.0]
    mask.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert hard_mask(logits).flatten().tolist() == [1.0, 0.0, 1.0]


def test_noise_is_finite_for_any_uniform_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (0.0, 1.0 - 2**-24, 1.0):
        monkeypatch.setattr(torch, "rand", lambda shape, value=value, **_: torch.full(shape, value))
        logits = torch.zeros(1, 2, 1, 1, requires_grad=True)
        mask = sample_mask(logits, rng())
        mask.sum().backward()
        assert mask.item() == float(value > 0.5)
        assert logits.grad is not None
        assert logits.grad.isfinite().all()


def test_largest_margin_and_largest_noise_make_no_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    big = torch.finfo(torch.float32).max
    logits = torch.tensor([[big, -big], [-big, big]]).view(2, 2, 1, 1)
    for value in (0.0, 1.0):  # noise against the margin
        monkeypatch.setattr(torch, "rand", lambda shape, value=value, **_: torch.full(shape, value))
        assert sample_mask(logits, rng()).flatten().tolist() == [1.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_margin_is_taken_in_float32(dtype: torch.dtype) -> None:
    logits = (3 * torch.randn(16, 2, 64, 64, generator=rng())).to(dtype)
    assert torch.equal(sample_mask(logits, rng()), sample_mask(logits.float(), rng()))


def test_hard_mask_is_the_sign_of_the_margin() -> None:
    logits = torch.randn(3, 2, 6, 7, generator=rng())
    logits[0, :, 0, 0] = 0.3  # a tie keeps
    mask = hard_mask(logits)
    assert torch.equal(mask[:, 0], (logits[:, 0] >= logits[:, 1]).float())
    assert mask[0, 0, 0, 0] == 1
    assert torch.equal(mask[:, 0].bool() | (logits[:, 0] == logits[:, 1]), logits.argmax(1) == 0) or mask[0, 0, 0, 0]


# --- estimator ---


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_estimator_gives_two_logits_per_position(norm: Any) -> None:
    estimator = MaskEstimator(40, ratio=2, norm=norm)
    assert estimator(torch.randn(2, 40, 7, 5, generator=rng())).shape == (2, 2, 7, 5)
    assert len(estimator.blocks) == 3
    assert estimator.logits.in_channels == 20
    assert MaskEstimator(40, ratio=8).logits.in_channels == 16, "at least 16"


def test_estimator_starts_with_the_margin_it_is_told() -> None:
    estimator = MaskEstimator(16, keep_bias=3.0).eval()
    assert estimator.logits.bias is not None
    with torch.no_grad():
        estimator.logits.weight.zero_()
        logits = estimator(torch.randn(1, 16, 4, 4, generator=rng()))
    assert torch.equal(logits[:, 0] - logits[:, 1], torch.full((1, 4, 4), 3.0))


def test_estimator_sees_the_whole_map_through_its_pooled_branch() -> None:
    estimator = MaskEstimator(16, norm="group").eval()
    # Twelve 3x3 convolutions would reach 7 positions; the far corner of 40 is reached by pooling alone.
    features = torch.randn(1, 16, 40, 40, generator=rng(), requires_grad=True)
    with torch.no_grad():
        for module in estimator.pooled:
            if isinstance(module, torch.nn.Conv2d):
                assert module.bias is not None
                module.bias.fill_(1.0)
    hidden = estimator.stem[0](features)  # without norms, which mix positions as well
    mixed = estimator.logits(hidden + estimator.pooled(hidden))
    (gradient,) = torch.autograd.grad(mixed[0, :, 0, 0].sum(), features)
    assert gradient[0, :, 39, 39].abs().sum() > 0
    (whole,) = torch.autograd.grad(estimator(features)[0, :, 0, 0].sum(), features)
    assert whole[0, :, 39, 39].abs().sum() > 0


def test_norms() -> None:
    assert isinstance(make_norm("batch", 8), torch.nn.BatchNorm2d)
    group = make_norm("group", 8)
    assert isinstance(group, torch.nn.GroupNorm)
    assert group.num_groups == 1


# --- fusion ---


def slow_nearest(deep: Tensor, height: int, width: int) -> Tensor:
    """Nearest neighbour, position by position: floor(i * in / out)."""
    out = torch.empty(*deep.shape[:2], height, width)
    for i in range(height):
        for j in range(width):
            out[:, :, i, j] = deep[:, :, i * deep.shape[2] // height, j * deep.shape[3] // width]
    return out


def slow_fusion(module: TopDown, maps: list[Tensor], masks: list[Tensor], fusion: str) -> tuple[Tensor, list[Tensor]]:
    """Deep to shallow with loops over images and channels."""
    fused: Tensor | None = None
    gated = []
    for level, stage in enumerate(reversed(maps)):
        features = module.features[level](stage)
        above = torch.zeros_like(features) if fused is None else slow_nearest(fused, *features.shape[2:])
        output, result = torch.empty_like(features), torch.empty_like(features)
        for b in range(features.shape[0]):
            for w in range(features.shape[1]):
                if fusion == "guided":
                    output[b, w] = (features[b, w] + above[b, w]) * masks[level][b, 0]
                    result[b, w] = output[b, w]
                else:
                    output[b, w] = features[b, w] * masks[level][b, 0]
                    result[b, w] = output[b, w] + above[b, w]
        gated.append(output)
        fused = result
    assert fused is not None
    return fused, gated


@pytest.mark.parametrize("fusion", ["guided", "literal"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_fused_map_equals_loops(fusion: Any, count: int) -> None:
    module, maps = topdown(count).eval(), stages(count=count)
    masks = random_masks(maps)
    with torch.no_grad():
        out = module(maps, fixed(masks), fusion=fusion)
        fused, gated = slow_fusion(module, maps, masks, fusion)
    assert torch.equal(out.fused_BWhw, fused)
    assert all(map(torch.equal, out.gated, gated))
    assert all(map(torch.equal, out.masks, masks))
    assert [m.shape[2] for m in out.masks] == [7, 13, 27][:count], "deep to shallow"
    assert [tuple(logits.shape[1:]) for logits in out.mask_logits] == [(2, *m.shape[2:]) for m in reversed(maps)]


@pytest.mark.parametrize("fusion", ["guided", "literal"])
def test_all_ones_masks_equal_the_unmasked_path(fusion: Any) -> None:
    module, maps = topdown().eval(), stages()
    with torch.no_grad():
        out = module(maps, lambda logits, level: torch.ones_like(logits[:, :1]), fusion=fusion)
        fused: Tensor | None = None
        for level, stage in enumerate(reversed(maps)):
            features = module.features[level](stage)
            fused = (
                features if fused is None else features + F.interpolate(fused, size=features.shape[2:], mode="nearest")
            )
    assert fused is not None
    assert torch.equal(out.fused_BWhw, fused)


def test_fusions_differ_from_two_stages_on() -> None:
    def both(count: int) -> list[TopDownOutput]:
        module, maps = topdown(count).eval(), stages(count=count)
        with torch.no_grad():
            return [module(maps, fixed(random_masks(maps)), fusion=fusion) for fusion in ("guided", "literal")]

    guided, literal = both(1)
    assert torch.equal(guided.fused_BWhw, literal.fused_BWhw)
    guided, literal = both(2)
    assert not torch.equal(guided.fused_BWhw, literal.fused_BWhw)
    assert not torch.equal(guided.gated[1], literal.gated[1])
    # Guided: nothing is seen beyond the last mask. Literal: what any mask lets through.
    outside = guided.masks[-1].expand_as(guided.fused_BWhw) == 0
    assert (guided.fused_BWhw[outside] == 0).all()
    assert (literal.fused_BWhw[outside] != 0).any()
    beyond = merge_masks(literal.masks).expand_as(literal.fused_BWhw) == 0
    assert beyond.any()
    assert (literal.fused_BWhw[beyond] == 0).all()


@pytest.mark.parametrize("detach", [False, True])
def test_masks_reach_the_stages_unless_detached(detach: bool) -> None:
    module, maps = topdown(), [stage.requires_grad_() for stage in stages()]
    out = module(maps, lambda logits, level: sample_mask(logits, rng(level)), fusion="guided", detach_estimator=detach)
    torch.stack([mask.mean() for mask in out.masks]).sum().backward()
    assert all((stage.grad is None) == detach for stage in maps)
    assert detach or all(stage.grad is not None and stage.grad.abs().sum() > 0 for stage in maps)
    for name, parameter in module.estimators.named_parameters():
        assert parameter.grad is not None, name
    assert all(parameter.grad is None for parameter in module.features.parameters())


@pytest.mark.parametrize("fusion", ["guided", "literal"])
def test_output_reaches_the_estimators_through_the_sample(fusion: Any) -> None:
    module, maps = topdown(), stages()
    out = module(maps, lambda logits, level: sample_mask(logits, rng(level)), fusion=fusion)
    out.fused_BWhw.square().sum().backward()
    for level, estimator in enumerate(module.estimators):
        assert estimator.logits.weight.grad is not None, level
        assert estimator.logits.weight.grad.abs().sum() > 0, level


@pytest.mark.parametrize("pool", ["mean", "active"])
def test_pooling(pool: Any) -> None:
    maps = torch.randn(3, 4, 5, 6, generator=rng())
    mask = (torch.rand(3, 1, 5, 6, generator=rng(1)) < 0.4).float()
    mask[2] = 0
    pooled = pool_map(maps * mask, mask, pool)
    for b in range(3):
        kept = maps[b][:, mask[b, 0] == 1]
        expected = kept.sum(1) / (30 if pool == "mean" else max(1, kept.shape[1]))
        torch.testing.assert_close(pooled[b], expected)
    assert (pooled[2] == 0).all()
    everything = torch.ones_like(mask)
    torch.testing.assert_close(pool_map(maps, everything, "active"), pool_map(maps, everything, "mean"))


def test_merged_mask_is_the_union_of_enlarged_masks() -> None:
    masks = random_masks(stages(batch=3))
    masks = [mask * (torch.rand(mask.shape, generator=rng(7)) < 0.4) for mask in masks]
    merged = merge_masks(masks)
    expected = masks[-1].bool()
    for mask in masks[:-1]:
        expected = expected | slow_nearest(mask, *masks[-1].shape[2:]).bool()
    assert merged.shape == masks[-1].shape
    assert torch.equal(merged, expected.float())
    assert not torch.equal(merged, masks[-1])
    assert torch.equal(merge_masks(masks[:1]), masks[0])


# --- the target of the area loss ---


@given(
    tau=st.floats(1e-6, 1),
    done=st.lists(st.floats(0, 1), min_size=2, max_size=9),
    shape=st.sampled_from(get_args(AnnealShape)),
)
def test_annealing_falls_from_1_to_tau(tau: float, done: list[float], shape: AnnealShape) -> None:
    assert annealed(0.0, tau, shape) == pytest.approx(1, abs=1e-12)
    assert annealed(1.0, tau, shape) == pytest.approx(tau, abs=1e-12)
    values = [annealed(at, tau, shape) for at in sorted(done)]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(values))
    assert all(tau - 1e-12 <= value <= 1 + 1e-12 for value in values)


def test_annealing_shapes_by_hand() -> None:
    quarters = (0, 0.25, 0.5, 0.75, 1)
    half = 0.5**0.5
    by_hand: dict[AnnealShape, list[float]] = {
        "linear": [1, 0.8125, 0.625, 0.4375, 0.25],
        "cosine": [1, 0.625 + 0.375 * half, 0.625, 0.625 - 0.375 * half, 0.25],
        "exponential": [1, half, 0.5, half / 2, 0.25],
    }
    for shape in get_args(AnnealShape):
        assert [annealed(done, 0.25, shape) for done in quarters] == pytest.approx(by_hand[shape]), shape


def search(target: float, *densities: float, steps: int = 100, price: float = 0.5, weight: float = 6.0) -> float:
    return float(
        searched(
            torch.tensor(target), [torch.tensor(r) for r in densities], weight=weight, price=price, steps=steps,
            positions=64,
        )
    )  # fmt: skip


def test_search_by_hand() -> None:
    rate = 2 * math.log(64) / 100
    assert search(0.5, 0.5) == pytest.approx(0.5 * math.exp(-rate)), "nothing is paid"
    assert search(0.5, 0.5 + 0.25 / 12) == pytest.approx(0.5 * math.exp(-rate / 2)), "half the price"
    assert search(0.5, 0.5 + 0.5 / 12) == pytest.approx(0.5), "the price"
    assert search(0.5, 0.5 + 0.75 / 12) == pytest.approx(0.5 * math.exp(rate / 2)), "more than the price"
    assert search(0.5, 0.9) == pytest.approx(0.5 * math.exp(rate)), "no faster"
    assert search(0.5, 0.1) == pytest.approx(0.5 * math.exp(-rate)), "no faster"
    assert search(0.5, 0.1, 0.9) == search(0.5, 0.9, 0.1) == search(0.5, 0.9), "the stage that pays most decides"
    assert search(0.5, 0.6, weight=0.6) == pytest.approx(search(0.5, 0.51)), "paid is what the area loss's slope says"


@given(
    target=st.floats(1 / 64, 1),
    densities=st.lists(st.floats(0, 1), min_size=1, max_size=3),
    steps=st.integers(1, 1000),
)
def test_search_stays_between_one_position_and_the_whole_map(target: float, densities: list[float], steps: int) -> None:
    assert 1 / 64 <= search(target, *densities, steps=steps) <= 1


@pytest.mark.parametrize("best", [0.08, 0.2, 0.4])
def test_search_ends_where_area_is_worth_its_price(best: float) -> None:
    """Densities that minimize a known classification loss plus the area loss: -price * best * log(r), say."""
    price, weight, steps, density, target = 0.5, 6.0, 400, 0.73, 1.0
    for _ in range(steps):
        for _ in range(20):
            slope = -price * best / density + 2 * weight * (density - target)
            density = min(1.0, max(1e-3, density - 0.02 * slope))
        target = search(target, density, steps=steps, price=price, weight=weight)
    # d/dr of -price * best * log(r) + price * r is zero at r = best.
    assert density == pytest.approx(best, abs=0.01)
    assert target == pytest.approx(max(1 / 64, best - price / (2 * weight)), abs=0.01)
