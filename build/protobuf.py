"""Generate the protobuf code in `tinyedge/protocol/` from the .proto files beside it; `--check` only compares.

Needs grpcio-tools (a development dependency). Run as `python build/protobuf.py` from anywhere.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path("tinyedge/protocol")


def generate(out: Path) -> list[Path]:
    """Write the code for every .proto file below `out`; returns its paths relative to `out`."""
    sources = sorted((ROOT / FOLDER).glob("*.proto"))
    arguments = ["protoc", f"-I{ROOT}", f"--python_out={out}", f"--pyi_out={out}", *map(str, sources)]
    if protoc.main(arguments) != 0:
        sys.exit("protoc failed; its message is above")
    return [FOLDER / f"{source.stem}_pb2{suffix}" for source in sources for suffix in (".py", ".pyi")]


def differing() -> list[str]:
    """The generated files that are not what their sources give now."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        return [
            str(file)
            for file in generate(made)
            if not (ROOT / file).exists() or (ROOT / file).read_bytes() != (made / file).read_bytes()
        ]


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        stale = differing()
        if stale:
            sys.exit(f"out of date: {', '.join(stale)}; run python build/protobuf.py")
    else:
        generate(ROOT)
