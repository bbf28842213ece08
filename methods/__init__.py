"""Methods: one file each, found by file name (see CONTRIBUTING.md)."""
