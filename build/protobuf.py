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
    for source in sources:
        lighten(out / FOLDER / f"{source.stem}_pb2.py")
    return [FOLDER / f"{source.stem}_pb2{suffix}" for source in sources for suffix in (".py", ".pyi")]


def lighten(code: Path) -> None:
    """Let `tinyedge.protocol.lean` import protobuf, before the generated code does."""
    head, mark, rest = code.read_text().partition('"""Generated protocol buffer code."""\n')
    if not mark:
        sys.exit(f"{code} does not look as protoc used to write it")
    first = "from tinyedge.protocol.lean import import_protobuf as _import_protobuf\n_import_protobuf()\n"
    code.write_text(head + mark + first + rest)


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
