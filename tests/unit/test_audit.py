"""Classifiers that were not made here: how they are loaded, and what is said about them."""

import csv
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

import spurbench.zoo  # noqa: F401  registers the shipped backbone
from spurbench.audit import _Audited, audit, read_classes
from spurbench.classifiers import TrainedClassifier, _last_map, load_classifier
from spurbench.cli import main
from spurbench.config import RunPaths
from spurbench.errors import ConfigError, DataMissing
from spurbench.resolve import dataset_entry

TOYS = Path(__file__).parents[1] / "integration" / "toys.py"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    root = tmp_path_factory.mktemp("audit")
    edition = root / "data" / "toys" / "edition"
    edition.parent.mkdir(parents=True)
    edition.write_text("first")
    return RunPaths(results=root / "results", cache=root / "cache", data_root=root / "data")


def fresh(name: str, num_classes: int, **more: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, num_classes=num_classes, **more)
    return model.eval()


def saved(model: nn.Module, path: Path, wrap: str = "", prefix: str = "") -> str:
    state: dict[str, Any] = {prefix + name: value for name, value in model.state_dict().items()}
    torch.save({wrap: state, "epoch": 3} if wrap else state, path)
    return str(path)


# -------------------------------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize(("wrap", "prefix"), [("", ""), ("state_dict", "module."), ("model", ""), ("", "model.")])
def test_a_file_of_weights_gives_the_model_back(tmp_path: Path, wrap: str, prefix: str) -> None:
    """With as many outputs as the file has, whoever wrapped it."""
    model = fresh("test_convnext", 3)
    found = load_classifier(saved(model, tmp_path / "m.pth", wrap, prefix), "test_convnext")
    images = torch.randn(2, 3, found.image_size, found.image_size)
    assert found.num_outputs == 3
    assert found.weights.startswith("sha256:")
    assert not found.model.training
    torch.testing.assert_close(found.model(images), model(images))


def test_safetensors_too(tmp_path: Path) -> None:
    model = fresh("test_convnext", 2)
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    assert load_classifier(str(tmp_path / "m.safetensors"), "test_convnext").num_outputs == 2


def test_the_shipped_network_is_pretrained() -> None:
    found = load_classifier("minibirds_resnet", None)
    assert (found.num_outputs, found.image_size, found.resize) == (24, 64, 64)
    model = timm.create_model("minibirds_resnet", pretrained=True).eval()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(found.model(images), model(images))


@pytest.mark.parametrize(
    "name",
    [
        "test_resnet",
        "test_convnext",
        "test_vit",
        "test_efficientnet",
        "minibirds_vit",
        "resnet18",
        "swin_tiny_patch4_window7_224",
    ],
)
def test_timm_models_can_be_explained_and_are_still_themselves(name: str, tmp_path: Path) -> None:
    model = fresh(name, 2)
    found = load_classifier(saved(model, tmp_path / "m.pth"), name)
    images = torch.randn(1, 3, found.image_size, found.image_size)
    torch.testing.assert_close(found.model(images), model(images), rtol=1e-3, atol=1e-4)
    assert found.cam_layer is not None


def densenet() -> nn.Module:
    return models.DenseNet(growth_rate=4, block_config=(2, 2), num_init_features=8, num_classes=2)


def swin() -> nn.Module:
    """Its maps have their channels last until the end."""
    return models.SwinTransformer(
        patch_size=[4, 4], embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=[4, 4], num_classes=2
    )


def vgg() -> nn.Module:
    """Its classifier reads positions, not their mean."""
    return models.VGG(nn.Sequential(nn.Conv2d(3, 512, 3, stride=2), nn.ReLU()), num_classes=2)


def squeezenet() -> nn.Module:
    """A convolution makes its logits, position by position."""
    return models.squeezenet1_1(num_classes=2)


@pytest.mark.parametrize(
    ("build", "name"),
    [(densenet, "features"), (swin, "permute"), (vgg, "avgpool"), (squeezenet, "classifier.2")],
)
def test_the_last_map_is_all_that_a_classifier_reads(build: Callable[[], nn.Module], name: str) -> None:
    torch.manual_seed(0)
    model = build().eval()
    layer = _last_map(model, 64)
    assert layer is model.get_submodule(name)
    maps: list[Tensor] = []
    with torch.no_grad():
        handle = layer.register_forward_hook(lambda module, args, output: maps.append(output))
        own = model(torch.randn(1, 3, 64, 64))
        other = model(torch.randn(1, 3, 64, 64))
        handle.remove()
        assert not torch.equal(own, other)
        # Put into a pass of another image, the map brings its logits along.
        handle = layer.register_forward_hook(lambda module, args, output: maps[0].clone())
        torch.testing.assert_close(model(torch.randn(1, 3, 64, 64)), own)
        handle.remove()
    (_, _, height, width), channels = maps[0].shape, maps[0].shape[1]
    assert height == width > 1
    assert channels != width


def test_a_torchvision_file_gives_the_model_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = models.resnet18(num_classes=2).eval()
    found = load_classifier(saved(model, tmp_path / "m.pth"), "torchvision:resnet18")
    assert (found.num_outputs, found.image_size, found.resize) == (2, 224, 256)
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(found.model(images), model(images))
    assert found.cam_layer is found.model.layer4


def test_a_model_without_a_last_map_says_so(paths: RunPaths) -> None:
    """The only map of a ViT lies before its attention."""
    vit = models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=1, num_heads=1, hidden_dim=8, mlp_dim=8, num_classes=2
    )
    assert _last_map(vit.eval(), 32) is None
    found = TrainedClassifier(
        name="vit", weights="", model=vit, cam_layer=None, num_outputs=2, image_size=32, resize=32, mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )  # fmt: skip
    with pytest.raises(
        ConfigError, match=r"vit has no map .* gradcam could explain; choose another --attribution: input_x"
    ):
        audit(found, "toys", paths, device=CPU, plugins=(TOYS,))
    assert (
        "epg" in audit(found, "toys", paths, attributions=["input_x_gradient"], device=CPU, plugins=(TOYS,))["metrics"]
    )


def test_pretrained_torchvision_weights_are_looked_for_on_this_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(DataMissing, match=r"weights of torchvision:squeezenet1_1 are not on this disk; fetch .* to"):
        load_classifier("torchvision:squeezenet1_1", None)
    (tmp_path / "checkpoints").mkdir()
    url = models.get_model_weights("squeezenet1_1").DEFAULT.url
    model = models.get_model("squeezenet1_1", weights=None)
    saved(model, tmp_path / "checkpoints" / url.rsplit("/", 1)[-1])
    assert load_classifier("torchvision:squeezenet1_1", None).num_outputs == 1000


@pytest.mark.parametrize(
    ("model", "backbone", "message"),
    [
        ("m.pth", None, "tell what the weights in .* belong to: --backbone NAME"),
        ("m.pth", "test_resnet", "does not hold a classifier of test_resnet|does not hold weights of test_resnet"),
        ("m.pth", "resnett18", "unknown backbone 'resnett18'; did you mean"),
        ("m.pth", "torchvision:resnet51", "unknown model 'torchvision:resnet51'; did you mean"),
        ("m.pth", "torchvision:inception_v3", "changes its input .* audit timm's inception_v3"),
        ("part.pth", "test_convnext", r"does not hold weights of test_convnext: '.*' is missing"),
        ("more.pth", "test_convnext", "'extra' belongs to no part of it"),
        ("shape.pth", "test_convnext", r"has shape \[1\], expected"),
        ("run.pth", "test_convnext", "weights of a spurbench run; measure the run itself: spurbench eval RUN"),
        ("text.pth", "test_convnext", "cannot read weights from"),
        ("list.pth", "test_convnext", "holds no state dict"),
        ("nowhere.pth", "test_convnext", "no weights file at"),
        ("test_convnext", "test_convnext", "--backbone is for a file of weights"),
        ("test_vit.none", None, "unknown weights 'tag:none' for test_vit"),
        ("minibirds_resnett", None, "unknown backbone 'minibirds_resnett'; did you mean 'minibirds_resnet'"),
        ("test_resnet", None, "not on this disk"),
        ("vit_tiny_patch16_384", None, "not on this disk"),
        ("resnet26t_nothing", None, "unknown backbone"),
        ("vgg11x", None, "unknown backbone"),
    ],
)
def test_what_cannot_be_audited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, backbone: str | None, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    state = dict(fresh("test_convnext", 2).state_dict())
    first = next(iter(state))
    torch.save(state, "m.pth")
    torch.save({name: value for name, value in state.items() if name != first}, "part.pth")
    torch.save(state | {"extra": torch.zeros(1)}, "more.pth")
    torch.save(state | {first: torch.zeros(1)}, "shape.pth")
    torch.save({"backbone.trunk.x": torch.zeros(1)}, "run.pth")
    torch.save({"a": [1, 2]}, "list.pth")
    Path("text.pth").write_text("no weights")
    with pytest.raises((ConfigError, DataMissing), match=message):
        load_classifier(model, backbone)


def test_a_name_without_weights_decides_nothing() -> None:
    without = next(name for name in timm.list_models("vit_*") if not timm.list_pretrained(f"{name}.*"))
    with pytest.raises(ConfigError, match=f"no trained weights for {without}, .*spurbench audit FILE --backbone"):
        load_classifier(without, None)


# ------------------------------------------------------------------------------------------------------------ measuring


class ByRegion(nn.Module):
    """Knows the toys by the colour inside of the object, or by that of the background; two outputs per class."""

    def __init__(self, inside: bool) -> None:
        super().__init__()
        self.map = nn.Conv2d(3, 3, 1, bias=False)
        self.map.weight.data = torch.eye(3)[:, :, None, None]
        self.inside = inside

    def forward(self, images: Tensor) -> Tensor:
        images = self.map(images)
        size = images.shape[-1]
        keep = torch.zeros(size, size)
        keep[size // 4 : size * 3 // 4, size // 4 : size * 3 // 4] = 1
        keep = keep if self.inside else 1 - keep
        colour = (images * keep).sum((2, 3)) / keep.sum()
        score = 5 * (colour[:, 0] - colour[:, 2]) if self.inside else 5 * (colour[:, 1] - colour[:, 0])
        zeros = torch.zeros_like(score)
        return torch.stack([zeros, zeros - 20, -score if self.inside else score, zeros - 20], dim=1)


def by_region(inside: bool) -> TrainedClassifier:
    model = ByRegion(inside).eval()
    return TrainedClassifier(
        name="by_region", weights="none", model=model, cam_layer=model.map, num_outputs=4, image_size=32, resize=32,
        mean=(0.4,) * 3, std=(0.25,) * 3,
    )  # fmt: skip


CLASSES = {"red": [2, 3], "blue": [0, 1]}


@pytest.mark.parametrize("inside", [True, False])
def test_what_a_classifier_decides_by_is_found(paths: RunPaths, inside: bool) -> None:
    """Two that are made to look at one thing: erasing the other changes no prediction of theirs."""
    found = audit(by_region(inside), "toys", paths, classes=CLASSES, device=CPU, plugins=(TOYS,))
    kept = {(entry["erased"], entry["fill"]): entry["agree"] / entry["n"] for entry in found["erasure"]}
    what, other = ("object", "background") if inside else ("background", "object")
    assert kept[other, "mean"] == 1.0
    assert kept[what, "mean"] < 0.9
    assert found["object"] == "mask"
    assert found["follows"] == what
    assert found["findings"][-1].startswith(f"It decides more by the {what}")
    json.dumps(found, allow_nan=False)


def test_numbers_are_those_of_plain_loops(paths: RunPaths) -> None:
    """Accuracies by hand, logits of a class as the log of summed exponentials, EPG by pytorch-grad-cam."""
    classifier = by_region(True)
    found = audit(classifier, "toys", paths, classes=CLASSES, batch_size=7, device=CPU, plugins=(TOYS,))
    split = dataset_entry("toys", (TOYS,))[0].open(paths.data_root).split("test")
    right: dict[int, list[bool]] = {}
    points = []
    cam = GradCAM(model=_ClassLogits(classifier.model), target_layers=[classifier.cam_layer])
    for index in range(len(split)):
        sample = split[index]
        images = ((sample.image / 255 - 0.4) / 0.25)[None]
        output = classifier.model(images)[0].tolist()
        logits = [math.log(sum(math.exp(output[i]) for i in CLASSES[name])) for name in ("red", "blue")]
        assert sample.group is not None
        right.setdefault(sample.group, []).append((logits[1] > logits[0]) == bool(sample.y))
        energy = torch.from_numpy(cam(images, targets=[ClassifierOutputTarget(sample.y)])[0]).float()
        points.append(float((energy * sample.mask).sum() / energy.sum()) if energy.sum() > 1e-7 else 0.0)
    metrics = found["metrics"]
    assert [group["correct"] for group in metrics["groups"]] == [sum(right[group]) for group in range(4)]
    assert metrics["worst_group_accuracy"] == min(sum(group) / len(group) for group in right.values())
    assert metrics["epg"] == pytest.approx(sum(points) / len(points), abs=2e-3)
    assert metrics["epg_base_rate"] == pytest.approx(0.25)


class _ClassLogits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        output = self.model(images)
        return torch.stack([output[:, CLASSES[name]].exp().sum(1).log() for name in ("red", "blue")], 1)


def test_a_set_without_objects_has_groups_only(paths: RunPaths) -> None:
    found = audit(by_region(True), "toys_plain", paths, classes=CLASSES, device=CPU, plugins=(TOYS,))
    assert (found["erasure"], found["object"], found["follows"]) == (None, None, None)
    assert "epg" not in found["metrics"]
    assert "no masks or boxes" in found["findings"][-1]
    assert found["metrics"]["worst_group"] in ("red", "blue")


CHANGED = """
from dataclasses import replace
import torch
from spurbench.dataset import DatasetTransform

class Hidden:
    def __init__(self, plain):
        self.plain, self.y, self.group = plain, plain.y, plain.group
    def __len__(self):
        return len(self.plain)
    def __getitem__(self, index):
        sample = self.plain[index]
        return sample if index % 3 == 1 else replace(sample, mask=torch.zeros_like(sample.mask))

class Moved:
    def __init__(self, plain):
        self.plain, self.y, self.group = plain, plain.y, plain.group
    def __len__(self):
        return len(self.plain)
    def __getitem__(self, index):
        sample, by = self.plain[index], (index % 3 * 4, index % 5 * 3)
        return replace(sample, image=sample.image.roll(by, (1, 2)), mask=sample.mask.roll(by, (0, 1)))

class Third:
    def __init__(self, plain):
        self.plain, self.y, self.group = plain, plain.y[1::3], plain.group[1::3]
    def __len__(self):
        return len(self.y)
    def __getitem__(self, index):
        return replace(self.plain[3 * index + 1], index=index)

TRANSFORMS = {
    cls.__name__.lower(): DatasetTransform(
        name=cls.__name__.lower(), version="1", description="", declare=lambda info: info,
        change=lambda split, info, cls=cls: cls(split),
    )
    for cls in (Hidden, Moved, Third)
}
"""


def test_images_that_show_no_object_are_left_out_of_erasure(paths: RunPaths, tmp_path: Path) -> None:
    """Of 40, 13 show one; the rest plays no part, neither in counts nor in the control, whatever the batches."""
    plugin = tmp_path / "changed.py"
    plugin.write_text(CHANGED)
    found = [
        audit(
            by_region(True), name, paths, classes=CLASSES, batch_size=size, device=CPU, plugins=(TOYS, plugin)
        )["erasure"]
        for name, size in (("toys+hidden", 64), ("toys+hidden", 1), ("toys+third", 64))
    ]  # fmt: skip
    assert found[0] == found[1] == found[2]
    assert {entry["erased"]: entry["n"] for entry in found[0]} == {"background": 13, "object": 13, "control": 12}


def test_erased_images_are_those_of_a_plain_loop(paths: RunPaths, tmp_path: Path) -> None:
    """Objects at different places; the control has the place of the image before."""
    plugin = tmp_path / "changed.py"
    plugin.write_text(CHANGED)
    classifier = by_region(True)
    found = audit(
        classifier, "toys+moved", paths, classes=CLASSES, batch_size=9, device=CPU, plugins=(TOYS, plugin)
    )  # fmt: skip
    split = dataset_entry("toys+moved", (TOYS, plugin))[0].open(paths.data_root).split("test")
    images = [(split[index].image / 255 - 0.4) / 0.25 for index in range(len(split))]
    masks = [split[index].mask for index in range(len(split))]

    def guess(image: Tensor) -> int:
        return int(_ClassLogits(classifier.model)(image[None]).argmax())

    whole = [guess(image) for image in images]
    kept = {
        "background": [guess(image * mask) for image, mask in zip(images, masks, strict=True)],
        "object": [guess(image * ~mask) for image, mask in zip(images, masks, strict=True)],
        "control": [guess(image * mask) for image, mask in zip(images[1:], masks[:-1], strict=True)],
    }
    entries = {entry["erased"]: entry for entry in found["erasure"] if entry["fill"] == "mean"}
    assert len({entry["agree"] for entry in entries.values()}) == 3
    for erased, guesses in kept.items():
        first = len(whole) - len(guesses)
        assert entries[erased]["agree"] == sum(a == b for a, b in zip(guesses, whole[first:], strict=True))
        assert entries[erased]["correct"] == sum(a == b for a, b in zip(guesses, split.y[first:].tolist(), strict=True))


def test_outputs_in_order_are_the_model_itself() -> None:
    """Logsumexp of one output is that output; what stands in order is passed through."""
    draw = torch.randn(3, 2)
    model = nn.Identity()
    classifier = TrainedClassifier(
        name="x",
        weights="",
        model=model,
        cam_layer=None,
        num_outputs=2,
        image_size=4,
        resize=4,
        mean=(0.0,),
        std=(1.0,),
    )
    assert _Audited(classifier, [[0], [1]]).evaluate(model, draw).logits is draw
    assert torch.equal(_Audited(classifier, [[1], [0]]).evaluate(model, draw).logits, draw.flip(1))
    three = torch.randn(3, 3)
    logits = _Audited(classifier, [[2, 0], [1]]).evaluate(model, three).logits
    # The softmax over classes is that over outputs, added up.
    torch.testing.assert_close(logits.softmax(1)[:, 0], three.softmax(1)[:, [0, 2]].sum(1))


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (None, r"by_region has 4 outputs, toys has 2 classes \(red, blue\); .*--classes FILE"),
        ({"red": [0], "blu": [1]}, "names 'blu', which toys has not; did you mean 'blue'"),
        ({"red": [0]}, "names no outputs for blue of toys"),
        ({"red": [0], "blue": [4]}, "output 4 of 'blue' does not exist; by_region has 0 to 3"),
        ({"red": [0], "blue": [-1]}, "output -1 of 'blue' does not exist"),
    ],
)
def test_classes_that_do_not_fit(paths: RunPaths, classes: dict[str, list[int]] | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        audit(by_region(True), "toys", paths, classes=classes, device=CPU, plugins=(TOYS,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected"),
        ("{}", "expected"),
        ('{"a": 1}', "class 'a' has 1; expected"),
        ('{"a": []}', r"class 'a' has \[\]"),
        ('{"a": [true]}', r"class 'a' has \[true\]"),
        ('{"a": [1.0]}', r"class 'a' has \[1.0\]"),
        ('{"a": ["1"]}', "class 'a' has"),
        ('{"a": [1], "b": [2, 1]}', "output 1 stands for 'a' and for 'b'"),
        ('{"a": [1, 1]}', "output 1 stands for 'a' and for 'a'"),
    ],
)
def test_class_files_that_are_no_such(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "classes.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_classes(path)
    with pytest.raises(DataMissing, match="no file at"):
        read_classes(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"image_size": 64, "resize": 32}, "--image-size 64 is larger than --resize 32"),
        ({"split": "tset"}, "toys has no split 'tset'"),
    ],
)
def test_geometry_and_splits_that_are_not_there(paths: RunPaths, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        audit(by_region(True), "toys", paths, classes=CLASSES, device=CPU, plugins=(TOYS,), **more)


def test_sizes_that_a_model_does_not_take(tmp_path: Path, paths: RunPaths) -> None:
    found = load_classifier(saved(fresh("minibirds_vit", 2), tmp_path / "m.pth"), "minibirds_vit")
    with pytest.raises(ConfigError, match=r"takes 64 px images only|does not take images of 48 px"):
        audit(found, "toys", paths, image_size=48, device=CPU, plugins=(TOYS,))


# -------------------------------------------------------------------------------------------------------------- command


def test_the_command_prints_table_csv_and_json(
    tmp_path: Path, paths: RunPaths, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPURBENCH_CACHE", str(paths.cache))
    file = saved(fresh("test_convnext", 2), tmp_path / "m.pth")
    command = ["audit", file, "--backbone", "test_convnext", "--dataset", "toys", "--plugin", str(TOYS)]
    command += ["--data-root", str(paths.data_root), "--image-size", "32"]
    assert main(command) == 0
    table = capsys.readouterr().out
    assert "test_convnext on toys, test split" in table
    assert "class red: output 0\n" in table
    assert main([*command, "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["model"]["input"]["image_size"] == 32
    assert document["findings"][-1] in table
    assert main([*command, "--format", "csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    first = lines[0]
    assert (first["metric"], first["of"]) == ("accuracy", "all")
    assert float(first["value"]) == document["metrics"]["accuracy"]
    assert {line["metric"] for line in lines} >= {"worst_group_accuracy", "epg", "predictions that stay"}


def test_the_shipped_network_can_be_audited_offline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "minibirds_resnet", "--dataset", "minibirds100"]) == 2
    assert "minibirds_resnet has 24 outputs, minibirds100 has 2 classes" in capsys.readouterr().err
