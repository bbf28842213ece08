"""A bird cut out along its soft mask and laid on a photograph, as ``dataset_utils.py`` of group_DRO does it."""

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["blend", "fit_background"]

Pixels = npt.NDArray[np.uint8]


def blend(bird: Pixels, levels: Pixels, background: Pixels) -> Pixels:
    """``bird * a + background * (1 - a)`` with a = levels / 255, each product rounded before they are added.

    The mask stays soft, so at its edge something of the bird's own surroundings remains, as in the published images.

    Args:
        bird: uint8 [H, W, 3]; so are the others and what is returned.
    """
    alpha = levels / 255
    front = np.around(bird * alpha).astype(np.uint8)
    return front + np.around(background * (1 - alpha)).astype(np.uint8)


def fit_background(photograph: Image.Image, width: int, height: int) -> Image.Image:
    """The middle of a photograph at exactly this size in pixels.

    One that is too small in width or height is first enlarged until it just covers; then sides or top and bottom are
    cut to the wanted aspect, and what is left is resized.
    """
    if photograph.width < width or photograph.height < height:
        photograph = _enlarged(photograph, width, height)
    aspect = width / height
    if photograph.width / photograph.height > aspect:
        cut = (photograph.width - int(aspect * photograph.height)) // 2
        inside = (cut, 0, photograph.width - cut, photograph.height)
    else:
        cut = (photograph.height - int(photograph.width / aspect)) // 2
        inside = (0, cut, photograph.width, photograph.height - cut)
    return photograph.crop(inside).resize((width, height), Image.Resampling.LANCZOS)


def _enlarged(photograph: Image.Image, width: int, height: int) -> Image.Image:
    """As wide as wanted, or as high where the height would then not do."""
    size = (width, int(width / photograph.width * photograph.height))
    if size[1] < height:
        # The published script stops when this comes out one pixel short by the rounding of floating-point numbers.
        size = (max(width, int(height / photograph.height * photograph.width)), height)
    return photograph.resize(size, Image.Resampling.LANCZOS)
