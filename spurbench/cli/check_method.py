"""``spurbench check-method FILE``: the conformance suite on a method outside the tree."""

import argparse
import sys
from pathlib import Path

from spurbench.cli.common import overrides_of, print_json


def execute(options: argparse.Namespace) -> int:
    """Every method of the file, or the registered one of that name, check by check."""
    from spurbench.backbone import check_backbone
    from spurbench.errors import ConfigError
    from spurbench.resolve import method_options
    from spurbench.testing import METHOD_CHECKS, method_outcomes

    for backbone in options.backbone:
        check_backbone(backbone)
    given = {key.removeprefix("method."): value for key, value in overrides_of(options.set).items()}
    report = []
    for name, cls in _methods(options.method):
        config = method_options(cls, given)
        total = len(METHOD_CHECKS) * len(options.backbone)
        print(f"{name}: {total} checks, ten seconds to three minutes", file=sys.stderr)
        for outcome in method_outcomes(cls, config, options.backbone):
            report.append({"method": name, **{key: value for key, value in outcome.items() if key != "cause"}})
            mark = "ok    " if outcome["error"] is None else "BROKEN"
            print(f"{mark} {outcome['backbone']}: {outcome['requirement']}", file=sys.stderr)
            if outcome["error"] is not None:
                print(f"       {outcome['error']}", file=sys.stderr)
    if not report:
        raise ConfigError(f"{options.method} exports no method: define METHOD or METHODS")
    broken = sum(entry["error"] is not None for entry in report)
    if options.json:
        print_json({"checks": len(report), "broken": broken, "report": report})
    else:
        print(f"{len(report) - broken} of {len(report)} checks hold")
    return 1 if broken else 0


def _methods(text: str):  # type: ignore[no-untyped-def]
    from spurbench.registry import load_registry

    path = Path(text).expanduser()
    if path.suffix == ".py" or path.is_file():
        entries = load_registry("methods", (path,)).entries.values()
        return [(entry.name, entry.value) for entry in entries if entry.origin == str(path)]
    entry = load_registry("methods").get(text)
    return [(entry.name, entry.value)]
