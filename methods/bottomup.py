"""Bottom-up masking: dynamic convolutions (Verelst and Tuytelaars, CVPR 2020, arXiv 1912.03203).

Every residual block b looks at its own input and decides where its branch is computed at all:

    z_b  = conv3x3(x) + linear(mean over positions of x)       one mask logit per output position
    m_b  = [sigmoid((z_b + g1 - g2) / T) >= 0.5]               straight-through; z_b >= 0 in evaluation
    y    = act(shortcut(x) + m_b * branch(x))                  the shortcut stays as it is
    u_b  = multiply-adds at active positions / those at all positions,   u = the same over all blocks
    L    = CE + 10 * ((u - t)^2 + mean_b (max(0, u_b - upper)^2 + max(0, lower - u_b)^2))
    upper = 1 - p (1 - t),   lower = p t,   p = cos^2(pi/2 * min(1, epoch / (0.33 E)))

so each block starts at the budget t, and after a third of the training only their sum is held to it. As in the
authors' code (thomasverelst/dynconv), the noise ends after 0.8 E; layers ahead of a branch's last spatial convolution
count where the mask dilated by its window is active, without a gradient; stem, shortcuts and layers between stages
do not count. Dilation is a matter of cost alone: what is dropped there is read by no active position.

AIM's ablation names this method ``bottomup[k,p%]`` and does not say what k is. Here the blocks of the k deepest stages
have masks and p is their common budget t; ``num_stages=all`` is the original. Nothing is saved in wall-clock time, and
the multiply-adds that ``spurbench cost`` counts are dense, with the mask units and without the masks.
"""

from collections.abc import Sequence
from math import cos, pi
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from spurbench.backbone import Backbone
from spurbench.errors import ConfigError
from spurbench.method import BaseMethod, MethodConfig, Progress, TaskInfo, weighted_cross_entropy
from spurbench.nn.classifier import Classifier
from spurbench.nn.gumbel import hard_mask, sample_mask
from spurbench.nn.inside import Decision
from spurbench.nn.residual import ResidualBlock, find_residual_blocks, gate_block
from spurbench.nn.topdown import merge_masks
from spurbench.types import Batch, Prediction, StepOutput

__all__ = ["METHOD"]


class BottomUpConfig(MethodConfig):
    """Options of bottom-up masking; bottomup[num_stages, tau] in the notation of AIM's ablation."""

    positional = ("num_stages", "tau")

    num_stages: PositiveInt | Literal["all"] = 1
    """In how many of the deepest stages the residual blocks have masks; ``all`` is the authors' form."""
    tau: Annotated[float, Field(gt=0, le=1)] = 0.25
    """The budget t: the share of the masked blocks' multiply-adds that may be used."""
    budget_weight: Annotated[float, Field(ge=0)] = 10.0
    """Of both budget losses; 10 in the authors' code."""
    bounds_until: Annotated[float, Field(gt=0, le=1)] = 0.33
    """Share of the epochs after which a single block may use anything from 0 to 1; 0.33 in the authors' code."""
    noise_until: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Share of the epochs after which masks are trained without noise; 0.8 in the authors' code, whose schedules are
    long. Until then density can come from noise alone, and evaluation masks be empty; in a short recipe whose learning
    rate falls to zero the rest may not repair that. Look at the density that is logged per epoch, and lower this."""
    temperature: Literal["constant", "falling"] = "constant"
    """T = 1 as in the authors' CIFAR script, or 5, 2.5, 1 (from 0.3 and 0.6 of the epochs) as in their ImageNet one."""


class MaskUnit(nn.Module):
    """Mask logits of a block's input: channel 0 = keep, which is z; channel 1 = drop, always 0."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 1, 3, stride=stride, padding=1)
        self.context = nn.Linear(channels, 1)

    def forward(self, x_BChw: Tensor) -> Tensor:
        """[B, 2, h / stride, w / stride]."""
        z_B1hw = self.conv(x_BChw) + self.context(x_BChw.mean(dim=(2, 3)))[:, :, None, None]
        return F.pad(z_B1hw, (0, 0, 0, 0, 0, 1))


class BottomUpModel(Classifier):
    """The classifier with a mask unit at every block in ``blocks``; a plain pass decides without noise."""

    macs: Tensor
    """[K], multiply-adds of every block's branch."""

    def __init__(self, backbone: Backbone, blocks: Sequence[ResidualBlock], num_classes: int) -> None:
        super().__init__(backbone, num_classes)
        self.blocks = tuple(blocks)
        macs = torch.tensor([float(block.early_macs + block.late_macs) for block in blocks])
        self.register_buffer("macs", macs, persistent=False)  # known from the trunk: no part of the weights
        self.decision = Decision()
        self.units = nn.ModuleList(MaskUnit(block.channels, block.stride) for block in blocks)
        for block, unit in zip(blocks, self.units, strict=True):
            gate_block(backbone.trunk.get_submodule(block.name), unit, self.decision)

    def stage_masks(self, masks: Sequence[Tensor]) -> list[Tensor]:
        """Deep to shallow, [B, 1, h, w] each: the share of the stage's blocks that compute a position."""
        of_stage: dict[int, list[Tensor]] = {}
        for block, mask in zip(self.blocks, masks, strict=True):
            of_stage.setdefault(block.stage, []).append(mask)
        return [
            torch.stack([F.interpolate(mask, size=group[-1].shape[2:]) for mask in group]).mean(dim=0)
            for _, group in sorted(of_stage.items(), reverse=True)
        ]


class BottomUp(BaseMethod[BottomUpConfig]):
    """Each residual block skips its branch where its mask says so, within a common budget."""

    Config = BottomUpConfig
    paper = "Verelst and Tuytelaars, CVPR 2020, arXiv 1912.03203"

    @property
    def label(self) -> str:
        """``BottomUp[1,25%]``."""
        return f"BottomUp[{self.config.num_stages},{100 * self.config.tau:g}%]"

    def check(self, backbone: Backbone) -> None:
        """Refuse trunks whose stages do not consist of residual blocks."""
        self._blocks(backbone, None)

    def build(self, backbone: Backbone, task: TaskInfo) -> nn.Module:
        """Classifier whose backbone's branches are gated."""
        return BottomUpModel(backbone, self._blocks(backbone, task.image_size), task.num_classes)

    def _blocks(self, backbone: Backbone, image_size: int | None) -> list[ResidualBlock]:
        found = find_residual_blocks(backbone, image_size)
        stages = {block.stage for block in found}
        deepest = range(backbone.num_stages - 1, -1, -1)
        possible = next((k for k, stage in enumerate(deepest) if stage not in stages), backbone.num_stages)
        if not possible:
            raise ConfigError(
                f"bottomup gates the branches of residual blocks on NCHW maps, and the last stage of {backbone.name} "
                "has none; choose a residual ConvNet such as resnet50, convnext_tiny or minibirds_resnet"
            )
        count = possible if self.config.num_stages == "all" else self.config.num_stages
        if count > possible:
            raise ConfigError(
                f"num_stages {count} is impossible with bottomup on {backbone.name}: the {possible} deepest of its "
                f"{backbone.num_stages} stages have residual blocks; choose 1 to {possible}, or all"
            )
        return [block for block in found if block.stage >= backbone.num_stages - count]

    def training_step(self, model: nn.Module, batch: Batch, progress: Progress) -> StepOutput:
        """Cross-entropy plus both budget losses, from one draw of the masks."""
        assert isinstance(model, BottomUpModel)
        done = progress.epoch / progress.num_epochs
        temperature = self.temperature_at(done)
        noisy = progress.epoch <= self.config.noise_until * progress.num_epochs
        noise = progress.generator("gumbel") if noisy else None

        def decide(logits_B2hw: Tensor) -> Tensor:
            if noise is None:
                return straight_through(logits_B2hw, temperature)
            return sample_mask(logits_B2hw, noise, temperature)

        with model.decision.by(decide) as masks:
            loss = weighted_cross_entropy(model(batch.images), batch)
        used = torch.stack([used_share(mask, block) for mask, block in zip(masks, model.blocks, strict=True)])
        network, block = self.budget_losses(used, model.macs, done)
        scalars = {f"density_{level}": mask.detach().mean() for level, mask in enumerate(model.stage_masks(masks))}
        scalars |= {"used": total_share(used, model.macs).detach()}
        scalars |= {"network": network.detach(), "block": block.detach()}
        return StepOutput(loss=loss + self.config.budget_weight * (network + block), scalars=scalars)

    def temperature_at(self, done: float) -> float:
        """T of the straight-through gradient; ``done`` is the share of the epochs that is over."""
        if self.config.temperature == "constant":
            return 1.0
        return 5.0 if done < 0.3 else 2.5 if done < 0.6 else 1.0

    def budget_losses(self, used_K: Tensor, macs_K: Tensor, done: float) -> tuple[Tensor, Tensor]:
        """Network and block loss, 0-d, of the used share of every block and its multiply-adds."""
        tau = self.config.tau
        tight = cos(pi / 2 * min(1.0, done / self.config.bounds_until)) ** 2
        upper, lower = 1 - tight * (1 - tau), tight * tau
        network = (total_share(used_K, macs_K) - tau).square()
        block = ((used_K - upper).clamp(min=0).square() + (lower - used_K).clamp(min=0).square()).mean()
        return network, block

    def evaluate(self, model: nn.Module, images: Tensor) -> Prediction:
        """Prediction with the masks it was made with."""
        assert isinstance(model, BottomUpModel)
        with model.decision.by(hard_mask) as masks:
            logits = model(images)
        stages = model.stage_masks(masks)
        return Prediction(
            logits=logits, mask=merge_masks(stages)[:, 0], stage_masks=tuple(mask[:, 0] for mask in stages)
        )


def straight_through(logits_B2hw: Tensor, temperature: float) -> Tensor:
    """The mask [B, 1, h, w] without noise, with the gradient of its sigmoid."""
    soft = torch.sigmoid((logits_B2hw[:, :1] - logits_B2hw[:, 1:]).float() / temperature)
    return hard_mask(logits_B2hw) + (soft - soft.detach())


def total_share(used_K: Tensor, macs_K: Tensor) -> Tensor:
    """Used share of all blocks together, 0-d."""
    return (used_K * macs_K).sum() / macs_K.sum()


def used_share(mask_B1hw: Tensor, block: ResidualBlock) -> Tensor:
    """Share of a block's multiply-adds that active positions need, 0-d; its gradient passes the undilated part only."""
    total = block.early_macs + block.late_macs
    used = mask_B1hw.mean() * (block.late_macs / total)
    if block.early_macs:
        used = used + needed_inputs(mask_B1hw.detach(), block).mean() * (block.early_macs / total)
    return used


def needed_inputs(mask_B1hw: Tensor, block: ResidualBlock) -> Tensor:
    """Positions [B, 1, H, W] that the branch's last spatial convolution reads for the active outputs."""
    k, stride, sizes = block.kernel, block.kernel_stride, zip(block.kernel_input, mask_B1hw.shape[2:], strict=True)
    spare = [n - ((m - 1) * stride - 2 * (k // 2) + k) for n, m in sizes]
    window = mask_B1hw.new_ones(1, 1, k, k)
    reads = F.conv_transpose2d(mask_B1hw, window, stride=stride, padding=k // 2, output_padding=spare)
    return (reads > 0.5).float()


METHOD = BottomUp
