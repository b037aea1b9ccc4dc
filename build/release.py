"""All that is handed out, of what `make binary` has built: for each architecture the file that installs itself, the
Debian package and both overlays; the gateway as an archive; each one's bill of materials; SHA256SUMS and its signature.

    make release KEY=KEYFILE        python build/release.py --key KEYFILE [--dist dist]

They are made anew in DIST/release, where nothing else is: so SHA256SUMS names these files alone. Building and signing
are two steps, and this one needs only what is in DIST: the key need never come to the machine that builds.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "build"))

import bundle  # noqa: E402
import deb  # noqa: E402
import overlay  # noqa: E402

from tinyedge import __version__  # noqa: E402

ONE_KEY = """\
warning: devices will trust one key alone. Once it is lost or stolen, no device takes another version from you: make a
  second one (python build/bundle.py --new-key SECOND) and keep its .pub in packaging/trust before the first release.
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="make release", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--key", type=Path)
    parser.add_argument("--dist", type=Path, default=ROOT / "dist")
    args = parser.parse_args()
    if args.key is None or not args.key.is_file():
        where = "make release KEY=KEYFILE; a new one: python build/bundle.py --new-key KEYFILE"
        parser.exit(2, f"there is no key to sign with: {where}\n")
    made = release(args.dist, bundle.read_key(args.key))
    if not made:
        parser.exit(
            1, f"nothing of {__version__} is built in {args.dist}: make binary, for ARM with ARCH=arm64|armhf\n"
        )
    sys.stdout.write("".join(f"{path}\n" for path in made))


def release(dist: Path, key: bytes, version: str = __version__) -> list[Path]:
    """Paths of what was made, empty when nothing of this version is built."""
    edges = sorted(one for one in dist.glob(f"tinyedge-{version}-*") if one.is_dir())
    gateways = sorted(one for one in dist.glob(f"tinyedge-gateway-{version}-*") if one.is_dir())
    if not edges:
        return []
    out = dist / "release"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    keys = 0
    for folder in edges:
        forget_keys(folder)
        run = bundle.bundle(folder, key, out)
        keys = len(list((folder / "_internal" / "packaging" / "trust").glob("*.pub")))
        deb.package(run, out)
        overlay.overlay(run, out)
        overlay.overlay(run, out, "openrc")
    for folder in gateways:
        (out / f"{folder.name}.tar.gz").write_bytes(overlay.archive(folder, f"{folder.name}/"))
    for folder in (*edges, *gateways):
        described = folder.with_name(f"{folder.name}.cdx.json")
        shutil.copyfile(described, out / described.name)
    bundle.sums(out, key)
    if keys < 2:
        sys.stderr.write(ONE_KEY)
    return sorted(out.iterdir())


def forget_keys(folder: Path) -> None:
    """Those of packaging/trust alone stay: what was signed here before, to try it, is no release's key."""
    keys, published = folder / "_internal" / "packaging" / "trust", ROOT / "packaging" / "trust"
    shutil.rmtree(keys, ignore_errors=True)
    if published.is_dir() and keys.parent.is_dir():
        shutil.copytree(published, keys)


if __name__ == "__main__":
    main()
