"""A version as one file, and what it must prove before anything of it is used.

    a shell script, which installs it (packaging/install.sh)
    a line of its own: MARK
    tar.gz (archive.py): manifest.json, manifest.sig, then every file that the manifest names, in its order

The manifest names product, version, architecture and each file with its SHA-256, size and mode; `manifest.sig` is the
Ed25519 signature of the manifest's bytes by a key that the device trusts. Nothing that is not in the manifest is
unpacked, and nothing counts before all of it is there, whole.
"""

from __future__ import annotations

import base64
import hashlib
import os
import platform
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Annotated

import msgspec
from msgspec import Meta, Struct

from tinyedge import libcrypto
from tinyedge.errors import BadInput, WorldError
from tinyedge.limits import (
    BUNDLE_FILES_MAX,
    BUNDLE_HEAD_BYTES_MAX,
    BUNDLE_MANIFEST_BYTES_MAX,
    BUNDLE_UNPACKED_BYTES_MAX,
)
from tinyedge.store.disk import Disk
from tinyedge.upgrade.archive import Archive, BadArchive, CutOff, Member
from tinyedge.upgrade.marks import Refused, version_key

__all__ = [
    "MANIFEST",
    "MARK",
    "SIGNATURE",
    "Bundle",
    "Manifest",
    "Progress",
    "Refused",
    "believed",
    "open_bundle",
    "this_architecture",
    "trusted_keys",
    "version_key",
]

MARK = b"__TINYEDGE_PAYLOAD__\n"
MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "armhf", "armv8l": "armhf"}
_VERSION = r"^[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.]+)?(\+[0-9A-Za-z.]+)?$"
_PATH = re.compile(r"[A-Za-z0-9_.+@-]+(/[A-Za-z0-9_.+@-]+)*")

Progress = Callable[[int, int], None]  # bytes done, bytes in all


class FileEntry(Struct, frozen=True):
    """`mode` is 420 (0644) or 493 (0755)."""

    path: str
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Meta(ge=0)]
    mode: int = 0o644


class Manifest(Struct, frozen=True):
    """`store_format`: the newest format of the store that this version reads; it also reads the one before."""

    product: str
    version: Annotated[str, Meta(pattern=_VERSION, max_length=64)]
    architecture: str
    store_format: int
    files: Annotated[list[FileEntry], Meta(max_length=BUNDLE_FILES_MAX)]

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.version}-{self.architecture}"

    @property
    def bytes(self) -> int:
        return sum(one.size for one in self.files)


def this_architecture() -> str:
    machine = platform.machine()
    if machine == "aarch64" and sys.maxsize < 2**32:
        machine = "armv7l"
    return ARCHITECTURES.get(machine, machine)


# --- reading -----------------------------------------------------------------------------------------


class Bundle:
    """An open file whose manifest has been believed: signature, product and architecture are right. `signed` is the
    manifest and its signature, as bytes. It can be read through once."""

    def __init__(
        self, path: str, file: IO[bytes], archive: Archive, manifest: Manifest, signed: tuple[bytes, bytes]
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.signed = signed
        self._file = file
        self._archive = archive

    def close(self) -> None:
        self._file.close()

    def verify(self, progress: Progress = lambda done, total: None) -> None:
        """Read all of it, and write nothing. Raises Refused when a file is not what the manifest says."""
        done = 0
        for entry in self._files(self._wanted()):
            for _ in self._checked(entry):
                pass
            done += entry.size
            progress(done, self.manifest.bytes)

    def unpack(self, folder: str, disk: Disk, progress: Progress = lambda done, total: None) -> None:
        """Write every file below `folder`, which must not be there, each flushed; then the directories. Raises Refused
        when a file is not what the manifest says, WorldError when the disk fails."""
        wanted = self._wanted()
        done, total = 0, self.manifest.bytes
        folders = sorted({os.path.dirname(path) for path in wanted} | {""} | _parents(wanted))
        try:
            for name in folders:
                _make_folder(disk, os.path.join(folder, name) if name else folder)
            for entry in self._files(wanted):
                _put(disk, os.path.join(folder, entry.path), self._checked(entry), entry.mode)
                done += entry.size
                progress(done, total)
            for name, data in zip((MANIFEST, SIGNATURE), self.signed, strict=True):
                _put(disk, os.path.join(folder, name), [data], 0o644)
            for name in reversed(folders):
                disk.fsync_dir(os.path.join(folder, name) if name else folder)
        except OSError as error:
            raise _disk_failed(folder, error) from error

    def _wanted(self) -> dict[str, FileEntry]:
        return {one.path: one for one in self.manifest.files}

    def _files(self, wanted: dict[str, FileEntry]) -> Iterator[FileEntry]:
        """Each as its header comes; its content is to be read before the next."""
        left = dict(wanted)
        while (member := self._next()) is not None:
            entry = left.pop(member.name, None)
            if entry is None or member.size != entry.size:
                raise _damaged(self.path, f"{member.name[:80]!r} is not as its manifest says")
            yield entry
        if left:
            raise _truncated(self.path, f"{len(left)} files are missing")

    def _next(self) -> Member | None:
        with _told(self.path):
            return self._archive.next()

    def _checked(self, entry: FileEntry) -> Iterator[bytes]:
        """A file's pieces; Refused behind the last one when they are not what the manifest says."""
        hashed = hashlib.sha256()
        pieces = self._archive.pieces()
        while True:
            with _told(self.path):
                piece = next(pieces, b"")
            if not piece:
                break
            hashed.update(piece)
            yield piece
        if hashed.hexdigest() != entry.sha256:
            raise _damaged(self.path, f"{entry.path} has another SHA-256 than its manifest says")


def open_bundle(path: str, trusted: list[bytes], *, product: str = "tinyedge", architecture: str = "") -> Bundle:
    """`trusted` are raw public keys. Raises Refused, or WorldError when the file can't be read."""
    try:
        file = open(path, "rb")  # noqa: SIM115 - it is the bundle's from here on
    except OSError as error:
        raise WorldError(f"can't read {path}", error.strerror or str(error), "check the path") from error
    try:
        with _told(path):
            _skip_head(path, file)
            archive = Archive(file)
            raw, signature = _head_member(path, archive, MANIFEST), _head_member(path, archive, SIGNATURE)
        manifest = believed(path, raw, signature, trusted)
        _fits(path, manifest, product, architecture or this_architecture())
    except BaseException:
        file.close()
        raise
    return Bundle(path, file, archive, manifest, (raw, signature))


def believed(path: str, raw: bytes, signature: bytes, trusted: list[bytes]) -> Manifest:
    """The manifest in `raw`, if one of the trusted keys has signed it."""
    if not any(libcrypto.verify(key, signature, raw) for key in trusted):
        raise Refused(
            "Untrusted",
            f"{path} is signed by nobody whom this node trusts",
            f"none of its {len(trusted)} keys fits the signature",
            "take the file from where this version came from; the keys are in /usr/lib/tinyedge/trust",
        )
    try:
        manifest = msgspec.json.decode(raw, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _damaged(path, f"its manifest does not decode: {error}") from None
    paths = [one.path for one in manifest.files]
    whole = all(_PATH.fullmatch(one) and ".." not in one.split("/") for one in paths)
    if not whole or len(set(paths)) != len(paths) or manifest.bytes > BUNDLE_UNPACKED_BYTES_MAX:
        raise _damaged(path, "its manifest names files that can't be")
    return manifest


def _fits(path: str, manifest: Manifest, product: str, architecture: str) -> None:
    if manifest.product != product:
        raise Refused(
            "WrongProduct", f"{path} holds {manifest.product}", f"this is {product}", f"take {product}'s file"
        )
    if manifest.architecture != architecture:
        raise Refused(
            "WrongArchitecture",
            f"{path} is made for {manifest.architecture}",
            f"this machine is {architecture}",
            f"take the file for {architecture}",
        )


def trusted_keys(folder: str) -> list[bytes]:
    """The raw public keys in `*.pub` files (base64) of a folder. Raises BadInput for one that is none."""
    found = []
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        if name.endswith(".pub"):
            with open(os.path.join(folder, name), "rb") as file:
                text = file.read(256)
            try:
                found.append(base64.b64decode(text, validate=False))
            except ValueError:
                raise BadInput(os.path.join(folder, name), text[:20], "a raw Ed25519 key in base64") from None
    return [key for key in found if len(key) == libcrypto.KEY_BYTES]


def _skip_head(path: str, file: IO[bytes]) -> None:
    """To behind the line that ends the installing script."""
    head = file.read(BUNDLE_HEAD_BYTES_MAX)
    at = head.find(b"\n" + MARK)
    if at < 0:
        why = f"the line {MARK.decode().strip()} is not in it"
        raise Refused("NotABundle", f"{path} is no version of tinyedge", why, "is it the right file?")
    file.seek(at + 1 + len(MARK))


def _head_member(path: str, archive: Archive, name: str) -> bytes:
    member = archive.next()
    if member is None or member.name != name or member.size > BUNDLE_MANIFEST_BYTES_MAX:
        raise _damaged(path, f"it does not begin with {name}")
    return b"".join(archive.pieces())


def _parents(paths: dict[str, FileEntry]) -> set[str]:
    found: set[str] = set()
    for path in paths:
        parent = os.path.dirname(path)
        while parent:
            found.add(parent)
            parent = os.path.dirname(parent)
    return found


def _make_folder(disk: Disk, path: str) -> None:
    """Who is not root uses the command line in it, whatever the umask of who unpacks it."""
    disk.mkdir(path)
    handle = disk.open(path, write=False)
    try:
        disk.chmod(handle, 0o755)
    finally:
        disk.close(handle)


def _put(disk: Disk, path: str, pieces: Iterable[bytes], mode: int) -> None:
    """A new file, flushed, with its mode."""
    handle = disk.open(path, create=True)
    try:
        at = 0
        for piece in pieces:
            disk.pwrite(handle, piece, at)
            at += len(piece)
        disk.chmod(handle, 0o755 if mode & 0o100 else 0o644)
        disk.fsync(handle)
    finally:
        disk.close(handle)


@contextmanager
def _told(path: str) -> Iterator[None]:
    """What can't be read on, by the file's own fault or by that of the disk that it is on, in words."""
    try:
        yield
    except CutOff as error:
        raise _truncated(path, str(error)) from None
    except BadArchive as error:
        raise _damaged(path, str(error)) from None
    except OSError as error:
        remedy = "check the disk that it is on"
        raise WorldError(f"can't read {path}", error.strerror or str(error), remedy) from error


def _truncated(path: str, why: str) -> Refused:
    return Refused("Truncated", f"{path} is not whole", why, "fetch it again")


def _damaged(path: str, why: str) -> Refused:
    return Refused("Damaged", f"{path} is damaged", why, "fetch it again")


def _disk_failed(folder: str, error: OSError) -> WorldError:
    remedy = "free space on that disk, or name another one; the version that runs goes on"
    return WorldError(f"can't unpack to {folder}", error.strerror or str(error), remedy)
