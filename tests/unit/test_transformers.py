"""Transformers as trunks: Swin's maps, ViT's patch tokens as maps, no class token in them, and where GradCAM looks."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from pytorch_grad_cam import GradCAM as LibraryGradCAM
from pytorch_grad_cam import XGradCAM as LibraryXGradCAM
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from safetensors.torch import save_file
from torch import Tensor, nn

from spurbench import zoo
from spurbench.attribution.gradcam import gradcam, xgradcam
from spurbench.backbone import Backbone, _quarters, build_backbone, describe_backbone, resolve_weights
from spurbench.config import BackboneConfig, RunPaths, TrainConfig
from spurbench.costs import method_costs
from spurbench.errors import ConfigError
from spurbench.method import BaseMethod, Progress, TaskInfo
from spurbench.methods.aim import AIM, AIMConfig
from spurbench.methods.erm import ERM
from spurbench.nn.classifier import Classifier
from spurbench.resolve import RunRequest, load_preset, resolve_run
from spurbench.testing import check_method
from spurbench.types import Batch

SWIN = "swin_tiny_patch4_window7_224"
SIDES = {"test_vit": 160, "test_vit2": 160, "test_vit_relpos": 160, "minibirds_vit": 64, SWIN: 224}


@pytest.fixture(autouse=True)
def same_weights() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def build(name: str, path: Path | None = None, weights: str = "none") -> Backbone:
    return build_backbone(BackboneConfig(name=name, weights=weights), path)


def images(name: str, n: int = 2) -> Tensor:
    side = SIDES.get(name, 224)
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def recorded(module: nn.Module) -> list[Tensor]:
    """Outputs of a module from now on."""
    outputs: list[Tensor] = []
    module.register_forward_hook(lambda module, args, output: outputs.append(output))
    return outputs


# --- stages ---


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("test_vit", [1, 2, 4, 5]),  # of 6
        ("minibirds_vit", [1, 3, 5, 7]),
        ("test_vit_relpos", [2, 4, 6, 8]),  # of 9
    ],
)
def test_stages_are_the_quarters_of_the_depth(name: str, blocks: list[int]) -> None:
    """Patch tokens of these blocks through the final norm, position (i, j) from token i * w + j after the others."""
    backbone = build(name).eval()
    trunk: Any = backbone.trunk
    outputs = [recorded(trunk.blocks[block]) for block in blocks]
    norm = trunk.fc_norm if isinstance(trunk.norm, nn.Identity) else trunk.norm
    assert isinstance(norm, nn.LayerNorm)
    side = SIDES[name] // backbone.reductions[0]
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        stages = backbone.stages(images(name), 4)
        for stage, (tokens,) in zip(stages, outputs, strict=True):
            width = tokens.shape[2]
            assert stage.shape == (2, width, side, side)
            for i, j in ((0, 0), (0, 1), (1, 0), (side - 1, side - 1)):
                token = tokens[:, trunk.num_prefix_tokens + i * side + j].double()
                centred = token - token.mean(1, keepdim=True)
                expected = centred / (centred.square().mean(1, keepdim=True) + norm.eps).sqrt()
                assert torch.allclose(stage[:, :, i, j].double(), expected * norm.weight + norm.bias, atol=1e-5)
        for count in (1, 2, 3):
            assert all(map(torch.equal, backbone.stages(images(name), count), stages[-count:]))
    assert backbone.channels == (trunk.embed_dim,) * 4
    assert backbone.num_stages == 4


def test_quarters() -> None:
    for depth in range(1, 50):
        quarters = _quarters(depth)
        assert len(quarters) == min(depth, 4)
        assert quarters[-1] == depth - 1
        assert all(0 <= (block + 1) - depth * (k + 1) / 4 < 1 for k, block in enumerate(quarters) if depth >= 4)


def test_norm_is_timms_where_timm_applies_it() -> None:
    backbone = build("test_vit").eval()
    trunk: Any = backbone.trunk
    with torch.no_grad():
        theirs = trunk.forward_intermediates(images("test_vit"), [1, 2, 4, 5], norm=True, intermediates_only=True)
        assert all(map(torch.equal, backbone.stages(images("test_vit"), 4), theirs))


def test_maps_with_several_strides_stay_as_they_are() -> None:
    backbone = build(SWIN).eval()
    trunk: Any = backbone.trunk
    outputs = [recorded(layer) for layer in trunk.layers]
    with torch.no_grad():
        stages = backbone.stages(images(SWIN), 4)
    assert backbone.channels == (96, 192, 384, 768)
    assert [tuple(stage.shape) for stage in stages] == [(2, 96 * 2**k, 56 // 2**k, 56 // 2**k) for k in range(4)]
    for stage, (output,) in zip(stages, outputs, strict=True):
        assert torch.equal(stage, output.permute(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("name", "others", "side"),
    [
        ("deit_small_distilled_patch16_224", 2, 14),
        ("deit3_small_patch16_224", 1, 14),
        ("vit_small_patch14_reg4_dinov2", 5, 37),
        ("vit_base_patch16_siglip_gap_224", 0, 14),
        ("beit_base_patch16_224", 1, 14),
        ("eva02_tiny_patch14_224", 1, 16),
        ("cait_xxs24_224", 0, 14),  # its class token joins after the patches' blocks
        ("vit_little_patch16_reg1_gap_256", 1, 16),
    ],
)
def test_many_kinds_of_vit(name: str, others: int, side: int) -> None:
    """Shapes alone, without values: class, distillation and register tokens never are part of a map."""
    backbone = describe_backbone(name).copy().eval()
    trunk: Any = backbone.trunk
    tokens, maps = recorded(trunk.blocks[-1].norm1), recorded(backbone.last_map)
    assert backbone.image_size is not None
    with torch.no_grad(), torch.device("meta"):
        x = torch.zeros(1, 3, backbone.image_size, backbone.image_size)
        stages = backbone.stages(x, 4)
        assert not maps, "stages are no part of the classifier's path"
        assert backbone.pooled(x).shape == (1, backbone.num_features)
    width = backbone.channels[-1]
    assert [tuple(stage.shape) for stage in stages] == [(1, width, side, side)] * 4
    assert [tuple(seen.shape) for seen in maps] == [(1, width, side, side)]
    assert all(seen.shape == (1, others + side * side, width) for seen in tokens)


def test_five_stages_of_a_vit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"num_stages 5 .*test_vit.* 4 stages"):
        build("test_vit").require_stages(5)


# --- no leak ---


@pytest.mark.parametrize("name", ["test_vit", "minibirds_vit"])
def test_class_token_reaches_erm_and_not_aim(name: str) -> None:
    """What the last block wrote into the class token is all that ERM reads, and nothing that AIM does."""
    x = images(name)
    method, task = AIM(AIMConfig(num_stages=3)), task_info(2, SIDES[name])
    aim, erm = method.build(build(name), task).eval(), Classifier(build(name), 2).eval()

    def change(model: Any, tokens: slice) -> None:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            output = output.clone()
            output[:, tokens] = output[:, tokens].flip(2) + 1
            return output

        model.backbone.trunk.blocks[-1].register_forward_hook(hook)

    with torch.no_grad():
        aim_before, erm_before = method.evaluate(aim, x), erm(x)
        change(aim, slice(0, 1))
        change(erm, slice(1, None))
        aim_after, erm_after = method.evaluate(aim, x), erm(x)
        assert torch.equal(aim_after.logits, aim_before.logits)
        assert all(map(torch.equal, aim_after.stage_masks, aim_before.stage_masks))
        assert torch.equal(erm_after, erm_before)
        change(aim, slice(1, None))
        change(erm, slice(0, 1))
        assert not torch.equal(method.evaluate(aim, x).logits, aim_before.logits)
        assert not torch.equal(erm(x), erm_before)


# --- where GradCAM looks ---


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "minibirds_vit"])
def test_classifier_reads_what_timms_own_would(name: str) -> None:
    backbone = build(name).eval()
    whole = timm.create_model(name, num_classes=7).eval()
    missing, unexpected = whole.load_state_dict(backbone.trunk.state_dict(), strict=False)
    assert set(missing) == {"head.weight", "head.bias"}
    assert not unexpected
    maps = recorded(backbone.last_map)
    with torch.no_grad():
        assert torch.equal(whole.get_classifier()(backbone.pooled(images(name))), whole(images(name)))
        (seen,) = maps
        tokens = recorded(whole.blocks[-1].norm1)
        whole(images(name))
    side = SIDES[name] // backbone.reductions[-1]
    expected = tokens[0][:, whole.num_prefix_tokens :].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    assert torch.equal(seen, expected)


@pytest.mark.parametrize(("explain", "library_class"), [(gradcam, LibraryGradCAM), (xgradcam, LibraryXGradCAM)])
@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "minibirds_vit"])
def test_maps_match_pytorch_grad_cam(name: str, explain: Any, library_class: type[LibraryGradCAM]) -> None:
    """The library on timm's whole model, at its place for ViTs, with a reshape function."""
    side = SIDES[name] // build(name).reductions[-1]
    whole = timm.create_model(name, num_classes=7).eval()
    model = Classifier(build(name), 7).eval()
    model.backbone.trunk.load_state_dict(whole.state_dict(), strict=False)
    model.head.load_state_dict(whole.get_classifier().state_dict())
    x = images(name, 3)

    def as_map(tokens: Tensor) -> Tensor:
        patches = tokens[:, whole.num_prefix_tokens :]
        return patches.reshape(len(tokens), side, side, -1).permute(0, 3, 1, 2)

    with torch.no_grad():
        target = model(x).argmax(1)
    with library_class(whole, [whole.blocks[-1].norm1], reshape_transform=as_map) as library:
        theirs = library(x, [ClassifierOutputTarget(c) for c in target.tolist()])
        their_logits = library.outputs.detach()
    maps, logits = explain(model, model.backbone.last_map, model, x, target)
    assert torch.allclose(logits, their_logits, atol=1e-5)
    assert maps.shape == (3, side, side)
    assert (maps.flatten(1).amax(1) > 0).any(), "a comparison of empty maps would say nothing"
    scaled = scale_cam_image(scale_cam_image(maps.numpy(), (x.shape[-1],) * 2))
    assert np.abs(scaled - theirs).max() < 1e-3


@pytest.mark.parametrize("name", ["test_vit", SWIN])
def test_methods_are_explained_without_knowing_the_trunk(name: str) -> None:
    x = images(name)
    for method in (ERM(ERM.Config()), AIM(AIMConfig(num_stages=2, keep_bias=9.0))):
        model = method.build(build(name), task_info(3, SIDES[name])).eval()
        maps, logits = gradcam(
            model, method.cam_layer(model), lambda x, m=method, net=model: m.evaluate(net, x).logits, x, None
        )
        side = 14 if isinstance(method, AIM) and name == SWIN else SIDES[name] // model.backbone.reductions[-1]
        assert maps.shape == (2, side, side)
        assert maps.any()
        with torch.no_grad():
            assert torch.allclose(logits, method.evaluate(model, x).logits, atol=1e-6)


def test_output_tokens_that_are_a_grid_are_a_map() -> None:
    backbone = build("test_vit").eval()
    backbone.trunk.blocks[-1].norm1._forward_hooks.clear()  # type: ignore[union-attr, index]
    with pytest.raises(ConfigError, match=r"test_vit ends in features \(101, 64\).*no map.*ViT"):
        backbone.pooled(images("test_vit"))
    maps = recorded(backbone.last_map)
    trunk: Any = backbone.trunk
    trunk.forward_features = lambda x: torch.arange(200.0).view(1, 100, 2)
    trunk.forward_head = lambda tokens, pre_logits: tokens
    assert torch.equal(backbone.pooled(images("test_vit")), torch.arange(200.0).view(1, 100, 2))
    assert maps[0].shape == (1, 2, 10, 10)
    assert maps[0][0, 1, 2, 3] == 2 * (2 * 10 + 3) + 1
    trunk.forward_features = lambda x: [torch.zeros(1)]
    with pytest.raises(ConfigError, match="features of several shapes"):
        backbone.pooled(images("test_vit"))


def test_a_copy_looks_at_its_own_tokens() -> None:
    backbone = build("test_vit").eval()
    twin = backbone.copy()
    ours, theirs = recorded(backbone.last_map), recorded(twin.last_map)
    with torch.no_grad():
        twin.pooled(images("test_vit"))
    assert (len(ours), len(theirs)) == (0, 1)


def test_weights_of_a_whole_vit_load(tmp_path: Path) -> None:
    whole = timm.create_model("test_vit")
    save_file(whole.state_dict(), tmp_path / "vit.safetensors")
    identity, path = resolve_weights("test_vit", str(tmp_path / "vit.safetensors"))
    trunk = build("test_vit", path, identity).trunk
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in trunk.state_dict().items())


# --- image sizes ---


@pytest.mark.parametrize("name", [SWIN, "vit_small_patch16_224", "deit_small_patch16_224"])
def test_fixed_sizes_say_so(name: str) -> None:
    trunk = describe_backbone(name)
    trunk.require_image_size(224)
    said = rf"{name} takes 224 px images only .*got 64.*input\.image_size=224.*input\.resize"
    for refuse in (
        lambda: trunk.require_image_size(64),
        lambda: trunk.pooled(torch.zeros(1, 3, 64, 64, device="meta")),
        lambda: trunk.stages(torch.zeros(1, 3, 64, 64, device="meta"), 1),
        lambda: method_costs("erm", name, image_size=64),
    ):
        with pytest.raises(ConfigError, match=said):
            refuse()


def test_sizes_that_can_vary() -> None:
    for side in (96, 224):
        describe_backbone("minibirds_resnet").require_image_size(side)
        describe_backbone("test_vit").require_image_size(side)
    with pytest.raises(ConfigError, match=r"test_vit cuts images into patches of 16 px; input\.image_size 100"):
        describe_backbone("test_vit").require_image_size(100)
    with torch.no_grad():
        stages = build("test_vit").eval().stages(torch.zeros(1, 3, 96, 96), 1)
    assert stages[0].shape[2:] == (6, 6)


def test_sizes_are_checked_before_a_run() -> None:
    def resolve(**overrides: Any) -> Any:
        request = RunRequest(
            method="aim[3,25%]",
            dataset="minibirds100",
            backbone=SWIN,
            weights="none",
            overrides={"method.norm": "group", **overrides},
        )
        return resolve_run(request, RunPaths(cache=Path("cache")))[0]

    with pytest.raises(ConfigError, match="takes 224 px images only"):
        resolve()
    config = resolve(**{"input.image_size": 224, "input.resize": 224})
    assert config.backbone.name == SWIN


# --- training ---


def task_info(classes: int, side: int) -> TaskInfo:
    return TaskInfo(
        num_classes=classes,
        num_groups=classes,
        num_train=8,
        class_counts=(1,) * classes,
        image_size=side,
        train=TrainConfig(),
    )


def trained(method: BaseMethod[Any], name: str, *, steps: int, n: int) -> tuple[list[float], Tensor]:
    """Losses and final logits on one batch of coloured squares, from fixed seeds."""
    torch.manual_seed(0)
    side = SIDES.get(name, 224)
    y = torch.arange(n) % 2
    x = images(name, n)
    x[:, :, side // 4 : side // 2, side // 4 : side // 2] += torch.where(y == 1, 2.0, -2.0).view(n, 1, 1, 1)
    model = method.build(build(name), task_info(2, side)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    losses = []
    for step in range(steps):
        progress = Progress(
            phase="train",
            epoch=0,
            num_epochs=1,
            step=step,
            num_steps=steps,
            seed=0,
            position=0,
            device=torch.device("cpu"),
        )
        batch = Batch(images=x, y=y, index=torch.arange(n), weight=torch.ones(n))
        out = method.training_step(model, batch, progress)
        assert torch.isfinite(out.loss)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(out.loss.item())
    with torch.no_grad():
        return losses, method.evaluate(model.eval(), x).logits


METHODS: list[Callable[[], BaseMethod[Any]]] = [
    lambda: ERM(ERM.Config()),
    lambda: AIM(AIMConfig(num_stages=3, tau=0.5, anneal=0)),
]


@pytest.mark.parametrize("make", METHODS, ids=["erm", "aim"])
@pytest.mark.parametrize("name", ["test_vit", "minibirds_vit"])
def test_loss_falls_and_repeats(name: str, make: Callable[[], BaseMethod[Any]]) -> None:
    losses, logits = trained(make(), name, steps=20, n=2)
    assert losses[-1] < 0.6 * losses[0]
    again, logits_again = trained(make(), name, steps=20, n=2)
    assert again == losses
    assert torch.equal(logits_again, logits)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "make"),
    [
        (SWIN, METHODS[0]),
        (SWIN, METHODS[1]),
        ("vit_small_patch16_224", METHODS[0]),
        ("vit_small_patch16_224", METHODS[1]),
        ("deit_small_patch16_224", METHODS[1]),
    ],
    ids=["swin-erm", "swin-aim", "vit-erm", "vit-aim", "deit-aim"],
)
def test_loss_falls_on_the_papers_sizes(name: str, make: Callable[[], BaseMethod[Any]]) -> None:
    losses, logits = trained(make(), name, steps=8, n=2)
    assert min(losses[-2:]) < losses[0]
    assert logits.shape == (2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("cls", [ERM, AIM])
def test_methods_conform_on_the_shipped_vit(cls: type[BaseMethod[Any]]) -> None:
    assert check_method(cls, backbones=("minibirds_vit",))


# --- cost ---


@pytest.mark.parametrize(
    ("name", "published"), [(SWIN, 4.5), ("vit_small_patch16_224", 4.6), ("deit_small_patch16_224", 4.6)]
)
def test_cost_is_the_published_one_with_attention(name: str, published: float) -> None:
    ours, plain, side = method_costs("aim[1,25%]", name)
    assert side == 224
    assert plain.gmacs == pytest.approx(published, abs=0.05)
    # The new modules in closed form: T_l is a 3 x 3 convolution to 176 channels.
    positions, channels = (49, 768) if name == SWIN else (196, 384)
    assert ours.gmacs - plain.gmacs > positions * channels * 176 * 9 / 1e9
    assert ours.gmacs < 1.05 * plain.gmacs


# --- the shipped one ---


def test_preset_differs_from_minibirds_in_the_backbone_alone() -> None:
    vit, resnet = load_preset("minibirds_vit"), load_preset("minibirds")
    assert vit.pop("backbone") == {"name": "minibirds_vit", "weights": "default"}
    resnet.pop("backbone")
    assert vit == resnet
    request = RunRequest(method="aim[1,25%]", dataset="minibirds100", preset="minibirds_vit")
    config, paths = resolve_run(request, RunPaths(cache=Path("cache")))
    assert config.backbone.weights.startswith("sha256:")
    assert paths.weights_path == zoo.WEIGHTS["minibirds_vit"]


def test_shipped_vit_is_plain() -> None:
    whole = timm.create_model("minibirds_vit")
    assert (whole.num_prefix_tokens, whole.global_pool, len(whole.blocks)) == (1, "token", 8)
    assert math.prod(whole.patch_embed.grid_size) == 64
    assert F.cross_entropy(whole(images("minibirds_vit")), torch.tensor([0, 23])).isfinite()
