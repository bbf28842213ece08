"""``spurbench cost``: GMACs and parameters, without data or weights."""

import argparse

from spurbench.cli.common import overrides_of, plugins_of, print_json
from spurbench.cli.render import print_table


def execute(options: argparse.Namespace) -> int:
    """Build on the meta device, count, print."""
    from spurbench.costs import method_costs

    cost, plain, image_size = method_costs(
        options.method,
        options.backbone,
        image_size=options.image_size,
        num_classes=options.num_classes,
        overrides=overrides_of(options.set),
        plugins=plugins_of(options),
    )
    document = {
        "method": options.method,
        "backbone": options.backbone,
        "image_size": image_size,
        "num_classes": options.num_classes,
        "gmacs": cost.gmacs,
        "gmacs_backbone": plain.gmacs,
        "params": cost.params,
        "params_backbone": plain.params,
    }
    if options.json:
        print_json(document)
        return 0
    title = f"{options.method} on {options.backbone}, {image_size} px, {options.num_classes} classes"
    lines = [("GMACs", cost.gmacs, plain.gmacs), ("parameters M", cost.params / 1e6, plain.params / 1e6)]
    rows = [[name, f"{ours:.3f}", f"{theirs:.3f}", f"{ours - theirs:+.3f}"] for name, ours, theirs in lines]
    print_table(title, ["", "method", "plain backbone", "overhead"], rows)
    return 0
