"""Features and logits of a whole view."""

import pytest
import torch
from torch import Tensor, nn

from spurbench.inference import extract
from spurbench.method import BaseMethod, MethodConfig
from spurbench.testing.workbench import Workbench


@pytest.fixture
def bench() -> Workbench:
    return Workbench.make(BaseMethod(MethodConfig()), "minibirds_resnet")


def test_order_and_values_are_those_of_a_pass_by_hand(bench: Workbench) -> None:
    order = torch.tensor([5, 0, 15, 7, 7, 3, 1, 2, 9])
    out = extract(bench.method, bench.model, bench.views.train.subset(order))
    expected = bench.predict(bench.images[order]).logits
    assert torch.allclose(out.logits, expected, rtol=1e-4, atol=1e-5)
    assert torch.allclose(bench.method.head(bench.model)(out.features), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(out.predicted(), expected.argmax(1))
    assert torch.allclose(out.probabilities().sum(1), torch.ones(9))
    assert out.features.dtype == out.logits.dtype == torch.float32


def test_weights_and_samplers_play_no_part(bench: Workbench) -> None:
    plain = extract(bench.method, bench.model, bench.views.train)
    drawn = extract(bench.method, bench.model, bench.views.train.resample(torch.arange(16.0)))
    assert torch.equal(plain.features, drawn.features)


def test_modules_keep_their_modes_and_statistics(bench: Workbench) -> None:
    bench.model.train()
    norm = next(module for module in bench.model.modules() if isinstance(module, nn.BatchNorm2d)).eval()
    modes = [module.training for module in bench.model.modules()]
    before = {name: value.clone() for name, value in bench.model.state_dict().items()}
    extract(bench.method, bench.model, bench.views.train)
    assert [module.training for module in bench.model.modules()] == modes
    assert not norm.training
    assert all(torch.equal(value, before[name]) for name, value in bench.model.state_dict().items())


def test_modes_come_back_after_an_error(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(model: nn.Module, images: Tensor) -> Tensor:
        assert not model.training
        raise RuntimeError("out of memory")

    monkeypatch.setattr(bench.method, "features", fail)
    bench.model.train()
    with pytest.raises(RuntimeError, match="memory"):
        extract(bench.method, bench.model, bench.views.train)
    assert bench.model.training


def test_results_may_take_part_in_a_loss(bench: Workbench) -> None:
    out = extract(bench.method, bench.model, bench.views.train)
    weight = torch.zeros(2, out.features.shape[1], requires_grad=True)
    (out.features @ weight.T).sum().backward()
    assert weight.grad is not None
