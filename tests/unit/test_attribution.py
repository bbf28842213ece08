"""Attributions at pixels against Captum, the control against the base rate, and what all of them must leave alone."""

import gc
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from captum.attr import InputXGradient, IntegratedGradients
from torch import Tensor, nn

from spurbench.attribution import pixels
from spurbench.attribution.pixels import input_x_gradient, integrated_gradients
from spurbench.attribution.registry import ATTRIBUTIONS
from spurbench.cli import parser
from spurbench.config import AttributionName
from spurbench.metrics.epg import epg

NAMES = get_args(AttributionName)
PIXELS = [input_x_gradient, integrated_gradients]


class Small(nn.Module):
    """A curved function of the image, so that gradients differ along the path; the layer's output is positive, so that
    XGradCAM's sums do not cancel."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8)
        self.layer = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), self.norm, nn.Softplus())
        self.head = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layer(images).square().mean(dim=(2, 3)))
        return logits


@pytest.fixture
def small() -> Small:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Small()
        model.norm.running_mean.uniform_(-1, 1)  # type: ignore[union-attr, operator]
    return model.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def target() -> Tensor:
    return torch.tensor([0, 3, 1, 1, 2])


def signed(explain: Callable[..., Tensor], model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """Channel sums before the negative part is dropped: what speaks against a class speaks for the negated logits."""
    forth = explain(model, None, model, images, target)
    back = explain(model, None, lambda x: -model(x), images, target)
    assert not (forth * back).any()
    return forth - back


def test_names_agree() -> None:
    assert tuple(ATTRIBUTIONS) == NAMES == parser._ATTRIBUTIONS


def test_input_x_gradient_matches_captum(small: Small, images: Tensor, target: Tensor) -> None:
    theirs = InputXGradient(small).attribute(images.clone().requires_grad_(), target=target).detach()
    assert torch.allclose(signed(input_x_gradient, small, images, target), theirs.sum(dim=1), atol=1e-6)
    maps = input_x_gradient(small, small.layer, small, images, target)
    assert torch.allclose(maps, theirs.sum(dim=1).clamp(min=0), atol=1e-6)
    assert 0.2 < (maps > 0).float().mean() < 0.8, "both signs are there"


@pytest.mark.parametrize("num_steps", [3, 32])
def test_integrated_gradients_match_captum(small: Small, images: Tensor, target: Tensor, num_steps: int) -> None:
    def ours(*arguments: Any) -> Tensor:
        return integrated_gradients(*arguments, num_steps=num_steps)

    theirs = IntegratedGradients(small).attribute(images, target=target, n_steps=num_steps, method="gausslegendre")
    assert torch.allclose(signed(ours, small, images, target), theirs.sum(dim=1).float(), atol=1e-6)


def test_integrated_gradients_are_complete(small: Small, images: Tensor, target: Tensor) -> None:
    """Together they are the difference of logits between image and mean colour; input x gradient is not."""
    with torch.no_grad():
        difference = small(images) - small(torch.zeros_like(images))
    expected = difference.gather(1, target[:, None])[:, 0]
    assert torch.allclose(signed(integrated_gradients, small, images, target).sum(dim=(1, 2)), expected, atol=1e-5)
    assert not torch.allclose(signed(input_x_gradient, small, images, target).sum(dim=(1, 2)), expected, atol=1e-2)


def test_uniform_has_the_base_rate(small: Small, images: Tensor, target: Tensor) -> None:
    region = torch.rand(5, 16, 16, generator=torch.Generator().manual_seed(2)) < 0.3
    control = ATTRIBUTIONS["uniform"]
    values = epg(control.maps(small, small.layer, small, images, target), region, control.resize)
    assert torch.allclose(values.epg, region.float().mean(dim=(1, 2)))
    assert values.sums().epg == pytest.approx(values.sums().epg_base_rate)


@pytest.mark.parametrize("explain", PIXELS)
def test_images_do_not_mix_and_chunks_play_no_part(
    small: Small, images: Tensor, target: Tensor, explain: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = explain(small, None, small, images, target)
    monkeypatch.setattr(pixels, "_CHUNK", 2)
    seen: list[int] = []
    parts = explain(small, None, lambda x: (seen.append(len(x)), small(x))[1], images, target)
    assert set(seen) == {2, 1}
    assert torch.allclose(parts, whole, atol=1e-6)
    order = torch.tensor([4, 0, 2, 1, 3])
    assert torch.allclose(explain(small, None, small, images[order], target[order]), whole[order], atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
class TestEveryAttribution:
    def test_has_the_contract(self, small: Small, images: Tensor, target: Tensor, name: AttributionName) -> None:
        maps = ATTRIBUTIONS[name].maps(small, small.layer, small, images, target)
        assert maps.ndim == 3
        assert len(maps) == 5
        assert maps.shape[1] <= 16
        assert maps.dtype == torch.float32
        assert not maps.requires_grad
        assert (maps >= 0).all()
        assert (maps > 0).any(), "GradCAM may find nothing in some of the images"

    def test_explains_the_predicted_class_if_none_is_named(
        self, small: Small, images: Tensor, name: AttributionName
    ) -> None:
        explain = ATTRIBUTIONS[name].maps
        with torch.no_grad():
            predicted = small(images).argmax(1)
        named = explain(small, small.layer, small, images, predicted)
        assert torch.equal(explain(small, small.layer, small, images, None), named)
        others = explain(small, small.layer, small, images, (predicted + 1) % 4)
        assert torch.equal(named, others) == (name == "uniform")

    def test_leaves_the_model_alone(self, small: Small, images: Tensor, target: Tensor, name: AttributionName) -> None:
        for parameter in small.parameters():
            parameter.grad = torch.ones_like(parameter)
        before = {key: value.clone() for key, value in small.state_dict().items()}
        ATTRIBUTIONS[name].maps(small, small.layer, small, images, target)
        assert all((p.grad == 1).all() and p.requires_grad for p in small.parameters())  # type: ignore[union-attr]
        assert all(torch.equal(small.state_dict()[key], value) for key, value in before.items())
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        assert not any(getattr(module, kind) for module in small.modules() for kind in hooks)
        assert torch.is_grad_enabled()
        assert images.grad is None
        assert not images.requires_grad

    def test_frozen_model_is_explained_as_well(
        self, small: Small, images: Tensor, target: Tensor, name: AttributionName
    ) -> None:
        explain = ATTRIBUTIONS[name].maps
        expected = explain(small, small.layer, small, images, target)
        small.requires_grad_(False)
        assert torch.equal(explain(small, small.layer, small, images, target), expected)

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    def test_works_where_the_caller_needs_no_graph(
        self, small: Small, images: Tensor, target: Tensor, name: AttributionName, mode: Callable[[], torch.no_grad]
    ) -> None:
        explain = ATTRIBUTIONS[name].maps
        expected = explain(small, small.layer, small, images, target)
        with mode():
            maps = explain(small, small.layer, small, images * 1, target * 1)
            assert not torch.is_grad_enabled()
        assert torch.equal(maps, expected)

    @pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
    def test_works_under_autocast_after_a_forward_pass(
        self, small: Small, images: Tensor, target: Tensor, name: AttributionName, mode: Callable[[], torch.no_grad]
    ) -> None:
        expected = ATTRIBUTIONS[name].maps(small, small.layer, small, images, target)
        with mode(), torch.autocast("cpu", torch.bfloat16):
            small(images)  # leaves its casted weights in autocast's cache
            maps = ATTRIBUTIONS[name].maps(small, small.layer, small, images, target)
        assert maps.dtype == torch.float32
        assert torch.allclose(maps, expected, rtol=0.1, atol=0.05 * float(expected.max()))

    def test_memory_stays_flat(self, small: Small, images: Tensor, target: Tensor, name: AttributionName) -> None:
        alive = []
        for _ in range(4):
            for _ in range(50):
                ATTRIBUTIONS[name].maps(small, small.layer, small, images[:1], target[:1])
            gc.collect()
            alive.append(sum(issubclass(type(thing), Tensor) for thing in gc.get_objects()))
        assert len(set(alive)) == 1

    def test_compiled_code_is_explained_too(
        self, small: Small, images: Tensor, target: Tensor, name: AttributionName
    ) -> None:
        expected = ATTRIBUTIONS[name].maps(small, small.layer, small, images, target)
        compiled = torch.compile(small.forward, backend="eager")
        with torch.no_grad():
            compiled(images)
        assert torch.allclose(ATTRIBUTIONS[name].maps(small, small.layer, compiled, images, target), expected)


@pytest.mark.parametrize("explain", PIXELS)
class TestRefusals:
    def test_training_mode(self, small: Small, images: Tensor, target: Tensor, explain: Callable[..., Tensor]) -> None:
        with pytest.raises(ValueError, match="evaluation mode"):
            explain(small.train(), None, small, images, target)

    def test_logits_that_do_not_depend_on_the_images(
        self, small: Small, images: Tensor, target: Tensor, explain: Callable[..., Tensor]
    ) -> None:
        for forward in (lambda x: torch.zeros(len(x), 4), torch.no_grad()(small.forward)):
            with pytest.raises(RuntimeError):
                explain(small, None, forward, images, target)


def test_only_one_step_is_held_at_a_time(small: Small, images: Tensor, target: Tensor) -> None:
    """No graph outlives its step, whatever the garbage collector does."""
    import weakref

    alive: list[int] = []
    outputs: list[weakref.ref[Tensor]] = []

    def count(module: nn.Module, args: Any, output: Tensor) -> None:
        alive.append(sum(ref() is not None for ref in outputs))
        outputs.append(weakref.ref(output))

    handle = small.layer.register_forward_hook(count)
    gc.disable()
    try:
        integrated_gradients(small, small.layer, small, images, target)
    finally:
        gc.enable()
        handle.remove()
    assert len(alive) == 32
    assert max(alive) <= 1
