"""`SHA256SUMS` of all that is handed out in a folder, and its signature; the last step of a release.

python build/sums.py dist --key KEYFILE
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import bundle


def main() -> None:
    parser = argparse.ArgumentParser(prog="build/sums.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--key", type=Path, required=True)
    args = parser.parse_args()
    bundle.sums(args.out, bundle.read_key(args.key))


if __name__ == "__main__":
    main()
