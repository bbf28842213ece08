"""Methods that read regions, on data whose masks are not where they train."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spurbench.config import RunPaths
from spurbench.engine.run import run_one
from spurbench.errors import ConfigError
from spurbench.resolve import RunRequest, resolve_run

PLUGIN = """
from spurbench.method import BaseMethod, MethodConfig
from spurbench.types import Access


class Regions(BaseMethod[MethodConfig]):
    access = Access.REGIONS

    def training_step(self, model, batch, progress):
        assert batch.mask.any()
        return super().training_step(model, batch, progress)


METHODS = {"regions": Regions}
"""


def write_folder(folder: Path, masked: tuple[str, ...]) -> Path:
    """Twelve images, with masks in these splits."""
    folder.mkdir()
    mask = np.zeros((32, 32), dtype=np.uint8)
    mask[8:20, 8:20] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    lines = []
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        split = ("train", "val", "test")[number % 3]
        lines.append(f"{number}.png,{split},{number % 2},{'mask.png' if split in masked else ''}\n")
    (folder / "metadata.csv").write_text("filename,split,y,mask_filename\n" + "".join(lines))
    return folder


@pytest.mark.parametrize("masked", [("train", "test"), ("val", "test"), ()])
def test_regions_are_needed_where_a_method_trains(tmp_path: Path, masked: tuple[str, ...]) -> None:
    plugin = tmp_path / "regions.py"
    plugin.write_text(PLUGIN)
    recipe = {"train.epochs": 1, "train.batch_size": 4, "input.resize": 32, "input.image_size": 32}
    request = RunRequest(
        method="regions",
        dataset=str(write_folder(tmp_path / "birds", masked)),
        preset="minibirds",
        overrides=recipe,
        plugins=(plugin,),
    )
    config, paths = resolve_run(request, RunPaths(results=tmp_path / "results", cache=tmp_path / "cache"))
    if "train" in masked:
        record = run_one(config, paths, device="cpu", plugins=(plugin,))
        assert record is not None
        assert record["status"] == "finished"
        return
    with pytest.raises(
        ConfigError, match=r"method regions needs object masks \(regions\), and folder:\w+ has none.*do without: .*erm"
    ) as caught:
        run_one(config, paths, device="cpu", plugins=(plugin,))
    assert ("has none for training" in str(caught.value)) == bool(masked)
    assert not (tmp_path / "results").exists()
    assert not (tmp_path / "cache").exists()
