"""Which object broke the daemon: one that does so twice in a row at boot is set aside, and never looped on.

The names of the last ones are kept in a small file beside the store, a line each:

    TIMES NAME DIGEST BESIDE      `2 default/web`, `1 Device/default/pump-1 - DeviceModel/default/pump`

NAME of a pod is its namespace/name, of others their kind stands before it; `-` stands for what is empty. A life that
outlasts its boot clears them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress

from msgspec import Struct, structs

from tinyedge.store.disk import Disk
from tinyedge.store.identity import read_file, remove_file, write_file

TIMES_MAX = 2
SUSPECTS_MAX = 16
_BYTES_MAX = 16_384


class Suspect(Struct, frozen=True):
    """`what` is an identity, as `Pod default/web`; `digest` that of the manifest that had just declared it, empty when
    it came from the store; `beside` the identity of what it was looked at with. `times` in a row it was the one: 0 when
    what is to be done about it has been done."""

    what: str
    times: int = 1
    digest: str = ""
    beside: str = ""


class Suspects:
    """A disk that fails costs the memory of them, never the daemon."""

    def __init__(self, folder: str, disk: Disk | None = None) -> None:
        self._disk = disk or Disk()
        self._path = folder + "/suspect"
        self._all = self._read()

    def _read(self) -> list[Suspect]:
        with suppress(OSError):
            lines = (read_file(self._disk, self._path, _BYTES_MAX) or b"").decode(errors="replace").splitlines()
            return [found for line in lines[:SUSPECTS_MAX] if (found := _suspect(line.split())) is not None]
        return []

    @property
    def guilty(self) -> list[Suspect]:
        """They are not to be tried again as they are."""
        return [one for one in self._all if one.times >= TIMES_MAX]

    def blame(self, what: str, digests: Mapping[str, str], beside: str = "") -> None:
        """`what` was being decided on when this life broke, at its boot; `digests` are of the manifests that this life
        has read, by identity. When another thing broke it before beside the same, that is the one."""
        times = 1
        if beside and any(one.beside == beside and one.what != what for one in self._all):
            what, beside, times = beside, "", TIMES_MAX
        digest = digests.get(what, "")
        before = next((one for one in self._all if (one.what, one.digest) == (what, digest)), None)
        others = [one for one in self._all if one.what != what and one.times != 1]  # a row is broken by another
        times = max(times, before.times + 1 if before else 1)
        self._keep([*others, Suspect(what, times, digest, beside)])

    def settled(self, what: str) -> None:
        """It has been set aside. What it was looked at with may have been the cause."""
        self._keep([structs.replace(one, times=0) if one.what == what else one for one in self._all])

    def clear(self, held: Collection[str] = ()) -> None:
        """This life has outlasted its boot. `held` are those whose manifest goes on being held back."""
        self._keep([one for one in self._all if one.what in held])

    def _keep(self, those: list[Suspect]) -> None:
        if those == self._all:
            return
        self._all = those[-SUSPECTS_MAX:]
        with suppress(OSError):
            if self._all:
                write_file(self._disk, self._path, "\n".join(map(_line, self._all)).encode())
            else:
                remove_file(self._disk, self._path)


def _line(one: Suspect) -> str:
    return f"{one.times} {_name(one.what)} {one.digest or '-'} {_name(one.beside) or '-'}"


def _name(what: str) -> str:
    return what.removeprefix("Pod ").replace(" ", "/")


def _what(name: str) -> str:
    return f"Pod {name}" if name.count("/") < 2 else name.replace("/", " ", 1)


def _suspect(words: list[str]) -> Suspect | None:
    """An older version of this program wrote no more than it had to."""
    if not 2 <= len(words) <= 4 or not words[0].isdigit():
        return None
    digest, beside = ("" if word == "-" else word for word in (*words[2:], "-", "-")[:2])
    return Suspect(_what(words[1]), int(words[0]), digest, _what(beside) if beside else "")
