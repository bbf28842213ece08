"""What the ``data`` commands do: list, check, unpack, fetch and exchange datasets."""
