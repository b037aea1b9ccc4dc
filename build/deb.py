"""A Debian package of our one file: it carries that file and lets it install itself, so that both ways end in the same,
and an upgrade by apt is a trial as any other. Written here, byte by byte: no dpkg-dev is needed.

    python build/deb.py dist/tinyedge-0.1.0-amd64.run [--out dist]

dpkg owns the carried file alone, which goes once it has been installed. Versions are the installer's, and so is the
configuration: as a conffile it would be replaced before the trial, under the version that runs. An upgrade that is
given up, or refused, leaves the package installed and says what runs: a package that is half configured would hold up
every other one. Removing leaves pods and state, purging takes configuration and state.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "build"))

from overlay import EPOCH, archive  # noqa: E402

CARRIED = "var/cache/tinyedge"
CONTROL = """\
Package: tinyedge
Version: {version}
Architecture: {architecture}
Maintainer: The tinyedge maintainers <maintainers@tinyedge.io>
Installed-Size: {installed_kb}
Depends: libc6 (>= 2.36), tar, gzip
Recommends: containerd, runc, containernetworking-plugins, iptables
Section: admin
Priority: optional
Description: Kubernetes pods and devices on a small gateway
 Runs pods, drivers and rules on a gateway that loses power and network without
 warning, with or without a cluster above it.
"""
POSTINST = """\
#!/bin/sh
set -e
[ "$1" = configure ] || exit 0
down=
if [ -n "${2:-}" ] && dpkg --compare-versions "$2" gt "VERSION"; then
  down=--allow-downgrade # which apt has been told as well
fi
for file in /var/cache/tinyedge/*.run; do
  [ -f "$file" ] || continue
  if sh "$file" install --wait $down; then
    rm -f "$file"
  elif [ -f /usr/lib/tinyedge/current ]; then
    read -r current _ </usr/lib/tinyedge/current || :
    echo "tinyedge: the package is installed, and $current is what runs. Once the reason above is gone:" >&2
    echo "  sh $file install        or go back in dpkg's books, too: apt install --allow-downgrades tinyedge=OLDER" >&2
  else
    exit 1
  fi
done
"""
PRERM = """\
#!/bin/sh
set -e
[ "$1" = remove ] || exit 0
[ ! -f /usr/lib/tinyedge/install.sh ] || sh /usr/lib/tinyedge/install.sh uninstall
"""
POSTRM = """\
#!/bin/sh
set -e
[ "$1" = purge ] || exit 0
if grep -q ' /var/lib/tinyedge/' /proc/mounts; then
  echo "volumes of pods are still mounted below /var/lib/tinyedge: it is left" >&2
else
  rm -rf /var/lib/tinyedge
fi
rm -rf /var/cache/tinyedge /var/log/tinyedge.log /var/log/tinyedge.log.1
rm -f /etc/tinyedge/tinyedge.toml /etc/tinyedge/tinyedge-join.toml
rmdir /etc/tinyedge/manifests /etc/tinyedge 2>/dev/null || :
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="build/deb.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    args = parser.parse_args()
    sys.stdout.write(f"{package(args.run, args.out)}\n")


def package(run: Path, out: Path) -> Path:
    """The package's path. The file is named PRODUCT-VERSION-ARCHITECTURE.run."""
    rest, _, architecture = run.name.removesuffix(".run").rpartition("-")
    version = rest.partition("-")[2].replace("-", "~")  # 1.0.0~rc1 comes before 1.0.0
    out.mkdir(parents=True, exist_ok=True)
    target = out / f"tinyedge_{version}_{architecture}.deb"
    with tempfile.TemporaryDirectory(prefix="tinyedge-deb-") as scratch:
        data, control = Path(scratch, "data"), Path(scratch, "control")
        _put(data / CARRIED / run.name, run.read_bytes(), 0o755)
        kb = sum(path.stat().st_size for path in data.rglob("*") if path.is_file()) // 1024
        words = CONTROL.format(version=version, architecture=architecture, installed_kb=kb)
        _put(control / "control", words.encode(), 0o644)
        for name, script in (("postinst", POSTINST.replace("VERSION", version)), ("prerm", PRERM), ("postrm", POSTRM)):
            _put(control / name, script.encode(), 0o755)
        parts = (("debian-binary", b"2.0\n"), ("control.tar.gz", archive(control, "./")))
        target.write_bytes(_ar((*parts, ("data.tar.gz", archive(data, "./")))))
    return target


def _put(path: Path, data: bytes, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)


def _ar(members: tuple[tuple[str, bytes], ...]) -> bytes:
    """Each member: name, time, owner, group, mode and size as text of fixed width, then its bytes, padded to two."""
    made = b"!<arch>\n"
    for name, data in members:
        made += f"{name:<16}{EPOCH:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode()
        made += data + b"\n" * (len(data) % 2)
    return made


if __name__ == "__main__":
    main()
