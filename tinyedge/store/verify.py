"""Is this LMDB file sound? Asked in a child process, since a flipped bit can kill whoever reads it (S11).

Run as `python -m tinyedge.store.verify FILE`, or as `tinyedge verify-checkpoint FILE` where it is one binary, it reads
every row through the engine: the check for 32-bit machines, whose files LMDB's own structural checker does not take,
and for a frozen program, which can't run that as a module.
"""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable, Sequence

import lmdb

from tinyedge.limits import KIB

Verifier = Callable[[str], str]
VERIFY_TIMEOUT_S = 120  # an SD card reads 64 MiB in ten seconds or so
_OUTPUT_BYTES_MAX = 4 * KIB
_SAYS_SO = "verify:"  # what a checker prints when it ran and found the file wanting


def default_verifier() -> Verifier:
    """The checker for this machine, run by this interpreter."""
    if getattr(sys, "frozen", False):
        return child_verifier([sys.executable, "verify-checkpoint"])
    if sys.maxsize > 2**32:
        return child_verifier([sys.executable, "-m", "lmdb", "verify", "-s"])
    return child_verifier([sys.executable, "-m", "tinyedge.store.verify"])


def child_verifier(argv: Sequence[str]) -> Verifier:
    """A verifier that runs `argv` with the file's path behind it: exit status 0 means sound. It returns what is wrong,
    "" for nothing. A child that could not do its work at all raises OSError: that says nothing about the file."""

    def verify(path: str) -> str:
        status, output = _run([*argv, path])
        if status == 0:
            return ""
        if status < 0:
            return f"reading it killed the checker with signal {-status}"
        if _SAYS_SO not in output:
            raise OSError(f"the checker failed with status {status}: {output.strip()[-200:]}")
        return output.strip().replace("\n", "; ")

    return verify


def _run(argv: list[str]) -> tuple[int, str]:
    """Exit status (negative: signal) and the beginning of what it printed."""
    reading, writing = os.pipe()
    quiet = (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0)
    actions = [quiet, (os.POSIX_SPAWN_DUP2, writing, 1), (os.POSIX_SPAWN_DUP2, writing, 2)]
    try:
        child = os.posix_spawn(argv[0], argv, os.environ, file_actions=actions)
    except OSError:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    try:
        output = _read_until_closed(reading, time.monotonic() + VERIFY_TIMEOUT_S)
    except TimeoutError:
        os.kill(child, 9)
        os.waitpid(child, 0)
        raise
    finally:
        os.close(reading)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), output.decode(errors="replace")


def _read_until_closed(handle: int, deadline: float) -> bytes:
    kept = b""
    while True:
        if not select.select([handle], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError(f"the checker took longer than {VERIFY_TIMEOUT_S} s")
        piece = os.read(handle, _OUTPUT_BYTES_MAX)
        if not piece:
            return kept
        kept = (kept + piece)[:_OUTPUT_BYTES_MAX]


def main(path: str) -> int:
    try:
        with lmdb.open(path, subdir=False, readonly=True, lock=False, create=False) as env, env.begin() as txn:
            for key, value in txn.cursor():
                hash((key, value))
    except (lmdb.Error, OSError) as error:
        sys.stderr.write(f"{_SAYS_SO} {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
