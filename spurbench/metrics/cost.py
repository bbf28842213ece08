"""What a model costs: multiply-adds and parameters (exact, without data), and measured throughput."""

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Cost", "cost", "throughput"]

NUM_REPEATS = 5
"""Stretches of which the median is taken; odd, so that it is one of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one forward pass, batch 1, float32, evaluation mode."""

    gmacs: float
    """1e9 multiply-adds of convolutions and matrix products, attention's two included; papers on vision models call
    these GFLOPs."""
    params: int
    """Number of parameters, trainable or not; a shared one counts once, a module that is marked with
    ``only_for_training = True`` does not count."""


def cost(
    model: nn.Module,
    forward: Callable[[nn.Module, Tensor], Any],
    image_size: int,
    *,
    device: torch.device | str = "meta",
) -> Cost:
    """Count multiply-adds by torch's ``FlopCounterMode`` (two FLOPs each) on a copy; ``model`` stays as it is.

    Only what was computed counts, dense: a hard mask saves nothing. Element-wise operations, norms and interpolation
    are not counted.

    Args:
        model: on any device, not compiled.
        forward: ``forward(model, images)`` with images float32 [1, 3, S, S]; called with the copy, so it must not
            reach for the original. Its result is ignored.
        image_size: S.
        device: where the copy runs. ``meta`` computes shapes only, and takes no memory; a model that reads values of
            tensors on the host needs ``cpu``.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    twin = _copy_to(model, torch.device(device)).float().eval()
    images = torch.zeros(1, 3, image_size, image_size, device=device)
    counter = FlopCounterMode(display=False)
    # Attention as two matrix products: the counter does not know every fused kernel, such as the one on CPUs.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        forward(twin, images)
    params = sum({id(parameter): parameter.numel() for parameter in _kept(model)}.values())
    return Cost(gmacs=counter.get_total_flops() / 2 / 1e9, params=params)


def throughput(fn: Callable[[Tensor], Any], images: Tensor, *, seconds: float = 1.0) -> float:
    """Evaluation speed in images per second, in inference mode: the median over a few stretches of calls.

    Args:
        fn: called with ``images``, in the caller's precision; its result is ignored.
        images: [B, ...], on the device to measure.
        seconds: about how long to measure, after a call to warm up. Two calls are made at least: a slow model on a CPU
            shall not be kept busy for minutes by its measurement.
    """
    with torch.inference_mode():
        _timed(fn, images, 1)  # Pays for allocation and the choice of kernels.
        once = max(_timed(fn, images, 1), 1e-9)
        repeats = min(NUM_REPEATS, int(seconds / once))
        if repeats < 2:
            return len(images) / once
        # Several calls per stretch: waiting for the device after each would leave it idle.
        num_calls = max(1, round(seconds / repeats / once))
        stretch = statistics.median(_timed(fn, images, num_calls) for _ in range(repeats))
    return num_calls * len(images) / stretch


def _copy_to(model: nn.Module, device: torch.device) -> nn.Module:
    """A deep copy whose tensors are on ``device``; without a detour over a copy on the model's own."""
    memo: dict[int, Any] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        twin = (
            torch.empty_like(tensor, device=device) if device.type == "meta" else tensor.detach().to(device, copy=True)
        )
        memo[id(tensor)] = nn.Parameter(twin, requires_grad=False) if isinstance(tensor, nn.Parameter) else twin
    return copy.deepcopy(model, memo)


def _kept(module: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters of what a prediction needs."""
    if not getattr(module, "only_for_training", False):
        yield from module.parameters(recurse=False)
        for child in module.children():
            yield from _kept(child)


def _timed(fn: Callable[[Tensor], Any], images: Tensor, num_calls: int) -> float:
    """Seconds for some calls, until the device has finished them."""
    _synchronize(images.device)
    start = time.perf_counter()
    for _ in range(num_calls):
        fn(images)
    _synchronize(images.device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
