"""Attributions at the resolution of the input, for whole batches: input x gradient and integrated gradients.

With x an image, s_c the logit of class c and x' a baseline, the value of pixel (i, j) in channel k is

    input x gradient      (Shrikumar et al., arXiv 1605.01713)        x_kij d s_c(x) / d x_kij
    integrated gradients  (Sundararajan et al., arXiv 1703.01365)     (x - x')_kij integral over a in [0, 1] of
                                                                      d s_c(x' + a (x - x')) / d x_kij

The baseline is 0 in normalized space: the mean colour, which is also where input x gradient has its origin. Both are
signed and sum over all pixels and channels to (an approximation of) s_c(x) - s_c(x'). A pixel's energy is the positive
part of its sum over channels: channels of one pixel may cancel, what speaks against the class counts as nothing.

Written out here and not taken from Captum, which the tests compare with: it would be a dependency of every run for two
short functions, and holds all steps of a batch in memory unless told otherwise.

Shape letters: B images, H x W input pixels.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["input_x_gradient", "integrated_gradients"]

_CHUNK = 64
"""Images that are differentiated at once: a graph down to the input is as large as in training."""


def input_x_gradient(
    model: nn.Module,
    layer: nn.Module,
    forward: Callable[[Tensor], Tensor],
    images_B3HW: Tensor,
    target_B: Tensor | None,
) -> Tensor:
    """Input x gradient of one logit per image, float32 [B, H, W], at least 0.

    Works in a caller's ``no_grad`` or ``inference_mode`` and under autocast; gradients of parameters stay as they are.

    Args:
        model: in evaluation mode, so that images do not mix and one backward pass serves the batch.
        layer: not used: every attribution has this signature.
        forward: from images to logits [B, C], through ``model``.
        images_B3HW: as the model expects them.
        target_B: int64, the class to explain in each image; None for the predicted one.

    Raises:
        ValueError: a model in training mode.
        RuntimeError: the logits cannot be differentiated with respect to the images.
    """
    return _in_chunks(model, forward, images_B3HW, target_B, lambda x, y: x * _gradient(forward, x, y))


def integrated_gradients(
    model: nn.Module,
    layer: nn.Module,
    forward: Callable[[Tensor], Tensor],
    images_B3HW: Tensor,
    target_B: Tensor | None,
    *,
    num_steps: int = 32,
) -> Tensor:
    """Integrated gradients from the mean colour, float32 [B, H, W], at least 0; one step after the other.

    Args, errors and what callers may do are those of ``input_x_gradient``.

    Args:
        num_steps: nodes of the Gauss-Legendre quadrature, each a forward and a backward pass.
    """
    nodes, weights = np.polynomial.legendre.leggauss(num_steps)  # on [-1, 1]

    def attribute(x: Tensor, y: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
            total += weight / 2 * _gradient(forward, (1 + node) / 2 * x, y)
        return x * total

    return _in_chunks(model, forward, images_B3HW, target_B, attribute)


def _gradient(forward: Callable[[Tensor], Tensor], images: Tensor, target: Tensor) -> Tensor:
    """Of s_c by x, float32 [B, 3, H, W]: images do not mix, so the sum's gradient holds each one's."""
    with torch.enable_grad():
        leaf = images.detach().requires_grad_()
        score = forward(leaf).float().gather(1, target[:, None]).sum()
        (gradient,) = torch.autograd.grad(score, leaf)
    return gradient.float()


def _in_chunks(
    model: nn.Module,
    forward: Callable[[Tensor], Tensor],
    images_B3HW: Tensor,
    target_B: Tensor | None,
    attribute: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """The positive part of the channel sums of ``attribute``, which maps images and targets to [B, 3, H, W]."""
    if model.training:
        raise ValueError("attributions need a model in evaluation mode: in training mode the images of a batch mix")
    maps = []
    with torch.inference_mode(False), torch.no_grad():
        for start in range(0, len(images_B3HW), _CHUNK):
            part = slice(start, start + _CHUNK)
            images = images_B3HW[part].clone()  # a tensor made in inference mode cannot be part of one either
            target = forward(images).argmax(1) if target_B is None else target_B[part].clone()
            maps.append(attribute(images, target).sum(dim=1).relu())
    return torch.cat(maps)
