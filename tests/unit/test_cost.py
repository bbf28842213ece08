"""Multiply-adds against closed forms and fvcore, and published sizes of well-known models."""

import copy
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from spurbench.metrics import cost as cost_module
from spurbench.metrics.cost import Cost, cost, throughput


def call(model: nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = model(images)
    return logits


@pytest.fixture(scope="module")
def build() -> Callable[[str], nn.Module]:
    """timm models with random weights, 1000 classes."""
    return lambda name: timm.create_model(name, pretrained=False)


@pytest.mark.parametrize(
    ("name", "gmacs", "params"),
    [("resnet50", 4.09, 25_557_032), ("convnext_tiny", 4.46, 28_589_128)],
)
def test_known_models(build: Callable[[str], nn.Module], name: str, gmacs: float, params: int) -> None:
    assert cost(build(name), call, 224) == Cost(gmacs=pytest.approx(gmacs, abs=0.03), params=params)


# fvcore imports torch.jit.script, which recent torch deprecates; that is not ours to fix.
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("name", ["resnet50", "convnext_tiny"])
def test_matches_fvcore(build: Callable[[str], nn.Module], name: str) -> None:
    from fvcore.nn import FlopCountAnalysis

    model = build(name).eval()
    theirs = FlopCountAnalysis(model, torch.zeros(1, 3, 224, 224)).unsupported_ops_warnings(False)
    theirs.uncalled_modules_warnings(False)
    assert cost(model, call, 224).gmacs == pytest.approx(theirs.total() / 1e9, rel=0.01)


def test_single_layers_in_closed_form() -> None:
    # k * k * C_in / groups * C_out multiply-adds at each of the positions of the output
    plain = nn.Conv2d(3, 16, kernel_size=5, stride=2, padding=2)
    assert cost(plain, call, 64).gmacs == 5 * 5 * 3 * 16 * 32 * 32 / 1e9
    depthwise = nn.Conv2d(3, 6, kernel_size=3, padding=1, groups=3, bias=False)
    assert cost(depthwise, call, 32) == Cost(gmacs=3 * 3 * 1 * 6 * 32 * 32 / 1e9, params=54)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10))
    assert cost(linear, call, 8) == Cost(gmacs=3 * 8 * 8 * 10 / 1e9, params=1930)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_attention_counts(build: Callable[[str], nn.Module], device: str) -> None:
    """Of which fvcore, and on a CPU torch's own counter, see nothing: 4.24 for this model."""
    width, tokens, depth = 384, 14 * 14 + 1, 12
    per_block = tokens * (4 + 2 * 4) * width**2 + 2 * tokens**2 * width
    ends = 14 * 14 * 16 * 16 * 3 * width + width * 1000
    gmacs = cost(build("vit_small_patch16_224"), call, 224, device=device).gmacs
    assert gmacs == pytest.approx((depth * per_block + ends) / 1e9, rel=1e-9)


def test_shared_and_frozen_parameters_count_once() -> None:
    layer = nn.Linear(8, 8).requires_grad_(False)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    assert cost(model, call, 8) == Cost(gmacs=2 * 3 * 8 * 8 * 8 / 1e9, params=72)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_model_is_untouched(build: Callable[[str], nn.Module], device: str) -> None:
    model = build("resnet18").train()
    before = copy.deepcopy(model.state_dict())
    gmacs = cost(model, call, 224, device=device).gmacs
    assert gmacs == pytest.approx(1.814, abs=0.005)
    assert model.training
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    assert all(p.device.type == "cpu" and p.grad is None and p.requires_grad for p in model.parameters())
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_copy_runs_in_evaluation_mode_and_float32() -> None:
    seen: dict[str, Any] = {}

    def spy(model: nn.Module, images: Tensor) -> None:
        seen.update(
            training=model.training, shape=tuple(images.shape), dtype=images.dtype, grad=torch.is_grad_enabled()
        )
        assert model is not original
        call(model, images)

    original = nn.Conv2d(3, 4, 1).to(torch.bfloat16)
    assert cost(original, spy, 8).gmacs == 3 * 4 * 8 * 8 / 1e9
    assert seen == {"training": False, "shape": (1, 3, 8, 8), "dtype": torch.float32, "grad": False}


def test_counts_are_the_same_in_inference_mode(build: Callable[[str], nn.Module]) -> None:
    model = build("convnext_pico")
    expected = cost(model, call, 64)
    with torch.inference_mode():
        assert cost(model, call, 64) == expected


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    cost(nn.Conv2d(3, 4, 1), call, 8)
    assert capsys.readouterr() == ("", "")


def test_meta_needs_no_time(build: Callable[[str], nn.Module]) -> None:
    model = build("resnet50")
    cost(model, call, 224)
    start = time.perf_counter()
    cost(model, call, 224)
    assert time.perf_counter() - start < 5


def test_throughput_of_a_clock_that_we_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call takes 10 ms of a fake clock, except slow ones, which the median ignores."""
    now, calls = 0.0, 0

    def fn(images: Tensor) -> None:
        nonlocal now, calls
        calls += 1
        assert torch.is_inference_mode_enabled()
        now += 5.0 if calls in (1, 30) else 0.01

    monkeypatch.setattr(cost_module.time, "perf_counter", lambda: now)
    assert throughput(fn, torch.zeros(32, 3, 2, 2), seconds=1.0) == pytest.approx(3200)
    assert calls == 1 + 1 + 5 * 20


def test_throughput_is_a_speed() -> None:
    calls = 0

    def fn(images: Tensor) -> None:
        nonlocal calls
        calls += 1
        time.sleep(0.002)

    assert 8 / 0.2 < throughput(fn, torch.zeros(8, 3, 2, 2), seconds=0.1) <= 8 / 0.002
    assert calls >= 7


def test_a_slow_model_is_called_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = 0.0, 0

    def fn(images: Tensor) -> None:
        nonlocal now, calls
        calls += 1
        now += 20.0 if calls == 1 else 10.0

    monkeypatch.setattr(cost_module.time, "perf_counter", lambda: now)
    assert throughput(fn, torch.zeros(256, 1), seconds=0.1) == pytest.approx(25.6)
    assert calls == 2


def test_importing_statistics_does_not_import_scipy() -> None:
    code = "import sys, spurbench.metrics.stats; sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
