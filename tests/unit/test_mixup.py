"""Mixup: the Beta distribution against scipy, what is mixed with what, the loss against soft labels; CutMix's box."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from scipy import stats
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from spurbench.method import Progress
from spurbench.methods.mixup import Mixup, MixupConfig
from spurbench.nn.mixing import cut_mix, draw_beta, mix_up, mixed_cross_entropy
from spurbench.registry import load_registry
from spurbench.testing.workbench import Workbench
from spurbench.types import Batch

B, CLASSES = 8, 3


class Recorder(nn.Module):
    """Keeps the images and returns fixed logits that depend on them."""

    def forward(self, images: Tensor) -> Tensor:
        self.images = images
        self.logits = images.flatten(1)[:, :CLASSES] - 0.3 * images.flatten(1)[:, CLASSES : 2 * CLASSES]
        return self.logits


def batch(weight: Tensor | None = None) -> Batch:
    """Image i is 1 at pixel i and 0 elsewhere, so that a mix tells its parts."""
    images = torch.eye(B, 3 * 4 * 4).reshape(B, 3, 4, 4)
    y = torch.arange(B) % CLASSES
    return Batch(images=images, y=y, index=torch.arange(B), weight=torch.ones(B) if weight is None else weight)


def progress(step: int = 0) -> Progress:
    return Progress(
        phase="train", epoch=0, num_epochs=1, step=step, num_steps=9, seed=0, position=0, device=torch.device("cpu")
    )


def parts(mixed: Tensor) -> tuple[Tensor, list[int]]:
    """Share of the own image and the partner of every sample; one whose partner is itself has share 1."""
    matrix = mixed.flatten(1)[:, :B]
    assert torch.allclose(matrix.sum(1), torch.ones(B))
    own = matrix.diagonal()
    rest = matrix - torch.diag(own)
    return own, [int(row.argmax()) if row.max() > 0 else i for i, row in enumerate(rest)]


# --- the Beta distribution ---


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.5, 1.0, 2.0, 7.3])
def test_draws_are_beta(alpha: float) -> None:
    draws = draw_beta(alpha, 100_000, torch.Generator().manual_seed(1)).double().numpy()
    assert ((draws >= 0) & (draws <= 1)).all()
    low = draws < 0.5
    # float32 resolves values near 0 but not near 1, so each half is compared where it is exact.
    assert stats.kstest(draws[low], lambda x: 2 * stats.beta.cdf(x, alpha, alpha)).pvalue > 1e-3
    expected = stats.beta.rvs(alpha, alpha, size=100_000, random_state=0).astype(np.float32)
    assert stats.ks_2samp(draws, expected).pvalue > 1e-3
    assert stats.binomtest(int(low.sum()), len(draws)).pvalue > 1e-3
    assert abs(stats.pearsonr(draws[:-1], draws[1:]).statistic) < 0.02


@pytest.mark.parametrize("alpha", [1e-4, 1e4])
def test_extreme_alpha_is_finite(alpha: float) -> None:
    draws = draw_beta(alpha, 10_000, torch.Generator().manual_seed(0))
    assert draws.isfinite().all()
    assert ((draws - 0.5).abs() > 0.49).float().mean() > 0.99 if alpha < 1 else (draws - 0.5).abs().max() < 0.05


def test_draws_come_from_the_generator_alone() -> None:
    before = torch.get_rng_state()
    one = draw_beta(0.2, 5, torch.Generator().manual_seed(3))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one, draw_beta(0.2, 5, torch.Generator().manual_seed(3)))
    assert not torch.equal(one, draw_beta(0.2, 5, torch.Generator().manual_seed(4)))


# --- a step ---


def step(step: int = 0, weight: Tensor | None = None, **options: Any) -> tuple[Tensor, Tensor, list[int], Tensor]:
    model = Recorder()
    out = Mixup(MixupConfig(**options)).training_step(model, batch(weight), progress(step))
    share, partner = parts(model.images)
    return out.loss, share, partner, model.logits


@pytest.mark.parametrize("draws", ["batch", "sample"])
def test_loss_is_cross_entropy_with_mixed_labels(draws: str) -> None:
    for number in range(5):
        loss, share, partner, logits = step(number, alpha=1.0, draws=draws)
        onehot = F.one_hot(batch().y, CLASSES).double()
        target = share.double()[:, None] * onehot + (1 - share.double())[:, None] * onehot[partner]
        assert float(loss) == pytest.approx(float(F.cross_entropy(logits.double(), target)), rel=1e-5)
        assert sorted(partner) == list(range(B)), "partners are a permutation"
        shares = {round(float(s), 4) for i, s in enumerate(share) if partner[i] != i}
        assert (len(shares) == 1) == (draws == "batch")


def test_weights_go_with_their_labels() -> None:
    weight = torch.linspace(0.5, 3, B)
    loss, share, partner, logits = step(weight=weight, alpha=1.0)
    losses = F.cross_entropy(
        logits.double()[:, None].expand(-1, B, -1).flatten(0, 1), batch().y.repeat(B), reduction="none"
    )
    losses = losses.reshape(B, B) * weight  # [sample, whose label]
    own, other = losses.diagonal(), losses[torch.arange(B), partner]
    assert float(loss) == pytest.approx(float((share * own + (1 - share) * other).mean()), rel=1e-5)


def test_steps_differ_and_repeat() -> None:
    assert torch.equal(step(1)[1], step(1)[1])
    assert step(1)[2] == step(1)[2]
    assert not torch.equal(step(1)[1], step(2)[1])
    assert step(1)[2] != step(2)[2]


def test_bf16_gives_a_float32_loss() -> None:
    logits = torch.randn(B, CLASSES, generator=torch.Generator().manual_seed(0)).bfloat16()
    y, ones = batch().y, torch.ones(B)
    loss = mixed_cross_entropy(logits, torch.full((1,), 0.3), y, ones, y.flip(0), ones)
    assert loss.dtype == torch.float32


# --- CutMix ---


@pytest.mark.parametrize("num", [1, 6])
@pytest.mark.parametrize("size", [(16, 16), (9, 14)])
def test_cut_mix_is_the_box_and_its_area(num: int, size: tuple[int, int]) -> None:
    images, others = torch.zeros(6, 3, *size), torch.ones(6, 3, *size)
    for seed in range(20):
        share = torch.rand(num, generator=torch.Generator().manual_seed(100 + seed))
        mixed, left = cut_mix(images, others, share, torch.Generator().manual_seed(seed))
        centre = torch.rand(2, num, generator=torch.Generator().manual_seed(seed)).numpy()
        for i in range(6):
            j = i % num
            expected = np.zeros((3, *size))
            spans = []
            for axis, length in enumerate(size):
                half, middle = int(length * np.sqrt(1 - share[j].item())) // 2, int(length * centre[axis, j])
                spans.append(slice(max(0, middle - half), min(length, middle + half)))
            expected[:, spans[0], spans[1]] = 1
            assert np.array_equal(mixed[i].numpy(), expected)
            assert float(left[j]) == pytest.approx(1 - expected[0].mean(), abs=1e-6)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_cut_mix_extremes(share: float) -> None:
    images, others = torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8)
    mixed, left = cut_mix(images, others, torch.full((2,), share), torch.Generator().manual_seed(0))
    assert torch.allclose(1 - mixed.mean((1, 2, 3)), left)
    if share == 1:
        assert torch.equal(mixed, images)


def test_mixing_keeps_channels_last() -> None:
    images = torch.randn(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    share = torch.rand(4)
    assert mix_up(images, images.flip(0), share).is_contiguous(memory_format=torch.channels_last)
    mixed, _ = cut_mix(images, images.flip(0), share, torch.Generator())
    assert mixed.is_contiguous(memory_format=torch.channels_last)


# --- the device is never read ---


class NothingRead(TorchDispatchMode):
    """Refuses what would make the host wait for the device: values read back, shapes that depend on values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]
        )
        if masks or name in ("_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "equal"):
            raise AssertionError(f"a step calls {name}")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "options"),
    [("mixup", {}), ("mixup", {"draws": "sample"}), ("lisa", {}), ("lisa", {"mix": "cutmix"}), ("lff", {})],
)
def test_steps_read_nothing_back(name: str, options: dict[str, Any]) -> None:
    cls = load_registry("methods").get(name).value
    bench = Workbench.make(cls(cls.Config(**options)), "test_convnext")
    (phase,) = bench.method.phases(bench.config.train)
    view = bench.method.start_phase(phase, bench.model, bench.views, bench.store)
    data = next(view.loader(shuffle=True, augment=True))
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NothingRead():
        float(data.images.sum())
    with NothingRead():
        bench.method.training_step(bench.model, data, progress()).loss.backward()


# --- options ---


@pytest.mark.parametrize("option", [{"alpha": 0.0}, {"alpha": -1.0}, {"alpha": float("inf")}, {"draws": "pair"}])
def test_impossible_options_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(option))):
        MixupConfig(**option)


def test_registered() -> None:
    assert load_registry("methods").get("mixup").value is Mixup
    assert Mixup(MixupConfig()).label == "Mixup"
