"""Trunks against timm's own feature extraction, and where weights come from: never from the network."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from spurbench import zoo
from spurbench.backbone import Backbone, build_backbone, check_backbone, resolve_weights
from spurbench.config import BackboneConfig
from spurbench.errors import ConfigError, DataError, DataMissing
from spurbench.io import hash_file

SMALL = ["minibirds_resnet", "test_convnext", "test_resnet", "resnet18"]


def build(name: str, weights: str = "none", path: Path | None = None) -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_backbone(BackboneConfig(name=name, weights=weights), path)


def images(size: int = 64) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Any attempt to reach the network fails the test, even if it is caught on the way."""
    attempts: list[Any] = []

    def refuse(*args: Any, **kwargs: Any) -> Any:
        attempts.append(args)
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield
    assert not attempts


@pytest.fixture
def empty_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for everything that timm and its hub client keep."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "torch"))
    return tmp_path


def put_into_hub(store: Path, repository: str, source: Path, file: str = "model.safetensors") -> None:
    """A file as the hub client would have left it."""
    folder = store / "hub" / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / file).write_bytes(source.read_bytes())


# --- maps ---


@pytest.mark.parametrize(("name", "size"), [*((name, 64) for name in SMALL), ("test_efficientnet", 64)])
def test_stages_are_timms_features(name: str, size: int) -> None:
    trunk = build(name).eval()
    everything = tuple(range(trunk.num_stages))
    theirs = timm.create_model(name, features_only=True, out_indices=everything).eval()
    # Same weights under the names of either form: stages.0 or stages_0, below model. or not.
    flat = {key.replace(".", "_"): value for key, value in trunk.trunk.state_dict().items()}
    theirs.load_state_dict({key: flat[key.removeprefix("model.").replace(".", "_")] for key in theirs.state_dict()})
    assert trunk.channels == tuple(theirs.feature_info.channels())
    assert trunk.reductions == tuple(theirs.feature_info.reduction())
    with torch.no_grad():
        expected = theirs(images(size))
        for count in range(1, trunk.num_stages + 1):
            maps = trunk.stages(images(size), count)
            assert len(maps) == count
            assert all(map(torch.equal, maps, expected[-count:]))


@pytest.mark.parametrize("name", SMALL)
def test_pooled_is_what_the_classifier_reads(name: str) -> None:
    trunk = build(name).eval()
    whole = timm.create_model(name, num_classes=7).eval()
    missing, _ = whole.load_state_dict(trunk.trunk.state_dict(), strict=False)
    assert all("fc" in key for key in missing)
    with torch.no_grad():
        pooled = trunk.pooled(images())
        assert torch.equal(pooled, whole.forward_head(whole.forward_features(images()), pre_logits=True))
        assert torch.equal(whole.get_classifier()(pooled), whole(images()))
    assert pooled.shape == (2, trunk.num_features)


@pytest.mark.parametrize("name", SMALL)
def test_trunk_has_no_classifier(name: str) -> None:
    trunk = build(name)
    assert trunk.trunk.num_classes == 0
    assert not [key for key in trunk.state_dict() if key.endswith("fc.weight") and "head.fc" in key]
    assert isinstance(trunk.trunk.get_classifier(), torch.nn.Identity)


@pytest.mark.parametrize(("name", "size"), [*((name, 64) for name in SMALL), ("swin_tiny_patch4_window7_224", 224)])
def test_last_map_sees_what_is_pooled(name: str, size: int) -> None:
    trunk = build(name).eval()
    inputs, outputs = images(size), []
    handle = trunk.last_map.register_forward_hook(lambda module, args, output: outputs.append(output))
    with torch.no_grad():
        pooled = trunk.pooled(inputs)
        handle.remove()
        features = trunk.trunk.forward_features(inputs)
        assert torch.equal(pooled, trunk.trunk.forward_head(features, pre_logits=True))
    (seen,) = outputs
    assert seen.shape == (2, trunk.channels[-1], size // trunk.reductions[-1], size // trunk.reductions[-1])
    assert torch.equal(seen, features if seen.shape == features.shape else features.permute(0, 3, 1, 2))


@pytest.mark.parametrize(("name", "size"), [("test_vit", 160), ("swin_tiny_patch4_window7_224", 224)])
def test_transformers_give_maps_with_channels_first(name: str, size: int) -> None:
    trunk = build(name).eval()
    with torch.no_grad():
        maps = trunk.stages(torch.zeros(1, 3, size, size), 2)
        assert trunk.pooled(torch.zeros(1, 3, size, size)).shape == (1, trunk.num_features)
    expected = [
        (1, channels, size // stride, size // stride)
        for channels, stride in zip(trunk.channels[-2:], trunk.reductions[-2:], strict=True)
    ]
    assert [tuple(m.shape) for m in maps] == expected


def test_copy_is_independent() -> None:
    trunk = build("minibirds_resnet")
    twin = trunk.copy()
    assert all(map(torch.equal, trunk.state_dict().values(), twin.state_dict().values()))
    with torch.no_grad():
        next(twin.parameters()).add_(1)
    assert not torch.equal(next(trunk.parameters()), next(twin.parameters()))


@pytest.mark.parametrize("count", [0, -1, 5])
def test_impossible_numbers_of_stages(count: int) -> None:
    with pytest.raises(ConfigError, match=rf"num_stages {count} is impossible with backbone minibirds_resnet"):
        build("minibirds_resnet").require_stages(count)


# --- names ---


def test_unknown_names_offer_the_closest() -> None:
    for use in (
        check_backbone,
        lambda name: resolve_weights(name, "none"),
        lambda name: build(name),
    ):
        with pytest.raises(ConfigError, match="unknown backbone 'resnet_50'; did you mean 'resnet50'"):
            use("resnet_50")
    check_backbone("convnext_tiny")
    check_backbone("minibirds_resnet")


# --- weights ---


def test_none() -> None:
    assert resolve_weights("resnet18", "none") == ("none", None)
    one, other = build("resnet18"), build("resnet18")
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values())), "from the caller's stream"


def test_shipped_weights_are_their_content() -> None:
    identity, path = resolve_weights("minibirds_resnet", "default")
    assert path == zoo.WEIGHTS["minibirds_resnet"]
    assert identity == f"sha256:{hash_file(path)}"
    trunk = build("minibirds_resnet", identity, path)
    whole = timm.create_model("minibirds_resnet", pretrained=True)
    shared = trunk.trunk.state_dict()
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in shared.items())
    assert not torch.equal(
        next(iter(shared.values())), next(iter(build("minibirds_resnet").trunk.state_dict().values()))
    )
    assert resolve_weights("minibirds_resnet", "species") == (identity, path)


def test_default_and_tags_are_told_apart() -> None:
    assert resolve_weights("resnet50", "default") == ("tag:a1_in1k", None)
    assert resolve_weights("resnet50", "tv_in1k") == ("tag:tv_in1k", None)
    assert resolve_weights("resnet50", "tag:tv_in1k") == ("tag:tv_in1k", None), "its own result again"


def test_default_is_no_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "default").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_weights("resnet50", "default") == ("tag:a1_in1k", None)


@pytest.mark.parametrize("tag", ["tv_in1", "tag:tv_in1"])
def test_unknown_tags_offer_the_closest(tag: str) -> None:
    with pytest.raises(
        ConfigError, match=r"unknown weights '.*tv_in1' for resnet50.*available: none, default, .*tv_in1k"
    ):
        resolve_weights("resnet50", tag)


def test_models_without_weights_say_so() -> None:
    name = next(n for n in timm.list_models() if not timm.list_pretrained(f"{n}.*") and timm.get_pretrained_cfg(n))
    with pytest.raises(ConfigError, match=f"timm has no pretrained weights for {name}"):
        resolve_weights(name, "default")


@pytest.mark.parametrize(("name", "tag"), [("convnext_tiny", "in12k_ft_in1k"), ("resnet50", "tv_in1k")])
def test_weights_that_are_not_on_disk_name_prefetch(empty_store: Path, name: str, tag: str) -> None:
    with pytest.raises(DataMissing) as caught:
        build(name, f"tag:{tag}")
    message = str(caught.value)
    assert "\n" not in message
    assert f"`spurbench prefetch {name}`" in message
    assert f"{name}.{tag}" in message
    assert "minibirds100" in message


def test_prefetched_weights_are_read_from_disk(empty_store: Path, tmp_path: Path) -> None:
    whole = timm.create_model("test_convnext.r160_in1k")
    source = tmp_path / "source.safetensors"
    save_file(whole.state_dict(), source)
    identity, path = resolve_weights("test_convnext", "default")
    assert (identity, path) == ("tag:r160_in1k", None)
    with pytest.raises(DataMissing):
        build("test_convnext", identity)
    put_into_hub(empty_store, "timm/test_convnext.r160_in1k", source)
    trunk = build("test_convnext", identity).trunk
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in trunk.state_dict().items())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_weights_from_a_file(tmp_path: Path, suffix: str, wrapped: bool) -> None:
    whole = timm.create_model("test_convnext", num_classes=5)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": whole.state_dict(), "epoch": 3} if wrapped else whole.state_dict(), path)
    else:
        save_file(whole.state_dict(), path)
    identity, found = resolve_weights("test_convnext", str(path))
    assert identity == f"sha256:{hash_file(path)}"
    assert found == path
    trunk = build("test_convnext", identity, found).trunk
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in trunk.state_dict().items())


def test_files_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    state = timm.create_model("test_convnext").state_dict()
    path = tmp_path / "other.safetensors"

    def refusal() -> str:
        with pytest.raises(ConfigError) as caught:
            build("test_convnext", *resolve_weights("test_convnext", str(path)))
        return str(caught.value)

    save_file({**state, "stem.0.weight": torch.zeros(3, 3, 4, 4)}, path)
    message = refusal()
    assert "other.safetensors" in message
    assert "'stem.0.weight' has shape (3, 3, 4, 4), expected (24, 3, 4, 4)" in message
    del state["stem.0.weight"]
    save_file(state, path)
    assert "does not hold weights of test_convnext: 1 tensors are missing, first 'stem.0.weight'" in refusal()
    path.write_bytes(b"not a checkpoint")
    assert "cannot read weights from" in refusal()


def test_files_that_are_gone_or_changed(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"no weights file at .*nothing\.pth"):
        resolve_weights("resnet18", str(tmp_path / "nothing.pth"))
    with pytest.raises(DataMissing, match=r"need their file: --weights FILE"):
        build("minibirds_resnet", f"sha256:{'0' * 64}")
    with pytest.raises(DataMissing, match=r"no weights file at"):
        build("minibirds_resnet", f"sha256:{'0' * 64}", tmp_path / "nothing.pth")
    with pytest.raises(DataError, match="has changed"):
        build("minibirds_resnet", f"sha256:{'0' * 64}", zoo.WEIGHTS["minibirds_resnet"])
