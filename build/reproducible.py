"""`make reproducible`: build the edge twice, in folders of different names and at different times, and compare every
byte of what is made: the program's folder, its bill of materials, and the file that installs itself, signed by one key.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "build"))

import binary  # noqa: E402
import bundle  # noqa: E402

KEY = bytes(range(32))  # signs nothing that leaves this machine


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="one-") as one, tempfile.TemporaryDirectory(prefix="another-name-") as two:
        first, second = _made(Path(one)), _made(Path(two, "deeper"))
    differing = sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
    if differing:
        sys.exit("two builds of one tree differ in:\n  " + "\n  ".join(differing))
    sys.stdout.write(f"two builds are equal: {len(first)} files\n")


def _made(out: Path) -> dict[str, str]:
    """Path to digest and mode of each file."""
    folder = binary.build("edge", out)
    bundle.bundle(folder, KEY, out)
    files = (path for path in out.rglob("*") if path.is_file())
    return {
        str(path.relative_to(out)): f"{hashlib.sha256(path.read_bytes()).hexdigest()} {os.stat(path).st_mode:o}"
        for path in files
    }


if __name__ == "__main__":
    main()
