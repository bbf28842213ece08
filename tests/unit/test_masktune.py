"""MaskTune: what is masked (against pytorch-grad-cam), where it lies in the frame, and when it is computed."""

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
from pydantic import ValidationError
from pytorch_grad_cam import XGradCAM
from pytorch_grad_cam.utils.image import scale_cam_image
from torch import Tensor, nn

from spurbench.attribution.gradcam import GradCAM, xgradcam
from spurbench.backbone import Backbone
from spurbench.config import InputConfig, OptimizerConfig, TrainConfig
from spurbench.data.cache import Frames
from spurbench.data.transforms import evaluation_masks, frame_masks
from spurbench.data.view import LoaderSettings, View, make_view
from spurbench.method import ArtifactStore, Phase, Views
from spurbench.methods import masktune as masktune_module
from spurbench.methods.masktune import MaskTune, MaskTuneConfig, salient
from spurbench.testing.workbench import SAMPLES, Workbench, copy_state
from spurbench.types import Access, Prediction

CPU = torch.device("cpu")
BACKBONE = "test_convnext"
TRAIN = TrainConfig(epochs=7, optimizer=OptimizerConfig(lr=3e-4, warmup=0.1))


def make(**options: Any) -> MaskTune:
    return MaskTune(MaskTuneConfig(**options))


def bench(method: MaskTune | None = None, **options: Any) -> Workbench:
    return Workbench.make(method or make(**options), BACKBONE)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Store:
    """Artifacts in memory, and what was asked for."""

    def __init__(self, weights: dict[str, Tensor] | None = None) -> None:
        self.weights = weights or {}
        self.artifacts: dict[str, Tensor] = {}
        self.rules: list[str] = []

    def once(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        if name not in self.artifacts:
            self.artifacts[name] = make()
        return self.artifacts[name]

    def candidate(self, rule: str) -> dict[str, Tensor]:
        self.rules.append(rule)
        return copy_state(self.weights)


# --- what is masked ---


def grid(*values: float) -> Tensor:
    """A map [1, 5, 5] with these values, 0 elsewhere."""
    flat = torch.zeros(25)
    flat[: len(values)] = torch.tensor(values)
    return flat.view(1, 5, 5)


@pytest.mark.parametrize(
    ("values", "count"),
    [
        # Mean 0.383, std 0.285 (0.313 if it divided by 5), threshold 0.954 (1.008).
        ((0.1, 0.3, 0.3, 0.3, 0.3, 1.0), 1),
        # Mean 0.9, std 0.1, threshold 1.1; with zeros counted it would be 0.563.
        ((0.8, 1.0), 0),
        ((1.0,), 0),
        ((1e-12,), 0),
        ((0.7, 0.7, 0.7), 0),
        ((), 0),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_threshold_by_hand(values: tuple[float, ...], count: int, scale: float) -> None:
    masks = salient(grid(*values) * scale, 5, 2.0)
    assert masks.shape == (1, 5, 5)
    assert masks.dtype == torch.bool
    assert int(masks.sum()) == count
    assert count == 0 or masks.flatten()[len(values) - 1]


def test_nothing_is_masked_in_a_constant_map() -> None:
    """Interpolation rounds: a resized constant is not constant."""
    for side, size in ((3, 64), (3, 224), (5, 64), (7, 64), (7, 224), (8, 96), (8, 299)):
        for value in (0.0, 0.1, 1 / 3, 12345.678):
            assert not salient(torch.full((2, side, side), value), size, 2.0).any(), (side, size, value)


def test_each_map_has_its_own_threshold() -> None:
    maps = torch.rand(6, 7, 7, generator=torch.Generator().manual_seed(0)).pow(6)
    scaled = maps * torch.tensor([1.0, 10, 1e-3, 5, 1e3, 1])[:, None, None]
    whole = salient(scaled, 56, 2.0)
    assert torch.equal(torch.cat([salient(one[None], 56, 2.0) for one in scaled]), whole)
    assert (whole.flatten(1).sum(1) > 0).all()


def authors_masks(heat: np.ndarray[Any, Any], num_std: float = 2.0) -> np.ndarray[Any, Any]:
    """mean + 2 std over positive values, NaN where there are none, of maps as pytorch-grad-cam gives them."""
    out = np.zeros(heat.shape, bool)
    for i, one in enumerate(heat):
        values = one[one > 0].astype(np.float64)
        if len(values):
            out[i] = one > values.mean() + num_std * np.sqrt(((values - values.mean()) ** 2).sum() / len(values))
    return out


@pytest.mark.parametrize("name", ["resnet18", "resnet10t"])
def test_masks_are_those_of_pytorch_grad_cam(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(name, pretrained=False, num_classes=5).eval()
        images = torch.randn(6, 3, 128, 128)
        images[:, :, 40:80, 30:60] *= 4
    layer = model.get_submodule("layer3")
    with XGradCAM(model, [layer]) as library:
        expected = authors_masks(library(images, None))
    maps = xgradcam(model, layer, model, images, None).maps
    masks = salient(maps, 128, 2.0).numpy()
    assert expected.any(axis=(1, 2)).all(), "a comparison of empty masks would say nothing"
    assert (masks != expected).mean() < 1e-4


def test_small_maps_are_scaled_as_in_pytorch_grad_cam() -> None:
    """Few positions, none at the bottom, lowest in the middle: what counts as positive decides."""
    maps = 0.1 + torch.rand(500, 3, 3, generator=torch.Generator().manual_seed(0)).pow(2)
    maps[:, 1, 1] = 0.05
    expected = authors_masks(scale_cam_image(scale_cam_image(maps.numpy(), (6, 6))), num_std=1.3)
    assert expected.any(axis=(1, 2)).sum() > 100
    assert np.array_equal(salient(maps, 6, 1.3).numpy(), expected)


# --- where it lies ---


class Bright(nn.Module):
    """Class 1 if it is bright; the layer is brightness on a grid of 4 x 4 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.AvgPool2d(4)
        self.head = nn.Linear(3, 2, bias=False)
        nn.init.constant_(self.head.weight, 1.0)
        self.head.weight.data[0] = -1.0

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layer(images).mean((2, 3)))
        return logits


class OnBright(MaskTune):
    """MaskTune of ``Bright``."""

    def cam_layer(self, model: nn.Module) -> nn.Module:
        assert isinstance(model, Bright)
        return model.layer

    def evaluate(self, model: nn.Module, images: Tensor) -> Prediction:
        return Prediction(logits=model(images))


SPOTS = ((8, 12), (20, 16), (12, 24), (24, 8))
"""Rows and columns of an 8 x 8 square in each frame: inside every centre crop of these tests."""


def spots(resize: int) -> Tensor:
    """uint8 [4, R, R, 3], dark noise with a bright square, which is nowhere black."""
    frames = torch.randint(10, 40, (4, resize, resize, 3), generator=torch.Generator().manual_seed(0)).byte()
    for frame, (top, left) in zip(frames, SPOTS, strict=True):
        frame[top : top + 8, left : left + 8] = 250
    return frames


def views_of(frames: Tensor, image_size: int, batch_size: int = 3) -> Views:
    settings = LoaderSettings(
        batch_size=batch_size,
        input=InputConfig(resize=frames.shape[1], image_size=image_size, crop_scale=None, flip=False),
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        channels_last=False,
        device=CPU,
        seed=0,
    )
    y = torch.ones(len(frames), dtype=torch.int64)
    view = make_view("train", Frames(images=frames, masks=None, boxes=None), y, None, Access.NONE, settings)
    return Views(view, view)


def finetune(method: MaskTune, model: nn.Module, views: Views, store: ArtifactStore) -> View:
    phase = next(phase for phase in method.phases(TRAIN) if phase.name == "finetune1")
    return method.start_phase(phase, model, views, store)


def blackened(view: View, frames: Tensor, index: Tensor) -> Tensor:
    """bool [B, R, R], pixels that the view changes; they must be black."""
    assert view._image_map is not None
    before = frames[index]
    after = view._image_map(before.clone(), index)
    assert after.dtype == torch.uint8
    changed = (after != before).any(-1)
    assert (after[changed] == 0).all()
    return changed


@pytest.mark.parametrize(("resize", "image_size"), [(40, 40), (48, 40), (48, 36), (45, 40), (52, 44)])
def test_the_evidence_is_painted_black_in_the_frame(resize: int, image_size: int) -> None:
    frames = spots(resize)
    model = Bright().eval()
    view = finetune(OnBright(MaskTuneConfig()), model, views_of(frames, image_size), Store(model.state_dict()))
    index = torch.tensor([2, 0, 3, 1])
    masks = blackened(view, frames, index)
    for mask, (top, left) in zip(masks, (SPOTS[i] for i in index.tolist()), strict=True):
        assert mask[top + 1 : top + 7, left + 1 : left + 7].all(), "the square is not covered"
        mask[max(0, top - 4) : top + 12, max(0, left - 4) : left + 12] = False
        assert not mask.any(), "what lies a cell away from the square is covered"


def test_masks_lie_under_what_the_model_sees() -> None:
    """In evaluation geometry the batch is black exactly where ``salient`` says, also with an odd margin."""
    frames = spots(45)
    model = Bright().eval()
    store = Store(model.state_dict())
    view = finetune(OnBright(MaskTuneConfig()), model, views_of(frames, 40), store)
    (maps,) = store.artifacts.values()
    images = torch.cat([batch.images for batch in view.loader(shuffle=False, augment=False)])
    assert torch.equal((images == 0).all(1), salient(maps, 40, 2.0))
    assert not blackened(view, frames, torch.arange(4))[:, [0, 1, -1, -2]].any(), "outside of the crop is masked"


def test_training_batches_are_masked_by_sample() -> None:
    """Shuffled, without crops: every sample's own square is black."""
    frames = spots(40)
    model = Bright().eval()
    view = finetune(OnBright(MaskTuneConfig()), model, views_of(frames, 40), Store(model.state_dict()))
    seen = []
    for batch in view.loader(shuffle=True, augment=True):
        for image, i in zip(batch.images, batch.index.tolist(), strict=True):
            top, left = SPOTS[i]
            assert (image[:, top + 1 : top + 7, left + 1 : left + 7] == 0).all()
            seen.append(i)
    assert sorted(seen) == [0, 1, 2, 3]
    assert seen != [0, 1, 2, 3]


def test_stretched_masks_are_the_crops_over_the_whole_image() -> None:
    maps = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)).pow(6)
    config = InputConfig(resize=48, image_size=32)
    masks = make(stretch=True).masks(maps, config)
    crop = salient(maps, 32, 2.0)
    pixels = torch.arange(48) * 32 // 48
    assert torch.equal(masks, crop[:, pixels][:, :, pixels])
    assert not torch.equal(masks, make().masks(maps, config))


@pytest.mark.parametrize(("resize", "image_size"), [(8, 8), (9, 8), (11, 8), (12, 7)])
def test_frame_masks_undo_the_centre_crop(resize: int, image_size: int) -> None:
    config = InputConfig(resize=resize, image_size=image_size)
    masks = torch.rand(5, image_size, image_size, generator=torch.Generator().manual_seed(0)) < 0.5
    whole = frame_masks(masks, config)
    assert whole.shape == (5, resize, resize)
    assert torch.equal(evaluation_masks(whole, config), masks)
    assert whole.sum() == masks.sum()


def test_masking_waits_for_no_device() -> None:
    """A device without values: whatever had to be read back would raise."""
    frames = spots(48)
    model = Bright().eval()
    store = Store(model.state_dict())
    views = views_of(frames, 40)
    finetune(OnBright(MaskTuneConfig()), model, views, store)
    meta = torch.device("meta")
    train = views.train
    moved = View(
        split="train",
        index=train.index,
        settings=LoaderSettings(
            batch_size=3, input=train.settings.input, mean=(0.0,) * 3, std=(1.0,) * 3,
            channels_last=False, device=meta, seed=0,
        ),
        _frames=frames,
        _columns=train._columns,
    )  # fmt: skip
    for stretch in (False, True):
        view = finetune(OnBright(MaskTuneConfig(stretch=stretch)), model, Views(moved, moved), store)
        assert view._image_map is not None
        after = view._image_map(frames[:2].to(meta), torch.tensor([3, 1]))
        assert after.device == meta
        assert after.shape == (2, 48, 48, 3)
        assert after.dtype == torch.uint8


# --- phases ---


def test_phases() -> None:
    erm, tune = make().phases(TRAIN)
    assert (erm.name, erm.epochs, erm.optimizer) == ("erm", 7, TRAIN.optimizer)
    assert (tune.epochs, tune.init, tune.trainable) == (1, "continue_with_optimizer", "all")
    assert tune.optimizer == TRAIN.optimizer.model_copy(update={"schedule": "constant", "warmup": 0.0})
    names = [phase.name for phase in make(iterations=3, finetune_epochs=2).phases(TRAIN)]
    assert names == ["erm", "finetune1", "finetune2", "finetune3"]


def test_erm_phase_is_untouched() -> None:
    some = bench()
    phase = some.method.phases(TRAIN)[0]
    assert some.method.start_phase(phase, some.model, some.views, Store()) is some.views.train


def test_nothing_masked_is_plain_finetuning() -> None:
    class Plain(MaskTune):
        def start_phase(self, phase: Phase, model: nn.Module, views: Views, store: ArtifactStore) -> View:
            return views.train

    empty, plain, masked = bench(num_std=1e6), bench(Plain(MaskTuneConfig())), bench()
    for some in (empty, plain, masked):
        some.train(2)
    assert same(empty.model.state_dict(), plain.model.state_dict())
    assert not same(masked.model.state_dict(), plain.model.state_dict())


def perturbed(state: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        name: value + 0.5 * torch.randn(value.shape, generator=g) * value.std() if value.ndim > 1 else value
        for name, value in state.items()
    }


@pytest.mark.parametrize("compiled", [False, True])
def test_the_candidate_is_explained_and_the_model_keeps_its_weights(compiled: bool) -> None:
    some = bench()
    if compiled:  # as the engine does, without the compiler
        for module in some.model.modules():
            if isinstance(module, Backbone):
                module.pooled = torch.compile(module.pooled, backend="eager")  # type: ignore[method-assign]
    own = copy_state(some.model.state_dict())
    best = perturbed(own, 1)
    store = Store(best)
    finetune(some.method, some.model, some.views, store)
    (maps,) = store.artifacts.values()
    assert store.rules == ["val_accuracy"]
    assert same(some.model.state_dict(), own)
    assert all(not module._forward_hooks for module in some.model.modules())
    assert all(p.grad is None and p.requires_grad for p in some.model.parameters())

    other = bench()
    for state, equal in ((best, True), (own, False)):
        other.model.load_state_dict(state)
        other.model.eval()
        predicted = other.predict(other.images).logits.argmax(1)
        expected = xgradcam(other.model, other.method.cam_layer(other.model), other.model, other.images, predicted).maps
        assert torch.allclose(maps, expected, rtol=1e-3, atol=1e-5) is equal


def test_the_model_keeps_its_weights_when_explaining_fails() -> None:
    class Failing(MaskTune):
        def evaluate(self, model: nn.Module, images: Tensor) -> Prediction:
            raise KeyError("in the forward pass")

    some = bench(Failing(MaskTuneConfig()))
    own = copy_state(some.model.state_dict())
    with pytest.raises(KeyError):
        finetune(some.method, some.model, some.views, Store(perturbed(own, 1)))
    assert same(some.model.state_dict(), own)


def test_later_rounds_explain_the_round_before() -> None:
    some = bench(iterations=2)
    store = Store(copy_state(some.model.state_dict()))
    for phase in some.method.phases(TRAIN):
        some.method.start_phase(phase, some.model, some.views, store)
    assert store.rules == ["val_accuracy", "last"]
    assert sorted(store.artifacts) == ["maps_finetune1", "maps_finetune2"]


def test_batches_do_not_matter() -> None:
    some = bench()
    weights = copy_state(some.model.state_dict())
    maps = []
    for batch_size in (1, 5, 16):
        view = some.views.train.at(position=0, epoch=0, batch_size=batch_size)
        store = Store(weights)
        finetune(some.method, some.model, Views(view, view), store)
        maps += store.artifacts.values()
    assert maps[0].shape[0] == SAMPLES
    assert maps[0].dtype == torch.float32
    assert maps[0].any()
    for other in maps[1:]:
        assert torch.allclose(other, maps[0], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("iterations", [1, 2])
def test_explanations_survive_a_restart(monkeypatch: pytest.MonkeyPatch, iterations: int) -> None:
    calls: list[int] = []

    def count(*args: Any) -> GradCAM:
        calls.append(len(args[3]))
        return xgradcam(*args)

    monkeypatch.setattr(masktune_module, "xgradcam", count)
    whole, restarted = (bench(finetune_epochs=3, iterations=iterations) for _ in range(2))
    whole.train(3)
    assert sum(calls) == iterations * SAMPLES
    calls.clear()
    restarted.train(3, interrupt=True)  # inside ERM and inside every fine-tuning
    assert sum(calls) == iterations * SAMPLES, "explained again"
    assert same(whole.model.state_dict(), restarted.model.state_dict())
    assert whole.store.artifacts.keys() == restarted.store.artifacts.keys()


def test_memory_stays_flat() -> None:
    some = bench()
    store = Store(copy_state(some.model.state_dict()))

    def tensors_alive() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    sizes = []
    for _ in range(3):
        for _ in range(3):
            store.artifacts.clear()
            view = finetune(some.method, some.model, some.views, store)
            for batch in view.loader(shuffle=True, augment=True):
                assert batch.images.isfinite().all()
        sizes.append(tensors_alive())
    assert len(set(sizes)) == 1


# --- options ---


@pytest.mark.parametrize(
    "options", [{"num_std": -1}, {"finetune_epochs": 0}, {"iterations": 0}, {"num_std": float("nan")}]
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MaskTuneConfig(**options)


def test_declares_no_supervision_and_no_selection() -> None:
    assert MaskTune.access == Access.NONE
    assert MaskTune.only_last
    assert make().label == "MaskTune"
