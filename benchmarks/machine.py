"""Where a benchmark was run: what every committed result says of its machine."""

import os
import platform
from typing import Any

import torch

from spurbench.engine.device import device_name

__all__ = ["machine"]


def machine(device: torch.device | None = None) -> dict[str, Any]:
    """Device (by default the processor), cores and versions."""
    return {
        "device": device_name(device or torch.device("cpu")),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
