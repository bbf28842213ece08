"""Datasets: one file per family, found by file name (see CONTRIBUTING.md)."""
