"""A sandbox for a test: served over plain HTTP on loopback, in this process."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from cloud_gateway.sandbox import Sandbox, serve

Json = dict[str, Any]

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
JSON_PATCH = "application/json-patch+json"


class World:
    """A client of one sandbox."""

    def __init__(self, sandbox: Sandbox, client: httpx.AsyncClient) -> None:
        self.sandbox = sandbox
        self.client = client

    async def ask(
        self, method: str, path: str, body: Any = None, *, content_type: str = "application/json", accept: str = ""
    ) -> httpx.Response:
        headers = {"content-type": content_type} | ({"accept": accept} if accept else {})
        content = None if body is None else json.dumps(body).encode()
        return await self.client.request(method, path, content=content, headers=headers)

    async def get(self, path: str) -> Json:
        return await self.done("GET", path)

    async def done(self, method: str, path: str, body: Any = None, *, content_type: str = "application/json") -> Json:
        answer = await self.ask(method, path, body, content_type=content_type)
        assert answer.status_code in (200, 201), answer.text
        found: Json = answer.json()
        return found

    async def create(self, path: str, body: Json) -> Json:
        return await self.done("POST", path, body)

    async def refused(self, method: str, path: str, body: Any = None, **more: Any) -> Json:
        answer = await self.ask(method, path, body, **more)
        assert answer.status_code >= 400, answer.text
        found: Json = answer.json()
        assert found["kind"] == "Status"
        assert found["code"] == answer.status_code
        return found

    async def watched(self, path: str) -> list[Json]:
        """All lines of a watch that ends by itself."""
        answer = await self.ask("GET", path)
        assert answer.status_code == 200, answer.text
        return [json.loads(line) for line in answer.text.splitlines()]

    async def seen(self, path: str, wanted: str, *, of: str = "") -> Json:
        """Follow a watch until an event of type `wanted` (about the object `of`)."""
        url = httpx.URL(self.sandbox.url)
        head = f"GET {path} HTTP/1.1\r\nHost: sandbox\r\nAuthorization: Bearer {self.sandbox.admin_token}\r\n\r\n"
        with trio.fail_after(60):
            async with await trio.open_tcp_stream(url.host, url.port or 0) as stream:
                await stream.send_all(head.encode())
                rest = b""
                while data := await stream.receive_some(65536):
                    *lines, rest = (rest + data).split(b"\n")
                    for event in (json.loads(line) for line in lines if line.startswith(b'{"type"')):
                        if event["type"] == wanted and of in ("", event["object"]["metadata"]["name"]):
                            found: Json = event
                            return found
        raise AssertionError(f"no {wanted} came")


async def start(nursery: trio.Nursery, folder: Path, **more: Any) -> Sandbox:
    sandbox: Sandbox = await nursery.start(partial(serve, folder, **{"tls": False, **more}))
    return sandbox


def client_of(sandbox: Sandbox) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=sandbox.url, headers={"authorization": f"Bearer {sandbox.admin_token}"})


@pytest.fixture
async def world(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[World]:
    sandbox = await start(nursery, tmp_path / "sandbox")
    async with client_of(sandbox) as client:
        yield World(sandbox, client)
