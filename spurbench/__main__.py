"""``python -m spurbench``: the command, for launchers that start a module, such as torchrun."""

import sys

from spurbench.cli import main

if __name__ == "__main__":
    sys.exit(main())
