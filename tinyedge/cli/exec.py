"""`tinyedge exec` and `attach`: a process in a container, joined to this terminal."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

from tinyedge.cli.errors import EXIT_USAGE, CliError
from tinyedge.cli.output import client, namespace, pod_name, show
from tinyedge.cli.streams import OUTCOME, STDERR, STDIN, STDOUT, Streams, outcome

READ_BYTES = 16 * 1024
PATIENCE_S = 5  # after the end of stdin, before saying why nothing happens
END_OF_TEXT = b"\x04"  # what a terminal makes of Ctrl-D


def run(args: argparse.Namespace) -> int:
    if args.command == "exec" and not args.rest:
        raise CliError("say what to run", "", "tinyedge exec POD -- COMMAND", code=EXIT_USAGE)
    terminal = args.tty and sys.stdin.isatty()
    if args.tty and not args.stdin:
        raise CliError("-t needs -i", "a terminal without input is none", "use -it", code=EXIT_USAGE)
    if args.tty and not terminal:
        show("standard input is no terminal; going on without one", file=sys.stderr)
    params = [("stdin", str(args.stdin).lower()), ("tty", str(terminal).lower())]
    params += [("container", args.container)] if args.container else []
    params += [("command", word) for word in args.rest]
    path = f"/v1/namespaces/{namespace(args)}/pods/{pod_name(args.pod)}/{args.command}"
    streams = Streams(client(args).ask("POST", path, params)["url"])
    try:
        with _raw(terminal):
            code, words = Session(streams, stdin=args.stdin, terminal=terminal).run()
    finally:
        streams.close()
    if words:
        raise CliError(f"{args.command} in {args.pod} failed", words, f"tinyedge describe pod {args.pod} tells more")
    return code


class Session:
    """Passes bytes until the other end has told the outcome."""

    def __init__(self, streams: Streams, *, stdin: bool, terminal: bool) -> None:
        self.streams = streams
        self.stdin = stdin
        self.terminal = terminal
        self._ended: tuple[int, str] | None = None
        self._waiting = False  # stdin has ended, and the other end can't be told

    def run(self) -> tuple[int, str]:
        """Exit code, and words when there is none."""
        with _window_changes(self.terminal) as changes:
            if self.terminal:
                self._resize()
            while self._ended is None and not self.streams.closed:
                sources = [*([0] if self.stdin else []), *([changes] if changes is not None else [])]
                ready, messages = self.streams.wait(sources, PATIENCE_S if self._waiting else None)
                if self._waiting and not ready and not messages:
                    self._explain()
                for channel, data in messages:
                    self._take(channel, data)
                if 0 in ready:
                    self._read()
                if changes in ready and changes is not None:
                    os.read(changes, 512)
                    self._resize()
        return self._ended or (1, "the connection ended before the outcome was told")

    def _take(self, channel: int, data: bytes) -> None:
        if channel == OUTCOME:
            self._ended = outcome(data)
        elif channel in (STDOUT, STDERR):
            _write(channel, data)

    def _read(self) -> None:
        data = os.read(0, READ_BYTES)
        if data:
            self.streams.send(STDIN, data)
            return
        self.stdin = False
        if self.terminal:
            self.streams.send(STDIN, END_OF_TEXT)
        else:
            self.streams.end(STDIN)
            self._waiting = not self.streams.can_end_stdin

    def _explain(self) -> None:
        self._waiting = False
        show(
            "standard input has ended, but this runtime (v4.channel.k8s.io) has no way to tell that to the command; "
            "if it reads to the end of its input, it waits forever: end it with Ctrl-C",
            file=sys.stderr,
        )

    def _resize(self) -> None:
        size = shutil.get_terminal_size()
        self.streams.resize(size.columns, size.lines)


def _write(channel: int, data: bytes) -> None:
    stream = sys.stdout if channel == STDOUT else sys.stderr
    stream.buffer.write(data)
    stream.buffer.flush()


@contextmanager
def _raw(wanted: bool) -> Iterator[None]:
    """Every key goes to the other end, Ctrl-C too; the terminal is given back as it was."""
    if not wanted:
        yield
        return
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


@contextmanager
def _window_changes(wanted: bool) -> Iterator[int | None]:
    """A descriptor that is readable when the terminal's size has changed."""
    if not wanted:
        yield None
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.signal(signal.SIGWINCH, lambda *_: None)
    old = signal.set_wakeup_fd(write)
    try:
        yield read
    finally:
        signal.set_wakeup_fd(old)
        signal.signal(signal.SIGWINCH, before)
        os.close(read)
        os.close(write)
