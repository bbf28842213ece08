"""JTT: which samples are errors, how often they count, and when it is plain ERM."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from spurbench.config import OptimizerConfig, TrainConfig
from spurbench.data.view import View
from spurbench.errors import AccessDenied
from spurbench.method import BaseMethod, MethodConfig, Phase
from spurbench.methods.jtt import JTT, JTTConfig
from spurbench.testing import check_method
from spurbench.testing.workbench import SAMPLES, Workbench

SOME = torch.arange(SAMPLES) < 5
"""An error set."""


class TrainTwice(BaseMethod[MethodConfig]):
    """ERM, and once more from the initial weights."""

    def phases(self, train: TrainConfig) -> Sequence[Phase]:
        return (
            Phase(name="once", epochs=1, optimizer=train.optimizer),
            Phase(name="twice", epochs=train.epochs, optimizer=train.optimizer, init="scratch"),
        )


def make(**options: Any) -> Workbench:
    return Workbench.make(JTT(JTTConfig(**options)), "test_convnext")


def upweighted(bench: Workbench) -> View:
    """The training data of the second phase for the model as it is."""
    _, phase = bench.method.phases(bench.config.train)
    return bench.method.start_phase(phase, bench.model, bench.views, bench.store)


def predict_class(bench: Workbench, favourite: int) -> None:
    """A model that says one class to everything."""
    head = bench.method.head(bench.model)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(F.one_hot(torch.tensor(favourite), 2).float())


def wrong(bench: Workbench) -> Tensor:
    """The model's errors, found image by image."""
    labels = torch.arange(SAMPLES) % 2
    return torch.stack([bench.predict(image[None]).logits[0].argmax() for image in bench.images]) != labels


# --- phases ---


@pytest.mark.parametrize(
    ("epochs", "options", "identification"),
    [
        (300, {}, 60),
        (30, {}, 6),
        (12, {}, 3),
        (1, {}, 1),
        (30, {"identify_fraction": 1e-12}, 1),
        (100, {"identify_fraction": 0.07}, 7),
        (50, {"identify_epochs": 1}, 1),
        (50, {"identify_epochs": 70, "identify_fraction": 0.1}, 70),
    ],
)
def test_identification_takes_a_part_of_the_recipe(epochs: int, options: dict[str, Any], identification: int) -> None:
    recipe = TrainConfig(epochs=epochs, optimizer=OptimizerConfig(lr=0.5))
    first, second = JTT(JTTConfig(**options)).phases(recipe)
    assert (first.epochs, second.epochs) == (identification, epochs)
    assert (first.init, second.init) == ("continue", "scratch")
    assert first.optimizer == second.optimizer == recipe.optimizer


@pytest.mark.parametrize("favourite", [0, 1])
def test_first_phase_sees_the_training_set_as_it_is(favourite: int) -> None:
    bench = make()
    predict_class(bench, favourite)
    first, _ = bench.method.phases(bench.config.train)
    assert bench.method.start_phase(first, bench.model, bench.views, bench.store) is bench.views.train
    assert not bench.store.artifacts


# --- the error set ---


def test_errors_are_what_the_model_gets_wrong_in_evaluation_mode() -> None:
    bench = Workbench.make(JTT(JTTConfig()), "minibirds_resnet")  # batch norm: the mode matters
    head = bench.method.head(bench.model)
    with torch.no_grad():  # right on some, and no tie
        logits = bench.predict(bench.images).logits
        margins = (logits[:, 0] - logits[:, 1]).sort().values
        head.bias[1] += margins[SAMPLES // 2 - 1 : SAMPLES // 2 + 1].mean()
    bench.model.train()
    errors = bench.method.errors(bench.model, bench.views.train)  # type: ignore[attr-defined]
    assert torch.equal(errors, wrong(bench))
    assert 0 < int(errors.sum()) < SAMPLES


@pytest.mark.parametrize("favourite", [0, 1])
def test_errors_belong_to_the_class_that_is_never_predicted(favourite: int) -> None:
    bench = make(upweight=3)
    predict_class(bench, favourite)
    times = torch.bincount(upweighted(bench).index, minlength=SAMPLES)
    assert times.tolist() == [1 if y == favourite else 4 for y in range(2)] * (SAMPLES // 2)


def test_error_set_is_the_first_model_s_after_a_restart() -> None:
    bench = make(upweight=3)
    predict_class(bench, 0)
    before = upweighted(bench).index
    predict_class(bench, 1)  # training has gone on
    assert torch.equal(upweighted(bench).index, before)


def test_no_group_is_read() -> None:
    with pytest.raises(AccessDenied):
        make().views.train.group  # noqa: B018


# --- weights ---


@pytest.mark.parametrize("upweight_as", ["copies", "weights"])
@pytest.mark.parametrize(("multiplicity", "expected"), [("extra", 6), ("exact", 5)])
def test_multiplicity(upweight_as: str, multiplicity: str, expected: int) -> None:
    bench = make(upweight=5, multiplicity=multiplicity, upweight_as=upweight_as)
    predict_class(bench, 0)
    total = torch.zeros(SAMPLES)
    for batch in upweighted(bench).loader(shuffle=True, augment=False):
        total.index_add_(0, batch.index, batch.weight)
    assert total.tolist() == [1, expected] * (SAMPLES // 2)


def test_copies_and_weights_have_one_objective() -> None:
    """The summed loss over the second phase's data is the same; only steps and their sizes differ."""
    sums = []
    for upweight_as in ("copies", "weights"):
        bench = make(upweight=5, upweight_as=upweight_as)
        view = upweighted(bench)
        assert len(view) > SAMPLES if upweight_as == "copies" else len(view) == SAMPLES
        with torch.no_grad():
            batches = list(view.loader(shuffle=False, augment=False))
            losses = [F.cross_entropy(bench.predict(b.images).logits, b.y, reduction="none") for b in batches]
        sums.append(sum(float((b.weight * loss).sum()) for b, loss in zip(batches, losses, strict=True)))
    assert sums[0] == pytest.approx(sums[1], rel=1e-5)


# --- when it is ERM ---


@pytest.mark.parametrize(
    "options", [{"upweight": 0}, {"upweight": 0, "upweight_as": "weights"}, {"multiplicity": "exact", "upweight": 1}]
)
def test_without_upweighting_it_is_erm_twice_to_the_bit(options: dict[str, Any]) -> None:
    bench, erm = make(identify_epochs=1, **options), Workbench.make(TrainTwice(MethodConfig()), "test_convnext")
    bench.store.artifacts["error_set"] = SOME  # the first model leaves none
    bench.train(2)
    erm.train(2)
    ours, theirs = bench.model.state_dict(), erm.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_upweighting_changes_the_model() -> None:
    plain, bench = make(identify_epochs=1, upweight=0), make(identify_epochs=1, upweight=4)
    for one in (plain, bench):
        one.store.artifacts["error_set"] = SOME
        one.train(1)
    ours, theirs = bench.model.state_dict(), plain.model.state_dict()
    assert not all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_without_errors_it_says_so_and_is_erm(caplog: pytest.LogCaptureFixture) -> None:
    bench = make()
    bench.store.artifacts["error_set"] = torch.zeros(SAMPLES, dtype=torch.bool)
    assert torch.equal(upweighted(bench).index, bench.views.train.index)
    assert caplog.messages == ["JTT: all 16 training samples are right after identification; what follows is plain ERM"]


def test_a_large_error_set_is_pointed_out(caplog: pytest.LogCaptureFixture) -> None:
    """8 of 16 wrong: 16 + 8 * 18 is not more than ten times 16, 16 + 8 * 19 is."""
    for upweight in (18, 19):
        bench = make(upweight=upweight)
        predict_class(bench, 0)
        upweighted(bench)
    (message,) = caplog.messages
    assert "8 of 16 training samples are wrong" in message
    assert "an epoch has 168" in message


@pytest.mark.parametrize(
    "options",
    [
        {"upweight": -1},
        {"upweight": 2.5},
        {"upweight": 0, "multiplicity": "exact"},
        {"multiplicity": "twice"},
        {"upweight_as": "loss"},
        {"identify_fraction": 0.0},
        {"identify_fraction": 1.5},
        {"identify_epochs": 0},
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        JTTConfig(**options)


def test_with_weights_in_the_loss_conforms() -> None:
    check_method(JTT, backbones=("test_convnext",), upweight=5, multiplicity="exact", upweight_as="weights")
