"""The binaries of this tree, built once for each state of its sources; and the same with another first line."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import marshal
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
CACHE = ROOT / ".work" / "binaries"
SOURCES = {
    "edge": ("tinyedge", "build", "packaging"),
    "gateway": ("tinyedge", "cloud_gateway", "build", "packaging"),
}
PROGRAMS = {"edge": "tinyedge", "gateway": "tinyedge-gateway"}
KEPT = 4  # builds, the newest

# PyInstaller's archive, at the end of the executable: entries, their table, and a cookie that says where both are.
COOKIE = struct.Struct("!8sIIII64s")
ENTRY = struct.Struct("!IIIIBc")
MAGIC = b"MEI\014\013\012\013\016"
FIRST = "entry"  # the name of the script that the program begins with


def state(product: str) -> str:
    """A digest of all that a build depends on."""
    digest = hashlib.sha256(sys.version.encode())
    for folder in SOURCES[product]:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                digest.update(f"{path.relative_to(ROOT)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


@cache
def folder_of(product: str) -> Path:
    """The folder of a program, with the executable in it; in one process the same, whatever is being edited."""
    CACHE.mkdir(parents=True, exist_ok=True)
    out = CACHE / f"{product}-{state(product)}"
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one build is enough for all who run beside each other
        if not (out / "complete").exists():
            argv = [sys.executable, str(ROOT / "build" / "binary.py"), "--product", product, "--out", str(out)]
            subprocess.run(argv, check=True)
            (out / "complete").touch()
            _forget(product)
    return next(path for path in out.iterdir() if path.is_dir())


def _forget(product: str) -> None:
    for old in sorted(CACHE.glob(f"{product}-*"), key=lambda path: path.stat().st_mtime)[:-KEPT]:
        shutil.rmtree(old)


def bundled(folder: Path, scratch: Path) -> Path:
    """The file that installs itself, of a copy of the program's folder, signed by a key that nobody has."""
    bundle = [sys.executable, str(ROOT / "build" / "bundle.py")]
    key, copy, out = scratch / "key", scratch / "bundled" / folder.name, scratch / "out"
    subprocess.run([*bundle, "--new-key", str(key)], check=True)
    shutil.copytree(folder, copy)
    argv = [*bundle, str(copy), "--key", str(key), "--out", str(out)]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    return out / f"{folder.name}.run"


def next_build(product: str, version: str, key: bytes, store_format: int = 0) -> Path:
    """The file that installs itself, built of a copy of this tree that says another version, and another format of the
    store unless that is 0: so far as anybody can see, of a later commit. Signed by `key`."""
    out = CACHE / f"next-{product}-{state(product)}" / f"{version}-{store_format}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (out / "complete").exists():
            with tempfile.TemporaryDirectory(prefix="tinyedge-next-") as scratch:
                copy = _later(product, version, store_format, Path(scratch) / "tree")
                build = [sys.executable, str(copy / "build" / "binary.py"), "--product", product, "--out", str(out)]
                subprocess.run(build, check=True)
                (Path(scratch) / "key").write_bytes(base64.b64encode(key))
                bundle = [
                    sys.executable,
                    str(copy / "build" / "bundle.py"),
                    "--key",
                    f"{scratch}/key",
                    "--out",
                    str(out),
                ]
                folder = next(path for path in out.iterdir() if path.is_dir())
                subprocess.run([*bundle, str(folder)], check=True)
            (out / "complete").touch()
            _forget(f"next-{product}")
    return next(out.glob("*.run"))


def _later(product: str, version: str, store_format: int, copy: Path) -> Path:
    for folder in SOURCES[product]:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "LICENSE", copy)
    tools = ROOT / ".work" / "build"  # what is built with is the same
    tools.mkdir(parents=True, exist_ok=True)
    (copy / ".work").mkdir()
    (copy / ".work" / "build").symlink_to(tools)
    _say(copy / "tinyedge" / "__init__.py", "__version__ = ", f'"{version}"')
    if store_format:
        _say(copy / "tinyedge" / "store" / "record.py", "FORMAT = ", str(store_format))
        _say(copy / "tinyedge" / "store" / "record.py", "READ_FORMATS = ", f"({store_format - 1}, FORMAT)")
    return copy


def _say(path: Path, name: str, value: str) -> None:
    text, changed = re.subn(rf"(?m)^{name}.*$", name + value, path.read_text())
    assert changed == 1, f"{path} does not say {name}"
    path.write_text(text)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def with_entry(program: Path, code: str, target: Path) -> Path:
    """The same program, all its modules as they are, beginning with other code; the executable in `target`."""
    shutil.copytree(program.parent, target, copy_function=os.link)
    made = target / program.name
    made.unlink()
    made.write_bytes(_replaced(program.read_bytes(), code))
    made.chmod(0o755)
    return made


def _replaced(executable: bytes, code: str) -> bytes:
    """With a second archive behind the first: the last one is used."""
    at = executable.rfind(MAGIC)
    magic, length, toc_at, toc_length, version, library = COOKIE.unpack_from(executable, at)
    archive = executable[at + COOKIE.size - length :][:length]
    script = marshal.dumps(compile(code, "entry.py", "exec", optimize=2))
    packed = zlib.compress(script)
    toc, position = b"", toc_at
    while position < toc_at + toc_length:
        size, offset, stored, plain, compressed, kind = ENTRY.unpack_from(archive, position)
        name = archive[position + ENTRY.size : position + size]
        if name.rstrip(b"\0").decode() == FIRST:
            offset, stored, plain, compressed = toc_at, len(packed), len(script), 1
        toc += ENTRY.pack(size, offset, stored, plain, compressed, kind) + name
        position += size
    cookie = COOKIE.pack(
        magic, toc_at + len(packed) + len(toc) + COOKIE.size, toc_at + len(packed), len(toc), version, library
    )
    return executable + archive[:toc_at] + packed + toc + cookie
