"""What the picture of a run shows, row by row."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from spurbench.report.gallery import Explained, ExplainedRun, draw

SIZE = 8
LEFT, ROW, TILE = 110, 148, 128


def half(side: str) -> torch.Tensor:
    """A mask of one half of the image."""
    mask = torch.zeros(SIZE, SIZE)
    here = {"left": mask[:, :4], "right": mask[:, 4:], "top": mask[:4], "bottom": mask[4:]}[side]
    here += 1
    return mask


def explained(stages: tuple[str, ...], **maps: str) -> ExplainedRun:
    item = Explained(
        pixels=torch.full((SIZE, SIZE, 3), 200, dtype=torch.uint8),
        maps={source: half(side) for source, side in maps.items()},
        stages=tuple(map(half, stages)),
        region=half("right").bool(),
        truth="a",
        predicted="b",
        group="g",
    )
    return ExplainedRun("AIM seed 0", "birds 1", [item])


def bright(path: Path) -> list[str]:
    """Of each row of the sheet, the half that is not darkened."""
    sheet = Image.open(path).convert("L")
    found = []
    for top in range(0, sheet.height, ROW):
        corners = {
            (x, y): sheet.getpixel((LEFT + int(x * TILE), top + int(y * TILE))) > 100  # type: ignore[operator]
            for x in (0.25, 0.75)
            for y in (0.25, 0.75)
        }
        lit = frozenset(corner for corner, is_bright in corners.items() if is_bright)
        names = {
            frozenset({(0.25, 0.25), (0.25, 0.75)}): "left",
            frozenset({(0.75, 0.25), (0.75, 0.75)}): "right",
            frozenset({(0.25, 0.25), (0.75, 0.25)}): "top",
            frozenset({(0.25, 0.75), (0.75, 0.75)}): "bottom",
            frozenset(corners): "all",
        }
        found.append(names[lit])
    return found


def test_image_object_merged_mask_and_the_mask_of_every_stage(tmp_path: Path) -> None:
    draw([explained(("top", "bottom"), mask="left", gradcam="right")], tmp_path / "sheet.png")
    assert bright(tmp_path / "sheet.png") == ["all", "right", "left", "top", "bottom", "right"]


@pytest.mark.parametrize("stages", [(), ("left",)])
def test_one_stage_is_the_mask_itself(tmp_path: Path, stages: tuple[str, ...]) -> None:
    draw([explained(stages, mask="left")], tmp_path / "sheet.png")
    assert bright(tmp_path / "sheet.png") == ["all", "right", "left"]


def test_a_method_without_a_mask_has_its_attribution_alone(tmp_path: Path) -> None:
    draw([explained((), gradcam="top")], tmp_path / "sheet.png")
    assert bright(tmp_path / "sheet.png") == ["all", "right", "top"]
