"""Make of a program's folder what is handed out: one signed file that installs itself, with its sums.

    python build/bundle.py dist/tinyedge-0.1.0-amd64 --key KEYFILE [--out dist]

Beside the `.run` file: `SHA256SUMS`, and `SHA256SUMS.sig` by the same key. KEYFILE holds a raw Ed25519 key in base64;
`--new-key KEYFILE` makes one (0600) and `KEYFILE.pub`. The public half goes into the bundle, beside those in
packaging/trust: an installed version trusts them all. What a bundle is, and how it is
verified, stands in tinyedge/upgrade/bundle.py.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import hashlib
import io
import json
import os
import sys
import tarfile
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tinyedge import libcrypto  # noqa: E402
from tinyedge.store.record import FORMAT  # noqa: E402
from tinyedge.upgrade.bundle import MANIFEST, MARK, SIGNATURE, Manifest  # noqa: E402

PRODUCTS = ("tinyedge-gateway", "tinyedge")
EPOCH = 1704067200  # of every file in the archive: two builds of one commit are the same bytes


def main() -> None:
    parser = argparse.ArgumentParser(prog="build/bundle.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--key", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--new-key", type=Path)
    args = parser.parse_args()
    if args.new_key:
        new_key(args.new_key)
        return
    if not args.folder or not args.key:
        parser.error("a folder and --key, or --new-key")
    made = bundle(args.folder, read_key(args.key), args.out)
    sums(args.out, read_key(args.key))
    sys.stdout.write(f"{made}\n")


def new_key(path: Path) -> None:
    private = os.urandom(libcrypto.KEY_BYTES)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(base64.b64encode(private) + b"\n")
    path.with_suffix(path.suffix + ".pub").write_bytes(base64.b64encode(libcrypto.public_key(private)) + b"\n")


def read_key(path: Path) -> bytes:
    return base64.b64decode(path.read_bytes())


def manifest(folder: Path, product: str, version: str, architecture: str, store_format: int = FORMAT) -> bytes:
    """Of every file in the folder, in order, as it is signed."""
    files = []
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        name = str(path.relative_to(folder))
        if name not in (MANIFEST, SIGNATURE):
            data = path.read_bytes()
            mode = 0o755 if os.access(path, os.X_OK) else 0o644
            files.append({"path": name, "sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "mode": mode})
    what = {"product": product, "version": version, "architecture": architecture, "store_format": store_format}
    return json.dumps({**what, "files": files}, indent=1).encode() + b"\n"


def bundle(folder: Path, key: bytes, out: Path, script: bytes | None = None) -> Path:
    """`folder` is named PRODUCT-VERSION-ARCHITECTURE."""
    rest, _, architecture = folder.name.rpartition("-")
    product = next(one for one in PRODUCTS if rest.startswith(f"{one}-"))
    version = rest.removeprefix(f"{product}-")
    trust(folder, libcrypto.public_key(key))
    described = manifest(folder, product, version, architecture)
    msgspec.json.decode(described, type=Manifest)  # what no device could read is not handed out
    target = out / f"{folder.name}.run"
    out.mkdir(parents=True, exist_ok=True)
    head = script if script is not None else installer()
    target.write_bytes(head.rstrip(b"\n") + b"\n" + MARK + payload(folder, described, libcrypto.sign(key, described)))
    target.chmod(0o755)
    return target


def trust(folder: Path, public: bytes) -> None:
    """A device on which this is installed takes later versions by the same key, and by those in packaging/trust."""
    packaging = folder / "_internal" / "packaging"
    text = base64.b64encode(public) + b"\n"
    keys = packaging / "trust"
    if packaging.is_dir() and not any(one.read_bytes().strip() == text.strip() for one in keys.glob("*.pub")):
        keys.mkdir(exist_ok=True)
        (keys / f"release-{hashlib.sha256(public).hexdigest()[:8]}.pub").write_bytes(text)


def installer() -> bytes:
    """The script at the head of the file."""
    return (ROOT / "packaging" / "install.sh").read_bytes()


def payload(folder: Path, described: bytes, signature: bytes) -> bytes:
    sink = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=sink, mode="wb", compresslevel=9, mtime=EPOCH) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.USTAR_FORMAT) as archive,
    ):
        _add(archive, MANIFEST, described, 0o644)
        _add(archive, SIGNATURE, signature, 0o644)
        for entry in json.loads(described)["files"]:
            _add(archive, entry["path"], (folder / entry["path"]).read_bytes(), entry["mode"])
    return sink.getvalue()


def _add(archive: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(data), mode, EPOCH
    archive.addfile(info, io.BytesIO(data))


def sums(out: Path, key: bytes) -> None:
    """Of all that is handed out in a folder."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(out.iterdir())
        if path.is_file() and not path.name.startswith("SHA256SUMS")
    ]
    text = "".join(lines).encode()
    (out / "SHA256SUMS").write_bytes(text)
    (out / "SHA256SUMS.sig").write_bytes(base64.b64encode(libcrypto.sign(key, text)) + b"\n")


if __name__ == "__main__":
    main()
