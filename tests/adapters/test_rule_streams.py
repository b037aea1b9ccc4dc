"""What the gateway asks of a node for rules: messages for its broker, and calls of its services."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
import trio

from tests.fakes.http_peer import HttpPeer, http_peer
from tinyedge import events as ev
from tinyedge.adapters import rule_streams
from tinyedge.adapters.rule_streams import RuleStreams
from tinyedge.errors import BadInput, PeerError
from tinyedge.limits import RULE_SERVICE_BYTES_MAX, SERIES_ITEM_BYTES_MAX
from tinyedge.outbound import allowed


class Pipe:
    def __init__(self, *pieces: bytes) -> None:
        self._pieces = [*pieces, b""]
        self.sent: list[bytes] = []

    async def receive(self) -> bytes:
        await trio.lowlevel.checkpoint()
        return self._pieces.pop(0)

    async def send(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.sent.append(data)


class Core:
    def __init__(self, answer: ev.ReportAnswer | None = None) -> None:
        self.asked: list[ev.Event] = []
        self.answer = answer or ev.ReportAnswer(1)

    async def ask(self, make: Callable[[int], ev.Event]) -> ev.ReportAnswer:
        await trio.lowlevel.checkpoint()
        self.asked.append(make(1))
        return self.answer


@pytest.fixture
async def service() -> AsyncIterator[HttpPeer]:
    async with http_peer() as found:
        yield found


def streams(core: Core | None = None, *allow: str) -> RuleStreams:
    return RuleStreams((core or Core()).ask, allowed(allow or ("127.0.0.1",)).refusal)


async def serve(one: RuleStreams, what: str, params: dict[str, Any], *pieces: bytes) -> bytes:
    pipe = Pipe(*pieces)
    await one.kinds[what](params, pipe)
    assert pipe.sent[-1] == b""
    return b"".join(pipe.sent)


def answered(data: bytes) -> tuple[int, dict[str, str], bytes]:
    size = int.from_bytes(data[:4])
    status, headers = msgspec.msgpack.decode(data[4 : 4 + size])
    return status, dict(headers), data[4 + size :]


async def test_a_message_for_the_broker_is_answered_once_it_is_durable() -> None:
    core = Core()
    assert await serve(streams(core), "publish", {"topic": "a/b", "qos": 0, "retain": True}, b"one", b"two") == b""
    assert core.asked == [ev.Publish(1, "a/b", b"onetwo", 0, retain=True)]


async def test_what_the_core_refuses_goes_back_with_its_reason() -> None:
    core = Core(ev.ReportAnswer(1, "NotFound", "the node has no MQTT broker (mqtt.url)"))
    with pytest.raises(PeerError, match=r"mqtt\.url") as caught:
        await serve(streams(core), "publish", {"topic": "a"})
    assert caught.value.reason == "NotFound"


async def test_a_message_without_bound_is_refused_before_it_is_kept() -> None:
    core = Core()
    with pytest.raises(PeerError, match="larger than") as caught:
        await serve(streams(core), "publish", {"topic": "a"}, *[b"x" * 30_000] * 3)
    assert caught.value.reason == "TooLarge"
    assert core.asked == []
    assert SERIES_ITEM_BYTES_MAX < 90_000


async def test_a_service_is_called_as_the_caller_meant_it_and_its_answer_comes_back(service: HttpPeer) -> None:
    service.answer = lambda request: (201, b"made " + request.body)
    service.headers = [("x-answer", "1"), ("keep-alive", "5")]
    params = {
        "port": service.port,
        "path": "a/b?c=1",
        "method": "PUT",
        "headers": [["Content-Type", "text/plain"], ["X-Own", "2"], ["Connection", "upgrade"], ["Host", "evil"]],
    }
    status, headers, body = answered(await serve(streams(), "http", params, b"one", b"two"))
    assert (status, body) == (201, b"made onetwo")
    assert headers == {"x-answer": "1"}
    (request,) = service.requests
    assert (request.method, request.target, request.body) == ("PUT", "/a/b?c=1", b"onetwo")
    assert request.headers == {
        "host": f"127.0.0.1:{service.port}",
        "content-type": "text/plain",
        "x-own": "2",
        "content-length": "6",
    }


async def test_errors_of_a_service_are_its_answer_and_one_that_is_not_there_is_unavailable(service: HttpPeer) -> None:
    service.answer = lambda _: 500
    assert answered(await serve(streams(), "http", {"port": service.port}))[0] == 500
    service.answer = lambda _: None
    with pytest.raises(PeerError) as caught:
        await serve(streams(), "http", {"port": service.port})
    assert caught.value.reason == "Unavailable"


async def test_no_service_is_called_that_outbound_allow_does_not_open(service: HttpPeer) -> None:
    for allow in ("*", "127.0.0.1:1"):
        with pytest.raises(PeerError, match="must not be dialled") as caught:
            await serve(streams(None, allow), "http", {"port": service.port})
        assert caught.value.reason == "Forbidden"
    assert service.connections == 0
    await serve(streams(None, f"127.0.0.1:{service.port}"), "http", {"port": service.port})


async def test_a_service_that_says_too_much_or_nothing_is_cut_off(
    service: HttpPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.answer = lambda _: (200, bytes(RULE_SERVICE_BYTES_MAX + 1))
    with pytest.raises(PeerError) as caught:
        await serve(streams(), "http", {"port": service.port})
    assert caught.value.reason == "TooLarge"
    monkeypatch.setattr(rule_streams, "SERVICE_S", 0.05)
    service.answer = lambda _: 0
    with pytest.raises(PeerError, match="nothing within"):
        await serve(streams(), "http", {"port": service.port})


@pytest.mark.parametrize(
    ("what", "params"),
    [
        ("publish", {}),
        ("publish", {"topic": 5}),
        ("publish", {"topic": "a", "qos": 3}),
        ("http", {}),
        ("http", {"port": 0}),
        ("http", {"port": 70_000}),
        ("http", {"port": 80, "method": "get it\r\n"}),
        ("http", {"port": 80, "headers": "x"}),
        ("http", {"port": 80, "headers": [["a"]]}),
    ],
)
async def test_what_makes_no_sense_is_refused(what: str, params: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="parameters"):
        await serve(streams(), what, params)
