"""Every registered method conforms, plugins can be checked alike, and each requirement can be broken."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from spurbench.backbone import Backbone
from spurbench.config import OptimizerConfig, TrainConfig
from spurbench.data.view import View
from spurbench.method import ArtifactStore, BaseMethod, MethodConfig, Phase, Progress, TaskInfo, Views
from spurbench.nn.classifier import Classifier
from spurbench.registry import load_registry
from spurbench.testing import METHOD_CHECKS, check_method
from spurbench.types import Access, Batch, GroupedBatch, Prediction, RegionBatch, StepOutput

FAST = "test_convnext"


def registered(name: str) -> type[BaseMethod[Any]]:
    value: type[BaseMethod[Any]] = load_registry("methods").get(name).value
    return value


@pytest.mark.parametrize("name", sorted(load_registry("methods").entries))
def test_registered_methods_conform(name: str) -> None:
    cls = registered(name)
    # A model of one's own may fit one trunk and not another; backbone and head fit all.
    backbones = (FAST,) if cls.build is BaseMethod.build else ("minibirds_resnet", FAST)
    passed = check_method(cls, backbones=backbones)
    assert len(passed) == len(backbones) * len(METHOD_CHECKS)


@pytest.mark.parametrize("fusion", ["literal", "guided"])
def test_aim_with_two_stages_conforms(fusion: str) -> None:
    check_method(registered("aim"), num_stages=2, fusion=fusion)


@pytest.mark.parametrize(
    "options",
    [
        {"num_stages": 3, "tau": 0.35, "norm": "group", "detach_estimator": True},
        {"pool": "active", "fused_loss": False, "area_loss": "one_sided"},
        {"area_loss": "off", "feature_kernel": 1, "temperature": 0.5},
    ],
)
def test_aim_with_other_options_conforms(options: dict[str, Any]) -> None:
    check_method(registered("aim"), backbones=(FAST,), **options)


def test_self_with_disagreement_conforms() -> None:
    check_method(registered("self"), backbones=(FAST,), points="dropout_disagreement")


def test_plugin_conforms(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from spurbench.method import BaseMethod\n\n"
        "class Mine(BaseMethod):\n    paper = 'nobody, never'\n\n"
        "METHOD = Mine\n"
    )
    check_method(load_registry("methods", (path,)).get("mine").value, backbones=(FAST,))


# --- well-behaved methods that use what the harness offers ---


class Stateful(BaseMethod[MethodConfig]):
    """Group weights that outlive a step, as in GroupDRO."""

    access = Access.TRAIN_GROUPS

    def __init__(self, config: MethodConfig) -> None:
        super().__init__(config)
        self.q = torch.ones(4)

    def training_step(self, model: nn.Module, batch: Batch, progress: Progress) -> StepOutput:
        assert isinstance(batch, GroupedBatch)
        losses = nn.functional.cross_entropy(model(batch.images), batch.y, reduction="none")
        self.q = self.q * torch.exp(0.1 * torch.zeros(4).index_add(0, batch.group, losses.detach()))
        self.q = self.q / self.q.mean()
        return StepOutput(loss=(self.q[batch.group] * losses).mean(), scalars={"q": self.q.max()})

    def state_dict(self) -> dict[str, Any]:
        return {"q": self.q}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.q = state["q"]


class TwoPhases(BaseMethod[MethodConfig]):
    """Train, then again from scratch on samples that the first model found hard, then a closed-form refit."""

    access = Access.VAL_LABELS

    def phases(self, train: TrainConfig) -> Sequence[Phase]:
        return (
            Phase(name="first", epochs=train.epochs, optimizer=train.optimizer),
            Phase(name="again", epochs=train.epochs, optimizer=train.optimizer, init="scratch", batch_size=6),
            Phase(name="finetune", epochs=2, optimizer=train.optimizer, trainable="head", augment=False),
            Phase(name="refit", epochs=0, optimizer=train.optimizer, trainable="none"),
        )

    def start_phase(self, phase: Phase, model: nn.Module, views: Views, store: ArtifactStore) -> View:
        if phase.name == "again":
            wrong = store.once("wrong", lambda: self._losses(model, views.train))
            return views.train.reweight(1 + wrong).resample(1 + wrong)
        if phase.name == "refit":
            state = store.candidate("last")
            state["head.bias"] += store.once("shift", lambda: 1e-4 * views.val.y.float().mean())
            model.load_state_dict(state)
        return views.train

    def _losses(self, model: nn.Module, view: View) -> Tensor:
        model.eval()
        with torch.no_grad():
            batches = list(view.loader(shuffle=False, augment=False))
            return torch.cat([nn.functional.cross_entropy(model(b.images), b.y, reduction="none") for b in batches])


class Regions(BaseMethod[MethodConfig]):
    """Reads masks."""

    access = Access.REGIONS

    def training_step(self, model: nn.Module, batch: Batch, progress: Progress) -> StepOutput:
        assert isinstance(batch, RegionBatch)
        assert batch.mask is not None
        return super().training_step(model, batch, progress)


@pytest.mark.parametrize("cls", [Stateful, TwoPhases, Regions])
def test_other_good_methods_conform(cls: type[BaseMethod[Any]]) -> None:
    check_method(cls, backbones=(FAST,))


# --- bad methods, each with the requirement that it breaks ---

ERM = BaseMethod[MethodConfig]


class PositionalConfig(MethodConfig):
    positional = ("no_such_option",)


class LossyConfig(MethodConfig):
    hidden: PositiveInt = 1

    def model_dump_json(self, **options: Any) -> str:
        return '{"hidden": 2}'


class BadPositional(ERM):
    Config = PositionalConfig


class LossyOptions(ERM):
    Config = LossyConfig


class NoPhases(ERM):
    def phases(self, train: TrainConfig) -> Sequence[Phase]:
        return ()


class TwinPhases(ERM):
    def phases(self, train: TrainConfig) -> Sequence[Phase]:
        return (*super().phases(train), *super().phases(train))


class WrongShape(ERM):
    def evaluate(self, model: nn.Module, images: Tensor) -> Prediction:
        return Prediction(logits=model(images)[:, 0])


class NaNLogits(ERM):
    def evaluate(self, model: nn.Module, images: Tensor) -> Prediction:
        return Prediction(logits=model(images) * float("nan"))


class MaskBeyondOne(ERM):
    def evaluate(self, model: nn.Module, images: Tensor) -> Prediction:
        return Prediction(logits=model(images), mask=2 * torch.ones(len(images), 4, 4))


class NaNMask(ERM):
    def evaluate(self, model: nn.Module, images: Tensor) -> Prediction:
        return Prediction(logits=model(images), stage_masks=(torch.full((len(images), 4, 4), float("nan")),))


class MaskWithChannel(ERM):
    def evaluate(self, model: nn.Module, images: Tensor) -> Prediction:
        return Prediction(logits=model(images), mask=torch.ones(len(images), 1, 4, 4))


class NoisyEvaluation(ERM):
    def evaluate(self, model: nn.Module, images: Tensor) -> Prediction:
        logits = model(images)
        return Prediction(logits=logits + torch.rand_like(logits))


class NoisyMask(ERM):
    def evaluate(self, model: nn.Module, images: Tensor) -> Prediction:
        return Prediction(logits=model(images), mask=torch.rand(len(images), 4, 4))


class MixesTheBatch(ERM):
    def evaluate(self, model: nn.Module, images: Tensor) -> Prediction:
        logits = model(images)
        return Prediction(logits=logits - logits.mean(0))


class DependsOnOrder(ERM):
    def evaluate(self, model: nn.Module, images: Tensor) -> Prediction:
        logits = model(images)
        return Prediction(logits=logits + torch.arange(len(images))[:, None])


class TrainsInEvaluation(ERM):
    def evaluate(self, model: nn.Module, images: Tensor) -> Prediction:
        model.train()
        return Prediction(logits=model(images))


class ChangesTheModel(ERM):
    def evaluate(self, model: nn.Module, images: Tensor) -> Prediction:
        with torch.no_grad():
            self.head(model).bias += 1e-6
        return Prediction(logits=model(images).round(decimals=3))


class ReadsGroupsOfBatches(ERM):
    def training_step(self, model: nn.Module, batch: Batch, progress: Progress) -> StepOutput:
        batch.group  # type: ignore[attr-defined]  # noqa: B018
        return super().training_step(model, batch, progress)


class ReadsGroupsOfViews(ERM):
    def start_phase(self, phase: Phase, model: nn.Module, views: Views, store: ArtifactStore) -> View:
        return views.train.resample(1.0 / torch.bincount(views.train.group)[views.train.group])


class ReadsValidationLabels(ERM):
    def start_phase(self, phase: Phase, model: nn.Module, views: Views, store: ArtifactStore) -> View:
        assert len(views.val.y)
        return views.train


class ReadsMasks(ERM):
    access = Access.TRAIN_GROUPS

    def training_step(self, model: nn.Module, batch: Batch, progress: Progress) -> StepOutput:
        assert batch.mask is not None  # type: ignore[attr-defined]
        return super().training_step(model, batch, progress)


class NaNLoss(ERM):
    def training_step(self, model: nn.Module, batch: Batch, progress: Progress) -> StepOutput:
        return StepOutput(loss=super().training_step(model, batch, progress).loss * float("nan"), scalars={})


class LossPerSample(ERM):
    def training_step(self, model: nn.Module, batch: Batch, progress: Progress) -> StepOutput:
        loss = nn.functional.cross_entropy(model(batch.images), batch.y, reduction="none")
        return StepOutput(loss=loss, scalars={})


class FloatScalars(ERM):
    def training_step(self, model: nn.Module, batch: Batch, progress: Progress) -> StepOutput:
        loss = super().training_step(model, batch, progress).loss
        return StepOutput(loss=loss, scalars={"loss": loss.item()})  # type: ignore[dict-item]


class InfiniteGradient(ERM):
    def training_step(self, model: nn.Module, batch: Batch, progress: Progress) -> StepOutput:
        loss = super().training_step(model, batch, progress).loss
        return StepOutput(loss=loss + (0 * self.head(model).bias).abs().sqrt().sum(), scalars={})


class NoGradient(ERM):
    def training_step(self, model: nn.Module, batch: Batch, progress: Progress) -> StepOutput:
        loss = super().training_step(model, batch, progress).loss
        return StepOutput(loss=0 * loss, scalars={})


class NothingTrainable(ERM):
    def phases(self, train: TrainConfig) -> Sequence[Phase]:
        return (Phase(name="train", epochs=1, optimizer=train.optimizer, trainable="none"),)


class IdleModule(ERM):
    def build(self, backbone: Backbone, task: TaskInfo) -> nn.Module:
        model = super().build(backbone, task)
        model.idle = nn.Linear(2, 2)
        return model


class GlobalDraws(ERM):
    count: ClassVar[int] = 0

    def start_phase(self, phase: Phase, model: nn.Module, views: Views, store: ArtifactStore) -> View:
        GlobalDraws.count += 1
        return views.train.reweight(torch.rand(16, generator=torch.Generator().manual_seed(GlobalDraws.count)))


class HiddenState(ERM):
    """A running mean that no checkpoint has."""

    def __init__(self, config: MethodConfig) -> None:
        super().__init__(config)
        self.mean = torch.zeros(())

    def training_step(self, model: nn.Module, batch: Batch, progress: Progress) -> StepOutput:
        loss = super().training_step(model, batch, progress).loss
        self.mean = 0.9 * self.mean + 0.1 * loss.detach()
        return StepOutput(loss=loss * (1 + self.mean), scalars={})


class UnstoredArtifact(ERM):
    """Computes from the model at the phase's start, and again from a trained one after a restart."""

    def phases(self, train: TrainConfig) -> Sequence[Phase]:
        optimizer = OptimizerConfig(lr=1e-2, schedule="constant")
        return (Phase(name="train", epochs=train.epochs, optimizer=optimizer),)

    def start_phase(self, phase: Phase, model: nn.Module, views: Views, store: ArtifactStore) -> View:
        weight = self.head(model).weight.detach().abs().sum()
        return views.train.reweight(weight.expand(16))


class UnsavableState(ERM):
    def state_dict(self) -> dict[str, Any]:
        return {"method": self}


class DividesByEmptyGroups(BaseMethod[MethodConfig]):
    """Weights groups by 1 / n, also those that have no sample."""

    access = Access.TRAIN_GROUPS

    def start_phase(self, phase: Phase, model: nn.Module, views: Views, store: ArtifactStore) -> View:
        group = views.train.group
        self.scale = (len(group) / torch.bincount(group, minlength=4)).mean() / 4
        return views.train

    def training_step(self, model: nn.Module, batch: Batch, progress: Progress) -> StepOutput:
        out = super().training_step(model, batch, progress)
        return StepOutput(loss=self.scale * out.loss, scalars={})


class Unpicklable(ERM):
    def __init__(self, config: MethodConfig) -> None:
        super().__init__(config)
        self.fn = lambda: None


class OtherFeatures(ERM):
    def features(self, model: nn.Module, images: Tensor) -> Tensor:
        return super().features(model, images) + 1


class FlatFeatures(ERM):
    def features(self, model: nn.Module, images: Tensor) -> Tensor:
        return super().features(model, images)[:, :-1]


class ForeignLayer(ERM):
    def cam_layer(self, model: nn.Module) -> nn.Module:
        return nn.Identity()


class UnusedLayer(ERM):
    def cam_layer(self, model: nn.Module) -> nn.Module:
        return model.idle  # type: ignore[return-value]

    def build(self, backbone: Backbone, task: TaskInfo) -> nn.Module:
        model = super().build(backbone, task)
        model.idle = nn.Identity()
        return model


class FlatLayer(ERM):
    def cam_layer(self, model: nn.Module) -> nn.Module:
        return self.head(model)


class LearnsTheOpposite(ERM):
    """Consistent in all it says, and wrong about every image: what it trains is the negative of what it predicts."""

    def build(self, backbone: Backbone, task: TaskInfo) -> nn.Module:
        return _Negated(backbone, task.num_classes)

    def features(self, model: nn.Module, images: Tensor) -> Tensor:
        return -super().features(model, images)


class _Negated(Classifier):
    def forward(self, images: Tensor) -> Tensor:
        features = self.backbone.pooled(images)
        logits: Tensor = self.head(features if self.training else -features)
        return logits


BAD: list[tuple[type[BaseMethod[Any]], str, str]] = [
    (BadPositional, "_declares_itself", "positional names no option"),
    (LossyOptions, "_declares_itself", "come back as"),
    (NoPhases, "_declares_itself", "phases need names"),
    (TwinPhases, "_declares_itself", "phases need names"),
    (WrongShape, "_classifies", "logits have shape"),
    (NaNLogits, "_classifies", "logits are not finite"),
    (MaskBeyondOne, "_classifies", "a mask leaves"),
    (NaNMask, "_classifies", "a mask leaves"),
    (MaskWithChannel, "_classifies", "a mask has shape"),
    (NoisyEvaluation, "_evaluates_deterministically", "two calls differ"),
    (NoisyMask, "_evaluates_deterministically", "masks of two calls differ"),
    (MixesTheBatch, "_evaluates_deterministically", "another batch"),
    (DependsOnOrder, "_evaluates_deterministically", "another order"),
    (TrainsInEvaluation, "_evaluates_deterministically", "in training mode"),
    (ChangesTheModel, "_evaluates_deterministically", "changes the model"),
    (ReadsGroupsOfBatches, "_reads_what_it_declared", "batches have no group"),
    (ReadsGroupsOfViews, "_reads_what_it_declared", "TRAIN_GROUPS"),
    (ReadsValidationLabels, "_reads_what_it_declared", "VAL_LABELS"),
    (ReadsMasks, "_reads_what_it_declared", "batches have no mask"),
    (NaNLoss, "_steps_with_gradients", "the loss is"),
    (LossPerSample, "_steps_with_gradients", "the loss is"),
    (FloatScalars, "_steps_with_gradients", "no 0-d tensor"),
    (InfiniteGradient, "_steps_with_gradients", "gradients are not finite"),
    (NoGradient, "_steps_with_gradients", "no gradient"),
    (NothingTrainable, "_steps_with_gradients", "nothing is trainable"),
    (IdleModule, "_steps_with_gradients", "idle"),
    (GlobalDraws, "_trains_reproducibly", "two runs differ"),
    (HiddenState, "_resumes_exactly", "the resumed run differs"),
    (UnstoredArtifact, "_resumes_exactly", "the resumed run differs"),
    (UnsavableState, "_resumes_exactly", ""),
    (DividesByEmptyGroups, "_survives_empty_groups", "not finite"),
    (Unpicklable, "_pickles", ""),
    (OtherFeatures, "_exposes_head_and_features", "not what evaluate says"),
    (FlatFeatures, "_exposes_head_and_features", "features have shape"),
    (ForeignLayer, "_exposes_head_and_features", "not a part of the model"),
    (UnusedLayer, "_exposes_head_and_features", "0 times"),
    (FlatLayer, "_exposes_head_and_features", "expected [B, K, h, w]"),
    (LearnsTheOpposite, "_overfits", "of 16 training images are right"),
]


@pytest.mark.parametrize(("cls", "check", "message"), BAD, ids=[cls.__name__ for cls, *_ in BAD])
def test_bad_methods_fail_what_they_break(cls: type[BaseMethod[Any]], check: str, message: str) -> None:
    with pytest.raises(AssertionError) as caught:
        check_method(cls, backbones=(FAST,))
    requirement = next(c.__doc__ for c in METHOD_CHECKS if c.__name__ == check)
    assert requirement is not None
    assert str(caught.value).startswith(f"{cls.__name__} on {FAST}: {requirement}")
    assert message in str(caught.value)


def test_every_requirement_can_be_broken() -> None:
    assert {check for _, check, _ in BAD} == {check.__name__ for check in METHOD_CHECKS}


def test_checks_leave_the_global_stream_alone() -> None:
    before = torch.get_rng_state()
    check_method(BaseMethod, backbones=(FAST,))
    assert torch.equal(before, torch.get_rng_state())
