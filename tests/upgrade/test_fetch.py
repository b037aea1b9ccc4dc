"""Fetching a version's file from a server that breaks off, over and over."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tinyedge.errors import BadInput, PeerError, TinyEdgeError, WorldError
from tinyedge.upgrade import fetch as module
from tinyedge.upgrade.fetch import TRIES, fetch, forget

BODY = bytes(range(256)) * 2000


class Server(ThreadingHTTPServer):
    """Serves `body`; each answer ends after `most` bytes of it. `asked` holds the Range of each request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body = BODY
        self.etag = '"one"'
        self.most = len(BODY)
        self.status = 0
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/tinyedge.run"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        ours, span = self.server, self.headers.get("Range", "")
        ours.asked.append(span)
        start = int(span.removeprefix("bytes=").rstrip("-")) if span else 0
        if ours.status:
            self.send_error(ours.status)
            return
        if span and self.headers.get("If-Range") != (ours.etag or formatdate(0, usegmt=True)):
            start, span = 0, ""
        if start >= len(ours.body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(ours.body)}")
            self.end_headers()
            return
        self.send_response(206 if span else 200)
        self.send_header("ETag", ours.etag) if ours.etag else self.send_header(
            "Last-Modified", formatdate(0, usegmt=True)
        )
        self.send_header("Content-Length", str(len(ours.body) - start))
        if span:
            self.send_header("Content-Range", f"bytes {start}-{len(ours.body) - 1}/{len(ours.body)}")
        self.end_headers()
        self.wfile.write(ours.body[start : start + ours.most])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        yield made
        made.shutdown()
        thread.join(60)


def got(server: Server, folder: Path, pauses: list[float] | None = None) -> bytes:
    told: list[tuple[int, int]] = []
    path = fetch(
        server.url,
        str(folder / "incoming"),
        lambda done, total: told.append((done, total)),
        sleep=(pauses if pauses is not None else []).append,
    )
    assert not told or told[-1] == (len(server.body), len(server.body))
    return Path(path).read_bytes()


def test_a_file_comes_whole_with_progress_to_its_end(server: Server, tmp_path: Path) -> None:
    assert got(server, tmp_path) == BODY
    assert server.asked == [""]
    forget(str(tmp_path / "incoming"))
    assert list((tmp_path / "incoming").iterdir()) == []
    forget(str(tmp_path / "incoming"))


@pytest.mark.parametrize("etag", ['"one"', ""])
def test_what_breaks_off_goes_on_where_it_ended(server: Server, tmp_path: Path, etag: str) -> None:
    server.most, server.etag = 200_000, etag
    pauses: list[float] = []
    assert got(server, tmp_path, pauses) == BODY
    assert server.asked == ["", "bytes=200000-", "bytes=400000-"]
    assert len(pauses) == 2


def test_another_attempt_goes_on_where_the_last_one_ended(server: Server, tmp_path: Path) -> None:
    server.most = 0
    (tmp_path / "incoming").mkdir()
    (tmp_path / "incoming" / "source").write_text(f'{server.url}\n"one"\n')
    (tmp_path / "incoming" / "download").write_bytes(BODY[:1000])
    pauses: list[float] = []
    with pytest.raises(PeerError, match="goes on where it has ended"):
        got(server, tmp_path, pauses)
    assert server.asked == ["bytes=1000-"] * TRIES
    assert pauses == sorted(pauses)
    server.most = len(BODY)
    assert got(server, tmp_path) == BODY
    assert server.asked[-1] == "bytes=1000-"


def test_what_is_whole_already_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    assert got(server, tmp_path) == got(server, tmp_path)
    assert server.asked == ["", f"bytes={len(BODY)}-"]


@pytest.mark.parametrize("body", [b"another file, longer " * 40_000, b"a shorter one"])
def test_a_file_that_has_changed_since_is_fetched_anew(server: Server, tmp_path: Path, body: bytes) -> None:
    server.most = 200_000
    server.status = 0
    path = tmp_path / "incoming"
    path.mkdir()
    (path / "source").write_text(f'{server.url}\n"one"\n')
    (path / "download").write_bytes(BODY[:1000])
    server.body, server.etag, server.most = body, '"two"', len(body)
    assert got(server, tmp_path) == body


def test_another_url_begins_anew(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "incoming"
    path.mkdir()
    (path / "source").write_text('http://elsewhere/tinyedge.run\n"one"\n')
    (path / "download").write_bytes(b"x" * 1000)
    assert got(server, tmp_path) == BODY
    assert server.asked == [""]


@pytest.mark.parametrize(("status", "words"), [(404, "check the address"), (403, "may this node have it")])
def test_a_server_that_does_not_have_it_is_asked_once(server: Server, tmp_path: Path, status: int, words: str) -> None:
    server.status = status
    with pytest.raises(PeerError, match=words):
        got(server, tmp_path)
    assert len(server.asked) == 1


def test_a_server_that_is_busy_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.status = 503
    with pytest.raises(PeerError, match="503"):
        got(server, tmp_path)
    assert len(server.asked) == TRIES


def test_a_file_that_is_too_large_is_not_fetched(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BUNDLE_FILE_BYTES_MAX", 1000)
    with pytest.raises(TinyEdgeError, match="512000 bytes, and 1000 are allowed"):
        got(server, tmp_path)


def test_what_cannot_be_kept_is_the_disks_fault(server: Server, tmp_path: Path) -> None:
    (tmp_path / "incoming" / "download").mkdir(parents=True)
    with pytest.raises(WorldError, match="can't keep"):
        got(server, tmp_path)


@pytest.mark.parametrize("url", ["ftp://host/x", "file:///etc/passwd", "https://", "tinyedge.run"])
def test_only_http_is_fetched(tmp_path: Path, url: str) -> None:
    with pytest.raises(BadInput):
        fetch(url, str(tmp_path))
