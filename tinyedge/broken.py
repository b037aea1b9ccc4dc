"""A broken invariant ends the daemon, and the init system starts it again. An object (a pod, a device, a rule…) that is
the cause twice in a row, at boot, is set aside: one bad record must not keep all others from being looked after.

Part of the wiring, as daemon.py.
"""

from __future__ import annotations

import os

from msgspec import structs

from tinyedge import wire
from tinyedge.core.desk import About
from tinyedge.core.sources import identity
from tinyedge.core.tables import Stored
from tinyedge.errors import InvariantBroken
from tinyedge.events import FileProblem, FileSeen, FolderSeen, Put
from tinyedge.log import Log
from tinyedge.store.blackbox import BlackBox
from tinyedge.store.store import Store
from tinyedge.store.suspects import Suspects

BOOT_S = 120  # a daemon that breaks later than this after its start does not loop
WHY = "it broke the daemon twice in a row when it started"
REMEDY = "change its manifest, and please report this with what `tinyedge collect` writes"


def broken_fields(error: BaseException, about: About) -> dict[str, str]:
    """What broke, where and over which object, for the log and the black box; without a word that could have come from
    a manifest."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    what = str(error) if isinstance(error, InvariantBroken) else type(error).__name__
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    where = f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}" if trace else ""
    return {"what": what, "where": where, "object": about.what}


def set_aside(suspects: Suspects, tables: Stored, store: Store | None, log: Log, box: BlackBox) -> None:
    """Mark the rows of guilty objects, in `tables` and on disk: they stay, and are not looked after any more. What runs
    of them, and what is remembered of them, is left as it is. Blocks, for it commits; `store` None is a read-only life,
    which can't."""
    for one in suspects.guilty:
        kind, _, key = one.what.partition(" ")
        table = kind.lower()
        row = tables.get(table, {}).get(key)
        if one.digest or not row or wire.is_aside(row):
            continue
        tables[table][key] = wire.set_aside(row)
        if store is not None:
            store.commit([Put(table, key, tables[table][key])], store.wall_ms())
            suspects.settled(one.what)
        log.note("error", "object.set_aside", {"object": one.what, "why": WHY, "remedy": REMEDY})
        box.record("aside", {"object": one.what, "why": WHY}, store.wall_ms() if store else 0, "")


class Gate:
    """Between the manifests and the core: a file that breaks the daemon before it is stored is held back until it
    changes."""

    def __init__(self, suspects: Suspects) -> None:
        self._suspects = suspects
        self._digests: dict[str, str] = {}  # identity → of the manifest that declared it in this life
        self._held: set[str] = set()

    def pass_on(self, seen: FolderSeen) -> FolderSeen:
        return structs.replace(seen, files=tuple(self._file(file) for file in seen.files))

    def _file(self, file: FileSeen) -> FileSeen:
        declared = [identity(one) for one in file.objects or ()]
        self._digests |= dict.fromkeys(declared, file.digest)
        guilty = [one.what for one in self._suspects.guilty if one.digest == file.digest and one.what in declared]
        if not guilty:
            return file
        self._held.update(guilty)
        problems = tuple(FileProblem(file.path, 0, what, f"{WHY}; {REMEDY}") for what in guilty)
        return FileSeen(file.path, file.digest, None, problems)

    def broke(self, about: About, lived_ms: int) -> None:
        """The daemon has broken while it decided on something; at its boot if it has lived so short."""
        if about.what and lived_ms < BOOT_S * 1000:
            self._suspects.blame(about.what, self._digests, about.beside)

    def clear(self) -> None:
        """The boot is over. What is held back stays so over the next."""
        self._suspects.clear(self._held)
