"""``spurbench audit``: what a trained classifier decides by."""

import argparse
import csv
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from spurbench.cli.common import paths_of, plugins_of, print_json
from spurbench.cli.live import live_observer
from spurbench.cli.render import percent, print_table

_HEADER = ("metric", "of", "value", "low", "high", "n")


def execute(options: argparse.Namespace) -> int:
    """Load, measure, print."""
    from spurbench.audit import audit, read_classes
    from spurbench.classifiers import load_classifier
    from spurbench.engine.device import choose_device

    classes = None if options.classes is None else read_classes(Path(options.classes).expanduser())
    classifier = load_classifier(options.model, options.backbone)
    with live_observer(f"audit of {classifier.name} on {options.dataset}, {options.split} split") as live:
        document = audit(
            classifier,
            options.dataset,
            paths_of(options),
            split=options.split,
            classes=classes,
            attributions=tuple(options.attribution or ("gradcam",)),
            image_size=options.image_size,
            resize=options.resize,
            batch_size=options.batch_size,
            device=choose_device(options.device),
            plugins=plugins_of(options),
            observer=live,
        )
    if options.format == "json":
        print_json(document)
    elif options.format == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(_HEADER)
        writer.writerows(_lines(document))
    else:
        _print(document)
    return 0


def _print(document: Mapping[str, Any]) -> None:
    model, data = document["model"], document["dataset"]
    geometry = model["input"]
    lines = [
        [str(metric), str(of), percent(value), percent(low), percent(high), str(n)]
        for metric, of, value, low, high, n in _lines(document)
    ]
    print_table(f"{model['name']} on {data['name']}, {data['split']} split", _HEADER, lines, drop=("high", "low"))
    for name, outputs in model["classes"].items():
        shown = ", ".join(map(str, outputs[:8])) + (f" and {len(outputs) - 8} more" if len(outputs) > 8 else "")
        print(f"class {name}: {'output' if len(outputs) == 1 else 'outputs'} {shown}")
    mean, std = (", ".join(f"{value:.3g}" for value in model[name]) for name in ("mean", "std"))
    print(
        f"input: images squashed to {geometry['resize']} px, the centre {geometry['image_size']} px of them; "
        f"mean {mean}; std {std}\n"
    )
    for finding in document["findings"]:
        print(finding)


def _lines(document: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    """One number a line, fractions; intervals are Wilson's, 95 %."""
    metrics = document["metrics"]
    yield _share("accuracy", "all", metrics["n_correct"], metrics["n"])
    for group in metrics["groups"]:
        yield _share("accuracy", group["name"], group["correct"], group["n"])
    for name in ("group_mean_accuracy", "adjusted_accuracy"):
        yield name, "all", metrics[name], None, None, metrics["n"]
    ends = metrics["worst_group_low"], metrics["worst_group_high"]
    sizes = {group["name"]: group["n"] for group in metrics["groups"]}
    worst = metrics["worst_group"]
    yield "worst_group_accuracy", worst or "", metrics["worst_group_accuracy"], *ends, sizes.get(worst, 0)
    for entry in metrics.get("epg_all") or ():
        yield "epg", f"{entry['source']} on the {entry['region']}", entry["epg"], None, None, entry["n"]
        yield "epg_base_rate", f"even map on the {entry['region']}", entry["base_rate"], None, None, entry["n"]
    for entry in document["erasure"] or ():
        what = f"{entry['erased']} erased, {entry['fill']} fill"
        yield _share("predictions that stay", what, entry["agree"], entry["n"])
        yield _share("accuracy", what, entry["correct"], entry["n"])


def _share(metric: str, of: str, count: int, n: int) -> tuple[Any, ...]:
    from spurbench.metrics.stats import wilson

    return (metric, of, count / n, *wilson(count, n), n) if n else (metric, of, None, None, None, 0)
