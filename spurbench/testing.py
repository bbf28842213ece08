"""The public conformance suite: what every method and dataset must do, for the tests here and for plugins.

    from spurbench.testing import check_method

    def test_mine():
        check_method(MyMethod)

Each check is a function whose docstring states the requirement; a failure names the requirement that broke.
"""

import io
import pickle
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spurbench.backbone import Backbone, build_backbone
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
from spurbench.dataset import Dataset, DatasetSpec, SplitData
from spurbench.engine import Interrupted, Silent
from spurbench.engine.stop import StopFlag
from spurbench.engine.training import (
    Meter,
    PhaseState,
    make_optimizer,
    set_trainable,
    set_training_mode,
    train_phase,
)
from spurbench.errors import AccessDenied, ConfigError
from spurbench.method import BaseMethod, Phase, Progress, TaskInfo, Views
from spurbench.rng import generator, seed_for
from spurbench.types import Access, Batch, Prediction

__all__ = ["DATASET_CHECKS", "METHOD_CHECKS", "OpenedTwice", "Workbench", "check_dataset", "check_method"]

_SIZE = 64
_SAMPLES = 16
_NUM_CLASSES = 2
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
            with torch.random.fork_rng(devices=[]):
                try:
                    check(Workbench.make(cls(cls.Config(**options)), backbone))
                except Exception as error:
                    raise _broken(f"{cls.__name__} on {backbone}", check, error) from error
            passed.append(f"{backbone}: {check.__name__.lstrip('_')}")
    return passed


def check_dataset(spec: DatasetSpec, root: Path | None = None, *, samples: int = 8) -> list[str]:
    """Open a dataset and run every check on every split; returns the names of the checks that passed.

    Args:
        root: the data root, for datasets that are read from files.
        samples: how many samples of each split are looked at; the search for equal images looks at eight times as many.

    Raises:
        AssertionError: a requirement that does not hold, by name.
        DataMissing: nothing is there.
        DataError: what is there is malformed.
    """
    opened = OpenedTwice(spec, spec.open(root), spec.open(root), samples)
    for check in DATASET_CHECKS:
        try:
            check(opened)
        except Exception as error:
            raise _broken(spec.info.name, check, error) from error
    return [check.__name__.lstrip("_") for check in DATASET_CHECKS]


def _broken(what: str, check: Callable[..., None], error: Exception) -> AssertionError:
    requirement = (check.__doc__ or check.__name__).strip().splitlines()[0]
    found = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
    return AssertionError(f"{what}: {requirement}\n{found}")


def _require(condition: object, message: str) -> None:
    """An assertion that ``python -O`` keeps."""
    if not condition:
        raise AssertionError(message)


# --- methods --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Workbench:
    """A method with a model and 16 images of two classes and two attributes."""

    method: BaseMethod[Any]
    model: nn.Module
    views: Views
    config: RunConfig
    images: Tensor
    """float [16, 3, 64, 64], the training images; y is 0, 1, 0, 1, ..."""
    initial: dict[str, Tensor]
    """The model's first weights."""
    store: "_MemoryStore"

    @classmethod
    def make(cls, method: BaseMethod[Any], backbone: str) -> "Workbench":
        """Everything from fixed seeds."""
        config = _config(method, backbone)
        task = TaskInfo(
            num_classes=_NUM_CLASSES,
            num_groups=2 * _NUM_CLASSES,
            num_train=_SAMPLES,
            class_counts=(_SAMPLES // 2, _SAMPLES // 2),
            image_size=_SIZE,
            train=config.train,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(0, "init"))
            model = method.build(build_backbone(config.backbone, None), task)
        y = torch.arange(_SAMPLES) % _NUM_CLASSES
        group = 2 * y + (torch.arange(_SAMPLES) // 2) % 2
        views = Views(*(_view(name, y, group, method.access, config) for name in ("train", "val")))
        whole = views.train.at(position=0, epoch=0, batch_size=_SAMPLES)
        images = next(whole.loader(shuffle=False, augment=False)).images
        return cls(method, model, views, config, images, _copy(model.state_dict()), _MemoryStore({}))

    def twin(self) -> "Workbench":
        """A new one of the same method."""
        return Workbench.make(type(self.method)(self.method.config), self.config.backbone.name)

    def train(self, epochs: int, *, interrupt: bool = False) -> None:
        """Every phase as the engine drives it, each with at most ``epochs`` epochs.

        Args:
            interrupt: whether each phase is stopped after its first epoch, and goes on in a new process's objects:
                afterwards ``method`` and ``model`` are others than before.
        """
        train = self.config.train.model_copy(update={"epochs": epochs})
        self.config = self.config.model_copy(update={"train": train})
        previous: dict[str, Any] | None = None
        for position, phase in enumerate(self._phases(epochs)):
            view = self._start(phase, position)
            if phase.epochs:
                optimizer = make_optimizer(phase.optimizer, self.model)
                if phase.init == "continue_with_optimizer" and previous is not None:
                    _load_optimizer(optimizer, previous)
                state = PhaseState(model=self.model, optimizer=optimizer, meter=Meter(_CPU))
                try:
                    self._train(phase, position, view, state, stop_after=1 if interrupt else None)
                except Interrupted:
                    state, view = self._go_on_elsewhere(phase, position, state)
                    self._train(phase, position, view, state, stop_after=None)
                previous = state.optimizer.state_dict()
            self.store.weights = _copy(self.model.state_dict())

    def first_steps(self) -> Iterator[tuple[Phase, Tensor, dict[str, Any]]]:
        """The first step of every phase with epochs: the phase, the loss, the scalars."""
        for position, phase in enumerate(self._phases(self.config.train.epochs)):
            view = self._start(phase, position).at(position=position, epoch=0, batch_size=phase.batch_size)
            if phase.epochs:
                set_training_mode(self.method, self.model, phase)
                progress = Progress(
                    phase=phase.name,
                    epoch=0,
                    num_epochs=phase.epochs,
                    step=0,
                    num_steps=view.num_batches(),
                    seed=0,
                    position=position,
                    device=_CPU,
                )
                batch = next(view.loader(shuffle=True, augment=phase.augment))
                out = self.method.training_step(self.model, batch, progress)
                yield phase, out.loss, dict(out.scalars)
            self.store.weights = _copy(self.model.state_dict())

    def predict(self, images: Tensor) -> Prediction:
        """The method's prediction as the engine asks for it."""
        self.model.eval()
        with torch.inference_mode():
            return self.method.evaluate(self.model, images)

    def _phases(self, epochs: int) -> list[Phase]:
        return [replace(phase, epochs=min(epochs, phase.epochs)) for phase in self.method.phases(self.config.train)]

    def _start(self, phase: Phase, position: int) -> View:
        torch.manual_seed(seed_for(0, "global", position))
        view = self.method.start_phase(phase, self.model, self.views, self.store)
        if phase.init == "scratch":
            self.model.load_state_dict(self.initial)
        set_trainable(self.method, self.model, phase)
        return view

    def _train(self, phase: Phase, position: int, view: View, state: PhaseState, *, stop_after: int | None) -> None:
        stop = StopFlag()

        def end_epoch(state: PhaseState, row: dict[str, Any]) -> None:
            if state.epoch == stop_after and state.epoch < phase.epochs:
                stop.signal_number = signal.SIGTERM

        train_phase(
            self.config, self.method, phase, position, view, state,
            save=lambda state: None, end_epoch=end_epoch, observer=Silent(), stop=stop,
        )  # fmt: skip

    def _go_on_elsewhere(self, phase: Phase, position: int, state: PhaseState) -> tuple[PhaseState, View]:
        """What a restarted process has: fresh objects, a checkpoint, and the phase's artifacts."""
        saved = _through_a_file(
            {
                "model": self.model.state_dict(),
                "method": self.method.state_dict(),
                "optimizer": state.optimizer.state_dict(),
            }
        )
        fresh = self.twin()
        self.method, self.model = fresh.method, fresh.model
        self.model.load_state_dict(saved["model"])
        self.method.load_state_dict(saved["method"])
        torch.manual_seed(seed_for(0, "global", position))
        view = self.method.start_phase(phase, self.model, self.views, self.store)
        set_trainable(self.method, self.model, phase)
        optimizer = make_optimizer(phase.optimizer, self.model)
        _load_optimizer(optimizer, saved["optimizer"])
        return PhaseState(model=self.model, optimizer=optimizer, meter=Meter(_CPU), epoch=state.epoch), view


def _declares_itself(bench: Workbench) -> None:
    """Version, label, options and phases are well-formed, and the options survive JSON."""
    method = bench.method
    _require(isinstance(method.version, int) and method.version >= 1, f"version is {method.version!r}")
    _require(isinstance(method.access, Access), f"access is {method.access!r}")
    _require(isinstance(method.label, str) and method.label.strip(), f"label is {method.label!r}")
    unknown = set(method.Config.positional) - set(method.Config.model_fields)
    _require(not unknown, f"positional names no option: {sorted(unknown)}")
    again = method.Config.model_validate_json(method.config.model_dump_json())
    _require(again == method.config, f"options {method.config!r} come back as {again!r}")
    names = [phase.name for phase in method.phases(bench.config.train)]
    _require(names and len(set(names)) == len(names), f"phases need names of their own, got {names}")


def _classifies(bench: Workbench) -> None:
    """Evaluate gives finite logits [B, C], and masks [B, h, w] in [0, 1]."""
    prediction = bench.predict(bench.images)
    shape = tuple(prediction.logits.shape)
    _require(shape == (_SAMPLES, _NUM_CLASSES), f"logits have shape {shape}, expected {(_SAMPLES, _NUM_CLASSES)}")
    _require(prediction.logits.isfinite().all(), "logits are not finite")
    for mask in _masks(prediction):
        _require(mask.ndim == 3 and len(mask) == _SAMPLES, f"a mask has shape {tuple(mask.shape)}, expected [B, h, w]")
        _require(((mask >= 0) & (mask <= 1)).all(), "a mask leaves [0, 1]")


def _evaluates_deterministically(bench: Workbench) -> None:
    """Evaluate changes nothing, and does not depend on the batch, its order, or how often it is called."""
    before = _copy(bench.model.state_dict())
    whole, again = bench.predict(bench.images), bench.predict(bench.images)
    _require(not bench.model.training, "evaluate leaves the model in training mode")
    _require_equal(before, bench.model.state_dict(), "evaluate changes the model")
    order = torch.randperm(_SAMPLES, generator=generator(0, "order"))
    shuffled = bench.predict(bench.images[order])
    singles = [bench.predict(image[None]) for image in bench.images]
    _require(torch.equal(whole.logits, again.logits), "two calls differ")
    same_masks = all(torch.equal(one, other) for one, other in zip(_masks(whole), _masks(again), strict=True))
    _require(same_masks, "the masks of two calls differ")
    _require_close(shuffled.logits, whole.logits[order], "another order gives other logits")
    _require_close(torch.cat([single.logits for single in singles]), whole.logits, "another batch gives other logits")


def _reads_what_it_declared(bench: Workbench) -> None:
    """Groups, masks and validation labels are read only as far as ``access`` declares them."""
    access = bench.method.access
    batch = next(bench.views.train.loader(shuffle=True, augment=True))
    _require(hasattr(batch, "mask") == (Access.REGIONS in access), "masks in the batch and access differ")
    has_group = getattr(batch, "group", None) is not None
    _require(has_group == (Access.TRAIN_GROUPS in access), "groups in the batch and access differ")
    if Access.VAL_LABELS not in access:
        hidden = next(bench.views.val.loader(shuffle=False, augment=False)).y
        _require((hidden == -1).all(), "validation labels are in the batch")
    try:
        for _ in bench.first_steps():
            pass
    except AccessDenied as error:
        raise AssertionError(str(error)) from error
    except AttributeError as error:
        if isinstance(error.obj, Batch):
            raise AssertionError(f"batches have no {error.name} without declaring it in access") from error
        raise


def _steps_with_gradients(bench: Workbench) -> None:
    """Every phase's step has a finite 0-d loss, 0-d tensors as scalars, and gradients for what it trains."""
    of_backbone = {
        id(p) for module in bench.model.modules() if isinstance(module, Backbone) for p in module.parameters()
    }
    for phase, loss, scalars in bench.first_steps():
        _require(loss.ndim == 0 and loss.isfinite(), f"{phase.name}: the loss is {loss}")
        for name, value in scalars.items():
            _require(isinstance(value, Tensor) and value.ndim == 0, f"{phase.name}: scalar '{name}' is no 0-d tensor")
        trained = {name: p for name, p in bench.model.named_parameters() if p.requires_grad}
        _require(trained, f"{phase.name}: nothing is trainable")
        bench.model.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        bad = [name for name, p in trained.items() if p.grad is not None and not p.grad.isfinite().all()]
        _require(not bad, f"{phase.name}: gradients are not finite: {bad}")
        # Parts of a trunk may be left out, such as the norm after its last stage; a method's own parts may not.
        idle = [name for name, p in trained.items() if p.grad is None and id(p) not in of_backbone]
        _require(not idle, f"{phase.name}: parameters outside the backbone without a gradient: {idle}")
        _require(any(p.grad is not None and p.grad.any() for p in trained.values()), f"{phase.name}: no gradient")


def _trains_reproducibly(bench: Workbench) -> None:
    """Training twice from equal seeds gives equal bits, whatever was drawn from torch's global stream before."""
    torch.manual_seed(1)
    bench.train(2)
    torch.manual_seed(2)
    twin = bench.twin()
    twin.train(2)
    _require_equal(bench.model.state_dict(), twin.model.state_dict(), "two runs differ")


def _resumes_exactly(bench: Workbench) -> None:
    """A run that stops inside every phase and goes on in a new process ends with equal weights and method state."""
    bench.train(3)
    twin = bench.twin()
    twin.train(3, interrupt=True)
    _require_equal(bench.model.state_dict(), twin.model.state_dict(), "the resumed run differs")
    _require_equal(bench.method.state_dict(), twin.method.state_dict(), "the resumed method's state differs")


def _pickles(bench: Workbench) -> None:
    """The method and its options survive pickling, as launchers need."""
    copy = pickle.loads(pickle.dumps(bench.method))
    _require(type(copy) is type(bench.method), f"a {type(copy).__name__} comes back")
    _require(copy.config == bench.method.config, f"options {copy.config!r} come back")


def _exposes_head_and_features(bench: Workbench) -> None:
    """The head on features [B, D] gives evaluate's logits, and logits depend on cam_layer's output [B, K, h, w]."""
    bench.model.eval()
    with torch.no_grad():
        features = bench.method.features(bench.model, bench.images)
        head = bench.method.head(bench.model)
        shape, expected = tuple(features.shape), (_SAMPLES, head.in_features)
        _require(shape == expected, f"features have shape {shape}, the head takes {expected}")
        logits = bench.method.evaluate(bench.model, bench.images).logits
        _require_close(head(features), logits, "head(features) is not what evaluate says")
    layer = bench.method.cam_layer(bench.model)
    _require(any(module is layer for module in bench.model.modules()), "cam_layer is not a part of the model")
    outputs: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, args, output: outputs.append(output))
    try:
        score = bench.method.evaluate(bench.model, bench.images).logits.sum()
    finally:
        handle.remove()
    _require(len(outputs) == 1, f"cam_layer is called {len(outputs)} times per pass, not once")
    _require(outputs[0].ndim == 4, f"cam_layer's output has shape {tuple(outputs[0].shape)}, expected [B, K, h, w]")
    (gradient,) = torch.autograd.grad(score, outputs[0], allow_unused=True)
    _require(gradient is not None, "logits do not depend on cam_layer")


def _overfits(bench: Workbench) -> None:
    """Sixteen images of squares in two colours are learned."""
    right = 0
    for epochs in (12, 40):  # the first is enough for most
        bench = bench.twin()
        bench.train(epochs)
        predicted = bench.predict(bench.images).logits.argmax(1)
        right = int((predicted == torch.arange(_SAMPLES) % _NUM_CLASSES).sum())
        if right >= _SAMPLES - 1:
            return
    raise AssertionError(f"only {right} of {_SAMPLES} training images are right")


METHOD_CHECKS: tuple[Callable[[Workbench], None], ...] = (
    _declares_itself,
    _classifies,
    _evaluates_deterministically,
    _reads_what_it_declared,
    _steps_with_gradients,
    _trains_reproducibly,
    _resumes_exactly,
    _pickles,
    _exposes_head_and_features,
    _overfits,
)


@dataclass(slots=True)
class _MemoryStore:
    """``ArtifactStore`` without files."""

    artifacts: dict[str, Tensor]
    weights: dict[str, Tensor] | None = None
    """The model's when the previous phase ended: whatever the rule, they are its candidate."""

    def once(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        if name not in self.artifacts:
            self.artifacts[name] = make().clone()
        torch.manual_seed(seed_for(0, "global", name))
        return self.artifacts[name].clone()

    def candidate(self, rule: str) -> dict[str, Tensor]:
        if self.weights is None:
            raise ConfigError(f"no weights were kept for rule '{rule}': there is no previous phase")
        return _copy(self.weights)


def _masks(prediction: Prediction) -> list[Tensor]:
    return [mask for mask in (prediction.mask, *prediction.stage_masks) if mask is not None]


def _copy(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value.clone() for name, value in state.items()}


def _through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Restore moments, keeping the rates of the phase that ``optimizer`` was made for."""
    rates = [(group["lr"], group["base_lr"], group["weight_decay"]) for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, (lr, base_lr, decay) in zip(optimizer.param_groups, rates, strict=True):
        group.update(lr=lr, base_lr=base_lr, weight_decay=decay)


def _require_equal(ours: Any, theirs: Any, message: str, path: str = "") -> None:
    """Equal structure and equal bits."""
    if isinstance(ours, dict):
        same = isinstance(theirs, dict) and ours.keys() == theirs.keys()
        _require(same, f"{message}: keys at '{path}'")
        for key, value in ours.items():
            _require_equal(value, theirs[key], message, f"{path}.{key}".lstrip("."))
    elif isinstance(ours, Tensor):
        _require(isinstance(theirs, Tensor) and torch.equal(ours, theirs), f"{message}: '{path}'")
    else:
        _require(ours == theirs, f"{message}: '{path}'")


def _require_close(ours: Tensor, theirs: Tensor, message: str) -> None:
    _require(torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4), f"{message}, by up to {(ours - theirs).abs().max()}")


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
    """A square of the class's colour in the middle of grey, with noise: there is something to look at."""
    rng = generator(0, f"colours-{name}")
    colours = torch.tensor([[200, 60, 60], [60, 60, 200]])[y]
    noise = torch.randint(-40, 40, (_SAMPLES, _SIZE, _SIZE, 3), generator=rng)
    masks = torch.zeros(_SAMPLES, _SIZE, _SIZE, dtype=torch.uint8)
    masks[:, 16:48, 16:48] = 1
    clean = torch.where(masks[..., None].bool(), colours[:, None, None], 128)
    frames = Frames(images=(clean + noise).clamp(0, 255).byte(), masks=masks, boxes=None)
    settings = LoaderSettings(
        batch_size=config.train.batch_size,
        input=config.input,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        channels_last=False,
        device=_CPU,
        seed=0,
    )
    return make_view(name, frames, y, group, access, settings)


# --- datasets -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenedTwice:
    """A dataset under test, opened twice, since what is stable must survive that."""

    spec: DatasetSpec
    dataset: Dataset
    again: Dataset
    samples: int

    def splits(self) -> Iterator[tuple[str, SplitData, SplitData]]:
        """Every split with its name and its twin."""
        for name in self.dataset.info.splits:
            yield name, self.dataset.split(name), self.again.split(name)


def _declaration_holds(opened: OpenedTwice) -> None:
    """What is opened has the declared name, version, classes, attributes and splits, among them train, val and test."""
    info, declared = opened.dataset.info, opened.spec.info
    missing = {"train", "val", "test"} - set(info.splits)
    _require(not missing, f"splits lack {sorted(missing)}")
    _require(len(info.classes) >= 2, f"{len(info.classes)} classes")
    if declared.classes:  # otherwise the names are read from the data
        differ = [
            field.name
            for field in fields(declared)
            if field.name not in ("has_boxes", "has_masks")  # what lies beside the images may vary
            and getattr(declared, field.name) != getattr(info, field.name)
        ]
        _require(not differ, f"{', '.join(differ)}: declared and opened differ")


def _columns_agree(opened: OpenedTwice) -> None:
    """Columns y and group agree with the samples, and indices are dense, stable positions."""
    for name, split, again in opened.splits():
        _require(len(split) == len(split.y) > 0, f"{name}: {len(split)} samples, {len(split.y)} labels")
        has_attributes = opened.dataset.info.attributes is not None
        _require((split.group is not None) == has_attributes, f"{name}: group column and attributes differ")
        _require(torch.equal(split.y, again.y), f"{name}: y differs between two openings")
        for i in _positions(split, opened.samples):
            sample = split[i]
            _require(sample.index == i, f"{name}[{i}] has index {sample.index}")
            _require(sample.y == int(split.y[i]), f"{name}[{i}] has y {sample.y}, the column {int(split.y[i])}")
            group = None if split.group is None else int(split.group[i])
            _require(sample.group == group, f"{name}[{i}] has group {sample.group}, the column {group}")
        try:
            split[len(split)]
        except IndexError:
            continue
        raise AssertionError(f"{name}[{len(split)}] is beyond the end and does not raise IndexError")


def _labels_in_range(opened: OpenedTwice) -> None:
    """Labels and groups are int64 in their declared ranges, and group is y * num_attributes + attribute."""
    info = opened.dataset.info
    for name, split, _ in opened.splits():
        _require_range(split.y, len(info.classes), f"{name}: y")
        if split.group is not None and info.attributes is not None:
            _require_range(split.group, info.num_groups, f"{name}: group")
            _require(torch.equal(split.group // len(info.attributes), split.y), f"{name}: group does not contain y")


def _images_are_stable(opened: OpenedTwice) -> None:
    """Images are uint8 [3, H, W], and equal whenever they are read."""
    for name, split, again in opened.splits():
        for i in _positions(split, opened.samples):
            image = split[i].image
            _require(
                image.dtype == torch.uint8 and image.ndim == 3 and len(image) == 3,
                f"{name}[{i}] is {image.dtype} {tuple(image.shape)}",
            )
            _require(torch.equal(image, split[i].image), f"{name}[{i}] differs from call to call")
            _require(torch.equal(image, again[i].image), f"{name}[{i}] differs between two openings")


def _regions_fit(opened: OpenedTwice) -> None:
    """Masks are bool [H, W] of the image's size, boxes float [n, 4] inside it, both as far as declared."""
    info = opened.dataset.info
    for name, split, _ in opened.splits():
        for i in _positions(split, opened.samples):
            sample = split[i]
            height, width = sample.image.shape[1:]
            _require((sample.mask is not None) == info.has_masks, f"{name}[{i}]: mask and has_masks differ")
            _require((sample.boxes is not None) <= info.has_boxes, f"{name}[{i}]: boxes without has_boxes")
            if sample.mask is not None:
                _require(
                    sample.mask.dtype == torch.bool and sample.mask.shape == (height, width),
                    f"{name}[{i}]: mask is {sample.mask.dtype} {tuple(sample.mask.shape)}",
                )
            if sample.boxes is not None:
                boxes = sample.boxes
                is_table = boxes.ndim == 2 and boxes.shape[1] == 4 and boxes.is_floating_point()
                _require(is_table, f"{name}[{i}]: boxes are {boxes.dtype} {tuple(boxes.shape)}")
                x0, y0, x1, y1 = boxes.unbind(1)
                inside = (x0 >= 0) & (y0 >= 0) & (x1 <= width) & (y1 <= height)
                _require(inside.all(), f"{name}[{i}]: a box leaves the image: {boxes.tolist()}")
                _require(((x0 < x1) & (y0 < y1)).all(), f"{name}[{i}]: a box is empty: {boxes.tolist()}")


def _splits_disjoint(opened: OpenedTwice) -> None:
    """No image stands in two splits (looked at a part of each)."""
    seen: dict[bytes, str] = {}
    for name, split, _ in opened.splits():
        for i in _positions(split, 8 * opened.samples):
            pixels = split[i].image.numpy().tobytes()
            _require(seen.get(pixels, name) == name, f"{name}[{i}] is in {seen.get(pixels)} too")
            seen[pixels] = name


def _fingerprint_is_stable(opened: OpenedTwice) -> None:
    """The fingerprint is a hash that is equal for equal data."""
    ours, theirs = opened.dataset.fingerprint(), opened.again.fingerprint()
    _require(isinstance(ours, str) and len(ours) >= 16, f"it is {ours!r}")
    _require(ours == theirs, "it differs between two openings")


DATASET_CHECKS: tuple[Callable[[OpenedTwice], None], ...] = (
    _declaration_holds,
    _columns_agree,
    _labels_in_range,
    _images_are_stable,
    _regions_fit,
    _splits_disjoint,
    _fingerprint_is_stable,
)


def _positions(split: SplitData, samples: int) -> Sequence[int]:
    """Evenly spaced positions, the first among them."""
    return range(0, len(split), max(1, len(split) // samples))


def _require_range(column: Tensor, end: int, what: str) -> None:
    _require(column.dtype == torch.int64 and column.ndim == 1, f"{what} is {column.dtype} {tuple(column.shape)}")
    low, high = int(column.min()), int(column.max())
    _require(low >= 0 and high < end, f"{what} has values {low}..{high}, expected 0..{end - 1}")
