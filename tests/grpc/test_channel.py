"""The gRPC channel against a peer that answers well, badly, late or not at all."""

from __future__ import annotations

import re
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import pytest
import trio

from tests.adapters.cutting import cancelled_everywhere
from tests.fakes.grpc_server import GrpcServer, Handler, ServedCall, grpc_server
from tinyedge import limits
from tinyedge.errors import PeerError
from tinyedge.grpc import Channel, GrpcError, NoAnswer, Status


class Text:
    """A message that is its own bytes."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = data

    def SerializeToString(self) -> bytes:  # noqa: N802
        return self.data

    @classmethod
    def FromString(cls, data: bytes, /) -> Self:  # noqa: N802
        if data == b"undecodable":
            raise ValueError("no such message")
        return cls(data)


@asynccontextmanager
async def _peers(folder: Path, handler: Handler) -> AsyncIterator[tuple[Channel, GrpcServer]]:
    """Anything that takes longer than a few seconds here hangs."""
    path = str(folder / "grpc.sock")
    with trio.fail_after(60):
        async with grpc_server(path, handler) as server:
            channel = Channel(path, metadata=(("who", "us"),))
            try:
                yield channel, server
            finally:
                channel.close()


async def _echo(call: ServedCall) -> None:
    await call.answer(b"you said " + call.request[5:])


async def _never(_: ServedCall) -> None:
    await trio.sleep_forever()


async def _say(channel: Channel, words: bytes = b"hello", timeout_s: float = 60) -> bytes:
    return (await channel.unary("/test.Service/Say", Text(words), Text, timeout_s=timeout_s)).data


async def test_a_call_is_answered(tmp_path: Path) -> None:
    async with _peers(tmp_path, _echo) as (channel, server):
        assert await _say(channel) == b"you said hello"
        headers = server.calls[0].headers
        assert (headers[":path"], headers["te"], headers["who"]) == ("/test.Service/Say", "trailers", "us")


async def test_calls_at_the_same_time_share_a_connection_and_get_their_own_answers(tmp_path: Path) -> None:
    answers: dict[int, bytes] = {}

    async def ask(channel: Channel, number: int) -> None:
        answers[number] = await _say(channel, b"%d" % number)

    async with _peers(tmp_path, _echo) as (channel, server):
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(ask, channel, number)
        assert answers == {number: b"you said %d" % number for number in range(50)}
        assert server.connections == 1


async def test_messages_larger_than_every_window_pass_both_ways(tmp_path: Path) -> None:
    big = b"x" * 60_000

    async def in_pieces(call: ServedCall) -> None:
        data = call.request[5:] * 4
        await call.send_headers()
        await call.send_data(struct.pack(">BI", 0, len(data)))
        for start in range(0, len(data), 16_000):
            await call.send_data(data[start : start + 16_000])
        await call.send_trailers(grpc_status="0")

    async with _peers(tmp_path, in_pieces) as (channel, _):
        for _ in range(8):  # two megabytes through a window of a quarter
            assert await _say(channel, big) == big * 4


@pytest.mark.parametrize("with_headers", [True, False])
async def test_a_refusal_keeps_its_code_and_its_words(tmp_path: Path, *, with_headers: bool) -> None:
    async def refuse(call: ServedCall) -> None:
        fields = {"grpc_status": "5", "grpc_message": "no such%20thing: %C3%BC"}
        if with_headers:
            await call.send_headers()
            await call.send_trailers(**fields)
        else:
            await call.send_headers(**fields)

    async with _peers(tmp_path, refuse) as (channel, _):
        with pytest.raises(GrpcError) as caught:
            await _say(channel)
        error = caught.value
        assert (error.status, error.detail, error.retryable) == (Status.NOT_FOUND, "no such thing: ü", False)
        assert isinstance(error, PeerError)
        assert "Say" in str(error)
        assert "NOT_FOUND" in str(error)


@pytest.mark.parametrize("status", ["2", "4", "8", "10", "13", "14"])
async def test_what_may_pass_is_worth_another_try(tmp_path: Path, status: str) -> None:
    async def refuse(call: ServedCall) -> None:
        await call.send_headers(grpc_status=status)

    async with _peers(tmp_path, refuse) as (channel, _):
        with pytest.raises(GrpcError) as caught:
            await _say(channel)
        assert caught.value.retryable


async def test_a_peer_that_is_not_there_fails_at_once(tmp_path: Path) -> None:
    with pytest.raises(GrpcError, match=re.escape(f"{tmp_path}/none.sock: No such file")) as caught:
        await _say(Channel(f"{tmp_path}/none.sock"))
    assert caught.value.status is Status.UNAVAILABLE
    assert caught.value.retryable


async def test_a_late_answer_is_given_up_here_and_there(tmp_path: Path) -> None:
    async with _peers(tmp_path, _never) as (channel, server):
        with pytest.raises(NoAnswer) as caught:
            await _say(channel, timeout_s=0.01)
        assert caught.value.retryable
        await server.given_up.wait()
        assert server.resets == ["/test.Service/Say"]


async def test_a_call_under_way_fails_when_the_peer_goes_and_the_next_connects_anew(tmp_path: Path) -> None:
    async def once(call: ServedCall) -> None:
        if len(server.calls) == 1:
            await call.close_connection()
        else:
            await _echo(call)

    async with _peers(tmp_path, once) as (channel, server):
        with pytest.raises(GrpcError) as caught:
            await _say(channel)
        assert caught.value.status is Status.UNAVAILABLE
        assert await _say(channel) == b"you said hello"
        assert server.connections == 2


async def _not_http(call: ServedCall) -> None:
    await call.send_raw(bytes(90))  # data on the connection itself


async def _stop_without_status(call: ServedCall) -> None:
    await call.send_headers()
    await call.send_data(b"", end=True)


async def _stop_in_a_message(call: ServedCall) -> None:
    await call.send_headers()
    await call.send_data(struct.pack(">BI", 0, 100) + b"short", end=True)


async def _reset(call: ServedCall) -> None:
    await call.reset()


async def _compressed(call: ServedCall) -> None:
    await call.send_headers()
    await call.send_data(struct.pack(">BI", 1, 5) + b"hello")


async def _too_large(call: ServedCall) -> None:
    await call.send_headers()
    await call.send_data(struct.pack(">BI", 0, limits.GRPC_MESSAGE_BYTES_MAX + 1))


async def _http_error(call: ServedCall) -> None:
    await call.send_headers("503")


async def _undecodable(call: ServedCall) -> None:
    await call.answer(b"undecodable")


async def _no_message(call: ServedCall) -> None:
    await call.send_headers()
    await call.send_trailers(grpc_status="0")


async def _two_messages(call: ServedCall) -> None:
    await call.send_headers()
    await call.send_message(b"one")
    await call.send_message(b"two")
    await call.send_trailers(grpc_status="0")


async def _unknown_status(call: ServedCall) -> None:
    await call.send_headers(grpc_status="99")


@pytest.mark.parametrize(
    ("misbehave", "status"),
    [
        (_not_http, Status.UNAVAILABLE),
        (_stop_without_status, Status.UNKNOWN),
        (_stop_in_a_message, Status.UNAVAILABLE),
        (_reset, Status.UNAVAILABLE),
        (_compressed, Status.UNIMPLEMENTED),
        (_too_large, Status.OUT_OF_RANGE),
        (_http_error, Status.UNAVAILABLE),
        (_undecodable, Status.INTERNAL),
        (_no_message, Status.INTERNAL),
        (_two_messages, Status.INTERNAL),
        (_unknown_status, Status.UNKNOWN),
    ],
)
async def test_a_peer_that_breaks_the_rules_fails_the_call_and_nothing_else(
    tmp_path: Path, misbehave: Callable[[ServedCall], Awaitable[None]], status: Status
) -> None:
    async def once(call: ServedCall) -> None:
        await (misbehave if len(server.calls) == 1 else _echo)(call)

    async with _peers(tmp_path, once) as (channel, server):
        with pytest.raises(GrpcError) as caught:
            await _say(channel)
        assert caught.value.status is status
        assert await _say(channel) == b"you said hello"


async def test_a_request_that_is_too_large_is_not_sent(tmp_path: Path) -> None:
    async with _peers(tmp_path, _echo) as (channel, server):
        with pytest.raises(GrpcError) as caught:
            await _say(channel, bytes(limits.GRPC_MESSAGE_BYTES_MAX + 1))
        assert caught.value.status is Status.INVALID_ARGUMENT
        assert server.calls == []


async def _count(call: ServedCall) -> None:
    await call.send_headers()
    for number in range(3):
        await call.send_message(b"%d" % number)
    await call.send_trailers(grpc_status="0")


async def test_a_stream_gives_its_messages_and_ends(tmp_path: Path) -> None:
    async with (
        _peers(tmp_path, _count) as (channel, _),
        channel.stream("/test.Service/Count", Text(), Text) as messages,
    ):
        assert [message.data async for message in messages] == [b"0", b"1", b"2"]


async def test_a_wait_for_the_next_message_may_be_given_up_in_the_middle_of_it(tmp_path: Path) -> None:
    half = trio.Event()

    async def slowly(call: ServedCall) -> None:
        await call.send_headers()
        await call.send_data(struct.pack(">BI", 0, 4) + b"wh")
        await half.wait()
        await call.send_data(b"le")
        await call.send_trailers(grpc_status="0")

    async with (
        _peers(tmp_path, slowly) as (channel, _),
        channel.stream("/test.Service/Slow", Text(), Text) as messages,
    ):
        for _ in range(3):
            with trio.move_on_after(0.01):
                await anext(messages)
        half.set()
        assert [message.data async for message in messages] == [b"whle"]


async def test_leaving_a_stream_ends_it_at_the_peer(tmp_path: Path) -> None:
    async def endless(call: ServedCall) -> None:
        await call.send_headers()
        await call.send_message(b"first")
        await trio.sleep_forever()

    async with _peers(tmp_path, endless) as (channel, server):
        async with channel.stream("/test.Service/Watch", Text(), Text) as messages:
            assert (await anext(messages)).data == b"first"
        await server.given_up.wait()
        assert server.resets == ["/test.Service/Watch"]


async def test_closing_the_channel_fails_what_is_under_way(tmp_path: Path) -> None:
    failed: list[Status] = []

    async def wait(channel: Channel) -> None:
        try:
            await _say(channel)
        except GrpcError as error:
            failed.append(error.status)

    async def close(call: ServedCall) -> None:
        channel.close()

    async with _peers(tmp_path, close) as (channel, _):
        await wait(channel)
    assert failed == [Status.UNAVAILABLE]


async def test_a_channel_that_was_closed_connects_anew(tmp_path: Path) -> None:
    async with _peers(tmp_path, _echo) as (channel, server):
        await _say(channel)
        channel.close()
        assert await _say(channel) == b"you said hello"
        assert server.connections == 2


async def test_a_call_may_be_cancelled_anywhere_and_the_channel_goes_on(tmp_path: Path) -> None:
    async with _peers(tmp_path, _echo) as (channel, _):
        assert await cancelled_everywhere(lambda: _say(channel), lambda: None) > 1
        assert await _say(channel) == b"you said hello"
        assert channel.calls == 0, "no call is left behind"
