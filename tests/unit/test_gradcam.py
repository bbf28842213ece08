"""GradCAM against pytorch-grad-cam, and what it must leave alone."""

import gc
from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch
from pytorch_grad_cam import GradCAM as LibraryGradCAM
from pytorch_grad_cam import XGradCAM as LibraryXGradCAM
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from spurbench.attribution.gradcam import (
    GradCAM,
    gradcam,
    gradients_where_active,
    mean_gradients,
    recorded,
    xgradcam,
)

Explain = Callable[..., GradCAM]


class Small(nn.Module):
    """Two convolutions with an in-place activation right after the explained layer."""

    def __init__(self) -> None:
        super().__init__()
        self.below = nn.Conv2d(3, 8, 3, padding=1)
        self.layer = nn.Conv2d(8, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        features = self.layer(self.below(images).relu_())
        logits: Tensor = self.head(self.norm(features.relu_()).mean(dim=(2, 3)))
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


@pytest.mark.parametrize(("explain", "library_class"), [(gradcam, LibraryGradCAM), (xgradcam, LibraryXGradCAM)])
@pytest.mark.parametrize(
    ("name", "layer_name", "side"),
    [("resnet18", "layer4", 3), ("resnet18", "layer3", 6), ("convnext_pico", "stages.2", 6)],
)
def test_maps_match_pytorch_grad_cam(
    name: str, layer_name: str, side: int, explain: Explain, library_class: type[LibraryGradCAM]
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(name, pretrained=False, num_classes=7).eval()
        images = torch.randn(3, 3, 96, 96)
    layer = model.get_submodule(layer_name)
    with torch.no_grad():
        target = model(images).argmax(dim=1)
    with library_class(model, [layer]) as library:
        theirs = library(images, [ClassifierOutputTarget(c) for c in target.tolist()])
        their_logits = library.outputs.detach()
    maps, logits = explain(model, layer, model, images, target)
    assert torch.allclose(logits, their_logits, atol=1e-5)
    assert maps.shape == (3, side, side)
    assert (maps.flatten(1).amax(dim=1) > 0).all(), "a comparison of empty maps would say nothing"
    # The library scales every map to 0..1, resizes it with OpenCV, and scales again; its own functions on our maps:
    scaled = scale_cam_image(scale_cam_image(maps.numpy(), (96, 96)))
    assert np.abs(scaled - theirs).max() < 1e-3


def mean_of(gradient: Tensor, activation: Tensor) -> Tensor:
    return gradient.sum() / gradient.numel()


def mean_where_active(gradient: Tensor, activation: Tensor) -> Tensor:
    return sum(g * a for g, a in zip(gradient.flatten(), activation.flatten(), strict=True)) / activation.sum()  # type: ignore[return-value]


@pytest.mark.parametrize(("explain", "alpha"), [(gradcam, mean_of), (xgradcam, mean_where_active)])
def test_maps_match_the_equations(
    small: Small, images: Tensor, target: Tensor, explain: Explain, alpha: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """One image at a time, with a graph written out by hand."""
    maps, logits = explain(small, small.layer, small, images, target)
    for i, c in enumerate(target.tolist()):
        activation = small.layer(small.below(images[i : i + 1]).relu()).detach().requires_grad_()
        score = small.head(small.norm(activation.relu()).mean(dim=(2, 3)))
        assert torch.allclose(score[0], logits[i], atol=1e-6)
        (gradient,) = torch.autograd.grad(score[0, c], activation)
        values = activation[0].detach()
        expected = sum(alpha(gradient[0, k], values[k]) * values[k] for k in range(6))
        assert torch.allclose(maps[i], torch.as_tensor(expected).clamp(min=0), atol=1e-6)


@pytest.mark.parametrize("explain", [gradcam, xgradcam])
def test_the_predicted_class_is_explained_if_none_is_named(small: Small, images: Tensor, explain: Explain) -> None:
    with torch.no_grad():
        small.head.bias -= small(images).mean(0)  # so that images differ in their class
    predicted = small(images).argmax(1).detach()
    assert len(set(predicted.tolist())) > 1
    named = explain(small, small.layer, small, images, predicted)
    unnamed = explain(small, small.layer, small, images, None)
    assert torch.equal(named.maps, unnamed.maps)
    assert torch.equal(named.logits, unnamed.logits)


def test_a_channel_that_is_off_gives_no_weight(small: Small, images: Tensor, target: Tensor) -> None:
    with torch.no_grad():
        small.layer.weight[2] = 0
        small.layer.bias[2] = 0  # type: ignore[index]
    maps = xgradcam(small, small.layer, small, images, target).maps
    assert maps.isfinite().all()
    assert maps.any()


def test_images_do_not_mix(small: Small, images: Tensor, target: Tensor) -> None:
    whole = gradcam(small, small.layer, small, images, target).maps
    order = torch.tensor([4, 0, 2, 1, 3])
    assert torch.allclose(
        gradcam(small, small.layer, small, images[order], target[order]).maps, whole[order], atol=1e-6
    )
    alone = [gradcam(small, small.layer, small, images[i : i + 1], target[i : i + 1]).maps for i in range(5)]
    assert torch.allclose(torch.cat(alone), whole, atol=1e-6)


def test_graph_starts_at_the_layer(small: Small, images: Tensor, target: Tensor) -> None:
    seen: dict[str, bool] = {}
    handles = [
        module.register_forward_hook(lambda _m, _i, output, name=name: seen.update({name: output.requires_grad}))
        for name, module in small.named_children()
    ]
    gradcam(small, small.layer, small, images.requires_grad_(), target)
    for handle in handles:
        handle.remove()
    assert seen == {"below": False, "layer": False, "norm": True, "head": True}
    assert images.grad is None


def test_frozen_model_is_explained_as_well(small: Small, images: Tensor, target: Tensor) -> None:
    expected = gradcam(small, small.layer, small, images, target).maps
    small.requires_grad_(False)
    assert torch.equal(gradcam(small, small.layer, small, images, target).maps, expected)


def test_model_is_untouched(small: Small, images: Tensor, target: Tensor) -> None:
    before = {name: value.clone() for name, value in small.state_dict().items()}
    result = gradcam(small, small.layer, small, images, target)
    assert not result.maps.requires_grad
    assert not result.logits.requires_grad
    assert all(p.grad is None and p.requires_grad for p in small.parameters())
    assert all(torch.equal(small.state_dict()[name], value) for name, value in before.items())
    assert all(not module._forward_hooks for module in small.modules())
    assert torch.is_grad_enabled()


def test_error_leaves_neither_hook_nor_grad_mode(small: Small, images: Tensor, target: Tensor) -> None:
    def fail(x: Tensor) -> Tensor:
        small(x)
        raise KeyError("in the forward pass")

    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            with pytest.raises(KeyError):
                gradcam(small, small.layer, fail, images, target)
            assert torch.is_grad_enabled() is enabled
    assert not small.layer._forward_hooks


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_works_where_the_caller_needs_no_graph(
    small: Small, images: Tensor, target: Tensor, mode: Callable[[], torch.no_grad]
) -> None:
    expected = gradcam(small, small.layer, small, images, target).maps
    with mode():
        maps = gradcam(small, small.layer, small, images * 1, target * 1).maps
        assert not torch.is_grad_enabled()
    assert torch.equal(maps, expected)


def test_bfloat16_autocast_gives_float32_maps(small: Small, images: Tensor, target: Tensor) -> None:
    expected = gradcam(small, small.layer, small, images, target).maps
    with torch.autocast("cpu", torch.bfloat16):
        maps, logits = gradcam(small, small.layer, small, images, target)
    assert maps.dtype == torch.float32
    assert logits.dtype == torch.bfloat16
    assert torch.allclose(maps, expected, rtol=0.1, atol=0.02 * float(expected.max()))


def test_compiled_code_is_explained_too(small: Small, images: Tensor, target: Tensor) -> None:
    expected = gradcam(small, small.layer, small, images, target)
    compiled = torch.compile(small.forward, backend="eager")
    with torch.no_grad():
        compiled(images)
    result = gradcam(small, small.layer, compiled, images, target)
    assert torch.equal(result.maps, expected.maps)


def tensors_alive() -> int:
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())  # isinstance would wake lazy objects


def test_memory_stays_flat(small: Small, images: Tensor, target: Tensor) -> None:
    sizes = []
    for _ in range(4):
        for _ in range(50):
            gradcam(small, small.layer, small, images, target)
        sizes.append(tensors_alive())
    assert len(set(sizes)) == 1


def test_graph_is_freed_without_the_garbage_collector(small: Small, images: Tensor, target: Tensor) -> None:
    import weakref

    outputs: list[weakref.ref[Tensor]] = []
    handle = small.head.register_forward_hook(lambda _m, _i, output: outputs.append(weakref.ref(output)))
    gc.disable()
    try:
        gradcam(small, small.layer, small, images, target)
        assert [ref() for ref in outputs] == [None]
    finally:
        gc.enable()
        handle.remove()


def test_one_pass_gives_both_maps_once(small: Small, images: Tensor, target: Tensor) -> None:
    with recorded(small, small.layer) as seen:
        logits = small(images)
    both = seen.maps(logits, target, mean_gradients, gradients_where_active)
    alone = [explain(small, small.layer, small, images, target).maps for explain in (gradcam, xgradcam)]
    assert all(torch.equal(one, other) for one, other in zip(both, alone, strict=True))
    assert not torch.allclose(*both)
    with pytest.raises(RuntimeError, match="name all maps in one call"):
        seen.maps(logits, target, mean_gradients)


def test_training_mode_is_refused(small: Small, images: Tensor, target: Tensor) -> None:
    with pytest.raises(ValueError, match="evaluation mode"):
        gradcam(small.train(), small.layer, small, images, target)


def test_layer_has_to_be_called_once(small: Small, images: Tensor, target: Tensor) -> None:
    with pytest.raises(RuntimeError, match="got 0 calls"):
        gradcam(small, nn.Identity(), small, images, target)
    with pytest.raises(RuntimeError, match="got 2 calls"):
        gradcam(small, small.layer, lambda x: small(x) + small(x), images, target)


def test_layer_has_to_give_a_map(small: Small, images: Tensor, target: Tensor) -> None:
    with pytest.raises(ValueError, match=r"\(5, 4\)"):
        gradcam(small, small.head, small, images, target)


def test_logits_have_to_depend_on_the_layer(small: Small, images: Tensor, target: Tensor) -> None:
    def unrelated(x: Tensor) -> Tensor:
        return torch.zeros_like(small(x))

    with pytest.raises(RuntimeError):
        gradcam(small, small.layer, unrelated, images, target)
