"""A broken invariant ends the daemon, and the init system starts it again. A pod that is the cause twice in a row, at
boot, is set aside: one bad record must not keep all others from being looked after.

Part of the wiring, as daemon.py.
"""

from __future__ import annotations

import os

from msgspec import structs

from tinyedge import wire
from tinyedge.core.tables import Stored
from tinyedge.errors import InvariantBroken
from tinyedge.events import FileProblem, FileSeen, FolderSeen, Put
from tinyedge.log import Log
from tinyedge.model.pod import Pod
from tinyedge.store.blackbox import BlackBox
from tinyedge.store.store import Store
from tinyedge.store.suspects import Suspects

BOOT_S = 120  # a daemon that breaks later than this after its start does not loop
WHY = "it broke the daemon twice in a row when it started"
REMEDY = "change its manifest, and please report this with what `tinyedge collect` writes"


def broken_fields(error: BaseException, pod: str) -> dict[str, str]:
    """What broke and where, for the log and the black box; without a word that could have come from a manifest."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    what = str(error) if isinstance(error, InvariantBroken) else type(error).__name__
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    where = f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}" if trace else ""
    return {"what": what, "where": where, "pod": pod}


def set_aside(suspects: Suspects, tables: Stored, store: Store | None, log: Log, box: BlackBox) -> None:
    """Mark the row of a guilty pod, in `tables` and on disk: it stays, and is not planned any more. What runs of it
    goes on untouched. Blocks, for it commits; `store` None is a read-only life, which can't."""
    pod = suspects.pod
    row = tables.get("pod", {}).get(pod)
    if not suspects.guilty or suspects.digest or not row or wire.set_aside(row) == row:
        return
    tables["pod"][pod] = wire.set_aside(row)
    if store is not None:
        store.commit([Put("pod", pod, tables["pod"][pod])], store.wall_ms())
        suspects.clear()
    log.note("error", "pod.set_aside", {"pod": pod, "why": WHY, "remedy": REMEDY})
    box.record("aside", {"pod": pod, "why": WHY}, store.wall_ms() if store else 0, "")


class Gate:
    """Between the manifests and the core: a file that breaks the daemon before it is stored is held back until it
    changes."""

    def __init__(self, suspects: Suspects) -> None:
        self._suspects = suspects
        self._digests: dict[str, str] = {}  # pod → of the manifest that declared it in this life
        self.held = False

    def pass_on(self, seen: FolderSeen) -> FolderSeen:
        return structs.replace(seen, files=tuple(self._file(file) for file in seen.files))

    def _file(self, file: FileSeen) -> FileSeen:
        pods = [one.key for one in file.objects or () if isinstance(one, Pod)]
        self._digests |= dict.fromkeys(pods, file.digest)
        pod = self._suspects.pod
        if not self._suspects.guilty or pod not in pods or file.digest != self._suspects.digest:
            return file
        self.held = True
        return FileSeen(file.path, file.digest, None, (FileProblem(file.path, 0, f"Pod {pod}", f"{WHY}; {REMEDY}"),))

    def broke(self, pod: str, lived_ms: int) -> None:
        """The daemon has broken while it decided on `pod`, empty for none; at its boot if it has lived so short."""
        if pod and lived_ms < BOOT_S * 1000:
            self._suspects.blame(pod, self._digests.get(pod, ""))

    def clear(self) -> None:
        """The boot is over. What is held back stays so over the next."""
        if self._suspects.pod and not self.held:
            self._suspects.clear()
