"""Views: the same batches from any start, and nothing in them that a method did not declare."""

import dataclasses
import functools
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from spurbench.backbone import Backbone
from spurbench.config import InputConfig, RunPaths, TrainConfig
from spurbench.data.cache import Frames
from spurbench.data.transforms import evaluation_images, evaluation_masks
from spurbench.data.view import LoaderSettings, View, make_view
from spurbench.dataset import DatasetInfo, DatasetSpec
from spurbench.engine import run as engine_run
from spurbench.engine import run_one
from spurbench.errors import AccessDenied
from spurbench.method import ArtifactStore, BaseMethod, MethodConfig, Phase, Progress, TaskInfo, Views
from spurbench.registry import Entry, Registry, load_registry
from spurbench.resolve import RunRequest, resolve_run
from spurbench.types import Access, Batch, GroupedBatch, Prediction, RegionBatch, Sample, StepOutput

CPU = torch.device("cpu")
N, SIDE = 23, 12
INPUT = InputConfig(resize=SIDE, image_size=8, crop_scale=(0.5, 1.0), flip=True)
FRAMES = Frames(
    images=torch.randint(0, 256, (N, SIDE, SIDE, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8),
    masks=(torch.rand(N, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) < 0.4).byte(),
    boxes=None,
)
Y = torch.arange(N) % 3
GROUP = 2 * Y + torch.arange(N) // 2 % 2


def settings(seed: int = 0, batch_size: int = 5, **options: Any) -> LoaderSettings:
    return LoaderSettings(
        batch_size=batch_size,
        input=options.pop("input", INPUT),
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.3, 0.25),
        channels_last=False,
        device=CPU,
        seed=seed,
        **options,
    )


def view(split: str = "train", access: Access = Access.NONE, group: Tensor | None = GROUP, **options: Any) -> View:
    return make_view(split, FRAMES, Y, group, access, settings(**options))


def batches(some: View, *, shuffle: bool = True, augment: bool = True, start: int = 0) -> list[Batch]:
    return list(some.loader(shuffle=shuffle, augment=augment, start=start))


def order(some: View, **options: Any) -> list[int]:
    return torch.cat([batch.index for batch in batches(some, augment=False, **options)]).tolist()


def same(one: Sequence[Batch], other: Sequence[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(getattr(a, field.name), getattr(b, field.name))
        for a, b in zip(one, other, strict=True)
        for field in dataclasses.fields(a)
    )


# --- passes ---


def test_a_pass_is_every_sample_once() -> None:
    some = view()
    assert order(some, shuffle=False) == list(range(N))
    assert sorted(order(some)) == list(range(N))
    assert order(some) != list(range(N))
    assert [len(batch.index) for batch in batches(some)] == [5, 5, 5, 5, 3]
    assert some.num_batches() == 5
    assert len(some) == N


def test_batches_hold_what_belongs_together() -> None:
    for batch in batches(view(), augment=False):
        assert type(batch) is Batch
        assert torch.equal(batch.y, Y[batch.index])
        expected = evaluation_images(FRAMES.images[batch.index], INPUT, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
        assert torch.equal(batch.images, expected)
        assert batch.images.shape[1:] == (3, 8, 8)
        assert torch.equal(batch.weight, torch.ones(len(batch.index)))
        assert (batch.y.dtype, batch.index.dtype, batch.weight.dtype) == (torch.int64, torch.int64, torch.float32)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("kind", ["plain", "resampled", "composed", "subset"])
def test_a_later_start_is_the_tail_of_the_pass(shuffle: bool, kind: str) -> None:
    some = view(access=Access.TRAIN_GROUPS)
    if kind == "resampled":
        some = some.resample(torch.rand(N, generator=torch.Generator().manual_seed(5)))
    if kind == "composed":
        some = some.batches(lambda rng: torch.randint(0, N, (6, 4), generator=rng).tolist())
    if kind == "subset":
        some = some.subset(torch.arange(3, 20))
    whole = batches(some, shuffle=shuffle)
    assert len(whole) == some.num_batches() or not shuffle
    assert same(batches(some, shuffle=shuffle), whole)
    for start in (0, 1, len(whole) - 1, len(whole)):
        torch.rand(7)  # the global stream has no part in it
        assert same(batches(some, shuffle=shuffle, start=start), whole[start:])


def test_a_skipped_batch_is_not_decoded() -> None:
    seen: list[int] = []

    def spy(frames: Tensor, index: Tensor) -> Tensor:
        seen.append(len(index))
        return frames

    assert len(batches(view().map_images(spy, artifact="spy"), start=3)) == 2
    assert len(seen) == 2


def test_epochs_phases_and_seeds_differ_and_repeat() -> None:
    def drawn(seed: int, position: int, epoch: int) -> list[Batch]:
        return batches(view(seed=seed).at(position=position, epoch=epoch))

    places = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 1, 0)]
    orders = [tuple(torch.cat([b.index for b in drawn(*place)]).tolist()) for place in places]
    assert len(set(orders)) == len(orders)
    assert all(same(drawn(*place), drawn(*place)) for place in places)
    # Augmentation is drawn anew too: the same samples in the same order get other crops.
    fixed = [view().at(position=0, epoch=epoch).loader(shuffle=False, augment=True) for epoch in (0, 1)]
    first, second = (next(iter(loader)) for loader in fixed)
    assert torch.equal(first.index, second.index)
    assert not torch.equal(first.images, second.images)


def test_augmentation_is_drawn_anew_for_every_batch() -> None:
    only_4 = torch.zeros(N)
    only_4[4] = 1
    first, second, *_ = batches(view().resample(only_4))
    assert torch.equal(first.index, second.index)
    assert not torch.equal(first.images, second.images)
    assert len({tuple(image.flatten().tolist()) for image in first.images}) == 5, "and for every sample"


def test_order_does_not_depend_on_augmentation_or_access() -> None:
    plain = order(view())
    assert torch.cat([b.index for b in batches(view(), augment=True)]).tolist() == plain
    assert order(view(access=Access.TRAIN_GROUPS | Access.REGIONS)) == plain
    images = [b.images for b in batches(view())]
    assert all(map(torch.equal, images, [b.images for b in batches(view(access=Access.REGIONS))]))


def test_batch_size_of_a_phase() -> None:
    some = view().at(position=0, epoch=0, batch_size=9)
    assert [len(batch.index) for batch in batches(some)] == [9, 9, 5]
    assert some.num_batches() == 3
    assert view().at(position=1, epoch=1).settings.batch_size == 5


# --- operations ---


def test_reweight_is_by_position_in_the_split() -> None:
    weights = torch.arange(N, dtype=torch.float64)
    some = view().reweight(weights).subset(torch.tensor([4, 20, 7]))
    for batch in batches(some):
        assert torch.equal(batch.weight, weights.float()[batch.index])
        assert batch.weight.dtype == torch.float32
    assert order(view().reweight(weights)) == order(view()), "weights change no order"
    for operation in (view().reweight, view().resample):
        with pytest.raises(ValueError, match="23, got"):
            operation(torch.ones(N - 1))


def test_resample_draws_by_weight() -> None:
    weights = torch.zeros(N)
    weights[3], weights[10], weights[11] = 1.0, 2.0, 7.0
    some = view().resample(weights)
    counts = torch.zeros(N)
    for epoch in range(400):
        drawn = order(some.at(position=0, epoch=epoch))
        assert len(drawn) == N
        counts += torch.bincount(torch.tensor(drawn), minlength=N)
    shares = counts / counts.sum()
    # 9,200 draws: the standard deviation of a share is at most 0.005.
    assert shares.tolist() == pytest.approx((weights / 10).tolist(), abs=0.02)
    assert order(some, shuffle=False) == list(range(N)), "only training draws"


def test_resample_counts_positions_of_the_split_in_a_subset() -> None:
    weights = torch.zeros(N)
    weights[4] = 1.0
    some = view().subset(torch.tensor([2, 4, 6])).resample(weights)
    assert order(some) == [4, 4, 4]
    assert order(view().resample(weights).subset(torch.tensor([2, 4, 6]))) == [4, 4, 4]


def test_subset_is_by_position_in_the_view() -> None:
    once = view().subset(torch.tensor([5, 9, 1, 20]))
    twice = once.subset(torch.tensor([3, 0]))
    assert twice.index.tolist() == [20, 5]
    assert torch.equal(twice.y, Y[[20, 5]])
    assert order(once, shuffle=False) == [5, 9, 1, 20]
    assert sorted(order(once)) == [1, 5, 9, 20]
    assert len(view()) == N, "the view itself stays"


def test_batches_of_a_method() -> None:
    drawn: list[Tensor] = []

    def pairs(rng: torch.Generator) -> Iterable[Sequence[int]]:
        drawn.append(torch.randint(0, 4, (3, 2), generator=rng))
        return [[int(a), int(b)] for a, b in drawn[-1]]

    some = view().subset(torch.tensor([8, 6, 4, 2])).batches(pairs)
    found = [batch.index.tolist() for batch in batches(some)]
    assert found == [[[8, 6, 4, 2][int(p)] for p in row] for row in drawn[-1]], "positions in the view"
    assert some.num_batches() == 3
    assert all(torch.equal(one, drawn[0]) for one in drawn), "the same draw for counting and for every pass"
    assert [batch.index.tolist() for batch in batches(some.at(position=0, epoch=1))] != found


def test_images_are_changed_before_augmentation() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def blacken(frames: Tensor, index: Tensor) -> Tensor:
        seen.append((frames.clone(), index))
        return torch.where((index == 3)[:, None, None, None], 0, frames)

    some = view().map_images(blacken, artifact="masks")
    changed, plain = batches(some), batches(view())
    for (frames, index), one, other in zip(seen, changed, plain, strict=True):
        assert frames.dtype == torch.uint8
        assert torch.equal(frames, FRAMES.images[index]), "cached frames, whole"
        assert torch.equal(index, one.index)
        for row, i in enumerate(index.tolist()):
            assert torch.equal(one.images[row], other.images[row]) == (i != 3), "and nothing else differs"
    with pytest.raises(AssertionError, match="traceable"):
        view().map_images(blacken, artifact="")


# --- access ---


def test_only_declared_columns_are_in_batches() -> None:
    assert type(batches(view())[0]) is Batch
    grouped = batches(view(access=Access.TRAIN_GROUPS))[0]
    assert type(grouped) is GroupedBatch
    assert torch.equal(grouped.group, GROUP[grouped.index])
    assert type(batches(view(access=Access.VAL_GROUPS | Access.VAL_LABELS))[0]) is Batch
    assert type(batches(view("val", Access.TRAIN_GROUPS | Access.VAL_LABELS))[0]) is Batch
    regions = batches(view(access=Access.REGIONS), augment=False)[0]
    assert type(regions) is RegionBatch
    assert regions.group is None
    assert regions.mask is not None
    assert torch.equal(regions.mask, evaluation_masks(FRAMES.masks[regions.index], INPUT).bool())  # type: ignore[index]
    both = batches(view(access=Access.REGIONS | Access.TRAIN_GROUPS))[0]
    assert isinstance(both, RegionBatch)
    assert both.group is not None


def test_masks_move_with_their_images() -> None:
    """Images that are their own mask: after the same crop and flip, bright is where the mask is."""
    masks = torch.zeros(N, 32, 32, dtype=torch.uint8)
    masks[:, 4:20, 6:14] = 1
    frames = Frames(images=(255 * masks)[..., None].expand(-1, -1, -1, 3).contiguous(), masks=masks, boxes=None)
    geometry = InputConfig(resize=32, image_size=24, crop_scale=(0.4, 1.0))
    some = make_view("train", frames, Y, None, Access.REGIONS, settings(input=geometry))
    for batch in batches(some):
        assert isinstance(batch, RegionBatch)
        assert batch.mask is not None
        bright = batch.images[:, 0] > (0.5 - 0.4) / 0.2
        assert (bright == batch.mask).float().mean() > 0.97


def test_validation_labels_and_groups_need_declaring() -> None:
    closed = view("val")
    for column in ("y", "group"):
        with pytest.raises(AccessDenied, match=r"Access\.VAL_"):
            getattr(closed, column)
    assert all((batch.y == -1).all() for batch in batches(closed, shuffle=False))
    assert torch.equal(view("val", Access.VAL_LABELS).y, Y)
    with pytest.raises(AccessDenied, match=r"groups of val .*Access\.VAL_GROUPS"):
        _ = view("val", Access.VAL_LABELS | Access.TRAIN_GROUPS).group
    assert torch.equal(view("val", Access.VAL_GROUPS).group, GROUP)


def test_training_groups_need_declaring() -> None:
    assert torch.equal(view().y, Y)
    with pytest.raises(AccessDenied, match=r"groups of train .*Access\.TRAIN_GROUPS"):
        _ = view(access=Access.VAL_GROUPS | Access.VAL_LABELS).group
    assert torch.equal(view(access=Access.TRAIN_GROUPS).group, GROUP)
    with pytest.raises(AccessDenied):
        _ = view(access=Access.TRAIN_GROUPS, group=None).group


# --- a spy in the engine ---


class Toy:
    """Sixteen training images and fewer of the others; every column is a pattern that shows when it is seen."""

    sizes: ClassVar[dict[str, int]] = {"train": 16, "val": 13, "test": 11}

    def __init__(self, name: str) -> None:
        self.name = name
        n = self.sizes[name]
        rng = torch.Generator().manual_seed(n)
        self.y = torch.randint(0, 2, (n,), generator=rng)
        self.group = 2 * self.y + torch.randint(0, 2, (n,), generator=rng)
        self.masks = torch.rand(n, 64, 64, generator=rng) < 0.3
        self.images = torch.randint(0, 256, (n, 3, 64, 64), generator=rng, dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> Sample:
        return Sample(image=self.images[i], y=int(self.y[i]), group=int(self.group[i]), index=i, mask=self.masks[i])


class ToyDataset:
    info = DatasetInfo(
        name="toy", version="1", classes=("a", "b"), attributes=("x", "y"), preset="minibirds", has_masks=True
    )

    def split(self, name: str) -> Toy:
        return Toy(name)

    def fingerprint(self) -> str:
        return "f" * 64


def secrets() -> dict[str, Tensor]:
    """What a method that declares nothing must not find, by name."""
    splits = {name: Toy(name) for name in Toy.sizes}
    found = {f"{name} groups": split.group for name, split in splits.items()}
    found |= {f"{name} masks": split.masks for name, split in splits.items()}
    return found | {f"{name} labels": splits[name].y for name in ("val", "test")}


def walk(root: Any) -> Iterator[Tensor]:
    """Every tensor that can be reached through attributes, items, closures, bound methods and partials."""
    stack, seen, keep = [root], set(), []
    while stack:
        item = stack.pop()
        if id(item) in seen or isinstance(item, type | types.ModuleType | str | bytes | int | float | None):
            continue
        seen.add(id(item))
        keep.append(item)  # ids stay unique as long as their objects live
        if isinstance(item, Tensor):
            yield item
            if item._base is not None:
                stack.append(item._base)
        elif isinstance(item, dict):
            stack += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set | frozenset):
            stack += item
        elif isinstance(item, types.FunctionType):
            stack += [cell.cell_contents for cell in item.__closure__ or ()]
            stack += [*(item.__defaults__ or ()), *(item.__kwdefaults__ or {}).values()]
        elif isinstance(item, types.MethodType):
            stack += [item.__self__, item.__func__]
        elif isinstance(item, functools.partial):
            stack += [item.func, item.args, item.keywords]
        stack += getattr(item, "__dict__", {}).values()
        for cls in type(item).__mro__:
            slots = cls.__dict__.get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                stack.append(getattr(item, name, None))


class Spy(BaseMethod[MethodConfig]):
    """ERM that looks at all it is given."""

    found: ClassVar[list[str]] = []
    tensors: ClassVar[int] = 0
    calls: ClassVar[set[str]] = set()

    def look(self, where: str, *given: Any) -> None:
        Spy.calls.add(where)
        for tensor in walk([self, *given]):
            Spy.tensors += 1
            for name, secret in secrets().items():
                if (
                    not tensor.is_meta
                    and tensor.numel() == secret.numel()
                    and torch.equal(tensor.detach().cpu().double().flatten(), secret.double().flatten())
                ):
                    Spy.found.append(f"{where}: {name}")

    def build(self, backbone: Backbone, task: TaskInfo) -> nn.Module:
        self.look("build", backbone, task)
        return super().build(backbone, task)

    def phases(self, train: TrainConfig) -> Sequence[Phase]:
        self.look("phases", train)
        first, second = (Phase(name=name, epochs=1, optimizer=train.optimizer) for name in ("first", "second"))
        return first, second

    def start_phase(self, phase: Phase, model: nn.Module, views: Views, store: ArtifactStore) -> View:
        self.look("start_phase", phase, model, views, store)
        self.look("loader", list(views.train.loader(shuffle=True, augment=True)))
        self.look("loader of val", list(views.val.loader(shuffle=False, augment=False)))
        return views.train

    def training_step(self, model: nn.Module, batch: Batch, progress: Progress) -> StepOutput:
        self.look("training_step", model, batch, progress)
        return super().training_step(model, batch, progress)

    def evaluate(self, model: nn.Module, images: Tensor) -> Prediction:
        self.look("evaluate", model, images)
        return super().evaluate(model, images)


class Declared(Spy):
    """The same spy, allowed to see everything that can be declared."""

    access = Access.TRAIN_GROUPS | Access.VAL_GROUPS | Access.VAL_LABELS | Access.REGIONS


@pytest.fixture
def run_spy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[type[Spy]], list[str]]:
    """A whole run of a spy on the toy data; returns what it has found."""

    def with_toys(kind: Any, plugins: tuple[Path, ...] = ()) -> Registry:
        registry = load_registry(kind, plugins)
        if kind == "methods":
            registry.add(Entry("spy", Spy, "here"))
            registry.add(Entry("declared", Declared, "here"))
        else:
            registry.add(Entry("toy", DatasetSpec(info=ToyDataset.info, open=lambda root: ToyDataset()), "here"))
        return registry

    monkeypatch.setattr("spurbench.dataset.load_registry", with_toys)
    monkeypatch.setattr("spurbench.resolve.load_registry", with_toys)
    monkeypatch.setattr(engine_run, "load_registry", with_toys)

    def run(cls: type[Spy]) -> list[str]:
        Spy.found.clear()
        Spy.calls.clear()
        Spy.tensors = 0
        request = RunRequest(
            method=cls.__name__.lower(), dataset="toy", weights="none", overrides={"evaluation.attributions": []}
        )
        config, paths = resolve_run(request, RunPaths(results=tmp_path / cls.__name__, cache=tmp_path / "cache"))
        assert run_one(config, paths, device="cpu") is not None
        return sorted(set(Spy.found))

    return run


def test_a_spy_that_declares_nothing_finds_nothing(run_spy: Callable[[type[Spy]], list[str]]) -> None:
    found = run_spy(Spy)
    assert Spy.calls == {"build", "phases", "start_phase", "loader", "loader of val", "training_step", "evaluate"}
    assert Spy.tensors > 1000
    assert found == []


def test_the_spy_would_find_it(run_spy: Callable[[type[Spy]], list[str]]) -> None:
    """Declared supervision is there, and the walk sees it; that of the test split is never there."""
    found = run_spy(Declared)
    for name in ("train groups", "val groups", "val labels", "train masks", "val masks"):
        assert f"start_phase: {name}" in found
    assert not [name for name in found if "test" in name]


def test_the_walk_looks_into_closures_partials_and_slots() -> None:
    secret = secrets()["test groups"]

    @dataclasses.dataclass(frozen=True, slots=True)
    class Slotted:
        value: Any

    def closure() -> Callable[[], Tensor]:
        inside = {"key": [secret]}
        return lambda: inside["key"][0]

    hidden = [closure(), functools.partial(max, secret), Slotted(Slotted((secret,))), secret[2:], secret.tolist]
    for item in hidden[:4]:
        assert any(tensor is secret for tensor in walk(item)), item
