"""``spurbench clean``: give disk space back."""

import argparse
import sys
from pathlib import Path

from spurbench.cli.common import cache_folder
from spurbench.cli.render import print_table, size


def execute(options: argparse.Namespace) -> int:
    """Say what goes and why, and let it go."""
    from collections import Counter

    from spurbench.clean import Waste, find_waste, remove
    from spurbench.errors import DataMissing
    from spurbench.io import folder_bytes

    results = Path(options.results_root).expanduser()
    if not results.is_dir():
        raise DataMissing(f"no results at {results}; choose a folder with --results DIR")
    found = find_waste(results, weights=options.weights, phases=options.phases, failed=options.failed)
    cache = cache_folder()
    if options.cache and cache.is_dir():
        found.append(Waste(cache, folder_bytes(cache), "decoded images, made again when needed"))
    totals: Counter[str] = Counter()
    for waste in found:
        totals[waste.why] += waste.num_bytes
    counts = Counter(waste.why for waste in found)
    lines = [[why, str(counts[why]), size(totals[why])] for why in counts]
    if lines:
        print_table(str(results), ["what", "number", "size"], lines)
    verb = "would go" if options.dry_run else "gone"
    if not options.dry_run:
        for waste in found:
            remove(waste)
    more = "" if options.phases or options.weights else "; --phases and --weights would give more"
    print(f"{size(totals.total())} {verb}; records and tables stay{more}", file=sys.stderr)
    return 0
