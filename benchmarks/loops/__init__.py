"""One file per training loop that ``training_throughput.py`` compares; each runs in the environment of its tool."""
