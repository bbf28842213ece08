"""A leaderboard, under one rule or several side by side, as text, Markdown, LaTeX or CSV."""

import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spurbench.cli.latex import escaped, latex_table
from spurbench.cli.render import erasure_text, percent, print_markdown, print_table, spread
from spurbench.text import clip

__all__ = ["Board", "print_csv", "print_latex", "print_markdown_board", "print_text"]

_DROP = (
    *("img/s", "draws", "rule", "erased", "group mean", "base rate", "access", "params M", "backbone"),
    *("GMACs", "density", "dataset", "seeds", "WGA 95 %", "EPG"),
)
_TELLS_APART = ("dataset", "backbone", "rule")
"""Columns without which lines of one method could not be told apart, where they differ."""

Line = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """Lines of aggregated tables by the rule that was asked for."""

    tables: Mapping[str, Sequence[dict[str, Any]]]
    by_seed: bool = False
    """Whether every seed's WGA is shown."""

    @property
    def lines(self) -> list[dict[str, Any]]:
        """All lines, with the rule that was asked for as ``rule``; ``selection`` is the one that they have."""
        return [{"rule": rule, **line} for rule, table in self.tables.items() for line in table]

    @property
    def settings(self) -> list[dict[str, Line]]:
        """Lines of one setting by rule, in the order of the first rule's table."""
        found: dict[str, dict[str, Line]] = {}
        for rule, table in self.tables.items():
            for line in table:
                found.setdefault(line["setting"], {})[rule] = line
        return list(found.values())

    @property
    def title(self) -> str:
        """What the numbers are."""
        return f"test split, selection {', '.join(self.tables)}, mean ± s.d. over seeds, percent"


def print_text(board: Board) -> None:
    """For a terminal; a pipe loses no column."""
    header, lines = _cells(board)
    differ = {name for name in _TELLS_APART if len({line[header.index(name)] for line in lines}) > 1}
    print_table(board.title, header, lines, drop=[name for name in _DROP if name in header and name not in differ])
    print("\n".join(["", *_legend(board)]))


def print_markdown_board(board: Board) -> None:
    """A table in Markdown with a title above and a legend below."""
    header, lines = _cells(board)
    print(f"{board.title}\n")
    print_markdown(header, lines)
    print("\n".join(["", *_legend(board)]))


def print_csv(board: Board) -> None:
    """One line per setting and rule, with fractions."""
    lines = board.lines
    plain = [key for key in lines[0] if not isinstance(lines[0][key], dict | list)]
    writer = csv.DictWriter(sys.stdout, [*plain, "seeds"], extrasaction="ignore")
    writer.writeheader()
    writer.writerows({**line, "seeds": " ".join(map(str, line["seeds"]))} for line in lines)


def print_latex(board: Board) -> None:
    """A booktabs table for a paper: a block per dataset, backbone and weights, bold where the best is clearly so."""
    from spurbench.ranking import clearly_best

    settings = board.settings
    names = _names(settings)
    header = ["method", *_by_rule(board, ("WGA", "accuracy")), "seeds"]
    notes = [board.title]
    blocks: dict[str, list[list[str]]] = {}
    for place, block in _blocks(settings).items():
        bold: set[int] = set()
        for rule in board.tables:
            lines = [number for number in block if rule in settings[number]]
            best, why = clearly_best([settings[number][rule] for number in lines])
            bold |= set() if best is None else {id(settings[lines[best]][rule])}
            notes.append(f"{place}, {rule}: {why}")
        for number in block:
            row = [escaped(names[number])]
            for line in (settings[number].get(rule) for rule in board.tables):
                row += [_math(line, "worst_group_accuracy", bold=id(line) in bold), _math(line, "accuracy")]
            blocks.setdefault(escaped(place), []).append([*row, str(_first(settings[number])["n_seeds"])])
    notes.append(
        "bold: above every other line of its block; Student's t on differences paired by seed, Holm-adjusted, 5 %, "
        "which speaks of new seeds on the same test images"
    )
    print(latex_table([escaped(name) for name in header], blocks, notes))


def _cells(board: Board) -> tuple[list[str], list[list[str]]]:
    """Titles and texts of all columns."""
    settings = board.settings
    several = len(board.tables) > 1
    measured = ("WGA", "accuracy") if several else ("WGA", "WGA 95 %", "accuracy")
    measured = (*measured, "WGA by seed") if board.by_seed else measured
    header = [
        *("method", *_by_rule(board, measured), "EPG", "seeds", "draws", "rule", "dataset", "backbone"),
        *("base rate", "density", "erased", "group mean", "GMACs", "params M", "img/s", "access"),
    ]
    lines = []
    for name, data, net, setting in zip(_names(settings), *_told_apart(settings), settings, strict=True):
        entry = _first(setting)
        rules = {line["selection"] for line in setting.values()}
        lines.append(
            [
                name,
                *(text for rule in board.tables for text in _measured(setting.get(rule), measured)),
                f"{_spread(entry, 'epg')} {entry['epg_source'] or ''}".strip(),
                str(entry["n_seeds"]),
                str(entry.get("n_draws", 1)),
                "as named" if len(rules) > 1 else entry["selection"],
                data,
                net,
                percent(entry["epg_base_rate_mean"]),
                percent(entry["mask_density_mean"]),
                erasure_text(entry),
                _spread(entry, "group_mean_accuracy"),
                _overhead(entry, "gmacs", 1, 3),
                _overhead(entry, "params", 1e6, 2),
                _speed(entry),
                entry["access"],
            ]
        )
    return header, lines


def _by_rule(board: Board, titles: Sequence[str]) -> list[str]:
    """Titles of the columns that every rule has."""
    several = len(board.tables) > 1
    return [f"{title} {rule}" if several else title for rule in board.tables for title in titles]


def _measured(line: Line | None, titles: Sequence[str]) -> Iterator[str]:
    for title in titles:
        if line is None:
            yield "-"
        elif title == "WGA 95 %":
            low, high = line["worst_group_accuracy_low"], line["worst_group_accuracy_high"]
            mark = "?" if line["interval_note"] else ""
            yield "-" if low is None else f"[{percent(low)}, {percent(high)}]{mark}"
        elif title == "WGA by seed":
            values = line["worst_group_accuracy_values"]
            seeds = line["seeds"] if len(values) == len(line["seeds"]) else ["?"] * len(values)
            yield ", ".join(f"{seed}: {percent(value)}" for seed, value in zip(seeds, values, strict=True)) or "-"
        else:
            yield _spread(line, "accuracy" if title == "accuracy" else "worst_group_accuracy")


def _legend(board: Board) -> Iterator[str]:
    """What the columns do not say themselves."""
    lines = board.lines
    if len(board.tables) > 1:
        yield "columns that name no rule are of the first one that a setting has"
    if len(board.tables) == 1 and any(line["worst_group_accuracy_low"] is not None for line in lines):
        over = {line["interval_over"] for line in lines}
        if "seeds" in over:
            yield "WGA 95 %: Student's t over seeds, for these test images (--intervals images: also over images)"
        if "images" in over:
            yield "WGA 95 %: seeds and test images are both samples, by bootstrap"
        for note in dict.fromkeys(line["interval_note"] for line in lines if line["interval_note"]):
            yield f"?: {note}"
    steps: dict[str, dict[str, None]] = {}
    for line in lines:
        if line["worst_group_n"]:
            steps.setdefault(f"{100 / line['worst_group_n']:.2g}", {})[line["dataset"]] = None
    for step, datasets in steps.items():
        yield f"one test image of the smallest group of {', '.join(datasets)} is {step} points of WGA"
    if any(line["erasure_outside_mean"] is not None for line in lines):
        yield (
            "erased: percent of predictions that stay when all outside the mask / all inside / all outside another "
            "image's mask becomes the mean colour"
        )


def _names(settings: Sequence[dict[str, Line]]) -> list[str]:
    """Labels; where lines of one dataset and backbone share one, with what they differ in."""
    traits: list[dict[str, Any]] = []
    twins: dict[tuple[Any, ...], list[int]] = {}
    for number, line in enumerate(map(_first, settings)):
        traits.append({**line["options"], **line["recipe"], "version": line["method_version"]})
        twins.setdefault((line["label"], line["dataset"], line["backbone"]), []).append(number)
    names = [clip(line["label"] or line["method"]) for line in map(_first, settings)]
    for alike in twins.values():
        keys = sorted({key for number in alike for key in traits[number]})
        differing = [key for key in keys if len({repr(traits[number].get(key, _ABSENT)) for number in alike}) > 1]
        for number in alike:
            extra = ", ".join(f"{key}={traits[number].get(key, _ABSENT)}" for key in differing)
            names[number] = f"{names[number]} {extra}".strip()
    return names


_ABSENT = "(absent)"


def _told_apart(settings: Sequence[dict[str, Line]]) -> tuple[list[str], list[str]]:
    """Datasets and backbones; with the version, data or weights where one name has several."""
    columns = []
    for name, more in (("dataset", ("dataset_version", "dataset_fingerprint")), ("backbone", ("weights",))):
        texts = [clip(_first(setting)[name]) for setting in settings]
        for column in more:
            kinds: dict[str, set[str]] = {}
            values = [str(_first(setting)[column]) for setting in settings]
            for text, value in zip(texts, values, strict=True):
                kinds.setdefault(text, set()).add(value)
            texts = [
                f"{text} {value[:15]}" if len(kinds[text]) > 1 else text
                for text, value in zip(texts, values, strict=True)
            ]
        columns.append(texts)
    return columns[0], columns[1]


def _blocks(settings: Sequence[dict[str, Line]]) -> dict[str, list[int]]:
    """Places of the settings that are ranked together, by what they share."""
    found: dict[str, list[int]] = {}
    for number, (data, net) in enumerate(zip(*_told_apart(settings), strict=True)):
        found.setdefault(f"{data}, {net}", []).append(number)
    return found


def _first(setting: Mapping[str, Line]) -> Line:
    """The line under the first rule that the setting has."""
    return next(iter(setting.values()))


def _math(line: Line | None, name: str, *, bold: bool = False) -> str:
    if line is None or line[f"{name}_mean"] is None:
        return "--"
    mean, deviation = percent(line[f"{name}_mean"]), line[f"{name}_sd"]
    mean = rf"\mathbf{{{mean}}}" if bold else mean
    return f"${mean}$" if deviation is None else rf"${mean} \pm {percent(deviation)}$"


def _overhead(entry: Line, name: str, unit: float, digits: int) -> str:
    """A cost, and in brackets how much of it is over the plain backbone's."""
    whole, plain = entry[name], entry[f"{name}_backbone"]
    if whole is None:
        return "-"
    return f"{whole / unit:.{digits}f}" + ("" if plain is None else f" ({(whole - plain) / unit:+.{digits}f})")


def _speed(entry: Line) -> str:
    """Images per second in evaluation, and times the plain backbone's on the same machine."""
    speed, ratio = entry["images_per_second_mean"], entry["images_per_second_ratio_mean"]
    if speed is None:
        return "-"
    return f"{speed:.0f}" + ("" if ratio is None else f" ({ratio:.2f}x)")


def _spread(entry: Line, name: str) -> str:
    return spread(entry[f"{name}_mean"], entry[f"{name}_sd"])
