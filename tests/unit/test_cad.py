"""Content-adaptive downsampling: two paths with shared weights, chosen per position, and a target on the choice."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from spurbench.backbone import build_backbone, describe_backbone
from spurbench.config import BackboneConfig, OptimizerConfig, TrainConfig
from spurbench.costs import model_costs
from spurbench.engine.training import make_optimizer
from spurbench.errors import ConfigError
from spurbench.method import Progress, TaskInfo
from spurbench.methods.cad import CAD, CADConfig, CADModel, TwoResolutions, halved
from spurbench.types import Batch

BACKBONES = ["minibirds_resnet", "test_convnext", "test_resnet"]
"""ByobNet whose last stage has stride 1, ConvNeXt, ResNet."""


def make(backbone: str = "minibirds_resnet", size: int = 64, **options: Any) -> tuple[CAD, CADModel]:
    method = CAD(CADConfig(**options))
    task = TaskInfo(
        num_classes=3, num_groups=3, num_train=8, class_counts=(1,) * 3, image_size=size, train=TrainConfig()
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = method.build(build_backbone(BackboneConfig(name=backbone, weights="none"), None), task)
    assert isinstance(model, CADModel)
    return method, model


def plain(backbone: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_backbone(BackboneConfig(name=backbone, weights="none"), None)


def batch(n: int = 4, size: int = 64) -> Batch:
    g = torch.Generator().manual_seed(0)
    return Batch(
        images=torch.randn(n, 3, size, size, generator=g),
        y=torch.randint(3, (n,), generator=g),
        index=torch.arange(n),
        weight=torch.ones(n),
    )


def progress(epoch: int = 0, step: int = 0, seed: int = 0) -> Progress:
    return Progress(
        phase="train",
        epoch=epoch,
        num_epochs=10,
        step=step,
        num_steps=2,
        seed=seed,
        position=0,
        device=torch.device("cpu"),
    )


def constant(value: float) -> Any:
    return lambda logits: torch.full_like(logits[:, :1], value)


def two_resolutions(model: nn.Module) -> TwoResolutions:
    (found,) = (module for module in model.modules() if isinstance(module, TwoResolutions))
    return found


# --- the two paths ---


@pytest.mark.parametrize("backbone", BACKBONES)
def test_all_at_high_resolution_is_the_plain_backbone(backbone: str) -> None:
    _, model = make(backbone)
    reference = plain(backbone)
    images = batch().images
    for training in (False, True):
        model.train(training), reference.train(training)
        with torch.no_grad(), model.decision.by(constant(1.0)):
            assert torch.equal(model.backbone.pooled(images), reference.pooled(images))  # type: ignore[operator]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_all_at_low_resolution_is_the_stage_on_the_halved_map(backbone: str) -> None:
    _, model = make(backbone)
    model.eval()
    both = two_resolutions(model)
    s = torch.randn(2, model.estimator[0].in_channels, 8, 8)
    with torch.no_grad(), model.decision.by(constant(0.0)):
        out = both(s)
        small = both.high(F.interpolate(s, scale_factor=0.5, mode="area"))  # in evaluation the buffers are equal
    factor = out.shape[-1] // small.shape[-1]
    assert factor == 2
    torch.testing.assert_close(out, small.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


@pytest.mark.parametrize("backbone", ["minibirds_resnet", "test_convnext"])
def test_every_position_takes_its_path(backbone: str) -> None:
    _, model = make(backbone)
    model.eval()
    both = two_resolutions(model)
    s = torch.randn(2, model.estimator[0].in_channels, 8, 8)
    mask = (torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    with torch.no_grad():
        with model.decision.by(lambda logits: mask):
            out = both(s)
        with model.decision.by(constant(1.0)):
            high = both(s)
        with model.decision.by(constant(0.0)):
            low = both(s)
    wide = mask.repeat_interleave(out.shape[-1] // 4, dim=2).repeat_interleave(out.shape[-1] // 4, dim=3)
    assert torch.equal(out, torch.where(wide > 0, high, low))


def test_odd_maps() -> None:
    s = torch.arange(9.0).view(1, 1, 3, 3)
    assert halved(s).flatten().tolist() == [2.0, 3.5, 6.5, 8.0]
    _, model = make()
    model.eval()
    with torch.no_grad():
        assert two_resolutions(model)(torch.randn(1, 64, 7, 5)).shape == (1, 128, 7, 5)


def test_weights_are_shared_and_statistics_are_not() -> None:
    method, model = make()
    both = two_resolutions(model)
    assert [id(p) for p in both.high.parameters()] == [id(p) for p in both.low.parameters()]
    assert sum(p.numel() for p in model.parameters()) == sum(
        p.numel() for module in (plain("minibirds_resnet"), model.estimator, model.head) for p in module.parameters()
    )
    model.train()
    method.training_step(model, batch(), progress())
    high, low = (dict(stage.named_buffers()) for stage in (both.high, both.low))
    assert high.keys() == low.keys()
    assert all(not torch.equal(high[name], low[name]) for name in high if name.endswith("running_var"))


def test_weights_stay_shared() -> None:
    """Through a copy, a load and a step of the optimizer."""
    method, model = make("test_resnet")
    twin = copy.deepcopy(model)
    twin.load_state_dict(model.state_dict())
    both = two_resolutions(twin)
    assert [id(p) for p in both.high.parameters()] == [id(p) for p in both.low.parameters()]
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}
    optimizer = make_optimizer(OptimizerConfig(name="sgd", lr=0.1), twin)
    method.training_step(twin, batch(), progress()).loss.backward()
    optimizer.step()
    for (name, one), other in zip(both.high.named_parameters(), both.low.parameters(), strict=True):
        assert torch.equal(one, other), name
    moved = twin.double()
    assert all(a is b for a, b in zip(two_resolutions(moved).high.parameters(), both.low.parameters(), strict=True))


# --- the choice ---


def test_estimator_is_the_authors() -> None:
    _, model = make()
    kinds = [type(layer).__name__ for layer in model.estimator]
    assert kinds == ["Conv2d", "ReLU", "Conv2d", "ReLU", "MaxPool2d", "Conv2d", "ReLU", "Conv2d"]
    convs = [layer for layer in model.estimator if isinstance(layer, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size) for c in convs] == [
        (64, 128, (3, 3)),
        (128, 64, (3, 3)),
        (64, 64, (3, 3)),
        (64, 2, (3, 3)),
    ]
    assert model.estimator(torch.randn(1, 64, 8, 8)).shape == (1, 2, 4, 4)


def test_loss_by_hand() -> None:
    """One draw for the forward pass and the target: the density that is logged is the one that was used."""
    method, model = make(low_fraction=0.4, budget_weight=3.0)
    model.eval()
    data = batch()
    data = Batch(images=data.images, y=data.y, index=data.index, weight=torch.tensor([2.0, 0.0, 1.0, 0.5]))
    calls: list[Tensor] = []
    two_resolutions(model).register_forward_hook(lambda module, args, output: calls.append(output))
    out = method.training_step(model, data, progress())
    (map_BChw,) = calls
    with torch.no_grad():
        logits = model.head(model.backbone.trunk.forward_head(map_BChw, pre_logits=True))
        with model.decision.by(constant(1.0)):
            model(data.images)
    ce = (data.weight * F.cross_entropy(logits, data.y, reduction="none")).mean()
    same_as_high = (map_BChw.detach() == calls[1]).all(1).float()[:, ::2, ::2]  # 8x8 positions, 4x4 decisions
    density = float(same_as_high.mean())
    assert 0.2 < density < 0.8
    assert float(out.scalars["density_0"]) == pytest.approx(density)
    assert float(out.scalars["budget"]) == pytest.approx((1 - density - 0.4) ** 2, rel=1e-4)
    assert float(out.loss.detach()) == pytest.approx(float(ce) + 3 * (1 - density - 0.4) ** 2, rel=1e-5)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_gradients_reach_the_estimator(weight: float) -> None:
    method, model = make(budget_weight=weight)
    method.training_step(model, batch(), progress()).loss.backward()
    for parameter in model.estimator.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()


def test_target_alone_drives_the_share_at_low_resolution() -> None:
    method, model = make(low_fraction=0.8)
    optimizer = torch.optim.Adam(model.estimator.parameters(), lr=3e-3)
    data = batch(4, 32)
    data = Batch(images=data.images, y=data.y, index=data.index, weight=torch.zeros(4))
    model.eval()
    densities = []
    for step in range(60):
        out = method.training_step(model, data, progress(step=step))
        densities.append(float(out.scalars["density_0"]))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    assert densities[0] > 0.35, "no way to go"
    assert sum(densities[-20:]) / 20 == pytest.approx(0.2, abs=0.06)


def test_evaluation_is_without_noise_and_shows_where_resolution_is_high() -> None:
    method, model = make()
    model.eval()
    images = batch().images
    with torch.no_grad():
        prediction, again = method.evaluate(model, images), method.evaluate(model, images)
        s = model.backbone.stages(images, 2)[0]
        logits = model.estimator(s)
    assert torch.equal(prediction.logits, again.logits)
    assert prediction.mask is not None
    assert torch.equal(prediction.mask, (logits[:, 0] >= logits[:, 1]).float())
    assert torch.equal(prediction.stage_masks[0], prediction.mask)


def test_draws_depend_on_seed_and_step() -> None:
    method, model = make()
    model.eval()

    def loss(**where: int) -> float:
        torch.rand(3)
        return float(method.training_step(model, batch(), progress(**where)).loss.detach())

    assert loss() == loss()
    assert len({loss(), loss(step=1), loss(epoch=1), loss(seed=1)}) == 4


# --- what it takes, what it costs ---


def test_options() -> None:
    assert CAD(CADConfig()).label == "CAD[30%]"
    for value in (-0.1, 1.1):
        with pytest.raises(ValidationError):
            CADConfig(low_fraction=value)


@pytest.mark.parametrize("backbone", ["swin_tiny_patch4_window7_224", "vit_tiny_patch16_224", "vgg11", "densenet121"])
def test_other_trunks_are_refused(backbone: str) -> None:
    with pytest.raises(ConfigError, match="no spatial convolution on NCHW maps; choose a ConvNet such as resnet50"):
        CAD(CADConfig()).check(describe_backbone(backbone))


def test_small_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="for images of 32 px it is 2x2, and it must be 4x4 or larger"):
        make("test_convnext", size=32)


@pytest.mark.parametrize("backbone", ["resnet50", "convnext_tiny", "minibirds_resnet"])
def test_costs_are_those_of_both_paths(backbone: str) -> None:
    size = 64 if backbone == "minibirds_resnet" else 224
    CAD(CADConfig()).check(describe_backbone(backbone))
    ours, bare = model_costs(CAD(CADConfig()), backbone, size, 1000)
    channels = describe_backbone(backbone).channels[-2]
    estimator = sum(9 * a * b + b for a, b in ((channels, 128), (128, 64), (64, 64), (64, 2)))
    assert ours.params - bare.params == estimator, "shared weights count once"
    assert 0 < ours.gmacs - bare.gmacs < 0.5 * bare.gmacs
