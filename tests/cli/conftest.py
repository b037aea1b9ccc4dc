"""A served node for the command line: the real API over a real socket, in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio

from tests.fakes.backend import START, FakeBackend
from tinyedge.adapters.local_api import LocalApi
from tinyedge.cli import text
from tinyedge.cli.main import main

NOW_S = (text.seconds_of(START) or 0) + 3600


class Ran(NamedTuple):
    """How a command ended and what it said."""

    code: int
    out: str
    err: str


class Cli:
    """Runs commands as functions against the served node."""

    def __init__(self, socket: str, backend: FakeBackend, capsys: pytest.CaptureFixture[str]) -> None:
        self.socket = socket
        self.backend = backend
        self.notes: list[tuple[str, str, dict[str, Any]]] = []
        self.server: Server
        self._capsys = capsys

    def __call__(self, *words: str) -> Ran:
        self._capsys.readouterr()
        try:
            code = main(["--socket", self.socket, *words])
        except SystemExit as end:  # argparse, for wrong usage and --help
            code = int(end.code or 0)
        out, err = self._capsys.readouterr()
        return Ran(code, out, err)

    def note(self, level: str, key: str, fields: Mapping[str, str | int | bool]) -> None:
        self.notes.append((level, key, dict(fields)))


class Server:
    """Trio in a thread, serving until `stop`."""

    def __init__(self, api: LocalApi, path: str) -> None:
        self._serve: Callable[[], Any] = lambda: self._main(api, path)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: trio.run(self._serve))
        self._thread.start()
        assert self._ready.wait(60)

    async def _main(self, api: LocalApi, path: str) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._scope = trio.CancelScope()
        with self._scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(api.serve, path)
                self._ready.set()

    def call(self, action: Callable[[], object]) -> None:
        """Do something in the server's thread, and wait until it is done."""
        trio.from_thread.run_sync(action, trio_token=self._token)

    def stop(self) -> None:
        if self._thread.is_alive():
            self._token.run_sync_soon(self._scope.cancel)
        self._thread.join(60)
        assert not self._thread.is_alive()


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Cli]:
    for module in ("get", "describe", "status", "image", "offline"):
        monkeypatch.setattr(f"tinyedge.cli.{module}.now_s", lambda: NOW_S)
    monkeypatch.delenv("TINYEDGE_SOCKET", raising=False)
    path = str(tmp_path / "api.sock")
    backend = FakeBackend()
    made = Cli(path, backend, capsys)
    made.server = Server(LocalApi(backend, made.note), path)
    try:
        yield made
    finally:
        made.server.stop()
