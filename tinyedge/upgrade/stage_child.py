"""A version's file verified and unpacked, in a process of its own: what that costs in memory never reaches the daemon.
Run as `python -m tinyedge.upgrade.stage_child`, or as `tinyedge stage-version` where it is one binary.

argv: the file, the format of the node's store (0: there is none), and `--allow-downgrade` if that is allowed. stdout:
lines of JSON, each a `Said`.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Sequence

import msgspec

from tinyedge.errors import TinyEdgeError
from tinyedge.limits import MIB
from tinyedge.upgrade.bundle import open_bundle, trusted_keys
from tinyedge.upgrade.marks import Busy, Refused, marks_of
from tinyedge.upgrade.staging import Said
from tinyedge.upgrade.versions import Versions

MEMORY_BYTES_MAX = 128 * MIB  # of addresses: whatever a file makes of it, the board's memory is not what it costs


def main(words: Sequence[str]) -> int:
    path, store_format, *flags = words
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    try:
        ended = Said(name=_stage(path, int(store_format), allow_downgrade="--allow-downgrade" in flags))
    except Busy:
        ended = Said(busy=True)
    except TinyEdgeError as error:
        reason = error.reason if isinstance(error, Refused) else ""
        ended = Said(reason=reason, what=error.what, why=error.why, remedy=error.remedy)
    except MemoryError:
        ended = Said(
            what=f"can't unpack {path}", why="it wants more memory than any version needs", remedy="fetch it again"
        )
    _say(ended)
    return 0 if ended.name else 1


def _stage(path: str, store_format: int, *, allow_downgrade: bool) -> str:
    versions = Versions(*marks_of(os.environ))
    told = [-1]

    def progress(done: int, total: int) -> None:
        percent = 100 * done // max(total, 1)
        if percent != told[0]:
            told[0] = percent
            _say(Said(done, total))

    with versions.alone():
        bundle = open_bundle(path, trusted_keys(os.path.join(versions.root, "trust")))
        try:
            versions.check(bundle.manifest, allow_downgrade=allow_downgrade, store_format=store_format)
            return versions.stage(bundle, progress)
        finally:
            bundle.close()


def _say(what: Said) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(what) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
