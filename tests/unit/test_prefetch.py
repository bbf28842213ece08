"""Weights are fetched for models by name, and for all that a sweep file needs."""

import http.server
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import timm

from spurbench import backbone
from spurbench.cli import main, prefetch

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
    monkeypatch.setattr(prefetch, "_require_hub", lambda name: None)
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


def test_what_is_on_disk_needs_no_network(
    fetched: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(backbone, "require_weights", lambda config: None)
    assert main(["prefetch", "resnet18", "resnet18.tv_in1k"]) == 0
    assert fetched == []
    assert capsys.readouterr().out == "resnet18: on disk\nresnet18.tv_in1k: on disk\n"


def test_without_a_network_one_line_says_so_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The hub's client tries for half a minute, and prints each try."""
    nobody = "http://127.0.0.1:9"  # the port of a service that throws away what it gets; closed everywhere
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", nobody)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(prefetch, "_is_here", lambda name: False)
    started = time.monotonic()
    assert main(["prefetch", "resnet18"]) == 2
    assert time.monotonic() - started < 5
    told = capsys.readouterr().err
    assert told.startswith(f"spurbench: cannot fetch the weights of resnet18: {nobody} does not answer (")
    assert told.endswith(
        "run this where there is a network; with the weights in a file, use spurbench run --weights FILE, or in a "
        "sweep file set: {backbone.weights: FILE}\n"
    )
    assert "Retrying" not in told


def test_a_hub_that_answers_is_asked_for_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    class Answers(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(404)

        def log_message(self, format: str, *args: Any) -> None: ...

    server = http.server.HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        prefetch._require_hub("resnet18")
    finally:
        server.shutdown()
        server.server_close()
