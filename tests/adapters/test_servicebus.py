"""Programs on the node leave messages for rules."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest
import trio

from tinyedge import events as ev
from tinyedge.adapters import servicebus
from tinyedge.adapters.servicebus import ServiceBus
from tinyedge.errors import WorldError
from tinyedge.http_client import HttpClient
from tinyedge.limits import SERIES_ITEM_BYTES_MAX


class Rig:
    def __init__(self) -> None:
        self.called: list[ev.Called] = []
        self.answer = ev.ReportAnswer(1)
        self.port = 0

    async def ask(self, make: Callable[[int], ev.Event]) -> ev.ReportAnswer:
        await trio.lowlevel.checkpoint()
        event = make(1)
        assert isinstance(event, ev.Called)
        self.called.append(event)
        return self.answer

    async def post(self, body: object, method: str = "POST", path: str = "/anything") -> tuple[int, dict[str, object]]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        client = HttpClient(f"http://127.0.0.1:{self.port}")
        answer = await client.request(method, path, {}, data, timeout_s=10)
        await client.aclose()
        return answer.status, msgspec.json.decode(answer.body)


@pytest.fixture
async def rig(nursery: trio.Nursery) -> AsyncIterator[Rig]:
    made = Rig()
    made.port = await nursery.start(ServiceBus(made.ask, lambda *_: None).serve, "127.0.0.1", 0)
    yield made
    nursery.cancel_scope.cancel()


async def test_a_message_is_answered_once_it_is_durable(rig: Rig) -> None:
    message = {"method": "post", "targetURL": "/plant/in", "payload": {"a": [1, "é"]}}
    assert await rig.post(message) == (200, {"code": 202, "msg": "it will be delivered", "body": ""})
    assert rig.called == [ev.Called(1, "/plant/in", b'{"a": [1, "\\u00e9"]}', "POST", "application/json")]
    await rig.post({"targetURL": "x", "payload": "text"})
    await rig.post({"targetURL": "x"})
    assert [(one.payload, one.content_type) for one in rig.called[1:]] == [
        (b"text", "text/plain"),
        (b"", "application/json"),
    ]


@pytest.mark.parametrize(("code", "status"), [("NotFound", 404), ("Invalid", 413), ("Full", 507), ("ReadOnly", 507)])
async def test_what_can_not_be_taken_says_why(rig: Rig, code: str, status: int) -> None:
    rig.answer = ev.ReportAnswer(1, code, "so it is")
    assert await rig.post({"targetURL": "x"}) == (status, {"code": status, "msg": "so it is", "body": ""})


@pytest.mark.parametrize(
    "body", [b"", b"no json", b"[]", b"{}", b'{"targetURL": 5}', b"\xff", b'{"targetURL": "x", "payload": ']
)
async def test_what_is_no_message_is_refused(rig: Rig, body: bytes) -> None:
    status, answer = await rig.post(body)
    assert status == 400
    assert "targetURL" in str(answer["msg"])
    assert not rig.called


async def test_other_methods_and_bodies_without_bound_are_refused(rig: Rig) -> None:
    assert (await rig.post(b"", "GET"))[0] == 405
    assert (await rig.post(bytes(2 * SERIES_ITEM_BYTES_MAX + 1)))[0] == 413
    assert not rig.called


async def test_who_sends_no_http_or_nothing_costs_its_connection_only(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servicebus, "REQUEST_S", 0.05)
    for data in (b"\x00\x01\r\n\r\n", b"POST / HTTP/1.1\r\n", b""):
        async with await trio.open_tcp_stream("127.0.0.1", rig.port) as stream:
            await stream.send_all(data)
            with trio.fail_after(10):
                while await stream.receive_some(100):
                    pass
    monkeypatch.undo()
    assert (await rig.post({"targetURL": "x"}))[0] == 200


async def test_an_address_that_is_taken_is_told(rig: Rig) -> None:
    with pytest.raises(WorldError, match="can't listen"):
        await ServiceBus(rig.ask, lambda *_: None).serve("127.0.0.1", rig.port)
