"""The watermark of ImageNet-W on test images: ``--dataset imagenet100+watermark``.

A half transparent white line of Chinese characters, 捷径 ("shortcut") three times, across the middle of the image.
Networks take it for a sign of the class carton, since many of its images in ImageNet carry such a line. What accuracy
loses against the plain set is the IN-W gap.

After ``AddWatermark`` of the package ``imagenet-w`` (Whac-A-Mole), which stamps the network's input, 224 x 224, before
it is normalized: characters of 36 pixels at 1 % of the width and 40 % of the height, opacity 0.5. ``text.png`` is that
line as its code draws it, from Source Han Serif SC ExtraLight (Adobe, SIL Open Font License). What differs:

* Here the stored image is stamped, so that one change serves every geometry. The line lies where it has its published
  place in the middle 224 of 256 pixels, which is what the preset ``convnext`` evaluates. Networks that see more of the
  image, as with ``minibirds``, see the line smaller by that factor.
* It then goes through the resize of the image. On images of 256 x 256 pixels the result is the published one to one
  grey level; on others its strokes, a pixel wide, come out softer or harder.
* Published code keeps the aspect ratio when it resizes; here images are squashed, with the line made to match.
"""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from spurbench.dataset import ChangedSplit, DatasetInfo, DatasetTransform, SplitData

__all__ = ["TRANSFORM", "stamp"]

FRAME, INPUT = 256, 224
"""Pixels of a side of the resized image, and of its middle, which the network sees."""
PLACE = (3, 100)
"""Left and top of ``text.png`` in that middle."""
OPACITY = 128 / 255
"""As the published code rounds 0.5."""


def stamp(image_3HW: Tensor) -> Tensor:
    """The image with the line, uint8 [3, H, W]."""
    _, height, width = image_3HW.shape
    pixels_3HW = image_3HW.numpy().astype(np.float32)
    stamped_3HW = pixels_3HW + (255 - pixels_3HW) * _coverage(width, height)
    return torch.from_numpy(np.rint(stamped_3HW).astype(np.uint8))


def _declare(info: DatasetInfo) -> DatasetInfo:
    return replace(info, description=f"{info.description}; test images carry the watermark of ImageNet-W")


def _change(split: SplitData, info: DatasetInfo) -> SplitData:
    return ChangedSplit(split, lambda sample: replace(sample, image=stamp(sample.image)))


TRANSFORM = DatasetTransform(
    name="watermark",
    version="1",
    description="A half transparent line of Chinese characters across the middle, as in ImageNet-W (arXiv 2212.04825)",
    declare=_declare,
    change=_change,
)


@lru_cache(maxsize=64)
def _coverage(width: int, height: int) -> npt.NDArray[np.float32]:
    """How much white a pixel takes, 0 to ``OPACITY``, float32 [H, W]."""
    frame = Image.new("L", (FRAME, FRAME))
    margin = (FRAME - INPUT) // 2
    with Image.open(Path(__file__).with_name("text.png")) as text:
        frame.paste(text, (margin + PLACE[0], margin + PLACE[1]))
    resized = np.asarray(frame.resize((width, height), Image.Resampling.LANCZOS), dtype=np.float32)
    return resized * np.float32(OPACITY / 255)
