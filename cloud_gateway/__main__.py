"""`python -m cloud_gateway`, and the `tinyedge-gateway` program."""

from __future__ import annotations

import sys


def main() -> None:
    from cloud_gateway.cli.main import main as command_line  # noqa: PLC0415

    sys.exit(command_line())


if __name__ == "__main__":
    main()
