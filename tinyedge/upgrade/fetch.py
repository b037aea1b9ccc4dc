"""A version's file from the network, over lines that break off: kept as it comes, and gone on with where it ended.

    STATE/incoming/download   what is there of it
    STATE/incoming/source     its URL and what the server calls this state of it (ETag, or the time of its last change)

Nothing is believed of what comes: `http://` will do, the signature decides. For the command line and for a child.
"""

from __future__ import annotations

import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException, HTTPResponse
from urllib.parse import urlsplit

from tinyedge import __version__
from tinyedge.errors import BadInput, PeerError, TinyEdgeError, WorldError
from tinyedge.limits import BUNDLE_FILE_BYTES_MAX
from tinyedge.upgrade.bundle import Progress

TRIES = 4  # in a row that bring nothing
PAUSE_S_MAX = 30
_TIMEOUT_S = 60
_PIECE_BYTES = 64 * 1024
_LINE_BYTES_MAX = 4096
_CA_FILES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
_HTTP_NOT_FOUND, _HTTP_RANGE, _HTTP_PARTIAL = 404, 416, 206


def fetch(
    url: str,
    folder: str,
    progress: Progress = lambda done, total: None,
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """The path of the whole file in `folder`, which is made where it lacks. Raises BadInput, PeerError (try again: it
    goes on where it ended), WorldError."""
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise BadInput("the URL", url, "http://… or https://…")
    download = _Download(url, folder, progress)
    failures = 0
    while True:
        before = download.done
        try:
            return download.go_on()
        except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
            _give_up_at_once(url, error)
            failures = failures + 1 if download.done == before else 0
            if failures >= TRIES:
                remedy = "check the address and the network, then try again: it goes on where it has ended"
                raise PeerError(f"can't fetch {url}", _words(error), remedy) from error
            sleep(min(2**failures, PAUSE_S_MAX))
        except OSError as error:
            raise WorldError(f"can't keep {url}", error.strerror or str(error), "free space on that disk") from error


def forget(folder: str) -> None:
    """What was fetched is not needed any more, or not what it should be."""
    for name in ("download", "source"):
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(folder, name))


class _Broken(HTTPException):
    """The answer ended before its end."""


class _Download:
    """`done`: bytes that are there."""

    def __init__(self, url: str, folder: str, progress: Progress) -> None:
        self._url = url
        self._folder = folder
        self._path, self._source = (os.path.join(folder, name) for name in ("download", "source"))
        self._progress = progress
        self._tag = ""
        self.done = 0
        self._begin()

    def _begin(self) -> None:
        """Take up what an earlier attempt has left, if it is of the same file."""
        try:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            with open(self._source, encoding="utf-8", errors="replace") as file:
                url, _, tag = file.read(_LINE_BYTES_MAX).rstrip("\n").partition("\n")
            if url == self._url and tag:
                self._tag, self.done = tag, os.path.getsize(self._path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise WorldError(f"can't use {self._folder}", error.strerror or str(error), "check that disk") from error

    def go_on(self) -> str:
        """Until all is there."""
        request = urllib.request.Request(self._url, headers={"User-Agent": f"tinyedge/{__version__}"})  # noqa: S310
        if not self._tag:
            self.done = 0
        if self.done:
            request.add_header("Range", f"bytes={self.done}-")
            request.add_header("If-Range", self._tag)
        try:
            with _open(request) as answer:
                self._take(answer)
        except urllib.error.HTTPError as error:
            if error.code != _HTTP_RANGE or not self.done:
                raise
            if not (error.headers.get("Content-Range") or "").endswith(f"/{self.done}"):
                self.done = 0  # there is less of it than we have: it is another file
                return self.go_on()
        return self._path

    def _take(self, answer: HTTPResponse) -> None:
        span = answer.headers.get("Content-Range") or ""
        if answer.status != _HTTP_PARTIAL or not span.startswith(f"bytes {self.done}-"):
            self._tag, self.done = _tag(answer), 0
            with open(self._source, "w", encoding="utf-8") as file:
                file.write(f"{self._url}\n{self._tag}\n")
        length = answer.headers.get("Content-Length") or ""
        total = self.done + int(length) if length.isdigit() else 0
        _require_fits(self._url, total)
        with open(self._path, "r+b" if self.done else "wb") as file:
            file.truncate(self.done)
            file.seek(self.done)
            while piece := answer.read(_PIECE_BYTES):
                file.write(piece)
                self.done += len(piece)
                _require_fits(self._url, self.done)
                self._progress(self.done, total)
        if self.done < total:
            raise _Broken(f"it ended after {self.done} of {total} bytes")


def _tag(answer: HTTPResponse) -> str:
    """What names this state of the file; a weak ETag says nothing of single bytes. Empty: nothing does."""
    etag = answer.headers.get("ETag") or ""
    found = answer.headers.get("Last-Modified") or "" if not etag or etag.startswith("W/") else etag
    return " ".join(found.split())


def _open(request: urllib.request.Request) -> HTTPResponse:
    """By a proxy where the environment names one."""
    context = ssl.create_default_context()
    if not context.get_ca_certs() and not os.environ.get("SSL_CERT_FILE"):
        for path in filter(os.path.exists, _CA_FILES):  # a frozen program's library may look elsewhere
            context.load_verify_locations(path)
            break
    handler = urllib.request.HTTPSHandler(context=context)
    answer: HTTPResponse = urllib.request.build_opener(handler).open(request, timeout=_TIMEOUT_S)
    return answer


def _give_up_at_once(url: str, error: Exception) -> None:
    """What another attempt would not mend."""
    if isinstance(error, urllib.error.HTTPError) and 400 <= error.code < 500:
        remedy = "check the address" if error.code == _HTTP_NOT_FOUND else "may this node have it?"
        raise PeerError(f"can't fetch {url}", _words(error), remedy) from error
    reason = getattr(error, "reason", None)
    if isinstance(reason, ssl.SSLCertVerificationError):
        remedy = "is the clock right? Over http:// it can be had as well: its signature is what counts"
        raise PeerError(f"can't fetch {url}", reason.verify_message, remedy) from error


def _words(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {error.reason}"
    return str(getattr(error, "reason", None) or error) or type(error).__name__


def _require_fits(url: str, size: int) -> None:
    if size > BUNDLE_FILE_BYTES_MAX:
        why = f"it has {size} bytes, and {BUNDLE_FILE_BYTES_MAX} are allowed"
        raise TinyEdgeError(f"{url} is no version of tinyedge", why, "is it the right file?")
