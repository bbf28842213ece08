"""Weights are fetched for models by name, and for all that a sweep file needs."""

from pathlib import Path
from typing import Any

import pytest
import timm

from spurbench.cli import main

SWEEP = "datasets: [waterbirds95, minibirds100]\nmethods: [erm, 'aim[1,25%]']\nbackbones: [{backbones}]\nseeds: 0-2\n"


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    real = timm.create_model

    def create_model(name: str, **options: Any) -> Any:
        if not options.get("pretrained"):
            return real(name, **options)
        names.append(name)
        return None

    monkeypatch.setattr(timm, "create_model", create_model)
    return names


def test_a_sweep_file_stands_for_the_weights_it_needs(tmp_path: Path, fetched: list[str]) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(SWEEP.format(backbones="resnet18, resnet50"))
    assert main(["prefetch", str(file), "vit_tiny_patch16_224"]) == 0
    tags = [f"{name}.{timm.get_pretrained_cfg(name).tag}" for name in ("resnet18", "resnet50")]
    assert fetched == [*tags, "vit_tiny_patch16_224"]


def test_shipped_weights_need_not_be_fetched(
    tmp_path: Path, fetched: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(SWEEP.format(backbones="minibirds_resnet"))
    assert main(["prefetch", str(file)]) == 0
    assert fetched == []
    assert "needs no weights from elsewhere" in capsys.readouterr().err


def test_a_file_that_is_not_there_is_a_mistake(fetched: list[str]) -> None:
    assert main(["prefetch", "nowhere.yaml"]) == 2
