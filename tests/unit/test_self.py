"""Last-layer retraining and SELF: which points, which batches, which optimizer."""

from collections import Counter
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from scipy.stats import entropy
from torch import Tensor, nn

from spurbench.config import OptimizerConfig, TrainConfig
from spurbench.errors import AccessDenied, ConfigError
from spurbench.inference import extract
from spurbench.method import BaseMethod, Phase, Views
from spurbench.methods.self import SELF, BalancedBatches, divergence
from spurbench.registry import load_registry
from spurbench.rng import generator, seed_for
from spurbench.testing.workbench import Workbench
from spurbench.types import Access

BACKBONE = "minibirds_resnet"
ERM = Phase(name="erm", epochs=1, optimizer=OptimizerConfig())
SELF_DROPOUT: dict[str, Any] = {"points": "dropout_disagreement"}


def make(**options: Any) -> Workbench:
    return Workbench.make(SELF(SELF.Config(**options)), BACKBONE)


def start(bench: Workbench, name: str) -> Any:
    phase = next(phase for phase in bench.method.phases(bench.config.train) if phase.name == name)
    torch.manual_seed(7)
    return bench.method.start_phase(phase, bench.model, bench.views, bench.store)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


# --- points ---


@pytest.mark.parametrize("seed", [0, 1])
def test_divergence_is_scipys(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    p, q = (3 * torch.randn(20, 4, generator=rng, dtype=torch.float64) for _ in range(2))
    ours = divergence(p, q)
    assert np.allclose(ours, entropy(q.softmax(1), p.softmax(1), axis=1), rtol=1e-10)
    authors = F.kl_div(p.softmax(1).log(), q.softmax(1), reduction="none").mean(1)
    assert torch.equal(ours.argsort(), authors.argsort()), "their mean over classes ranks alike"
    certain = divergence(torch.tensor([[1e4, -1e4]]), torch.tensor([[1e4, -1e4]]))
    assert float(certain) == 0


def test_half_of_validation_is_taken_at_random_and_stays() -> None:
    bench = make()
    start(bench, "erm")
    view = start(bench, "finetune")
    assert view.split == "val"
    assert len(view) == len(set(view.index.tolist())) == 8
    assert not torch.equal(view.index, torch.arange(8))
    again = start(bench, "finetune")
    assert torch.equal(again.index, view.index)
    assert len(start(make(held_out=1.0), "finetune")) == 16


def test_points_of_disagreement_are_the_farthest() -> None:
    bench = make(num_points=7, dropout=0.5, **SELF_DROPOUT)
    nn.init.normal_(bench.method.head(bench.model).weight, std=2)
    held_out = bench.views.val.subset(torch.tensor([3, 1, 4, 15, 9, 2, 6, 5]))
    bench.store.artifacts["held_out"] = held_out.index
    seen = extract(bench.method, bench.model, held_out)
    torch.manual_seed(seed_for(0, "global", "held_out"))  # as the store leaves it
    keep = torch.empty_like(seen.features).bernoulli_(0.5)
    head = bench.method.head(bench.model)
    dropped = head(2 * keep * seen.features).detach().double().softmax(1)
    distance = entropy(dropped, seen.logits.double().softmax(1), axis=1)
    points = start(bench, "finetune").index
    assert points.tolist() == held_out.index[np.argsort(-distance)[:7].copy()].tolist()
    assert torch.equal(start(bench, "finetune").index, points), "after a restart too"
    bench.model.apply(lambda module: nn.init.normal_(module.weight) if isinstance(module, nn.Linear) else None)
    assert torch.equal(start(bench, "finetune").index, points), "whatever the model has become"


def test_where_there_are_fewer_points_all_are_taken() -> None:
    bench = make(num_points=500, **SELF_DROPOUT)
    assert len(start(bench, "finetune")) == 8


def test_one_class_is_refused_before_training() -> None:
    bench = make(held_out=0.2)
    bench.store.artifacts["held_out"] = torch.tensor([0, 2, 4])
    with pytest.raises(ConfigError, match=r"two classes .* raise held_out"):
        start(bench, "erm")


def test_no_group_is_read() -> None:
    assert SELF.access == Access.VAL_LABELS
    bench = make()
    with pytest.raises(AccessDenied):
        _ = bench.views.val.group
    with pytest.raises(AccessDenied):
        _ = bench.views.train.group


# --- batches ---


def test_batches_are_class_balanced_passes() -> None:
    y = torch.tensor([0] * 90 + [1] * 10)
    batches = list(BalancedBatches(y, steps=400, batch_size=32)(generator(0, "loader")))
    assert len(batches) == 400
    assert [len(batch) for batch in batches[:8]] == [32, 32, 32, 4] * 2
    positions = Counter(chain.from_iterable(batches))
    drawn = Counter(y[list(positions.elements())].tolist())
    assert drawn[0] / drawn.total() == pytest.approx(0.5, abs=0.02)
    assert len(positions) == 100
    assert positions[95] / positions[5] == pytest.approx(9, rel=0.3)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"retrain_epochs": 5, "batch_size": 3}, 15),
        ({"retrain_epochs": 5}, 5),
        ({"steps": 7, **SELF_DROPOUT}, 7),
        ({"steps": 7, "batch_size": 3, **SELF_DROPOUT}, 7),
    ],
)
def test_number_of_steps(options: dict[str, Any], steps: int) -> None:
    bench = make(**options)
    assert start(bench, "finetune").at(position=1, epoch=0, batch_size=3).num_batches() == steps


def test_first_phase_is_class_balanced_or_plain() -> None:
    bench, plain = make(), make(balanced_erm=False)
    assert start(plain, "erm") is plain.views.train
    assert torch.allclose(start(bench, "erm")._draw_weight, torch.full((16,), 1 / 8, dtype=torch.float64))
    uneven = Views(bench.views.train.subset(torch.tensor([0, 2, 4, 6, 1, 3])), bench.views.val)
    assert uneven.train.y.tolist() == [0, 0, 0, 0, 1, 1]
    for name in ("training_step", "build", "evaluate", "head"):
        assert getattr(SELF, name) is getattr(BaseMethod, name), "so that other runs can share the phase"


# --- training ---


@pytest.mark.parametrize(
    ("options", "lr"),
    [
        ({"retrain_epochs": 4, "batch_size": 3}, 3e-3),
        ({"steps": 6, "lr": 0.2, "weight_decay": 0.1, **SELF_DROPOUT}, 0.2),
    ],
)
def test_second_phase_is_sgd_on_the_head_alone(options: dict[str, Any], lr: float) -> None:
    bench = make(**options)
    bench.train(1)
    trunk = state(bench.model.backbone)  # type: ignore[arg-type]
    twin = make(**options)
    twin.method.phases = lambda train: SELF.phases(twin.method, train)[:1]  # type: ignore[method-assign]
    twin.train(1)
    after_erm = state(twin.model.backbone)  # type: ignore[arg-type]
    assert all(torch.equal(value, trunk[name]) for name, value in after_erm.items()), "batch statistics too"
    # The same by hand, from the model after the first phase.
    phase = SELF.phases(twin.method, twin.config.train)[1]
    torch.manual_seed(seed_for(0, "global", 1))
    view = twin.method.start_phase(phase, twin.model, twin.views, twin.store)
    head, decay = twin.method.head(twin.model), options.get("weight_decay", 1e-4)
    optimizer = torch.optim.SGD(head.parameters(), lr=lr, momentum=0, weight_decay=decay)
    twin.model.eval()
    for batch in view.at(position=1, epoch=0, batch_size=phase.batch_size).loader(shuffle=True, augment=True):
        optimizer.zero_grad()
        F.cross_entropy(twin.model(batch.images), batch.y).backward()
        optimizer.step()
    ours = bench.method.head(bench.model)
    assert torch.allclose(ours.weight, head.weight, atol=1e-6)
    assert torch.allclose(ours.bias, head.bias, atol=1e-6)


def test_retraining_starts_from_a_fresh_head_and_self_from_erms() -> None:
    for options, kept in (({}, False), (SELF_DROPOUT, True)):
        bench = make(**options)
        nn.init.ones_(bench.method.head(bench.model).weight)
        start(bench, "finetune")
        assert bool((bench.method.head(bench.model).weight == 1).all()) == kept
        before = state(bench.method.head(bench.model))
        start(bench, "finetune")
        assert all(torch.equal(v, before[k]) for k, v in state(bench.method.head(bench.model)).items()), "seeded"


# --- options ---


def test_phases_and_labels() -> None:
    method = SELF(SELF.Config())
    erm, finetune = method.phases(TrainConfig(epochs=4))
    assert (erm.epochs, finetune.epochs, finetune.trainable, finetune.batch_size) == (4, 1, "head", 32)
    optimizer = finetune.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.momentum, optimizer.schedule) == ("sgd", 3e-3, 0.0, "constant")
    assert optimizer.decay_vectors
    assert optimizer.weight_decay == 1e-4
    other = SELF(SELF.Config(**SELF_DROPOUT, momentum=0.9))
    assert other.phases(TrainConfig())[1].optimizer.lr == 1e-2
    assert other.phases(TrainConfig())[1].optimizer.momentum == 0.9
    assert (method.label, other.label) == ("CB-LLR", "SELF[dropout]")
    assert load_registry("methods").get("self").value is SELF


@pytest.mark.parametrize(
    "options",
    [{"points": "early_stop_disagreement"}, {"held_out": 0}, {"held_out": 1.5}, {"dropout": 1.0}, {"dropout": 0.0},
     {"num_points": 0}, {"steps": 0}, {"lr": 0}, {"momentum": 1}, {"retrain_epochs": 0}],
)  # fmt: skip
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(options))):
        SELF.Config(**options)
