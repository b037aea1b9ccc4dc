"""What a folder of programs asks of a system, read from its ELF files: the C library, the oldest that will do, and no
other library."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

FLOOR = (2, 36)  # Debian 12
C_LIBRARY = {
    *("libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libutil.so.1", "libresolv.so.2"),
    *("ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1", "ld-linux-armhf.so.3"),
}
_VERSION = re.compile(rb"\0GLIBC_(\d+)\.(\d+)(?:\.\d+)?(?=\0)")
_NEEDED = re.compile(r"\(NEEDED\).*\[(.*)\]")


def problems(folder: Path) -> list[str]:
    """Why these programs may not start on a system that has nothing but that C library."""
    asked = newest(folder)
    found = [f"asks for glibc {asked[0]}.{asked[1]}"] if asked > FLOOR else []
    return found + [f"{path.relative_to(folder)} asks for {name}" for path, name in _foreign(folder)]


def newest(folder: Path) -> tuple[int, int]:
    """Of the versions of glibc's symbols that are asked for. They stand in each file's table of names."""
    found = {(0, 0)}
    for path in _elf(folder):
        found |= {(int(major), int(minor)) for major, minor in _VERSION.findall(path.read_bytes())}
    return max(found)


def _foreign(folder: Path) -> Iterator[tuple[Path, str]]:
    """Libraries that the system would have to have. A program itself is started before any of the folder is found."""
    brought = {path.name for path in folder.rglob("*.so*")}
    for path in _elf(folder):
        told = subprocess.run(["readelf", "--dynamic", "--wide", path], capture_output=True, text=True, check=True)
        known = C_LIBRARY if path.parent == folder else C_LIBRARY | brought
        yield from ((path, name) for name in _NEEDED.findall(told.stdout) if name not in known)


def _elf(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                if file.read(4) == b"\x7fELF":
                    yield path


if __name__ == "__main__":
    told = problems(Path(sys.argv[1]))
    sys.stdout.write("".join(f"{line}\n" for line in told))
    sys.exit(bool(told))
