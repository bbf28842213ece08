"""GradCAM and XGradCAM for whole batches, at about the price of a forward pass.

With A the output of a layer and s_c the logit of class c, the map is L_ij = ReLU(sum over k of alpha_k A_kij) with

    GradCAM  (Selvaraju et al., arXiv 1610.02391)   alpha_k = mean over (i, j) of d s_c / d A_kij
    XGradCAM (Fu et al., arXiv 2008.02312)          alpha_k = sum over (i, j) of A_kij d s_c / d A_kij / sum of A_kij

Autograd records only what comes after the layer: everything before it runs without a graph. The pass that predicts can
be the one that is explained (``recorded``). For timm's ResNets, ConvNeXt, ViT and Swin on a CPU its numbers are those
of a pass without a graph, bit for bit; where a kernel depends on whether gradients are wanted, rounding may differ.

Shape letters: B images, C classes, K channels, H x W input pixels, h x w positions of the layer.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = [
    "GradCAM",
    "Recorded",
    "Weigh",
    "gradcam",
    "gradients_where_active",
    "mean_gradients",
    "recorded",
    "xgradcam",
]

Weigh = Callable[[Tensor, Tensor], Tensor]
"""alpha [B, K] from the layer's gradient and output, float32 [B, K, h, w] each."""

_EPSILON = 1e-7
"""Added to XGradCAM's sum of activations, as in pytorch-grad-cam: a channel that is off gets no weight."""


class GradCAM(NamedTuple):
    """Attribution maps and the logits that they explain, both without a graph."""

    maps: Tensor
    """float32 [B, h, w], at least 0, at the resolution of the layer and in no particular scale."""
    logits: Tensor
    """[B, C], in the precision of the model."""


def gradcam(
    model: nn.Module,
    layer: nn.Module,
    forward: Callable[[Tensor], Tensor],
    images_B3HW: Tensor,
    target_B: Tensor | None,
) -> GradCAM:
    """Explain one logit per image. Gradients of parameters stay as they are, and no hook is left behind.

    Works in a caller's ``no_grad`` or ``inference_mode`` and under autocast; maps are made in float32 either way.

    Args:
        model: in evaluation mode, so that images do not mix and one backward pass serves the batch.
        layer: a part of ``model`` with output [B, K, h, w] that ``forward`` calls once.
        forward: from images to logits [B, C], through ``model``.
        images_B3HW: as the model expects them.
        target_B: int64, the class to explain in each image; None for the predicted one.

    Raises:
        ValueError: a model in training mode, or a layer whose output is not [B, K, h, w].
        RuntimeError: ``forward`` calls the layer not exactly once, or its logits do not depend on it.
    """
    return _explain(model, layer, forward, images_B3HW, target_B, mean_gradients)


def xgradcam(
    model: nn.Module,
    layer: nn.Module,
    forward: Callable[[Tensor], Tensor],
    images_B3HW: Tensor,
    target_B: Tensor | None,
) -> GradCAM:
    """The same with XGradCAM's weights: gradients count where the channel is active. Arguments are those of gradcam."""
    return _explain(model, layer, forward, images_B3HW, target_B, gradients_where_active)


def mean_gradients(gradient_BKhw: Tensor, output_BKhw: Tensor) -> Tensor:
    """GradCAM's alpha."""
    return gradient_BKhw.mean(dim=(2, 3))


def gradients_where_active(gradient_BKhw: Tensor, output_BKhw: Tensor) -> Tensor:
    """XGradCAM's alpha."""
    return (gradient_BKhw * output_BKhw / (output_BKhw.sum(dim=(2, 3), keepdim=True) + _EPSILON)).sum(dim=(2, 3))


def _explain(
    model: nn.Module,
    layer: nn.Module,
    forward: Callable[[Tensor], Tensor],
    images_B3HW: Tensor,
    target_B: Tensor | None,
    weigh: Weigh,
) -> GradCAM:
    with recorded(model, layer) as seen:
        logits_BC = forward(images_B3HW)
    (maps_Bhw,) = seen.maps(logits_BC, target_B, weigh)
    return GradCAM(maps_Bhw, logits_BC.detach())


class Recorded:
    """What a layer gave in one forward pass, with the graph from there on."""

    def __init__(self, outputs: list[Tensor]) -> None:
        self._outputs = outputs
        self._explained = False

    def maps(self, logits_BC: Tensor, target_B: Tensor | None, *weighs: Weigh) -> list[Tensor]:
        """Maps of the logits of this pass, float32 [B, h, w] each; one backward pass serves them all, once.

        Args and errors are those of ``gradcam``.
        """
        if self._explained:
            raise RuntimeError("the graph of this pass is used up: name all maps in one call")
        self._explained = True
        if len(self._outputs) != 1:
            raise RuntimeError(
                f"gradcam needs a layer that is called once per forward pass, got {len(self._outputs)} calls"
            )
        output_BKhw = self._outputs.pop()
        with torch.inference_mode(False), torch.no_grad():
            with torch.enable_grad():
                # The copy is for targets made in inference mode, which autograd cannot keep.
                target_B = logits_BC.argmax(1) if target_B is None else target_B.clone()
                # Images do not mix, so the gradient of the sum holds each image's own gradient.
                score = logits_BC.float().gather(1, target_B[:, None]).sum()
            (gradient_BKhw,) = torch.autograd.grad(score, output_BKhw)
            gradient_BKhw, values_BKhw = gradient_BKhw.float(), output_BKhw.detach().float()
            alphas = (weigh(gradient_BKhw, values_BKhw) for weigh in weighs)
            return [(alpha_BK[:, :, None, None] * values_BKhw).sum(dim=1).relu() for alpha_BK in alphas]


@contextlib.contextmanager
def recorded(model: nn.Module, layer: nn.Module) -> Iterator[Recorded]:
    """A block for one forward pass whose logits are to be explained afterwards; args and errors as for ``gradcam``."""
    if model.training:
        raise ValueError("gradcam needs a model in evaluation mode: in training mode the images of a batch mix")
    with torch.inference_mode(False), torch.no_grad(), _eager(), _watch(layer) as outputs:
        yield Recorded(outputs)


@contextlib.contextmanager
def _watch(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the layer's outputs, and start recording a graph at them.

    The grad mode that the hook switches on outlives the hook, up to the ``no_grad`` block around the forward pass.
    """
    outputs: list[Tensor] = []

    def start_graph(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        if output.ndim != 4:
            raise ValueError(f"gradcam needs a layer with output [B, K, h, w], got {tuple(output.shape)}")
        leaf = output.detach().requires_grad_()
        outputs.append(leaf)
        torch.set_grad_enabled(True)
        return leaf.clone()  # What follows may work in place, which a leaf does not allow.

    handle = layer.register_forward_hook(start_graph)
    try:
        yield outputs
    finally:
        handle.remove()


def _eager() -> contextlib.AbstractContextManager[Any]:
    """Code that was compiled before the hook existed would skip it; run its source instead."""
    if "torch._dynamo" not in sys.modules:  # Nothing is compiled, and importing it takes seconds.
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance
