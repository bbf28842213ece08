"""Tables for papers: LaTeX with booktabs."""

from collections.abc import Mapping, Sequence

__all__ = ["escaped", "latex_table"]

_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "±": r"$\pm$",
}  # fmt: skip


def escaped(text: str) -> str:
    """Text that LaTeX prints as it is; line breaks and other control characters become spaces."""
    plain = "".join(_SPECIAL.get(letter, letter) if letter.isprintable() else " " for letter in text)
    return f"{{{plain}}}" if plain.startswith("[") else plain  # after a line's end [ would be read as a length


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
