"""What makes AIM AIM: one draw for loss and forward pass, the area term, annealing, evaluation without noise, cost."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from spurbench.backbone import Backbone, build_backbone
from spurbench.config import BackboneConfig, TrainConfig
from spurbench.costs import model_costs
from spurbench.errors import ConfigError
from spurbench.method import Progress, TaskInfo
from spurbench.methods import aim as aim_module
from spurbench.methods.aim import AIM, AIMConfig, AIMModel
from spurbench.methods.erm import ERM
from spurbench.nn.gumbel import sample_mask
from spurbench.nn.topdown import merge_masks
from spurbench.registry import load_registry
from spurbench.resolve import parse_method
from spurbench.testing import check_method
from spurbench.testing.workbench import Workbench
from spurbench.types import Batch

CPU = torch.device("cpu")


def make(backbone: str = "minibirds_resnet", classes: int = 3, **options: Any) -> tuple[AIM, AIMModel]:
    method = AIM(AIMConfig(**options))
    task = TaskInfo(
        num_classes=classes,
        num_groups=classes,
        num_train=8,
        class_counts=(1,) * classes,
        image_size=64,
        train=TrainConfig(),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = method.build(build_backbone(BackboneConfig(name=backbone, weights="none"), None), task)
    assert isinstance(model, AIMModel)
    return method, model


def batch(n: int = 4, size: int = 64, classes: int = 3) -> Batch:
    g = torch.Generator().manual_seed(0)
    return Batch(
        images=torch.randn(n, 3, size, size, generator=g),
        y=torch.randint(classes, (n,), generator=g),
        index=torch.arange(n),
        weight=torch.ones(n),
    )


def progress(epoch: int = 0, num_epochs: int = 8, step: int = 0, seed: int = 0, num_steps: int = 2) -> Progress:
    return Progress(
        phase="train",
        epoch=epoch,
        num_epochs=num_epochs,
        step=step,
        num_steps=num_steps,
        seed=seed,
        position=0,
        device=CPU,
    )


def set_margins(model: AIMModel, margin: float) -> None:
    """Equal mask logits everywhere."""
    with torch.no_grad():
        for estimator in model.topdown.estimators:
            estimator.logits.weight.zero_()
            estimator.logits.bias.copy_(torch.tensor([margin, 0.0]))


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Every mask that was sampled."""
    drawn: list[Tensor] = []

    def record(*args: Any, **kwargs: Any) -> Tensor:
        drawn.append(sample_mask(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr(aim_module, "sample_mask", record)
    return drawn


# --- the area term ---


def some_ratios() -> Iterator[list[Tensor]]:
    for value in (0.0, 0.1, 0.99, 0.999, 1.0):
        yield [torch.tensor(1.0), torch.tensor(value)]


def test_two_sided_area_at_tau_1_is_zero_for_all_ones_alone() -> None:
    method = AIM(AIMConfig(tau=1.0, num_stages=2))
    for ratios in some_ratios():
        assert (float(method.area(ratios, 1.0)) == 0) == all(float(r) == 1 for r in ratios)


def test_area_values() -> None:
    ratios = [torch.tensor(0.5), torch.tensor(0.1)]
    two_sided, one_sided, off = (
        AIM(AIMConfig(area_loss=kind, num_stages=2)) for kind in ("two_sided", "one_sided", "off")
    )
    assert float(two_sided.area(ratios, 0.25)) == pytest.approx(0.25**2 + 0.15**2)
    assert float(one_sided.area(ratios, 0.25)) == pytest.approx(0.25**2)
    assert float(off.area(ratios, 0.25)) == 0
    for ratios in some_ratios():
        assert float(one_sided.area(ratios, 1.0)) == 0
        assert float(off.area(ratios, 1.0)) == 0


def test_area_off_has_no_gradient() -> None:
    ratio = torch.tensor(0.5, requires_grad=True)
    AIM(AIMConfig(area_loss="off")).area([ratio], 0.25).backward()
    assert ratio.grad is not None
    assert float(ratio.grad) == 0


@pytest.mark.parametrize("tau", [0.25, 0.9])
def test_area_alone_drives_density_to_tau(tau: float) -> None:
    """The estimators of a random model, on random images, with nothing but the area term to follow."""
    method, model = make(num_stages=2, tau=tau, anneal=0.0)
    optimizer = torch.optim.Adam(model.topdown.estimators.parameters(), lr=3e-3)
    data = batch(8, size=32)
    with torch.no_grad():
        stages = model.backbone.stages(data.images, 2)
    densities: list[list[float]] = []
    for step in range(120):
        g = progress(step=step).generator("gumbel")
        masks = [
            sample_mask(estimator(stage), g)
            for estimator, stage in zip(model.topdown.estimators, reversed(stages), strict=True)
        ]
        ratios = [mask.mean() for mask in masks]
        densities.append([float(ratio.detach()) for ratio in ratios])
        optimizer.zero_grad()
        method.area(ratios, method.tau_at(progress())).backward()
        optimizer.step()
    assert max(abs(density - tau) for density in densities[0]) > 0.1, f"{densities[0]}: no way to go"
    assert torch.tensor(densities[-20:]).mean(0).tolist() == pytest.approx([tau, tau], abs=0.03)


# --- annealing ---


@pytest.mark.parametrize("anneal", [0.0, 0.1, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("num_epochs", [2, 3, 8, 30])
def test_annealing_goes_from_1_to_tau(anneal: float, num_epochs: int) -> None:
    method = AIM(AIMConfig(tau=0.3, anneal=anneal))
    targets = [method.tau_at(progress(epoch, num_epochs)) for epoch in range(num_epochs)]
    assert targets[0] == pytest.approx(1.0 if anneal > 0 else 0.3)
    assert targets[-1] == pytest.approx(0.3)
    assert targets == sorted(targets, reverse=True)
    falling = [t for t in targets if t > 0.3 + 1e-9]
    steps = [a - b for a, b in pairwise(falling)]
    assert all(step == pytest.approx(steps[0]) for step in steps), "linear"
    if 0.5 >= anneal > 0:
        assert len(falling) == -(-round(anneal * num_epochs, 9) // 1), "no later than asked for"


def test_annealing_by_hand() -> None:
    method = AIM(AIMConfig(tau=0.2, anneal=0.5))
    targets = [method.tau_at(progress(epoch, 8)) for epoch in range(8)]
    assert targets == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2, 0.2])


@pytest.mark.parametrize("shape", ["linear", "cosine", "exponential"])
@pytest.mark.parametrize("anneal", [0.0, 0.07, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("num_epochs", [2, 8, 100])
def test_every_shape_goes_from_1_to_tau_in_the_same_time(shape: Any, anneal: float, num_epochs: int) -> None:
    method = AIM(AIMConfig(tau=0.3, anneal=anneal, anneal_shape=shape))
    targets = [method.tau_at(progress(epoch, num_epochs)) for epoch in range(num_epochs)]
    assert targets[0] == pytest.approx(1.0 if anneal > 0 else 0.3)
    assert targets == sorted(targets, reverse=True)
    (phase,) = method.phases(TrainConfig(epochs=num_epochs))
    assert phase.select_from == (0 if anneal == 0 else min(round(anneal * num_epochs + 0.4999), num_epochs - 1))
    assert targets[phase.select_from :] == pytest.approx([0.3] * (num_epochs - phase.select_from))
    assert all(target > 0.3 + 1e-6 for target in targets[: phase.select_from]), "every epoch with tau can be selected"
    assert method.tau_at(progress(1, num_epochs, step=0)) == method.tau_at(progress(1, num_epochs, step=1))


def test_shapes_by_hand() -> None:
    for shape, middle in (("linear", 0.625), ("cosine", 0.625), ("exponential", 0.5)):
        method = AIM(AIMConfig(tau=0.25, anneal=0.5, anneal_shape=shape))
        assert [method.tau_at(progress(epoch, 8)) for epoch in (0, 2, 4)] == pytest.approx([1, middle, 0.25]), shape


def test_target_is_constant_within_an_epoch_and_in_the_loss() -> None:
    method, model = make(tau=0.2)
    assert method.tau_at(progress(1, 8, step=0)) == method.tau_at(progress(1, 8, step=1))
    out = method.training_step(model, batch(), progress(2, 8))
    assert float(out.scalars["tau"]) == pytest.approx(0.6)
    density = float(out.scalars["density_0"])
    assert float(out.scalars["area"]) == pytest.approx((density - 0.6) ** 2, abs=1e-6)


# --- searching the target ---


class Noise(nn.Module):
    """A trunk that passes its input on as the map of one stage."""

    channels = (8,)

    def stages(self, images: Tensor, count: int) -> list[Tensor]:
        return [images]


def patches(side: int, seed: int) -> Batch:
    """Noise [8, 8, 8] in which a square of side^2 of the 64 positions tells the class.

    However large, the square tells the same in all (its signal falls with its side): six standard deviations between
    the classes, so that it takes most of it to be sure.
    """
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (32,), generator=g)
    images = torch.randn(32, 8, 8, 8, generator=g)
    corners = torch.randint(8 - side + 1, (32, 2), generator=g).tolist()
    for image, label, (i, j) in zip(images, y, corners, strict=True):
        image[0, i : i + side, j : j + side] += 3 / side * (2 * label - 1)
        image[1, i : i + side, j : j + side] += 1
    return Batch(images=images, y=y, index=torch.arange(32), weight=torch.ones(32))


def found(side: int, seed: int) -> float:
    """The tau that AIM finds on ``patches``."""
    method = AIM(AIMConfig(tau="auto", width=16))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AIMModel(Noise(), method.config, 2)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(64):
        position = progress(step // 16, step=step % 16, num_steps=16)
        out = method.training_step(model, patches(side, 1000 * seed + step), position)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    assert model.tau is not None
    return float(model.tau)


@pytest.mark.parametrize("seed", [0, 1])
def test_search_finds_the_area_of_the_evidence(seed: int) -> None:
    small, medium, large = found(2, seed), found(3, seed), found(5, seed)
    assert 4 / 64 <= small <= 3 * 4 / 64
    assert 9 / 64 <= medium <= 3 * 9 / 64
    assert small < medium < large <= 25 / 64, "more evidence, more area; what is redundant need not be kept"


def test_searched_target_moves_every_step_until_it_is_settled() -> None:
    method, model = make(tau="auto")
    targets = []
    for epoch in range(8):
        for step in range(2):
            before = float(model.tau)
            out = method.training_step(model, batch(), progress(epoch, 8, step))
            density = float(out.scalars["density_0"])
            assert float(out.scalars["tau"]) == before, "the log has the target of the loss"
            assert float(out.scalars["area"]) == pytest.approx((density - before) ** 2, rel=1e-4)
            targets.append(before)
    (phase,) = method.phases(TrainConfig(epochs=8))
    assert phase.select_from == 4
    assert targets[0] == 1
    assert all(a != b for a, b in pairwise(targets[:8])), "two steps per epoch, four epochs"
    assert len(set(targets[8:])) == 1, "what can be selected has one tau"
    assert float(model.state_dict()["tau"]) == pytest.approx(targets[-1]), "it is in every checkpoint"


def test_given_tau_leaves_nothing_in_the_model() -> None:
    assert "tau" not in make(tau=0.25)[1].state_dict()
    same, searching = make(tau=0.25)[1].state_dict(), make(tau="auto")[1].state_dict()
    assert all(torch.equal(same[name], searching[name]) for name in same), "searching draws no other weights"


def test_search_needs_a_price_to_compare_with_and_time() -> None:
    for options in ({"area_loss": "off"}, {"area_weight": 0.0}, {"anneal": 0.0}):
        with pytest.raises(ValidationError, match="'auto' needs an area loss and anneal above 0"):
            AIMConfig(tau="auto", **options)
    with pytest.raises(ConfigError, match="at least two epochs"):
        AIM(AIMConfig(tau="auto")).phases(TrainConfig(epochs=1))
    with pytest.raises(ValidationError, match="auto_price"):
        AIMConfig(tau="auto", auto_price=0)


@pytest.mark.parametrize("options", [{"num_stages": 2}, {"pool": "active", "keep_one": True}])
def test_search_conforms_and_resumes_exactly(options: dict[str, Any]) -> None:
    check_method(AIM, backbones=("test_convnext",), tau="auto", **options)


# --- one draw ---


@pytest.mark.parametrize("fusion", ["guided", "literal"])
def test_one_draw_per_stage_and_step_serves_loss_and_forward(spy: list[Tensor], fusion: Any) -> None:
    method, model = make(num_stages=3, fusion=fusion)
    data = batch()
    seen: list[Tensor] = []
    handles = [
        # Every stage head reads pooled features that were gated by the mask which the loss counts.
        head.register_forward_hook(lambda module, args, output: seen.append(args[0]))
        for head in [*model.stage_heads, model.head]
    ]
    out = method.training_step(model, data, progress())
    for handle in handles:
        handle.remove()
    assert [mask.shape[1:] for mask in spy] == [(1, 8, 8), (1, 8, 8), (1, 16, 16)], "deep to shallow, one each"
    drawn = [mask.detach() for mask in spy]
    again = model.topdown(model.backbone.stages(data.images, 3), lambda logits, level: drawn[level], fusion=fusion)
    fused_logits = model.head(again.fused_BWhw.mean((2, 3)))
    logits = [*(head(o.mean((2, 3))) for head, o in zip(model.stage_heads, again.gated, strict=True)), fused_logits]
    heads = sum(float(F.cross_entropy(each, data.y).detach()) for each in logits)
    area = sum((float(mask.mean()) - 1.0) ** 2 for mask in drawn)
    assert float(out.loss.detach()) == pytest.approx(heads + 6.0 * area, rel=1e-4)
    for level, mask in enumerate(drawn):
        assert float(out.scalars[f"density_{level}"]) == pytest.approx(float(mask.mean()))
    assert len(seen) == 4


def test_draws_depend_on_seed_and_step_alone(spy: list[Tensor]) -> None:
    method, model = make(num_stages=2)
    for position in (progress(), progress(), progress(step=1), progress(epoch=1), progress(seed=1)):
        torch.rand(3)  # Other draws do not matter.
        method.training_step(model.eval(), batch(), position)
    deep = spy[0::2]
    assert torch.equal(deep[0], deep[1])
    assert all(not torch.equal(deep[0], other) for other in deep[2:])
    assert not torch.equal(spy[0], spy[1][..., :8, :8]), "stages draw independently"


def test_temperature_reaches_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    temperatures: list[float] = []
    monkeypatch.setattr(
        aim_module,
        "sample_mask",
        lambda logits, g, temperature, **_: temperatures.append(temperature) or logits[:, :1] * 0,
    )
    method, model = make(temperature=0.3, num_stages=2)
    method.training_step(model, batch(), progress())
    assert temperatures == [0.3, 0.3]


def test_evaluation_is_without_noise(spy: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    method, model = make(num_stages=3)
    model.eval()
    images = batch().images
    with torch.no_grad():  # masks that are neither open nor closed
        for estimator, logits in zip(model.topdown.estimators, model.run(images, None).mask_logits, strict=True):
            estimator.logits.bias[0] -= (logits[:, 0] - logits[:, 1]).quantile(0.8)

    def refuse(*args: Any, **kwargs: Any) -> Tensor:
        raise AssertionError("a random number was drawn")

    for name in ("rand", "rand_like", "randn", "randn_like"):
        monkeypatch.setattr(torch, name, refuse)
    with torch.no_grad():
        prediction, again = method.evaluate(model, images), method.evaluate(model, images)
        out = model.run(images, None)
        forward = model(images)
        features = method.features(model, images)
    assert not spy
    assert torch.equal(prediction.logits, again.logits)
    assert torch.equal(prediction.logits, forward)
    assert torch.equal(model.head(features), forward)
    for mask, logits in zip(prediction.stage_masks, out.mask_logits, strict=True):
        assert torch.equal(mask, (logits[:, 0] >= logits[:, 1]).float())
    assert prediction.mask is not None
    assert torch.equal(prediction.mask, merge_masks(out.masks)[:, 0])
    assert prediction.mask.shape == (4, 16, 16)
    assert 0.1 < float(prediction.stage_masks[-1].mean()) < float(prediction.mask.mean()) < 0.9


# --- gradients ---


@pytest.mark.parametrize("fusion", ["guided", "literal"])
@pytest.mark.parametrize("pool", ["mean", "active"])
def test_gradients_reach_everything(fusion: Any, pool: Any) -> None:
    method, model = make(num_stages=3, fusion=fusion, pool=pool)
    method.training_step(model, batch(), progress(epoch=7)).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    for estimator in model.topdown.estimators:
        assert estimator.logits.weight.grad.abs().sum() > 0
        assert estimator.stem[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("detach", [False, True])
def test_area_reaches_the_backbone_unless_detached(detach: bool) -> None:
    method, model = make(num_stages=2, detach_estimator=detach)
    out = model.run(batch().images, progress().generator("gumbel"))
    method.area([mask.mean() for mask in out.masks], 0.25).backward()
    reached = any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.backbone.parameters())
    assert reached != detach
    assert all(p.grad is not None for p in model.topdown.estimators.parameters())


@pytest.mark.parametrize("fused_loss", [False, True])
def test_fused_loss_reaches_the_features_only_if_wanted(fused_loss: bool) -> None:
    method, model = make(num_stages=2, fused_loss=fused_loss, area_loss="off")
    # Without the other heads' say, what is left is the fused head's own gradient.
    for head in model.stage_heads:
        nn.init.zeros_(head.weight)
    method.training_step(model, batch(), progress()).loss.backward()
    assert model.head.weight.grad is not None
    assert model.head.weight.grad.abs().sum() > 0
    reached = sum(float(p.grad.abs().sum()) for p in model.topdown.parameters() if p.grad is not None)
    assert (reached > 0) == fused_loss


def test_loss_weights_samples() -> None:
    method, model = make(area_loss="off")
    model.eval()
    data = batch()
    plain = method.training_step(model, data, progress()).loss.item()
    weighted = Batch(images=data.images, y=data.y, index=data.index, weight=torch.full((4,), 3.0))
    weighted_loss = method.training_step(model, weighted, progress()).loss.item()
    assert weighted_loss / plain == pytest.approx(3, rel=1e-5)


# --- extremes ---


@pytest.mark.parametrize("fusion", ["guided", "literal"])
@pytest.mark.parametrize("pool", ["mean", "active"])
def test_closed_masks_give_finite_outputs_and_gradients(fusion: Any, pool: Any) -> None:
    method, model = make(num_stages=2, fusion=fusion, pool=pool)
    set_margins(model, -1e4)
    out = method.training_step(model, batch(), progress())
    out.loss.backward()
    assert out.loss.isfinite()
    assert float(out.scalars["density_0"]) == float(out.scalars["density_1"]) == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        prediction = method.evaluate(model.eval(), batch().images)
    assert prediction.logits.isfinite().all()
    assert torch.equal(prediction.logits, model.head.bias.expand(4, -1)), "nothing is seen"
    assert prediction.mask is not None
    assert not prediction.mask.any()


@pytest.mark.parametrize("margin", [-1e4, -4.0])
def test_keep_one_leaves_no_mask_empty(spy: list[Tensor], margin: float) -> None:
    method, model = make(num_stages=3, keep_one=True)
    set_margins(model, margin)
    out = method.training_step(model, batch(), progress())
    out.loss.backward()
    with torch.no_grad():
        evaluated = method.evaluate(model.eval(), batch().images).stage_masks
    assert len(spy) == len(evaluated) == 3
    assert all((mask.flatten(1).sum(1) >= 1).all() for mask in spy)
    assert all((mask.flatten(1).sum(1) == 1).all() for mask in evaluated)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.slow
def test_keep_one_learns_where_one_class_would_get_all_the_area() -> None:
    """Without it, half of these images have empty masks in evaluation and all get the head's bias."""
    options = {"num_stages": 3, "pool": "active", "tau": 0.1, "keep_one": True}
    with torch.random.fork_rng():
        bench = Workbench.make(AIM(AIMConfig(**options)), "minibirds_resnet")
        bench.train(40)
    prediction = bench.predict(bench.images)
    assert all(mask.flatten(1).any(1).all() for mask in prediction.stage_masks)
    assert torch.equal(prediction.logits.argmax(1), torch.arange(16) % 2)


@pytest.mark.parametrize("fusion", ["guided", "literal"])
@pytest.mark.parametrize("pool", ["mean", "active"])
def test_open_masks_equal_the_model_without_masks(fusion: Any, pool: Any) -> None:
    method, model = make(num_stages=3, fusion=fusion, pool=pool)
    set_margins(model, 1e4)
    model.eval()
    images = batch().images
    with torch.no_grad():
        fused: Tensor | None = None
        for level, stage in enumerate(reversed(model.backbone.stages(images, 3))):
            features = model.topdown.features[level](stage)
            fused = features if fused is None else features + F.interpolate(fused, size=features.shape[2:])
        assert fused is not None
        pooled = fused.mean((2, 3)) if pool == "mean" else fused.sum((2, 3)) / (fused.shape[2] * fused.shape[3])
        prediction = method.evaluate(model, images)
    assert torch.equal(prediction.logits, model.head(pooled))
    assert all(mask.all() for mask in prediction.stage_masks)
    assert float(method.area([mask.mean() for mask in prediction.stage_masks], 1.0)) == 0
    sampled = method.training_step(model, batch(), progress())
    assert float(sampled.scalars["area"]) == pytest.approx(0, abs=1e-12), "tau starts at 1"


def test_bf16_step_has_float32_masks_and_a_finite_loss() -> None:
    method, model = make(num_stages=2)
    with torch.autocast("cpu", torch.bfloat16):
        out = model.run(batch().images, progress().generator("gumbel"))
        assert all(mask.dtype == torch.float32 for mask in out.masks)
        assert out.fused_BWhw.dtype == torch.bfloat16
        step = method.training_step(model, batch(), progress())
    assert step.loss.dtype == torch.float32
    assert all(value.dtype == torch.float32 for value in step.scalars.values())
    step.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# --- options ---


@pytest.mark.parametrize(
    ("options", "label"),
    [
        ({"num_stages": 2, "tau": 0.35}, "AIM[2,35%]"),
        ({"num_stages": 1, "tau": 0.07}, "AIM[1,7%]"),
        ({"num_stages": 3, "tau": 0.125}, "AIM[3,12.5%]"),
        ({"num_stages": 1, "tau": 1.0}, "AIM[1,100%]"),
        ({"num_stages": 2, "tau": "auto"}, "AIM[2,auto]"),
    ],
)
def test_label(options: dict[str, Any], label: str) -> None:
    assert AIM(AIMConfig(**options)).label == label


def test_notation_of_the_search() -> None:
    assert parse_method("aim[1,auto]") == ("aim", (1, "auto"))
    assert AIMConfig.positional == ("num_stages", "tau")


@pytest.mark.parametrize("tau", [0.0, -0.1, 1.01, 35, float("nan"), float("inf"), "automatic"])
def test_tau_outside_its_range_is_refused(tau: Any) -> None:
    with pytest.raises(ValidationError, match="tau"):
        AIMConfig(tau=tau)


@pytest.mark.parametrize(
    "option",
    [
        {"num_stages": 0},
        {"anneal": 1.1},
        {"temperature": 0.0},
        {"area_weight": -1.0},
        {"width": 0},
        {"fusion": "mean"},
        {"anneal_shape": "step"},
        {"feature_kernel": 5},
        {"keep_bias": float("nan")},
    ],
)
def test_other_options_are_checked(option: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(option))):
        AIMConfig(**option)


def test_impossible_stages_are_refused_with_the_numbers() -> None:
    with pytest.raises(ConfigError, match=r"num_stages 5 .*minibirds_resnet.* 4 stages .*16, 32, 64, 128.* 1 to 4"):
        make(num_stages=5)
    assert make(num_stages=4)[1].topdown.features[3][0].in_channels == 16


def test_registered() -> None:
    assert load_registry("methods").get("aim").value is AIM


# --- cost ---

CONVNEXT_OVERHEAD = {1: (0.1161, 1_973_930), 2: (0.2924, 3_052_964), 3: (0.5880, 3_608_006)}
"""GMACs and parameters beyond ConvNeXt-T with its head, 224 px, 1000 classes."""


@pytest.mark.parametrize("num_stages", [1, 2, 3])
def test_overhead_over_convnext_tiny_is_the_papers(num_stages: int) -> None:
    ours, plain = model_costs(AIM(AIMConfig(num_stages=num_stages)), "convnext_tiny", 224, 1000)
    gmacs, params = ours.gmacs - plain.gmacs, ours.params - plain.params
    assert 0.1 <= gmacs <= 1.0
    assert 1.9e6 <= params <= 3.7e6
    assert (gmacs, params) == (
        pytest.approx(CONVNEXT_OVERHEAD[num_stages][0], abs=0.002),
        CONVNEXT_OVERHEAD[num_stages][1],
    )


def test_cost_of_the_plain_backbone_is_the_classifiers() -> None:
    ours, plain = model_costs(ERM(ERM.Config()), "resnet50", 224, 1000)
    assert ours == plain
    assert plain.gmacs == pytest.approx(4.09, abs=0.01)
    assert plain.params == 25_557_032


@pytest.mark.parametrize("backbone", ["resnet50", "resnet101"])
def test_deep_resnets_build_and_run(backbone: str) -> None:
    method, model = make(backbone, num_stages=3)
    assert isinstance(model.backbone, Backbone)
    assert model.backbone.channels == (64, 256, 512, 1024, 2048)
    with torch.no_grad():
        prediction = method.evaluate(model.eval(), torch.zeros(1, 3, 64, 64))
    assert prediction.logits.shape == (1, 3)
    assert [mask.shape[1] for mask in prediction.stage_masks] == [2, 4, 8]
