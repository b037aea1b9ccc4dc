"""An image registry on loopback: what containerd needs to pull, with a password where one is set."""

from __future__ import annotations

import base64
import hashlib
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.fakes.image_archives import Image, oci_manifest

LAYER_BYTES = 64 * 1024  # anything larger than this is one
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"


class Registry:
    """`images` are served under the last part of their names, as `HOST/NAME:TAG`. While `gate` is closed the download
    of a layer waits in its middle. `asked` holds what was asked for, and with which password."""

    def __init__(self, images: Sequence[Image], login: tuple[str, str] | None) -> None:
        self.login = login
        self.asked: list[tuple[str, str]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        for image in images:
            name, _, tag = image.name.rpartition("/")[2].partition(":")
            manifest = oci_manifest(image, self.blobs)
            for reference in (tag, f"sha256:{hashlib.sha256(manifest).hexdigest()}"):
                self.manifests[f"{name}/{reference}"] = manifest
        self.host = ""

    def allows(self, authorization: str | None) -> bool:
        if self.login is None:
            return True
        return authorization == f"Basic {base64.b64encode(':'.join(self.login).encode()).decode()}"


@contextmanager
def registry(images: Sequence[Image], *, login: tuple[str, str] | None = None) -> Iterator[Registry]:
    served = Registry(images, login)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"served": served}))
    served.host = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield served
    finally:
        served.gate.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    served: Registry

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def do_GET(self, *, body: bool = True) -> None:
        authorization = self.headers.get("Authorization")
        self.served.asked.append((self.path, authorization or ""))
        if not self.served.allows(authorization):
            self._answer(401, b"", {"WWW-Authenticate": 'Basic realm="test"'}, body=body)
        elif match := re.fullmatch(r"/v2/(.+)/manifests/(.+)", self.path):
            self._found(self.served.manifests.get(f"{match[1]}/{match[2]}"), MANIFEST_TYPE, body=body)
        elif match := re.fullmatch(r"/v2/.+/blobs/sha256:(.+)", self.path):
            self._found(self.served.blobs.get(match[1]), "application/octet-stream", body=body)
        else:
            self._answer(200 if self.path == "/v2/" else 404, b"", {}, body=body)

    def _found(self, data: bytes | None, kind: str, *, body: bool) -> None:
        if data is None:
            self._answer(404, b"", {}, body=body)
        else:
            digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
            self._answer(200, data, {"Content-Type": kind, "Docker-Content-Digest": digest}, body=body)

    def _answer(self, status: int, data: bytes, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            if len(data) > LAYER_BYTES:
                self.served.gate.wait()
            self.wfile.write(data[len(data) // 2 :])

    def log_message(self, *_: object) -> None:
        pass
