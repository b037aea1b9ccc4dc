"""Versions that are unpacked, verified and removed. Which of them runs is marks.py's.

    ROOT/versions/0.2.0-amd64/…   unpacked aside as `.new-…`, flushed, renamed: it is there whole or not at all

The version that runs and the one before are kept; the one before goes when its room is needed for a new one.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress

from tinyedge.errors import TinyEdgeError, WorldError
from tinyedge.limits import BUNDLE_MANIFEST_BYTES_MAX
from tinyedge.store.identity import read_file
from tinyedge.upgrade.bundle import MANIFEST, SIGNATURE, Bundle, Manifest, Progress, Refused, believed, trusted_keys
from tinyedge.upgrade.marks import ROOT, STATE, Marks, failed, version_key

__all__ = ["ROOT", "STATE", "Versions"]

_SIGNATURE_BYTES_MAX = 4096
_PIECE_BYTES = 256 * 1024


class Versions(Marks):
    """What is installed. All calls block on the disk; WorldError when it fails."""

    # --- looking -------------------------------------------------------------------------------------

    def manifest(self, name: str) -> Manifest:
        """Of an installed version, whose signature still holds."""
        raw, signature = self._signed(name)
        return believed(self.folder(name), raw, signature, trusted_keys(os.path.join(self.root, "trust")))

    def _signed(self, name: str) -> tuple[bytes, bytes]:
        folder = self.folder(name)
        try:
            raw = read_file(self._disk, os.path.join(folder, MANIFEST), BUNDLE_MANIFEST_BYTES_MAX) or b""
            return raw, read_file(self._disk, os.path.join(folder, SIGNATURE), _SIGNATURE_BYTES_MAX) or b""
        except OSError as error:
            raise failed(f"can't read {folder}", error) from error

    def verify(self, name: str) -> Manifest:
        """Every file of an installed version is what its manifest says. Raises Refused when one is not."""
        manifest = self.manifest(name)
        folder = self.folder(name)
        for entry in manifest.files:
            path = os.path.join(folder, entry.path)
            if self._sha256(path) != entry.sha256:
                what, why = f"{folder} is damaged", f"{entry.path} is not what its manifest says"
                raise Refused("Damaged", what, why, "install that version again from its file")
        return manifest

    def _sha256(self, path: str) -> str:
        """Empty for a file that can't be read."""
        hashed = hashlib.sha256()
        try:
            handle = self._disk.open(path, write=False)
        except OSError:
            return ""
        try:
            at = 0
            while piece := self._disk.pread(handle, _PIECE_BYTES, at):
                hashed.update(piece)
                at += len(piece)
        except OSError:
            return ""
        finally:
            self._disk.close(handle)
        return hashed.hexdigest()

    def free_bytes(self) -> int:
        """Room for versions."""
        try:
            return self._disk.free_bytes(os.path.join(self.root, "versions"))
        except OSError as error:
            raise failed(f"can't look at {self.root}", error) from error

    # --- a new version -------------------------------------------------------------------------------

    def check(self, manifest: Manifest, *, allow_downgrade: bool = False, store_format: int = 0) -> None:
        """Raises Refused when it is older than what runs, or can't read a store of this format (0: there is none)."""
        now = self.current()
        if now and not allow_downgrade and version_key(manifest.version) < version_key(now.rpartition("-")[0]):
            raise Refused(
                "Older",
                f"{manifest.version} is older than {now}, which runs",
                "an older version may not read what a newer one has written",
                "if you mean it: --allow-downgrade",
            )
        check_store(manifest, store_format)

    def stage(self, bundle: Bundle, progress: Progress = lambda done, total: None) -> str:
        """Unpack it, durably, beside those that are there. Returns its name."""
        name = bundle.manifest.name
        aside = os.path.join(self.root, "versions", f".new-{name}")
        if self._is_there(name, bundle):
            return name
        try:
            self._make_room(bundle.manifest)
            bundle.unpack(aside, self._disk, progress)
            self._disk.rename(aside, self.folder(name))
            self._disk.fsync_dir(os.path.dirname(aside))
        except OSError as error:
            raise failed(f"can't unpack to {self.folder(name)}", error) from error
        except TinyEdgeError:
            with suppress(OSError):
                self._remove_tree(aside)
            raise
        return name

    def _is_there(self, name: str, bundle: Bundle) -> bool:
        """Whether the same version is there, whole. Another one of its name, or one that is damaged, is removed."""
        if not self._disk.is_dir(self.folder(name)):
            return False
        try:
            whole = self._signed(name) == bundle.signed
            self.verify(name)
        except TinyEdgeError:
            whole = False
        if not whole:
            if name in (self.current(), self._on_trial()):
                raise WorldError(
                    f"{self.folder(name)} runs, and can't be replaced by another {name}",
                    "its files are not those of this one",
                    "go to another version first, or give this one a number of its own",
                )
            self.remove(name)
        return whole

    def _on_trial(self) -> str:
        trial = self.trial()
        return trial.name if trial else ""

    def _make_room(self, manifest: Manifest) -> None:
        """What was left half done goes first, and then versions that do not run, should their room be needed."""
        folder = os.path.join(self.root, "versions")
        needed = manifest.bytes * 5 // 4
        for name in self._disk.listdir(folder):
            if name.startswith("."):
                self.remove(name)
        if self._disk.free_bytes(folder) < needed:
            self.tidy(keep=())
        free = self._disk.free_bytes(folder)
        if free < needed:
            raise WorldError(
                "there is no room for another version",
                f"{needed} bytes are needed below {self.root}, and {free} are free",
                "free space on that disk",
            )


def check_store(manifest: Manifest, store_format: int) -> None:
    """Raises Refused for a version that can't read a store of this format (0: there is none): each reads its own and
    the one before."""
    if store_format > manifest.store_format:
        raise Refused(
            "StoreNewer",
            f"{manifest.version} can't read this node's store",
            f"the store has format {store_format}, and it knows up to {manifest.store_format}",
            "take a newer version, or begin with an empty store (another store.path)",
        )
    if 0 < store_format < manifest.store_format - 1:
        raise Refused(
            "StoreOlder",
            f"{manifest.version} can't read this node's store",
            f"the store has format {store_format}, and it knows {manifest.store_format - 1} on",
            "upgrade to a version in between first",
        )
