"""Tables for papers: LaTeX with booktabs."""

import unicodedata
from collections.abc import Mapping, Sequence

from spurbench.text import clip

__all__ = ["escaped", "latex_table"]

_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "±": r"$\pm$",
}  # fmt: skip


def escaped(text: str) -> str:
    """Text that LaTeX prints, quotation marks and rows of hyphens in its own way.

    Line breaks and other control characters become spaces, and very long text is cut: no table could be scaled to it.
    """
    letters = clip(unicodedata.normalize("NFC", text))  # pdflatex knows ü as one letter alone
    plain = "".join(_SPECIAL.get(letter, letter) if letter.isprintable() else " " for letter in letters)
    # After a line's end LaTeX would take [ for a length, and * for a part of the command, be there spaces or not.
    return f"{{{plain}}}" if plain.lstrip().startswith(("[", "*")) else plain


def latex_table(header: Sequence[str], blocks: Mapping[str, Sequence[Sequence[str]]], notes: Sequence[str]) -> str:
    """A tabular with a headline per block. Cells and headlines are LaTeX already; notes are plain text.

    Args:
        notes: go above the table as comments.
    """
    lines = [f"% {' '.join(note.split())}" for note in ("needs \\usepackage{booktabs}", *notes)]
    lines += [rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule", " & ".join(header) + r" \\"]
    for headline, rows in blocks.items():
        lines += [r"\midrule", rf"\multicolumn{{{len(header)}}}{{l}}{{{headline}}} \\"]
        lines += [" & ".join(row) + r" \\" for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])
