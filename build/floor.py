"""The oldest C library that a folder of programs runs on: what its ELF files ask of glibc, read from the files."""

from __future__ import annotations

import re
import sys
from pathlib import Path

FLOOR = (2, 36)  # Debian 12
_VERSION = re.compile(rb"\0GLIBC_(\d+)\.(\d+)(?:\.\d+)?(?=\0)")


def newest(folder: Path) -> tuple[int, int]:
    """Of the versions of glibc's symbols that are asked for. They stand in each file's table of names."""
    found = {(0, 0)}
    for path in folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            if data[:4] == b"\x7fELF":
                found |= {(int(major), int(minor)) for major, minor in _VERSION.findall(data)}
    return max(found)


if __name__ == "__main__":
    asked = newest(Path(sys.argv[1]))
    sys.stdout.write(f"glibc {asked[0]}.{asked[1]}\n")
    sys.exit(asked > FLOOR)
