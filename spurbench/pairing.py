"""Which runs can be compared: settings of two sides that share data, backbone and weights."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from spurbench.dotted import ABSENT, differing, dotted
from spurbench.errors import ConfigError, DataMissing, did_you_mean
from spurbench.leaderboard import without_seed

if TYPE_CHECKING:
    from spurbench.fold import Folded

__all__ = [
    "ABSENT",
    "PLACE",
    "Pair",
    "Setting",
    "Side",
    "SideName",
    "Unpaired",
    "labels_of",
    "pair_methods",
    "pair_sets",
    "read_side",
]

SideName = Literal["A", "B"]

PLACE = ("dataset", "dataset_version", "dataset_fingerprint", "backbone", "weights")
"""Columns that both sides of a comparison share."""

_CODE = ("method.version", "method.source", "identity_version")
"""Parts of a configuration that say which code made a run, not what it was asked to do."""


@dataclass(slots=True, eq=False)
class Setting:
    """Runs that differ in their seed alone."""

    label: str
    place: tuple[str | None, ...]
    """Dataset, version, fingerprint, backbone, weights."""
    options: dict[str, Any]
    """The whole configuration but the seed, by dotted key."""
    runs: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Rows by seed."""
    folders: tuple[Path, ...] = ()
    """Result folders in which predictions may lie; later ones win."""

    @property
    def wish(self) -> str:
        """What was asked for, without regard to the code, the data's fingerprint and the seed."""
        return json.dumps({key: value for key, value in self.options.items() if key not in _CODE}, sort_keys=True)

    @property
    def method(self) -> str:
        """Registry name."""
        return str(self.options.get("method.name"))


@dataclass(slots=True)
class Side:
    """All settings of one side, in an order that does not depend on files."""

    title: str
    settings: list[Setting]
    notes: list[str]
    """What was skipped while reading."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two settings to compare, at one dataset and backbone."""

    a: Setting
    b: Setting


@dataclass(frozen=True, slots=True)
class Unpaired:
    """Runs that nothing could be compared with."""

    side: SideName
    reason: str
    runs: tuple[str, ...]
    """Run ids."""


def read_side(title: str, folded: "Folded", sources: Sequence[Path], select: str) -> Side:
    """Finished runs under one selection rule, on the test split.

    A method that chooses its final model itself stands in under ``last``, as in the leaderboard.

    Args:
        folded: what ``fold`` made of ``sources``.

    Raises:
        DataMissing: no finished run, or none with this rule.
    """
    names = ", ".join(map(str, sources))
    if not len(folded):
        some = next(iter(folded.damaged.items()), None)
        damaged = f" ({len(folded.damaged)} records there are damaged, such as {': '.join(some)})" if some else ""
        raise DataMissing(f"there are no finished runs below {names}{damaged}; the folder above 'runs' is wanted")
    rows = [row for row in folded.rows(select) if row["provenance"] == "measured"]
    if not rows:
        offered = f"the {folded.num_runs} runs there offer {', '.join(folded.rules)}"
        raise DataMissing(f"no run below {names} has rule '{select}': {offered}")
    notes = []
    if silent := sum(folded.lacking(select).values()):
        notes.append(f"{title}: {silent} runs have no rule '{select}' and are left out")
    settings, replaced = _settings(rows, tuple(source for source in sources if source.is_dir()))
    if replaced:
        notes.append(f"{title}: {replaced} runs of older method versions, or made again with --oracle, are left out")
    return Side(title, settings, notes)


def pair_sets(a: Side, b: Side) -> tuple[list[Pair], list[Unpaired]]:
    """Equal configurations of two result sets, such as two commits, without regard to the code that made them.

    Where a version added or renamed options, a label that either side has once at a dataset and backbone is paired
    too; what differs is in the comparison's ``config_diff``.
    """
    pairs: list[Pair] = []
    left, right = list(a.settings), list(b.settings)
    for same in (lambda s: (s.place, s.wish), lambda s: (s.place, s.label)):
        ours, theirs = _by(left, same), _by(right, same)
        for key, mine in ours.items():
            if len(mine) == len(theirs.get(key, ())) == 1:
                pairs.append(Pair(mine[0], theirs[key][0]))
        paired = {id(setting) for pair in pairs for setting in (pair.a, pair.b)}
        left, right = ([s for s in side if id(s) not in paired] for side in (left, right))
    unpaired = [*_alone("A", left, b.settings, "configuration"), *_alone("B", right, a.settings, "configuration")]
    return _sorted(pairs), unpaired


def pair_methods(side: Side, name_a: str, name_b: str) -> tuple[list[Pair], list[Unpaired]]:
    """Two methods of one result set, wherever both were run on the same data, backbone and weights.

    Args:
        name_a: a label such as ``AIM[1,25%]``, a method's name for all its settings, or ``*`` for all methods; case,
            spaces, ``-`` and ``_`` make no difference.

    Raises:
        ConfigError: a name that matches no run; it says what there is.
    """
    ours, theirs = _matching(side, name_a), _matching(side, name_b)
    pairs = []
    for a in ours:
        for b in theirs:
            twice = b in ours and a in theirs and ours.index(a) > ours.index(b)
            if a is not b and a.place == b.place and not twice:
                pairs.append(Pair(a, b))
    paired = {id(setting) for pair in pairs for setting in (pair.a, pair.b)}
    if not pairs and ours == theirs:
        raise ConfigError(f"'{name_a}' and '{name_b}' are the same runs; name two methods")
    unpaired = [
        *_alone("A", [s for s in ours if id(s) not in paired and s not in theirs], theirs, f"'{name_b}'"),
        *_alone("B", [s for s in theirs if id(s) not in paired and s not in ours], ours, f"'{name_a}'"),
    ]
    return _sorted(pairs), unpaired


def _settings(rows: Iterable[dict[str, Any]], folders: tuple[Path, ...]) -> tuple[list[Setting], int]:
    """Rows by what was asked for; of several versions of one run the newest counts. Also how many were replaced."""
    settings: dict[tuple[Any, ...], Setting] = {}
    replaced = 0
    for row in sorted(
        rows, key=lambda row: (row.get("method_version") or 0, row.get("finished_at") or "", row["run_id"])
    ):
        options = _flat(without_seed(json.loads(row["config_json"])))
        place = tuple(row.get(key) for key in PLACE)
        new = Setting(row["label"] or row["method"], place, options, folders=folders)
        setting = settings.setdefault((place, new.wish), new)
        setting.options, setting.label = new.options, new.label
        replaced += row["seed"] in setting.runs
        setting.runs[row["seed"]] = row
    return sorted(settings.values(), key=_order), replaced


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= dotted(key, value) if isinstance(value, dict) else {key: value}
    return {key.replace("method.config.", "method."): value for key, value in flat.items()}


def _order(setting: Setting) -> tuple[str, ...]:
    return (*(str(part) for part in setting.place), setting.label, setting.wish)


def _sorted(pairs: list[Pair]) -> list[Pair]:
    return sorted(pairs, key=lambda pair: (_order(pair.a), _order(pair.b)))


def _by(settings: Iterable[Setting], key: Any) -> dict[Any, list[Setting]]:
    groups: dict[Any, list[Setting]] = {}
    for setting in settings:
        groups.setdefault(key(setting), []).append(setting)
    return groups


def _matching(side: Side, name: str) -> list[Setting]:
    """Settings by label, else by the method's name."""
    plain = _plain(name)
    if plain == "*":
        return side.settings
    for texts in ([setting.label for setting in side.settings], [setting.method for setting in side.settings]):
        found = [setting for setting, text in zip(side.settings, texts, strict=True) if _plain(text) == plain]
        if found:
            return found
    labels = sorted({setting.label for setting in side.settings})
    known = {_plain(text): text for setting in side.settings for text in (setting.method, setting.label)}
    hint = did_you_mean(plain, known)
    for text, label in known.items():
        hint = hint.replace(f"'{text}'", f"'{label}'")
    raise ConfigError(f"no finished run of '{name}' in {side.title}{hint} there are {', '.join(labels)}")


def _plain(name: str) -> str:
    return "".join(name.split()).replace("-", "").replace("_", "").casefold()


def _alone(name: SideName, settings: Sequence[Setting], others: Sequence[Setting], what: str) -> Iterator[Unpaired]:
    """Settings without a partner, by reason."""
    reasons: dict[str, list[str]] = {}
    for setting in settings:
        near = [
            other
            for other in others
            if (what != "configuration" or other.wish == setting.wish)
            and other.place[0] == setting.place[0]
            and other.place[2] != setting.place[2]
            and (other.place[1], other.place[3:]) == (setting.place[1], setting.place[3:])
        ]
        if near:
            here, there = (str(one.place[2])[:12] for one in (setting, near[0]))
            reason = f"other data on the other side: {setting.place[0]} has fingerprint {here} here, {there} there"
        elif what == "configuration":
            reason = "no equal configuration on the other side"
        else:
            reason = (
                f"no run of {what} on {setting.place[0]} {setting.place[1]} with {setting.place[3]} and its weights"
            )
        reasons.setdefault(reason, []).extend(row["run_id"] for _, row in sorted(setting.runs.items()))
    for reason, runs in reasons.items():
        yield Unpaired(name, reason, tuple(runs))


def labels_of(settings: Sequence[Setting]) -> dict[int, str]:
    """Labels by id; where settings of one place share a label, with the options in which they differ."""
    labels = {}
    for group in _by({id(s): s for s in settings}.values(), lambda s: (s.place, s.label)).values():
        keys = differing([setting.options for setting in group])
        for setting in group:
            extra = ", ".join(f"{key}={setting.options.get(key, ABSENT)}" for key in keys)
            labels[id(setting)] = f"{setting.label} {extra}".strip()
    return labels
