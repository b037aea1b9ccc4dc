"""`python -m tinyedge`, and the `tinyedge` program."""

from __future__ import annotations

import sys

from tinyedge.cli.main import main as run


def main() -> None:
    sys.exit(run())


if __name__ == "__main__":
    main()
