"""What a measurement holds about attributions and erasure, and how it gets into a row."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from spurbench.attribution.registry import ATTRIBUTIONS
from spurbench.backbone import build_backbone
from spurbench.config import RunConfig, RunPaths
from spurbench.data.cache import Frames
from spurbench.data.transforms import evaluation_masks
from spurbench.dataset import DatasetInfo
from spurbench.engine.evaluation import Measurement, Scorer, SplitArrays
from spurbench.engine.observer import Silent
from spurbench.engine.record import measured_row
from spurbench.engine.stop import StopFlag
from spurbench.errors import ConfigError
from spurbench.method import BaseMethod, MethodConfig, TaskInfo
from spurbench.metrics.cost import Cost
from spurbench.metrics.epg import epg
from spurbench.resolve import RunRequest, make_method, resolve_run
from spurbench.schema import validate_record
from spurbench.types import Prediction

N, SIZE = 12, 32
INFO = DatasetInfo(name="any", version="1", classes=("a", "b"), attributes=("x", "y"))


@pytest.fixture(scope="module")
def arrays() -> SplitArrays:
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(N) % 2
    frames = Frames(
        images=torch.randint(0, 256, (N, SIZE, SIZE, 3), dtype=torch.uint8, generator=draw),
        masks=(torch.rand(N, SIZE, SIZE, generator=draw) < 0.3).byte(),
        boxes=torch.tensor([[[4.0, 4.0, 20.0, 16.0]]]).expand(N, 1, 4),
    )
    return SplitArrays(name="test", frames=frames, y=y, group=2 * y + torch.arange(N) // 2 % 2)


def make(method: str, **evaluation: Any) -> tuple[Scorer, nn.Module]:
    overrides = {"input.resize": SIZE, "input.image_size": SIZE}
    overrides |= {f"evaluation.{key}": value for key, value in evaluation.items()}
    request = RunRequest(
        method=method, dataset="minibirds100", backbone="test_convnext", weights="none", overrides=overrides
    )
    config, _ = resolve_run(request, RunPaths(results=Path("none"), cache=Path("none")))
    return scorer_of(config, make_method(config))


def scorer_of(config: RunConfig, method: BaseMethod[Any]) -> tuple[Scorer, nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        backbone = build_backbone(config.backbone, None)
        task = TaskInfo(
            num_classes=2, num_groups=4, num_train=N, class_counts=(6, 6), image_size=SIZE, train=config.train
        )
        model = method.build(backbone, task).eval()
        for parameter in model.parameters():  # a fresh network says nearly the same about everything
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=1.5 / math.sqrt(parameter[0].numel()))
    scorer = Scorer(
        config=config, method=method, info=INFO, mean=backbone.mean, std=backbone.std, device=torch.device("cpu")
    )
    return scorer, model


def measure(method: str, arrays: SplitArrays, **evaluation: Any) -> tuple[Measurement, dict[str, Any]]:
    scorer, model = make(method, **evaluation)
    result = scorer.measure(model, arrays, Silent(), StopFlag())
    cost = Cost(gmacs=1.0, params=1)
    row = measured_row(
        scorer.config, scorer.method, INFO, fingerprint="f", rule="last", epoch=0, score=None, split="test",
        result=result, train_counts=(1, 1, 1, 1), cost=cost, plain_cost=cost,
    )  # fmt: skip
    validate_record({"rows": [row], "machine": {}})
    return result, row


def test_every_attribution_is_measured_and_the_first_is_the_headline(arrays: SplitArrays) -> None:
    names = ["uniform", "gradcam", "xgradcam", "input_x_gradient", "integrated_gradients"]
    _, row = measure("erm", arrays, attributions=names)
    assert [(e["source"], e["region"]) for e in row["epg_all"]] == [(n, r) for n in names for r in ("mask", "box")]
    assert (row["epg_source"], row["epg_region"]) == ("uniform", "mask")
    for entry in row["epg_all"]:
        assert (entry["source"] == "uniform") == (entry["epg"] == pytest.approx(entry["base_rate"], abs=1e-6))
    _, other = measure("erm", arrays, attributions=["integrated_gradients", "uniform"])
    assert (other["epg_source"], other["epg_region"]) == ("integrated_gradients", "mask")
    assert other["epg_all"][0] == row["epg_all"][8]


def test_a_mask_comes_before_every_attribution(arrays: SplitArrays) -> None:
    _, row = measure("aim[2,50%]", arrays, attributions="uniform")
    assert (row["epg_source"], row["epg_region"]) == ("mask", "mask")
    assert {entry["source"] for entry in row["epg_all"]} == {"mask", "uniform"}


@pytest.mark.parametrize("method", ["erm", "aim[2,50%]", "bottomup"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_pass_that_predicts_is_explained_and_its_numbers_stay(
    method: str, precision: str, arrays: SplitArrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two class activation maps add no forward pass, and are those of passes of their own, bit for bit."""
    passes: list[int] = []
    results = []
    for names in ([], ["gradcam", "xgradcam"]):
        scorer, model = make(method, attributions=names, erasure=False)
        train = scorer.config.train.model_copy(update={"precision": precision})
        scorer = replace(scorer, config=scorer.config.model_copy(update={"train": train}))
        evaluate = scorer.method.evaluate

        def counted(model: nn.Module, images: torch.Tensor, evaluate: Any = evaluate) -> Prediction:
            passes.append(len(images))
            found: Prediction = evaluate(model, images)
            return found

        monkeypatch.setattr(scorer.method, "evaluate", counted)
        results.append(scorer.measure(model, arrays, Silent(), StopFlag()))
    assert passes == [N, N]
    plain, explained = results
    assert torch.equal(plain.predicted, explained.predicted)
    assert torch.equal(plain.confidence, explained.confidence)
    assert plain.mask_density == explained.mask_density
    assert bool(plain.epg) == (method != "erm")
    assert all(torch.equal(values.epg, explained.epg[key].epg) for key, values in plain.epg.items())
    _, images = next(scorer.batches(arrays))
    for name in ("gradcam", "xgradcam"):
        with scorer.autocast():
            maps = ATTRIBUTIONS[name].maps(
                model, scorer.method.cam_layer(model), lambda x: evaluate(model, x).logits, images, arrays.y
            )
        assert arrays.frames.masks is not None
        alone = epg(maps, evaluation_masks(arrays.frames.masks[:], scorer.config.input), "bilinear")
        assert torch.equal(explained.epg[name, "mask"].epg, alone.epg)
        assert not explained.epg[name, "mask"].epg.requires_grad


def test_no_attribution(arrays: SplitArrays) -> None:
    _, row = measure("erm", arrays, attributions=[])
    assert "epg" not in row
    assert row["erasure"] is None


def test_erasure_is_measured_of_methods_with_a_mask(arrays: SplitArrays) -> None:
    result, row = measure("aim[2,50%]", arrays, attributions=[])
    assert len(row["erasure"]) == 6
    assert 0 < sum(entry["agree"] for entry in row["erasure"]) < sum(entry["n"] for entry in row["erasure"])
    for counts in result.erasure:
        assert counts.n == N - (counts.erased == "outside_control")
    assert measure("aim[2,50%]", arrays, attributions=[], erasure=False)[1]["erasure"] is None


def test_an_open_mask_has_nothing_outside(arrays: SplitArrays) -> None:
    """Every position is kept: erased inside is the whole image, outside nothing."""
    scorer, model = make("aim[1,100%]", attributions=[])
    with torch.no_grad():
        for estimator in model.topdown.estimators:  # type: ignore[union-attr, operator]
            estimator.logits.weight.zero_()
            estimator.logits.bias.copy_(torch.tensor([5.0, -5.0]))
    result = scorer.measure(model, arrays, Silent(), StopFlag())
    assert result.mask_density == 1
    by_kind = {(c.erased, c.fill): c for c in result.erasure}
    for fill in ("mean", "blur"):
        assert by_kind["outside", fill].agree == N
        assert by_kind["outside_control", fill].agree == N - 1


def test_batches_play_no_part(arrays: SplitArrays) -> None:
    results = [measure("aim[2,50%]", arrays, batch_size=size)[0] for size in (N, 5)]
    assert results[0].erasure == results[1].erasure


def test_what_does_not_fit_is_refused_before_training(arrays: SplitArrays) -> None:
    class HeadOnly(BaseMethod[MethodConfig]):
        def cam_layer(self, model: nn.Module) -> nn.Module:
            return self.head(model)

    config = make("erm", attributions=["uniform", "gradcam", "input_x_gradient"])[0].config
    scorer, model = scorer_of(config, HeadOnly(MethodConfig()))
    with pytest.raises(ConfigError, match=r"gradcam does not work .*evaluation.attributions=\[uniform,input_x_grad"):
        scorer.probe(model, arrays)
