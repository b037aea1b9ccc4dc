"""Build the edge for a board's processor here: in a Debian of that architecture, below .work/, whose programs
qemu-user runs. `make binary ARCH=arm64|armhf`, as root; or

    python build/arm.py arm64 [--out dist]

Needs debootstrap and qemu-user-static. The kernel is told once which interpreter those programs have (binfmt_misc, flag
F: the interpreter is opened then, and need not be in the root). Wheels come from the registry where there are any; for
armhf lmdb and msgspec are compiled there, and protobuf and PyYAML are their pure Python.
What was made must start; `make binary-check ARCH=…` shows that it works (tests/build/emulated.py).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "build"))

import floor  # noqa: E402

SUITE = "bookworm"  # its C library is the oldest that the binaries run on
PACKAGES = "ca-certificates,python3,python3-venv,python3-dev,binutils,gcc,libc6-dev,libffi-dev,patch"
BINFMT = Path("/proc/sys/fs/binfmt_misc")
QEMU = {"arm64": ("qemu-aarch64-static", 2, 0xB7), "armhf": ("qemu-arm-static", 1, 0x28)}  # program, ELF class, machine
PASSED = ("PATH", "PIP_CERT", "PIP_INDEX_URL", "http_proxy", "https_proxy", "no_proxy", "SOURCE_DATE_EPOCH")


def main() -> None:
    parser = argparse.ArgumentParser(prog="build/arm.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("arch", choices=sorted(QEMU))
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    args = parser.parse_args()
    sys.stdout.write(f"{build(args.arch, args.out)}\n")


def build(arch: str, out: Path) -> Path:
    """The folder of the program, with its bill of materials beside it."""
    missing = [name for name in ("debootstrap", QEMU[arch][0]) if not shutil.which(name)]
    if os.geteuid() or missing:
        sys.exit(f"a build for {arch} needs root, debootstrap and qemu-user-static; missing: {missing or 'root'}")
    register(arch)
    root = debian(arch)
    _put_sources(root / "src")
    run(root, "python3", "/src/build/binary.py", "--product", "edge", "--out", "/out")
    [folder] = [path for path in (root / "out").iterdir() if path.is_dir()]
    run(root, f"/out/{folder.name}/tinyedge", "version")
    if problems := floor.problems(folder):
        sys.exit(f"{folder.name}: {'; '.join(problems)}")
    out.mkdir(parents=True, exist_ok=True)
    target = out / folder.name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target, symlinks=True)
    shutil.copy2(folder.with_name(f"{folder.name}.cdx.json"), out)
    return target


def register(arch: str) -> None:
    """Tell the kernel how programs of that architecture are run. It holds until the machine is booted again."""
    program, elf_class, machine = QEMU[arch]
    if not (BINFMT / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(BINFMT)], check=True)
    if (BINFMT / f"tinyedge-{arch}").exists():
        return
    magic = b"\x7fELF" + bytes((elf_class, 1, 1)) + bytes(9) + b"\x02\0" + bytes((machine, 0))
    mask = b"\xff" * 7 + b"\0" + b"\xff" * 8 + b"\xfe\xff\xff\xff"  # any system, a program or a shared object
    escaped = ["".join(f"\\x{byte:02x}" for byte in one) for one in (magic, mask)]
    line = f":tinyedge-{arch}:M::{escaped[0]}:{escaped[1]}:{shutil.which(program)}:F"
    (BINFMT / "register").write_text(line)


def debian(arch: str) -> Path:
    """The root that builds are made in, made once for each list of packages."""
    root = ROOT / ".work" / "roots" / f"{SUITE}-{arch}"
    complete = root / "complete"
    if not complete.exists() or complete.read_text() != PACKAGES:
        shutil.rmtree(root, ignore_errors=True)
        root.parent.mkdir(parents=True, exist_ok=True)
        first = ["debootstrap", f"--arch={arch}", "--variant=minbase", "--foreign", f"--include={PACKAGES}"]
        subprocess.run([*first, SUITE, str(root), "http://deb.debian.org/debian"], check=True)
        unsafe = root / "etc" / "dpkg" / "dpkg.cfg.d" / "unsafe-io"  # a root that is cut off is made anew anyway
        unsafe.parent.mkdir(parents=True, exist_ok=True)
        unsafe.write_text("force-unsafe-io\n")
        subprocess.run(["chroot", str(root), "/debootstrap/debootstrap", "--second-stage"], check=True)
        complete.write_text(PACKAGES)
    for name in ("etc/resolv.conf", "etc/ssl/certs/ca-certificates.crt"):  # the network is this machine's
        (root / name).unlink(missing_ok=True)
        shutil.copy(f"/{name}", root / name)
    return root


def _put_sources(target: Path) -> None:
    """What git knows, as it stands here."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout.decode()
    for room in ("tinyedge", "build", "packaging", "cloud_gateway"):
        shutil.rmtree(target / room, ignore_errors=True)
    for name in listed.split("\0"):
        if name.partition("/")[0] in ("tinyedge", "build", "packaging", "LICENSE") and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    shutil.rmtree(target.parent / "out", ignore_errors=True)


def run(root: Path, *argv: str) -> None:
    """In the root, with mounts that end with it."""
    inner = 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && root=$0 && exec chroot "$root" "$@"'
    environ = {name: value for name, value in os.environ.items() if name in PASSED}
    environ |= {"HOME": "/root", "LANG": "C.UTF-8", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    words = ["unshare", "--mount", "sh", "-c", inner, str(root), *argv]
    subprocess.run(words, check=True, env=environ)


if __name__ == "__main__":
    main()
