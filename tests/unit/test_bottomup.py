"""Bottom-up masking: where it gates, what its budget counts, its losses by hand, its schedule."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from spurbench.backbone import build_backbone, describe_backbone
from spurbench.config import BackboneConfig, TrainConfig
from spurbench.costs import model_costs
from spurbench.errors import ConfigError
from spurbench.method import Progress, TaskInfo
from spurbench.methods.bottomup import (
    BottomUp,
    BottomUpConfig,
    BottomUpModel,
    MaskUnit,
    needed_inputs,
    straight_through,
    used_share,
)
from spurbench.nn.residual import ResidualBlock, find_residual_blocks
from spurbench.resolve import parse_method
from spurbench.testing import check_method
from spurbench.types import Batch

BACKBONES = ["minibirds_resnet", "test_convnext", "test_resnet"]
"""ByobNet, ConvNeXt and ResNet: three ways to write a residual block."""


def make(backbone: str = "minibirds_resnet", size: int = 64, **options: Any) -> tuple[BottomUp, BottomUpModel]:
    method = BottomUp(BottomUpConfig(**options))
    task = TaskInfo(
        num_classes=3, num_groups=3, num_train=8, class_counts=(1,) * 3, image_size=size, train=TrainConfig()
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = method.build(build_backbone(BackboneConfig(name=backbone, weights="none"), None), task)
    assert isinstance(model, BottomUpModel)
    awake(model.backbone)
    return method, model


def plain(backbone: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return awake(build_backbone(BackboneConfig(name=backbone, weights="none"), None))


def awake(module: nn.Module) -> nn.Module:
    """timm lets branches start at zero (last batch norm, layer scale): then no mask would be seen."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith((".weight", ".gamma")) and parameter.ndim == 1 and float(parameter.max()) < 1e-3:
                parameter.fill_(0.5)
    return module


def batch(n: int = 4, size: int = 64) -> Batch:
    g = torch.Generator().manual_seed(0)
    return Batch(
        images=torch.randn(n, 3, size, size, generator=g),
        y=torch.randint(3, (n,), generator=g),
        index=torch.arange(n),
        weight=torch.ones(n),
    )


def progress(epoch: int = 0, num_epochs: int = 10, step: int = 0, seed: int = 0) -> Progress:
    return Progress(
        phase="train",
        epoch=epoch,
        num_epochs=num_epochs,
        step=step,
        num_steps=2,
        seed=seed,
        position=0,
        device=torch.device("cpu"),
    )


def set_logits(model: BottomUpModel, z: float) -> None:
    """The same mask logit everywhere."""
    with torch.no_grad():
        for unit in model.units:
            assert isinstance(unit, MaskUnit)
            for layer in (unit.conv, unit.context):
                layer.weight.zero_()
                layer.bias.zero_()
            unit.context.bias.fill_(z)


# --- gates ---


@pytest.mark.parametrize("backbone", BACKBONES)
def test_open_masks_are_the_plain_backbone_to_the_bit(backbone: str) -> None:
    _, model = make(backbone, num_stages="all")
    set_logits(model, 1.0)
    reference = plain(backbone)
    images = batch().images
    for training in (False, True):
        model.train(training), reference.train(training)
        torch.manual_seed(0)
        ours = model.backbone.pooled(images)
        torch.manual_seed(0)
        assert torch.equal(ours, reference.pooled(images))  # type: ignore[operator]
    theirs = reference.state_dict()
    assert model.backbone.state_dict().keys() == theirs.keys(), "the trunk's weights keep their names"


@pytest.mark.parametrize("backbone", BACKBONES)
def test_closed_masks_leave_the_shortcut_alone(backbone: str) -> None:
    """Every gated block gives exactly act(shortcut(x)), by timm's names for the parts."""
    _, model = make(backbone, num_stages="all")
    model.eval()
    set_logits(model, -1.0)
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for block in model.blocks:
        module = model.backbone.trunk.get_submodule(block.name)
        module.register_forward_hook(
            lambda module, args, output, name=block.name: seen.__setitem__(name, (args[0].clone(), output.clone()))
        )
    with torch.no_grad():
        model(batch().images)
        for block in model.blocks:
            module = model.backbone.trunk.get_submodule(block.name)
            before, after = seen[block.name]
            shortcut = getattr(module, "shortcut", None) or getattr(module, "downsample", None) or nn.Identity()
            act = next((getattr(module, name) for name in ("act", "act3", "act2") if hasattr(module, name)), None)
            expected = shortcut(before)
            assert torch.equal(after, expected if act is None else act(expected)), block.name
    assert len(seen) == len(model.blocks)


def test_a_mask_acts_where_it_is() -> None:
    """The branch counts at active positions, the shortcut at the others; the mask is decided by the block's input."""
    _, model = make("test_resnet")
    model.eval()
    block = model.blocks[0]
    module = model.backbone.trunk.get_submodule(block.name)
    bare = copy.deepcopy(module)
    bare._forward_pre_hooks.clear()
    bare.drop_path = None
    cut = copy.deepcopy(bare)
    cut.drop_path = Zero()
    x = torch.randn(2, block.channels, 8, 8)
    with torch.no_grad(), model.decision.by(lambda logits: (logits[:, :1] >= logits[:, :1].median()).float()) as masks:
        out = module(x)
    z = model.units[0](x)[:, :1]
    assert torch.equal(masks[0], (z >= z.median()).float())
    assert 0.3 < float(masks[0].mean()) < 0.7
    with torch.no_grad():
        assert torch.equal(out, torch.where(masks[0] > 0, bare(x), cut(x)))


class Zero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def test_mask_unit_is_a_convolution_plus_a_context_logit() -> None:
    unit = MaskUnit(5, stride=2).double()
    x = torch.randn(3, 5, 9, 7, dtype=torch.float64)
    logits = unit(x)
    assert logits.shape == (3, 2, 5, 4)
    assert not logits[:, 1].any()
    context = x.mean((2, 3)) @ unit.context.weight[0] + unit.context.bias
    i, j = 2, 1  # an inner position reads rows 3..5 and columns 1..3
    window = x[:, :, 2 * i - 1 : 2 * i + 2, 2 * j - 1 : 2 * j + 2]
    by_hand = (window * unit.conv.weight[0]).sum((1, 2, 3)) + unit.conv.bias + context
    torch.testing.assert_close(logits[:, 0, i, j], by_hand)


def test_stages_are_counted_from_the_deepest() -> None:
    names = {k: [block.name for block in make(num_stages=k)[1].blocks] for k in (1, 2, 4, "all")}
    assert names[1] == ["stages.3.0", "stages.3.1"]
    assert names[2] == ["stages.2.0", "stages.2.1", "stages.2.2", *names[1]]
    assert names[4] == names["all"] == ["stages.0.0", "stages.1.0", *names[2]]


def test_evaluation_masks() -> None:
    method, model = make(num_stages=2)
    model.eval()
    with torch.no_grad():
        prediction = method.evaluate(model, batch().images)
        with model.decision.by(lambda logits: (logits[:, :1] >= logits[:, 1:]).float()) as masks:
            logits = model(batch().images)
    assert torch.equal(prediction.logits, logits)
    deep, shallow = prediction.stage_masks
    assert torch.equal(deep, ((masks[3] + masks[4]) / 2)[:, 0])
    assert torch.allclose(shallow, ((masks[0] + masks[1] + masks[2]) / 3)[:, 0])
    assert prediction.mask is not None
    assert torch.equal(prediction.mask, torch.maximum(deep, shallow))
    assert 0 < float(deep.mean()) < 1


def test_nothing_stays_behind() -> None:
    """After a pass with a graph the model can be copied, and a copy is independent of the original."""
    method, model = make(num_stages=2)
    model(batch().images)
    method.training_step(model, batch(), progress())
    twin = copy.deepcopy(model).eval()
    model.eval()
    images = batch().images
    with torch.no_grad():
        before = twin(images)
        assert torch.equal(before, model(images))
        set_logits(model, -1.0)
        assert torch.equal(twin(images), before)
        assert not torch.equal(model(images), before)
        set_logits(twin, -1.0)
        assert torch.equal(twin(images), model(images))


# --- what the budget counts ---


def block_of(**values: Any) -> ResidualBlock:
    fixed: dict[str, Any] = {"name": "", "stage": 0, "channels": 4, "stride": 1, "early_macs": 0, "late_macs": 1}
    return ResidualBlock(**(fixed | {"kernel": 3, "kernel_stride": 1, "kernel_input": (6, 6)} | values))


def test_multiply_adds_of_resnet50_by_hand() -> None:
    found = {block.name: block for block in find_residual_blocks(describe_backbone("resnet50"), 224)}
    assert len(found) == 16
    first = found["layer4.0"]  # 1024 channels at 14x14 in, 2048 at 7x7 out, 512 between; the 3x3 has the stride
    assert first.early_macs == 1024 * 512 * 14 * 14
    assert first.late_macs == 9 * 512 * 512 * 49 + 512 * 2048 * 49
    assert (first.stride, first.kernel, first.kernel_stride, first.kernel_input) == (2, 3, 2, (14, 14))
    assert (first.stage, first.channels) == (4, 1024)
    convnext = find_residual_blocks(describe_backbone("convnext_tiny"), 224)[-1]
    assert (convnext.early_macs, convnext.late_macs) == (0, 49 * 768 * (49 + 8 * 768)), "7x7 depthwise, two linear"


@pytest.mark.parametrize(("stride", "size"), [(1, 6), (2, 6), (2, 7), (3, 8)])
@pytest.mark.parametrize("kernel", [3, 5])
def test_needed_inputs_are_those_a_convolution_reads(stride: int, size: int, kernel: int) -> None:
    """By the gradient of a convolution with positive weights."""
    x = torch.ones(2, 1, size, size, requires_grad=True)
    out = F.conv2d(x, torch.ones(1, 1, kernel, kernel), stride=stride, padding=kernel // 2)
    mask = (torch.rand(out.shape, generator=torch.Generator().manual_seed(1)) < 0.2).float()
    (out * mask).sum().backward()
    block = block_of(kernel=kernel, kernel_stride=stride, kernel_input=(size, size))
    assert x.grad is not None
    assert torch.equal(needed_inputs(mask, block), (x.grad > 0).float())


def test_used_share_by_hand() -> None:
    mask = torch.zeros(1, 1, 6, 6)
    mask[0, 0, 0, 0] = mask[0, 0, 3, 3] = 1  # a corner needs 4 inputs, an inner position 9
    share = used_share(mask, block_of(early_macs=30, late_macs=10))
    assert float(share) == pytest.approx(0.75 * 13 / 36 + 0.25 * 2 / 36)
    assert float(used_share(mask, block_of())) == pytest.approx(2 / 36)


def test_used_share_has_a_gradient_in_the_undilated_part_alone() -> None:
    mask = torch.ones(1, 1, 6, 6, requires_grad=True)
    used_share(mask, block_of(early_macs=30, late_macs=10)).backward()
    assert mask.grad is not None
    torch.testing.assert_close(mask.grad, torch.full((1, 1, 6, 6), 0.25 / 36))


# --- losses ---


def losses(used: list[float], macs: list[float], done: float, tau: float) -> tuple[float, float]:
    network, block = BottomUp(BottomUpConfig(tau=tau)).budget_losses(torch.tensor(used), torch.tensor(macs), done)
    return float(network), float(block)


def test_losses_at_the_start_hold_every_block_to_the_budget() -> None:
    network, block = losses([0.5, 0.1], [3.0, 1.0], 0.0, 0.25)
    assert network == pytest.approx((0.4 - 0.25) ** 2)
    assert block == pytest.approx((0.25**2 + 0.15**2) / 2)


def test_losses_half_way_to_the_open_bounds() -> None:
    """cos^2(pi/4) = 1/2: upper 1 - 0.5 * 0.75 = 0.625, lower 0.125."""
    network, block = losses([0.9, 0.1, 0.4], [1.0, 1.0, 2.0], 0.165, 0.25)
    assert network == pytest.approx((0.45 - 0.25) ** 2)
    assert block == pytest.approx((0.275**2 + 0.025**2) / 3)


def test_losses_after_a_third_leave_single_blocks_free() -> None:
    assert losses([1.0, 0.0], [1.0, 3.0], 0.33, 0.25) == pytest.approx((0.0, 0.0), abs=1e-12)
    assert losses([1.0, 0.0], [1.0, 3.0], 0.9, 0.25) == (0.0, 0.0)


@pytest.mark.parametrize("done", [0.0, 0.1, 0.3, 0.7])
def test_losses_equal_a_transcription_in_plain_numbers(done: float) -> None:
    import math
    import random

    rng = random.Random(3)
    used, macs, tau = [rng.random() for _ in range(7)], [rng.random() for _ in range(7)], 0.4
    p = math.cos(min(max(done / 0.33, 0), 1) * math.pi / 2) ** 2
    block = 0.0
    for u in used:
        block += max(0.0, u - (1 - p * (1 - tau))) ** 2 + max(0.0, p * tau - u) ** 2
    network = (sum(u * m for u, m in zip(used, macs, strict=True)) / sum(macs) - tau) ** 2
    assert losses(used, macs, done, tau) == pytest.approx((network, block / 7), rel=1e-4)


def test_the_loss_is_their_sum() -> None:
    method, model = make(num_stages=2, tau=0.5)
    model.eval()
    data = batch()
    data = Batch(images=data.images, y=data.y, index=data.index, weight=torch.tensor([2.0, 0.0, 1.0, 0.5]))
    masks: list[Tensor] = []
    for unit in model.units:  # the draws, as the gates see them
        unit.register_forward_hook(lambda *_: masks.append(torch.empty(0)))
    out = method.training_step(model, data, progress(epoch=9))
    assert len(masks) == 5, "one draw per block"
    with torch.no_grad(), model.decision.by(lambda logits: straight_through(logits, 1.0)) as drawn:
        logits = model(data.images)
    ce = (data.weight * F.cross_entropy(logits, data.y, reduction="none")).mean()
    used = torch.stack([used_share(mask, block) for mask, block in zip(drawn, model.blocks, strict=True)])
    assert float(out.scalars["used"]) == pytest.approx(float((used * model.macs).sum() / model.macs.sum()))
    assert float(out.scalars["network"]) == pytest.approx((float(out.scalars["used"]) - 0.5) ** 2, abs=1e-7)
    expected = float(ce) + 10 * float(out.scalars["network"] + out.scalars["block"])
    assert float(out.loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert float(out.scalars["density_0"]) == pytest.approx(float(torch.stack(drawn[3:]).mean()))
    assert float(out.scalars["density_1"]) == pytest.approx(float(torch.stack(drawn[:3]).mean()))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_gradients_reach_every_mask_unit(backbone: str) -> None:
    for weight, epoch in ((0.0, 0), (10.0, 0), (10.0, 9)):
        method, model = make(backbone, num_stages="all", budget_weight=weight)
        method.training_step(model, batch(), progress(epoch=epoch)).loss.backward()
        for unit in model.units:
            for parameter in unit.parameters():
                assert parameter.grad is not None
                assert parameter.grad.isfinite().all()
                assert parameter.grad.any()


def test_budget_alone_drives_the_used_share_to_tau() -> None:
    method, model = make(size=32, num_stages="all", tau=0.4)
    optimizer = torch.optim.Adam(model.units.parameters(), lr=0.01)
    model.requires_grad_(False)
    model.units.requires_grad_(True)
    data = batch(4, 32)
    data = Batch(images=data.images, y=data.y, index=data.index, weight=torch.zeros(4))
    model.eval()
    used = []
    for step in range(60):
        out = method.training_step(model, data, progress(epoch=5, step=step))
        used.append(float(out.scalars["used"]))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    assert abs(used[0] - 0.4) > 0.1, "no way to go"
    assert sum(used[-10:]) / 10 == pytest.approx(0.4, abs=0.04)


# --- schedule ---


def test_noise_ends_after_four_fifths() -> None:
    method, model = make(num_stages=2)
    model.eval()

    def loss(epoch: int, seed: int) -> float:
        return float(method.training_step(model, batch(), progress(epoch=epoch, seed=seed)).loss.detach())

    assert loss(8, 0) == loss(8, 0) != loss(8, 1), "8 of 10 epochs are not more than 0.8"
    assert loss(9, 0) == loss(9, 1)


def test_temperatures() -> None:
    constant, falling = (BottomUp(BottomUpConfig(temperature=name)) for name in ("constant", "falling"))
    assert [constant.temperature_at(epoch / 10) for epoch in range(10)] == [1.0] * 10
    assert [falling.temperature_at(epoch / 10) for epoch in range(10)] == [5.0] * 3 + [2.5] * 3 + [1.0] * 4


def test_straight_through() -> None:
    logits = torch.tensor([0.3, -0.2, 0.0]).view(3, 1, 1, 1).requires_grad_(True)
    mask = straight_through(F.pad(logits, (0, 0, 0, 0, 0, 1)), 2.5)
    assert mask.flatten().tolist() == [1, 0, 1], "z >= 0"
    mask.sum().backward()
    assert logits.grad is not None
    soft = torch.sigmoid(logits.detach() / 2.5)
    torch.testing.assert_close(logits.grad, soft * (1 - soft) / 2.5)


# --- what it takes, what it costs ---


def test_options() -> None:
    assert parse_method("bottomup[all,50%]") == ("bottomup", ("all", 0.5))
    assert BottomUp(BottomUpConfig(num_stages="all", tau=0.5)).label == "BottomUp[all,50%]"
    assert BottomUp(BottomUpConfig()).label == "BottomUp[1,25%]"
    wrong: list[dict[str, Any]] = [{"num_stages": 0}, {"num_stages": "most"}, {"tau": 0}, {"tau": 1.1}]
    for options in wrong:
        with pytest.raises(ValidationError):
            BottomUpConfig(**options)


@pytest.mark.parametrize(
    "backbone", ["swin_tiny_patch4_window7_224", "vit_tiny_patch16_224", "vgg11", "densenet121", "mambaout_femto"]
)
def test_other_trunks_are_refused(backbone: str) -> None:
    with pytest.raises(ConfigError, match="has none; choose a residual ConvNet such as resnet50"):
        BottomUp(BottomUpConfig()).check(describe_backbone(backbone))


def test_a_drop_path_that_is_not_on_the_branch_is_no_gate() -> None:
    """timm's ResNeSt applies it to the block's input: gating there would change nothing, or the shortcut."""
    assert find_residual_blocks(describe_backbone("resnest14d")) == []
    assert find_residual_blocks(describe_backbone("resnest26d")) == []


def test_blocks_without_a_shortcut_have_no_gate() -> None:
    names = [block.name for block in find_residual_blocks(describe_backbone("efficientnet_b0"))]
    assert names[:2] == ["blocks.1.1", "blocks.2.1"], "in timm's EfficientNet the first block of a stage has none"


def test_too_many_stages_are_refused() -> None:
    with pytest.raises(ConfigError, match="the 4 deepest of its 5 stages have residual blocks; choose 1 to 4, or all"):
        BottomUp(BottomUpConfig(num_stages=5)).check(describe_backbone("resnet18"))
    BottomUp(BottomUpConfig(num_stages="all")).check(describe_backbone("resnet18"))


def test_finding_blocks_leaves_the_backbone_as_it_is() -> None:
    backbone = describe_backbone("test_resnet")
    before = repr(backbone), [len(module._forward_hooks) for module in backbone.modules()]
    find_residual_blocks(backbone)
    assert (repr(backbone), [len(module._forward_hooks) for module in backbone.modules()]) == before


@pytest.mark.parametrize("backbone", ["resnet50", "convnext_tiny", "minibirds_resnet"])
def test_costs_are_dense_plus_the_units(backbone: str) -> None:
    size = 64 if backbone == "minibirds_resnet" else 224
    ours, bare = model_costs(BottomUp(BottomUpConfig(num_stages="all")), backbone, size, 1000)
    blocks = find_residual_blocks(describe_backbone(backbone), size)
    assert ours.params - bare.params == sum(10 * block.channels + 2 for block in blocks)
    assert 0 < ours.gmacs - bare.gmacs < 0.02 * bare.gmacs


def test_original_form_conforms() -> None:
    check_method(BottomUp, backbones=("test_resnet",), num_stages="all", tau=0.5, temperature="falling")
