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
        with trio.fail_after(20):
            async with self.client.stream("GET", path, timeout=30) as answer:
                assert answer.status_code == 200
                async for line in answer.aiter_lines():
                    event: Json = json.loads(line)
                    if event["type"] == wanted and of in ("", event["object"]["metadata"]["name"]):
                        return event
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
