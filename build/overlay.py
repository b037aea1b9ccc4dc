"""What an image builder unpacks into any root file system before it is flashed: the program installed, its service
enabled by links. Made by the installer itself.

    python build/overlay.py dist/tinyedge-0.1.0-amd64.run [--init systemd|sysv|openrc] [--out dist]

`…-rootfs.tar.gz` has the links of systemd and SysV (each looks only at its own); `--init openrc` makes
`…-rootfs-openrc.tar.gz`, whose /etc/init.d script is OpenRC's. Groups and the user are made at the first start: where
the root file system is read-only, run `sh ….run install --root DIR` on the unpacked image instead.
"""

from __future__ import annotations

import argparse
import gzip
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EPOCH = 1704067200
LEVELS = ("etc/init.d", *(f"etc/rc{level}.d" for level in range(7)))


def main() -> None:
    parser = argparse.ArgumentParser(prog="build/overlay.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--init", choices=("both", "systemd", "sysv", "openrc"), default="both")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    args = parser.parse_args()
    sys.stdout.write(f"{overlay(args.run, args.out, args.init)}\n")


def overlay(run: Path, out: Path, init: str = "both") -> Path:
    """The archive's path."""
    suffix = "" if init == "both" else f"-{init}"
    target = out / f"{run.name.removesuffix('.run')}-rootfs{suffix}.tar.gz"
    with tempfile.TemporaryDirectory(prefix="tinyedge-overlay-") as scratch:
        root = Path(scratch)
        for one in ("systemd", "sysv") if init == "both" else (init,):
            if one == "sysv":
                for level in LEVELS:
                    (root / level).mkdir(parents=True)
            script = ["sh", str(run), "install", "--root", str(root), "--init", one]
            subprocess.run(script, check=True, stdout=subprocess.DEVNULL)
        out.mkdir(parents=True, exist_ok=True)
        target.write_bytes(archive(root))
    return target


def archive(root: Path, prefix: str = "") -> bytes:
    """tar.gz of a folder, everything root's, and equal whenever the folder is. `prefix` stands before each name."""
    sink = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=sink, mode="wb", compresslevel=9, mtime=EPOCH) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.GNU_FORMAT) as made,
    ):
        for path in sorted(root.rglob("*")):
            info = made.gettarinfo(path, prefix + str(path.relative_to(root)))
            info.uid = info.gid = 0
            info.uname = info.gname = "root"
            info.mtime = EPOCH
            if info.isreg():
                info.type = tarfile.REGTYPE  # never a hard link
                info.size = os.path.getsize(path)
                with path.open("rb") as file:
                    made.addfile(info, file)
            else:
                made.addfile(info)
    return sink.getvalue()


if __name__ == "__main__":
    main()
