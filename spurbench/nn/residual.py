"""Residual blocks of any timm trunk, found by what they do rather than by name, and gates on their branches.

Such a block computes act(shortcut(x) + drop_path(branch(x))), where ``drop_path`` is stochastic depth, mostly switched
off. That module is the one place where the branch alone passes: a gate put there leaves the shortcut as it is.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spurbench.backbone import Backbone
from spurbench.nn.inside import Decision

__all__ = ["ResidualBlock", "find_residual_blocks", "gate_block"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualBlock:
    """One block of a trunk, for one image size. Multiply-adds are those of its branch, for one image."""

    name: str
    """Within the trunk."""
    stage: int
    """Index among the backbone's stages, from the shallowest."""
    channels: int
    """Of the block's input."""
    stride: int
    """Input positions per output position."""
    early_macs: int
    """Of the layers before the branch's last spatial convolution; active outputs need them in its whole window."""
    late_macs: int
    """Of that convolution and all after it, which are needed at active outputs alone."""
    kernel: int
    """Of that convolution; 1 if there is none."""
    kernel_stride: int
    kernel_input: tuple[int, int]
    """Height and width of what that convolution reads. Without meaning where there are no early layers."""


def find_residual_blocks(backbone: Backbone, image_size: int | None = None) -> list[ResidualBlock]:
    """All blocks that can be gated, in order of execution; empty for trunks that have none. ``backbone`` is only read.

    A block counts if a pass calls its ``drop_path`` once, with an NCHW map of its output's shape, and if the output
    still depends on the input, and on fewer layers, when that map is cut off: without a shortcut, a gate would delete
    the position.

    Args:
        image_size: side in pixels; the backbone's own if not given.
    """
    info: list[dict[str, Any]] = list(backbone.trunk.feature_info)  # type: ignore[arg-type]
    candidates = [name for name, module in backbone.trunk.named_modules() if _has_drop_path(module)]
    in_nchw = getattr(backbone.trunk, "output_fmt", "NCHW") == "NCHW"
    has_stages = len(info) == backbone.num_stages and all("module" in entry for entry in info)
    if not candidates or not in_nchw or not has_stages:
        return []
    twin = copy.deepcopy(backbone).to("meta").eval().requires_grad_(True)
    finished: list[str] = []
    for entry in info:
        twin.trunk.get_submodule(entry["module"]).register_forward_hook(lambda module, *_: finished.append("a stage"))
    probes = [_Probe(name, twin.trunk.get_submodule(name), finished) for name in candidates]
    size = image_size or int(backbone.trunk.pretrained_cfg["input_size"][-1])  # type: ignore[index]
    with torch.inference_mode(False), torch.enable_grad():
        twin.pooled(torch.zeros(1, 3, size, size, device="meta"))
    return [probe.block() for probe in probes if probe.is_residual and probe.stage < len(info)]


def gate_block(block: nn.Module, unit: nn.Module, decision: Decision) -> None:
    """Multiply the block's branch by a mask: ``unit`` makes logits of the block's input, ``decision`` the mask.

    The unit's parameters stay out of the trunk: they are the method's own. Names of the trunk's parameters stay.
    """
    gate = _Gate(block.drop_path or nn.Identity(), unit, decision)  # type: ignore[arg-type]
    block.drop_path = gate
    block.register_forward_pre_hook(gate.look)


class _Gate(nn.Module):
    """Stands in place of a block's ``drop_path``."""

    def __init__(self, inner: nn.Module, unit: nn.Module, decision: Decision) -> None:
        super().__init__()
        self.inner = inner
        self.unit = (unit,)  # in a tuple, so that it is not registered here
        self.decision = decision
        self.pending: Tensor | None = None

    def look(self, block: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Decide by the block's input, before the block runs."""
        self.pending = self.decision(self.unit[0](args[0]))

    def forward(self, branch_BChw: Tensor) -> Tensor:
        mask_B1hw, self.pending = self.pending, None
        assert mask_B1hw is not None
        gated: Tensor = self.inner(branch_BChw * mask_B1hw.to(branch_BChw.dtype))
        return gated


def _has_drop_path(module: nn.Module) -> bool:
    inner = getattr(module, "drop_path", 0.0)
    return inner is None or isinstance(inner, nn.Module)


class _Probe(nn.Module):
    """Takes a block's ``drop_path`` on a meta twin and cuts the branch off, to see what is left."""

    def __init__(self, name: str, block: nn.Module, finished: list[str]) -> None:
        super().__init__()
        self.name = name
        self.finished = finished
        self.stage = len(finished)
        self.is_residual = False
        self.branch_shapes: list[torch.Size] = []
        self.layers: list[tuple[nn.Conv2d | nn.Linear, torch.Size, int]] = []
        """Convolutions and linear layers in order of execution: input shape, multiply-adds."""
        block.drop_path = self
        for layer in block.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.register_forward_hook(self._note)
        block.register_forward_pre_hook(self._enter)
        block.register_forward_hook(self._leave)

    def forward(self, branch: Tensor) -> Tensor:
        self.branch_shapes.append(branch.shape)
        return torch.zeros_like(branch)  # without a graph

    def _note(self, layer: nn.Conv2d | nn.Linear, args: tuple[Tensor, ...], output: Tensor) -> None:
        self.layers.append((layer, args[0].shape, output.numel() * layer.weight[0].numel()))

    def _enter(self, block: nn.Module, args: tuple[Any, ...]) -> Any:
        if not isinstance(args[0], Tensor):
            return None
        self.stage = len(self.finished)
        self.input = args[0].detach().requires_grad_(True)
        return (self.input.clone(), *args[1:])  # a copy, since a block may write to its input

    def _leave(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not isinstance(output, Tensor) or self.branch_shapes != [output.shape] or output.ndim != 4:
            return None
        weights = [layer.weight for layer, *_ in self.layers]
        if output.requires_grad:
            reached, *of_shortcut = torch.autograd.grad(output.sum(), [self.input, *weights], allow_unused=True)
            self.layers = [entry for entry, grad in zip(self.layers, of_shortcut, strict=True) if grad is None]
            self.is_residual = reached is not None and bool(self.layers)
            self.output_shape = output.shape
        return output.detach()

    def block(self) -> ResidualBlock:
        """What was seen."""
        windows = [layer.kernel_size[0] if isinstance(layer, nn.Conv2d) else 1 for layer, *_ in self.layers]
        last = max((i for i, window in enumerate(windows) if window > 1), default=0)
        conv, shape, _ = self.layers[last]
        return ResidualBlock(
            name=self.name,
            stage=self.stage,
            channels=self.input.shape[1],
            stride=self.input.shape[2] // self.output_shape[2],
            early_macs=sum(macs for *_, macs in self.layers[:last]),
            late_macs=sum(macs for *_, macs in self.layers[last:]),
            kernel=windows[last],
            kernel_stride=conv.stride[0] if isinstance(conv, nn.Conv2d) else 1,
            kernel_input=(shape[-2], shape[-1]),
        )
