"""Processes of the demo: started plainly, ended without a word, nothing of them left behind."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tinyedge.cli.errors import CliError

READY_S_MAX = 60
PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """What the daemon starts outlives it on purpose; here it must still end with the demo."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def start(argv: Sequence[str], log: Path, environ: Mapping[str, str] | None = None) -> int:
    """Start a program that writes to `log`; its pid."""
    with log.open("ab") as out:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=None if environ is None else {**os.environ, **environ},
        )
    return child.pid


def output(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> str:
    """What a command prints; CliError with its own words when it fails."""
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env=None if environ is None else {**os.environ, **environ},
    )
    if done.returncode:
        raise CliError(f"{' '.join(argv)} failed", (done.stderr or done.stdout).strip(), "please report this")
    return done.stdout


def until(true: Callable[[], bool], what: str, log: Path) -> float:
    """Look until it is so; the seconds that took. CliError with the end of `log` when it takes too long."""
    began = time.monotonic()
    while not true():
        if time.monotonic() - began > READY_S_MAX:
            words = log.read_text()[-3000:] if log.exists() else ""
            raise CliError(f"{what} not within {READY_S_MAX} s", f"the log says:\n{words}", "please report this")
        time.sleep(0.02)
    return time.monotonic() - began


def kill_below(root: int, *spare: int) -> int:
    """SIGKILL to everything below a process but `spare` and what is below those, again and again until nothing is left;
    how many there were."""
    killed: set[int] = set()
    while below := _below(root) - {pid for one in spare if one for pid in (one, *_below(one))}:
        for pid in below:
            kill(pid)
        killed |= below
        _reap()
    return len(killed)


def kill(pid: int) -> None:
    """SIGKILL; nothing when it has ended already."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def tinyedge() -> list[str]:
    """This program, however it was started."""
    return [sys.executable] if getattr(sys, "frozen", False) else [sys.executable, "-m", "tinyedge"]


def free_ports(count: int) -> list[int]:
    socks = [socket.socket() for _ in range(count)]
    try:
        for sock in socks:
            sock.bind(("127.0.0.1", 0))
        return [int(sock.getsockname()[1]) for sock in socks]
    finally:
        for sock in socks:
            sock.close()


def _parents() -> Iterator[tuple[int, int]]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended meanwhile
            if fields[0] != "Z":
                yield int(name), int(fields[1])


def _below(pid: int) -> set[int]:
    """All descendants of `pid` that still run."""
    parents = dict(_parents())
    below: set[int] = set()
    grown = True
    while grown:
        more = {child for child, parent in parents.items() if parent == pid or parent in below} - below
        below |= more
        grown = bool(more)
    return below


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return
