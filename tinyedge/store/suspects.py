"""Which pod broke the daemon: one that does so twice in a row at boot is set aside, and never looped on.

The name of the last one is kept in a small file beside the store, with how often in a row it was the one. A life that
outlasts its boot clears the name.
"""

from __future__ import annotations

from contextlib import suppress

from tinyedge.store.disk import Disk
from tinyedge.store.identity import read_file, remove_file, write_file

TIMES_MAX = 2
_BYTES_MAX = 1024


class Suspects:
    """`pod` is namespace/name, empty for none; `digest` that of the manifest that had just declared it, empty when it
    came from the store. A disk that fails costs the memory of it, never the daemon."""

    def __init__(self, folder: str, disk: Disk | None = None) -> None:
        self._disk = disk or Disk()
        self._path = folder + "/suspect"
        self.times, self.pod, self.digest = self._read()

    def _read(self) -> tuple[int, str, str]:
        with suppress(OSError):
            words = (read_file(self._disk, self._path, _BYTES_MAX) or b"").decode(errors="replace").split()
            if len(words) in (2, 3) and words[0].isdigit():
                return int(words[0]), words[1], words[2] if len(words) == 3 else ""
        return 0, "", ""

    @property
    def guilty(self) -> bool:
        """The pod is not to be tried again as it is."""
        return self.times >= TIMES_MAX

    def blame(self, pod: str, digest: str = "") -> None:
        """`pod` was being decided on when this life broke, at its boot."""
        again = (pod, digest) == (self.pod, self.digest)
        self.pod, self.digest, self.times = pod, digest, self.times + 1 if again else 1
        with suppress(OSError):
            write_file(self._disk, self._path, f"{self.times} {pod} {digest}".encode())

    def clear(self) -> None:
        """This life has outlasted its boot, or what is to be done about the pod has been done."""
        self.pod, self.digest, self.times = "", "", 0
        with suppress(OSError):
            remove_file(self._disk, self._path)
