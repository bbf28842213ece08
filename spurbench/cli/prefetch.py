"""``spurbench prefetch``: pretrained weights into timm's own store."""

import argparse
import sys


def execute(options: argparse.Namespace) -> int:
    """Let timm fetch each model's weights once."""
    import timm

    from spurbench.backbone import check_backbone
    from spurbench.errors import DataMissing

    for name in options.backbones:
        check_backbone(name.partition(".")[0])
    for name in options.backbones:
        print(f"fetching weights of {name} ...", file=sys.stderr)
        try:
            timm.create_model(name, pretrained=True)
        except Exception as error:  # timm, its hub client and the network fail in many ways
            raise DataMissing(
                f"cannot fetch the weights of {name}: {type(error).__name__}: {error}\n"
                "run this where there is a network, or use --weights FILE"
            ) from error
        print(f"{name}: on disk")
    return 0
