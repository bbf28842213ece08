"""Capital letters as bitmaps, 5 x 7 dots each, and lines of them."""

from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["text_bitmap"]

_LETTERS: Final = {
    "C": (" ### ", "#   #", "#    ", "#    ", "#    ", "#   #", " ### "),
    "H": ("#   #", "#   #", "#   #", "#####", "#   #", "#   #", "#   #"),
    "O": (" ### ", "#   #", "#   #", "#   #", "#   #", "#   #", " ### "),
    "R": ("#### ", "#   #", "#   #", "#### ", "# #  ", "#  # ", "#   #"),
    "S": (" ####", "#    ", "#    ", " ### ", "    #", "    #", "#### "),
    "T": ("#####", "  #  ", "  #  ", "  #  ", "  #  ", "  #  ", "  #  "),
    "U": ("#   #", "#   #", "#   #", "#   #", "#   #", "#   #", " ### "),
}


def text_bitmap(text: str) -> npt.NDArray[np.bool_]:
    """The line, one column apart, True on the letters: bool [7, 6 n - 1]."""
    rows = [" ".join(_LETTERS[letter][row] for letter in text) for row in range(7)]
    return np.array([[dot == "#" for dot in row] for row in rows])
