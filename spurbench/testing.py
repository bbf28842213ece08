"""The public conformance suite: what every method and dataset must do, for the tests here and for plugins.

    from spurbench.testing import check_method
    def test_mine(): check_method(MyMethod)

Each check is a function whose docstring states the requirement; a failure names the requirement that broke.
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from spurbench.backbone import build_backbone
from spurbench.config import (
    BackboneConfig,
    DatasetRef,
    InputConfig,
    MethodRef,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
)
from spurbench.data.cache import Frames
from spurbench.data.view import LoaderSettings, View, make_view
from spurbench.dataset import Dataset, DatasetSpec
from spurbench.engine import Silent
from spurbench.engine.stop import StopFlag
from spurbench.engine.training import Meter, PhaseState, make_optimizer, set_trainable, train_phase
from spurbench.method import BaseMethod, Phase, Progress, TaskInfo, Views
from spurbench.rng import generator, seed_for
from spurbench.types import Access

__all__ = ["DATASET_CHECKS", "METHOD_CHECKS", "Workbench", "check_dataset", "check_method"]

_SIZE = 64
_SAMPLES = 16
_CPU = torch.device("cpu")


def check_method(
    cls: type[BaseMethod[Any]], *, backbones: tuple[str, ...] = ("minibirds_resnet", "test_convnext"), **options: Any
) -> list[str]:
    """Run every check on every backbone; returns the names of the checks that passed.

    Args:
        options: the method's options, its defaults if none are given.

    Raises:
        AssertionError: a requirement that does not hold, by name.
    """
    passed = []
    for backbone in backbones:
        for check in METHOD_CHECKS:
            bench = Workbench.make(cls(cls.Config(**options)), backbone)
            try:
                check(bench)
            except Exception as error:
                requirement = (check.__doc__ or check.__name__).strip().splitlines()[0]
                raise AssertionError(f"{cls.__name__} on {backbone}: {requirement}\n{error}") from error
            passed.append(f"{backbone}: {check.__name__}")
    return passed


def check_dataset(spec: DatasetSpec, root: Path | None = None, *, samples: int = 8) -> list[str]:
    """Open a dataset and run every check on every split.

    Raises:
        AssertionError: a requirement that does not hold, by name.
    """
    dataset = spec.open(root)
    for check in DATASET_CHECKS:
        try:
            check(dataset, samples)
        except AssertionError as error:
            requirement = (check.__doc__ or check.__name__).strip().splitlines()[0]
            raise AssertionError(f"{spec.info.name}: {requirement}\n{error}") from error
    assert spec.open(root).fingerprint() == dataset.fingerprint(), f"{spec.info.name}: the fingerprint is stable"
    return [check.__name__ for check in DATASET_CHECKS]


@dataclass(frozen=True, slots=True)
class Workbench:
    """A method with a model and 16 images of two classes and two attributes."""

    method: BaseMethod[Any]
    model: nn.Module
    views: Views
    config: RunConfig
    images: Tensor
    """float [16, 3, 64, 64]."""

    @classmethod
    def make(cls, method: BaseMethod[Any], backbone: str) -> "Workbench":
        """Everything from fixed seeds."""
        config = _config(method, backbone)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(0, "init"))
            model = method.build(
                build_backbone(config.backbone, None),
                TaskInfo(
                    num_classes=2,
                    num_groups=4,
                    num_train=_SAMPLES,
                    class_counts=(8, 8),
                    image_size=_SIZE,
                    train=config.train,
                ),
            )
        y = torch.arange(_SAMPLES) % 2
        group = 2 * y + (torch.arange(_SAMPLES) // 2) % 2
        views = Views(*(_view(name, y, group, method.access, config) for name in ("train", "val")))
        images = next(views.train.loader(shuffle=False, augment=False)).images
        return cls(method, model, views, config, images)

    def train(self, epochs: int) -> float:
        """Every phase with at most ``epochs`` epochs; returns the last phase's final mean loss."""
        loss = 0.0
        for position, phase in enumerate(self.method.phases(self.config.train)):
            phase = _shortened(phase, epochs)
            view = self.method.start_phase(phase, self.model, self.views, _MemoryStore(self.model))
            set_trainable(self.method, self.model, phase)
            if phase.epochs == 0:
                continue
            rows: list[dict[str, Any]] = []
            state = PhaseState(
                model=self.model, optimizer=make_optimizer(phase.optimizer, self.model), meter=Meter(_CPU)
            )
            train_phase(
                self.config, self.method, phase, position, view, state,
                save=lambda state: None, end_epoch=lambda state, row, rows=rows: rows.append(row),  # type: ignore[misc]
                observer=Silent(), stop=StopFlag(),
            )  # fmt: skip
            loss = rows[-1]["train_loss"]
        return loss


def _builds_and_classifies(bench: Workbench) -> None:
    """evaluate gives finite logits [B, C] and masks in [0, 1], one per image."""
    bench.model.eval()
    prediction = bench.method.evaluate(bench.model, bench.images)
    assert prediction.logits.shape == (_SAMPLES, 2), f"logits have shape {tuple(prediction.logits.shape)}"
    assert bool(torch.isfinite(prediction.logits).all()), "logits are not finite"
    for mask in (*(() if prediction.mask is None else (prediction.mask,)), *prediction.stage_masks):
        assert mask.ndim == 3 and len(mask) == _SAMPLES, f"a mask has shape {tuple(mask.shape)}, expected [B, h, w]"
        assert 0 <= float(mask.min()) and float(mask.max()) <= 1, "a mask leaves [0, 1]"


def _evaluates_deterministically(bench: Workbench) -> None:
    """evaluate does not depend on the batch, its order, or how often it is called."""
    bench.model.eval()
    with torch.no_grad():
        whole = bench.method.evaluate(bench.model, bench.images).logits
        again = bench.method.evaluate(bench.model, bench.images).logits
        order = torch.randperm(_SAMPLES, generator=generator(0, "order"))
        shuffled = bench.method.evaluate(bench.model, bench.images[order]).logits
        single = torch.cat([bench.method.evaluate(bench.model, image[None]).logits for image in bench.images])
    assert torch.equal(whole, again), "two calls differ"
    torch.testing.assert_close(shuffled, whole[order], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(single, whole, rtol=1e-3, atol=1e-4)


def _steps_with_gradients(bench: Workbench) -> None:
    """training_step gives a finite 0-d loss, tensors as scalars, and a gradient for every trainable parameter."""
    phase = next((phase for phase in bench.method.phases(bench.config.train) if phase.epochs), None)
    if phase is None:
        return
    view = bench.method.start_phase(phase, bench.model, bench.views, _MemoryStore(bench.model))
    set_trainable(bench.method, bench.model, phase)
    bench.model.train()
    out = bench.method.training_step(
        bench.model, next(view.loader(shuffle=True, augment=phase.augment)), _progress(phase)
    )
    assert out.loss.ndim == 0 and bool(torch.isfinite(out.loss)), f"the loss is {out.loss}"
    for name, value in out.scalars.items():
        assert isinstance(value, Tensor) and value.ndim == 0, f"scalar '{name}' is not a 0-d tensor"
    out.loss.backward()  # type: ignore[no-untyped-call]
    parameters = [(name, p) for name, p in bench.model.named_parameters() if p.requires_grad]
    assert parameters, "nothing is trainable"
    bad = [name for name, p in parameters if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
    assert not bad, f"gradients are not finite: {bad}"
    assert any(p.grad is not None and bool(p.grad.any()) for _, p in parameters), "no parameter receives a gradient"


def _trains_reproducibly(bench: Workbench) -> None:
    """training twice from equal seeds gives bit-identical weights."""
    bench.train(1)
    twin = Workbench.make(type(bench.method)(bench.method.config), bench.config.backbone.name)
    twin.train(1)
    for (name, ours), theirs in zip(bench.model.state_dict().items(), twin.model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), f"'{name}' differs"


def _leaves_no_supervision_in_view(bench: Workbench) -> None:
    """batches carry groups and masks only as far as the method declared them."""
    batch = next(bench.views.train.loader(shuffle=True, augment=True))
    assert hasattr(batch, "group") == (
        Access.TRAIN_GROUPS in bench.method.access or Access.REGIONS in bench.method.access
    )
    if Access.VAL_LABELS not in bench.method.access:
        assert int(next(bench.views.val.loader(shuffle=False, augment=False)).y.max()) == -1


def _pickles(bench: Workbench) -> None:
    """the method and its options survive pickling, as launchers need."""
    copy = pickle.loads(pickle.dumps(bench.method))
    assert copy.config == bench.method.config


def _restores_state(bench: Workbench) -> None:
    """state_dict of the method goes through load_state_dict into a fresh one."""
    bench.train(1)
    state = bench.method.state_dict()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "state.pt"
        torch.save(state, path)
        loaded = torch.load(path, weights_only=True)
    fresh = type(bench.method)(bench.method.config)
    Workbench.make(fresh, bench.config.backbone.name)
    fresh.load_state_dict(loaded)
    assert str(fresh.state_dict()) == str(state)


def _exposes_head_and_features(bench: Workbench) -> None:
    """features [B, D] fit the head, and cam_layer is a part of the model."""
    bench.model.eval()
    with torch.no_grad():
        features = bench.method.features(bench.model, bench.images)
        head = bench.method.head(bench.model)
        assert features.shape == (_SAMPLES, head.in_features), f"features have shape {tuple(features.shape)}"
        torch.testing.assert_close(
            head(features), bench.method.evaluate(bench.model, bench.images).logits, rtol=1e-3, atol=1e-4
        )
    assert any(module is bench.method.cam_layer(bench.model) for module in bench.model.modules())


def _overfits(bench: Workbench) -> None:
    """16 images of two plain colours are learned."""
    bench.train(40)
    bench.model.eval()
    with torch.no_grad():
        predicted = bench.method.evaluate(bench.model, bench.images).logits.argmax(1)
    right = int((predicted == torch.arange(_SAMPLES) % 2).sum())
    assert right >= _SAMPLES - 1, f"only {right} of {_SAMPLES} training images are right"


METHOD_CHECKS: tuple[Callable[[Workbench], None], ...] = (
    _builds_and_classifies,
    _evaluates_deterministically,
    _steps_with_gradients,
    _trains_reproducibly,
    _leaves_no_supervision_in_view,
    _pickles,
    _restores_state,
    _exposes_head_and_features,
    _overfits,
)


def _columns_agree(dataset: Dataset, samples: int) -> None:
    """y and group columns agree with the samples, and indices are dense positions."""
    for name in dataset.info.splits:
        split = dataset.split(name)
        assert len(split) == len(split.y) > 0, f"{name}: length and column differ"
        assert (split.group is None) == (dataset.info.attributes is None), f"{name}: group column and attributes"
        for i in range(0, len(split), max(1, len(split) // samples)):
            sample = split[i]
            assert sample.index == i, f"{name}[{i}] has index {sample.index}"
            assert sample.y == int(split.y[i]), f"{name}[{i}]: y"
            assert sample.group == (None if split.group is None else int(split.group[i])), f"{name}[{i}]: group"


def _labels_in_range(dataset: Dataset, samples: int) -> None:
    """labels and groups lie in their declared ranges, and groups are y * num_attributes + attribute."""
    info = dataset.info
    for name in info.splits:
        split = dataset.split(name)
        assert int(split.y.min()) >= 0 and int(split.y.max()) < len(info.classes), f"{name}: y"
        if split.group is not None and info.attributes is not None:
            assert int(split.group.min()) >= 0 and int(split.group.max()) < info.num_groups, f"{name}: group"
            assert torch.equal(split.group // len(info.attributes), split.y), f"{name}: group does not contain y"


def _images_and_regions(dataset: Dataset, samples: int) -> None:
    """images are uint8 [3, H, W]; masks have the image's size, boxes lie inside it; twice the same."""
    for name in dataset.info.splits:
        split = dataset.split(name)
        for i in range(0, len(split), max(1, len(split) // samples)):
            sample, again = split[i], split[i]
            assert sample.image.dtype == torch.uint8 and sample.image.ndim == 3 and len(sample.image) == 3, (
                f"{name}[{i}]"
            )
            assert torch.equal(sample.image, again.image), f"{name}[{i}] differs from call to call"
            height, width = sample.image.shape[1:]
            assert (sample.mask is not None) == dataset.info.has_masks, f"{name}[{i}]: has_masks"
            assert (sample.boxes is not None) == dataset.info.has_boxes, f"{name}[{i}]: has_boxes"
            if sample.mask is not None:
                assert sample.mask.dtype == torch.bool and sample.mask.shape == (height, width), f"{name}[{i}]: mask"
            if sample.boxes is not None:
                x0, y0, x1, y1 = sample.boxes.unbind(1)
                assert bool(((x0 >= 0) & (y0 >= 0) & (x1 <= width) & (y1 <= height)).all()), f"{name}[{i}]: box outside"
                assert bool(((x0 < x1) & (y0 < y1)).all()), f"{name}[{i}]: empty box"


def _splits_disjoint(dataset: Dataset, samples: int) -> None:
    """no image stands in two splits (looked at a sample of each)."""
    seen: dict[bytes, str] = {}
    for name in dataset.info.splits:
        split = dataset.split(name)
        for i in range(0, len(split), max(1, len(split) // samples)):
            pixels = split[i].image.numpy().tobytes()
            assert seen.get(pixels, name) == name, f"an image of {name} is in {seen[pixels]} too"
            seen[pixels] = name


DATASET_CHECKS: tuple[Callable[[Dataset, int], None], ...] = (
    _columns_agree,
    _labels_in_range,
    _images_and_regions,
    _splits_disjoint,
)


@dataclass(frozen=True, slots=True)
class _MemoryStore:
    model: nn.Module

    def once(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        return make()

    def candidate(self, rule: str) -> dict[str, Tensor]:
        return dict(self.model.state_dict())


def _config(method: BaseMethod[Any], backbone: str) -> RunConfig:
    optimizer = OptimizerConfig(lr=3e-3, weight_decay=0.0, schedule="constant")
    return RunConfig(
        method=MethodRef(name="under-test", version=method.version, config=method.config.model_dump(mode="json")),
        dataset=DatasetRef(name="colours", version="1"),
        backbone=BackboneConfig(name=backbone, weights="none"),
        input=InputConfig(resize=_SIZE, image_size=_SIZE, crop_scale=None, flip=True),
        train=TrainConfig(epochs=2, batch_size=8, optimizer=optimizer),
    )


def _view(name: str, y: Tensor, group: Tensor, access: Access, config: RunConfig) -> View:
    """Plain colours per class with noise, an object mask in the middle."""
    rng = generator(0, f"colours-{name}")
    colours = torch.tensor([[200, 60, 60], [60, 60, 200]])[y]
    noise = torch.randint(-40, 40, (_SAMPLES, _SIZE, _SIZE, 3), generator=rng)
    masks = torch.zeros(_SAMPLES, _SIZE, _SIZE, dtype=torch.uint8)
    masks[:, 16:48, 16:48] = 1
    frames = Frames(images=(colours[:, None, None] + noise).clamp(0, 255).byte(), masks=masks, boxes=None)
    settings = LoaderSettings(
        batch_size=config.train.batch_size if name == "train" else _SAMPLES,
        input=config.input,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        channels_last=False,
        device=_CPU,
        seed=0,
    )
    return make_view(name, frames, y, group, access, settings)


def _shortened(phase: Phase, epochs: int) -> Phase:
    from dataclasses import replace

    return replace(phase, epochs=min(epochs, phase.epochs) if epochs <= 2 else (epochs if phase.epochs else 0))


def _progress(phase: Phase) -> Progress:
    return Progress(
        phase=phase.name, epoch=0, num_epochs=max(1, phase.epochs), step=0, num_steps=2, seed=0, position=0, device=_CPU
    )
