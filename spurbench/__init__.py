"""spurbench: a benchmarking harness for spurious-correlation methods in image classification."""

__version__ = "0.1.0"
