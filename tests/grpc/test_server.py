"""The gRPC server against real clients, and against peers that are slow, greedy, or no clients at all."""

from __future__ import annotations

import gc
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import grpc
import pytest
import trio
import trio.testing
from h2.connection import H2Connection
from h2.events import (
    DataReceived,
    Event,
    PingAckReceived,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamReset,
    TrailersReceived,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinyedge import limits
from tinyedge.errors import BadInput, WorldError
from tinyedge.grpc import Caller, Channel, GrpcError, Refused, Server, Status
from tinyedge.unix_socket import Listener

SAY, WAIT, FAIL = "/test.Service/Say", "/test.Service/Wait", "/test.Service/Fail"
PATIENCE_S = 60
FOR_EVER_S = 10**6  # where the clock jumps


class Text:
    """A message that is its own bytes."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = data

    def SerializeToString(self) -> bytes:  # noqa: N802
        return self.data

    @classmethod
    def FromString(cls, data: bytes, /) -> Self:  # noqa: N802
        return cls(data)


class Rig:
    """A served socket, whose `Wait` waits until it is let go, and whose `Fail` raises what it is told."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.notes: list[tuple[str, dict[str, Any]]] = []
        self.callers: list[Caller] = []
        self.peers: list[Peer] = []
        self.waiting = 0
        self.given_up = 0
        self.go = trio.Event()
        self.changed = trio.lowlevel.ParkingLot()
        self.error: Exception = ValueError("a bug")
        self.server = Server({SAY: self._say, WAIT: self._wait, FAIL: self._fail}, self._note)

    def _note(self, level: str, key: str, fields: Any) -> None:
        self.notes.append((key, dict(fields)))

    async def _say(self, message: bytes, caller: Caller) -> bytes:
        self.callers.append(caller)
        return b"you said " + message

    async def _wait(self, message: bytes, caller: Caller) -> bytes:
        self.waiting += 1
        self.changed.unpark_all()
        try:
            await self.go.wait()
        except trio.Cancelled:
            self.given_up += 1
            raise
        finally:
            self.waiting -= 1
            self.changed.unpark_all()
        return message

    async def _fail(self, message: bytes, caller: Caller) -> bytes:
        raise self.error

    async def connect(self, *, greet: bool = True) -> Peer:
        self.peers.append(Peer(self.path))
        return await self.peers[-1].connect(greet=greet)

    async def until(self, true: Callable[[], bool]) -> None:
        while not true():
            await self.changed.park()

    async def still_serves(self) -> None:
        channel = Channel(self.path)
        assert await said(channel) == b"you said hello"
        channel.close()


@asynccontextmanager
async def serving(folder: Path, patience_s: float = PATIENCE_S) -> AsyncIterator[Rig]:
    rig = Rig(str(folder / "s.sock"))
    listener = Listener(rig.path, "", "dmi.socket", backlog=1024)
    with trio.fail_after(patience_s):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.server.serve, listener.socket)
            yield rig
            nursery.cancel_scope.cancel()
    for peer in rig.peers:
        peer.sock.close()
    listener.close()


async def said(channel: Channel, words: bytes = b"hello", path: str = SAY) -> bytes:
    return (await channel.unary(path, Text(words), Text, timeout_s=PATIENCE_S)).data


def real_client(path: str, **options: Any) -> Any:
    """grpcio's, which nobody here wrote: with the authority that a client in Go sends."""
    authority = ("grpc.default_authority", quote(path, safe=""))
    return grpc.insecure_channel(f"unix://{path}", options=[authority, *options.items()])


def real_call(channel: Any, path: str) -> Any:
    return channel.unary_unary(path, request_serializer=bytes, response_deserializer=bytes)


class Peer:
    """HTTP/2 by hand, over a blocking socket in a test's own task."""

    def __init__(self, path: str) -> None:
        self.sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.path = path
        self.http = H2Connection()
        self.events: list[Event] = []
        self.closed = False

    async def connect(self, *, greet: bool = True) -> Peer:
        await self.sock.connect(self.path)
        if greet:
            self.http.initiate_connection()
            await self.flush()
        return self

    async def flush(self) -> None:
        data = self.http.data_to_send()
        while data:
            data = data[await self.sock.send(data) :]

    async def begin(self, path: str = SAY, **more: str) -> int:
        stream = self.http.get_next_available_stream_id()
        headers = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "x", "te": "trailers"}
        self.http.send_headers(stream, list(({**headers, "content-type": "application/grpc"} | more).items()))
        await self.flush()
        return stream

    async def call(self, data: bytes, path: str = SAY) -> int:
        stream = await self.begin(path)
        self.http.send_data(stream, data, end_stream=True)
        await self.flush()
        return stream

    async def hear(self, until: Callable[[Event], bool]) -> Event:
        """The first event like that."""
        while True:
            for event in self.events:
                if until(event):
                    return event
            data = await self.sock.recv(65536)
            if not data:
                raise EOFError
            self.events += self.http.receive_data(data)
            await self.flush()

    async def hear_end(self) -> None:
        """Whatever it is that comes before."""
        with suppress(ConnectionResetError):
            while await self.sock.recv(65536):
                pass
        self.closed = True

    async def status(self, stream: int) -> tuple[int, str]:
        """Code and words of an answer without a message."""
        event = await self.hear(lambda e: isinstance(e, ResponseReceived | TrailersReceived) and e.stream_id == stream)
        assert isinstance(event, ResponseReceived | TrailersReceived)
        headers = {bytes(name): bytes(value) for name, value in event.headers}
        return int(headers[b"grpc-status"]), headers.get(b"grpc-message", b"").decode()


def message(data: bytes) -> bytes:
    return struct.pack(">BI", 0, len(data)) + data


# --- well-behaved peers ---------------------------------------------------------------------------


async def test_a_real_client_is_answered_whatever_authority_it_names(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig:

        def ask() -> bytes:
            with real_client(rig.path) as channel:
                answer: bytes = real_call(channel, SAY)(b"hello", timeout=PATIENCE_S)
                return answer

        assert await trio.to_thread.run_sync(ask) == b"you said hello"
        (caller,) = rig.callers
        assert (caller.uid, caller.pid) == (__import__("os").geteuid(), __import__("os").getpid())
        assert caller.agent.startswith("grpc-python/")


async def test_a_real_client_is_told_why_it_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig:

        def ask(path: str, data: bytes = b"x") -> tuple[Any, str]:
            with real_client(rig.path) as channel, pytest.raises(grpc.RpcError) as caught:
                real_call(channel, path)(data, timeout=PATIENCE_S)
            return caught.value.code(), caught.value.details()

        async def told(path: str, data: bytes = b"x") -> tuple[Any, str]:
            return await trio.to_thread.run_sync(ask, path, data)

        rig.error = Refused(Status.NOT_FOUND, "no device “pümp” at 100%\n")
        assert await told(FAIL) == (grpc.StatusCode.NOT_FOUND, "no device “pümp” at 100%\n")
        rig.error = BadInput("speed", "x", "a number")
        assert await told(FAIL) == (grpc.StatusCode.INVALID_ARGUMENT, "speed is 'x': expected a number")
        rig.error = WorldError("the disk is gone")
        assert await told(FAIL) == (grpc.StatusCode.INTERNAL, "the disk is gone")
        assert rig.notes == []
        rig.error = ValueError("a bug")
        assert await told(FAIL) == (grpc.StatusCode.INTERNAL, "ValueError: a bug; please report this")
        assert rig.notes == [("grpc.failed", {"path": FAIL, "error": "ValueError: a bug"})]
        assert (await told("/test.Service/None"))[0] is grpc.StatusCode.UNIMPLEMENTED
        assert (await told(SAY, bytes(limits.GRPC_REQUEST_BYTES_MAX + 1)))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (rig.server.requests, rig.server.failures) == (4, 4)


async def test_many_calls_of_a_real_client_share_a_connection(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig:

        def ask() -> list[bytes]:
            with real_client(rig.path) as channel:
                call = real_call(channel, SAY)
                return [future.result(PATIENCE_S) for future in [call.future(b"%d" % n) for n in range(500)]]

        assert await trio.to_thread.run_sync(ask) == [b"you said %d" % n for n in range(500)]


async def test_a_new_connection_for_each_call_leaves_nothing_behind(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig:

        def ask() -> None:
            for _ in range(50):
                with real_client(rig.path, **{"grpc.use_local_subchannel_pool": 1}) as channel:
                    real_call(channel, SAY)(b"x", timeout=PATIENCE_S)

        await trio.to_thread.run_sync(ask)
        while rig.server._programs:  # the client closes in a thread of its own
            await trio.testing.wait_all_tasks_blocked(0.01)


async def test_connections_that_have_ended_are_freed_without_the_garbage_collector(tmp_path: Path) -> None:
    """A thousand devices whose mapper connects for each report would else keep megabytes of them."""
    async with serving(tmp_path) as rig:
        await rig.still_serves()
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                await rig.still_serves()
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert not [one for one in gc.get_objects() if isinstance(one, H2Connection)]
        finally:
            gc.enable()


async def test_our_own_channel_gets_large_answers_through_every_window(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig:
        big = bytes(limits.GRPC_REQUEST_BYTES_MAX)
        channel = Channel(rig.path)
        answers: list[bytes] = []

        async def ask() -> None:
            answers.append(await said(channel, big))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask)
        assert answers == [b"you said " + big] * 20
        channel.close()


async def test_who_gives_up_has_its_handler_cancelled_and_the_others_go_on(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig:
        channel = Channel(rig.path)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(said, channel, b"one", WAIT)
            with trio.CancelScope() as scope:
                nursery.start_soon(rig.until, lambda: rig.waiting == 1)

                async def give_up() -> None:
                    await rig.until(lambda: rig.waiting == 2)
                    scope.cancel()

                nursery.start_soon(give_up)
                await said(channel, b"two", WAIT)
            await rig.until(lambda: rig.given_up == 1)
            assert rig.waiting == 1
            rig.go.set()
        channel.close()


async def test_a_server_that_ends_says_so_and_its_callers_know_at_once(tmp_path: Path) -> None:
    rig = Rig(str(tmp_path / "s.sock"))
    listener = Listener(rig.path, "", "dmi.socket", backlog=8)
    channel = Channel(rig.path)
    failed: list[GrpcError] = []

    async def ask() -> None:
        try:
            await said(channel, b"x", WAIT)
        except GrpcError as error:
            failed.append(error)

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as calls, trio.open_nursery() as nursery:
            nursery.start_soon(rig.server.serve, listener.socket)
            calls.start_soon(ask)
            await rig.until(lambda: rig.waiting == 1)
            nursery.cancel_scope.cancel()
    listener.close()
    assert [error.status for error in failed] == [Status.UNAVAILABLE]
    assert "going away" in failed[0].detail


# --- peers that cost only themselves --------------------------------------------------------------


GARBAGE: Sequence[bytes] = (
    b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
    bytes(range(256)) * 64,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(range(255, -1, -1)) * 64,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",
)


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_what_is_no_http2_is_hung_up_on(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, garbage: bytes
) -> None:
    async with serving(tmp_path) as rig:
        peer = await rig.connect(greet=False)
        with suppress(BrokenPipeError):
            await peer.sock.send(garbage)
        await peer.hear_end()
        await rig.still_serves()
        assert rig.notes == []


FRAMES = st.builds(
    lambda kind, flags, stream, body: len(body).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + body,
    st.integers(0, 11),
    st.integers(0, 255),
    st.sampled_from([0, 1, 3, 5, 2, 2**31 - 1]),
    st.binary(max_size=40),
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(FRAMES, max_size=8))
def test_no_frames_end_more_than_their_connection(tmp_path: Path, frames: list[bytes]) -> None:
    async def main() -> None:
        async with serving(tmp_path) as rig:
            peer = await rig.connect()
            with suppress(BrokenPipeError, ConnectionResetError):
                await peer.sock.send(b"".join(frames))
            peer.sock.close()
            await rig.still_serves()
            assert rig.notes == []

    trio.run(main)


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (b"", Status.INVALID_ARGUMENT, "no message"),
        (b"\0\0", Status.INVALID_ARGUMENT, "no message"),
        (b"\0\0\0\0\5abc", Status.INVALID_ARGUMENT, "not exactly one message"),
        (message(b"a") + message(b"b"), Status.INVALID_ARGUMENT, "not exactly one message"),
        (b"\1\0\0\0\1a", Status.UNIMPLEMENTED, "compression"),
        (b"\0\xff\xff\xff\xffa", Status.RESOURCE_EXHAUSTED, "4294967295 bytes"),
    ],
)
async def test_a_call_that_is_none_is_refused_and_the_connection_goes_on(
    tmp_path: Path, data: bytes, status: Status, words: str
) -> None:
    async with serving(tmp_path) as rig:
        peer = await rig.connect()
        code, why = await peer.status(await peer.call(data))
        assert code == status
        assert words in why
        stream = await peer.call(message(b"hello"))
        answer = await peer.hear(lambda e: isinstance(e, DataReceived) and e.stream_id == stream)
        assert isinstance(answer, DataReceived)
        assert answer.data == message(b"you said hello")


async def test_what_is_no_grpc_is_told_by_http(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig:
        peer = await rig.connect()
        await peer.begin(**{"content-type": "text/html"})
        event = await peer.hear(lambda e: isinstance(e, ResponseReceived))
        assert isinstance(event, ResponseReceived)
        assert dict(event.headers)[b":status"] == b"415"


async def test_a_message_that_is_announced_too_large_is_refused_before_it_comes(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig:
        peer = await rig.connect()
        stream = await peer.begin()
        peer.http.send_data(stream, b"\0" + (10 * limits.MIB).to_bytes(4) + bytes(1000))
        await peer.flush()
        assert (await peer.status(stream))[0] == Status.RESOURCE_EXHAUSTED
        await peer.hear(lambda e: isinstance(e, StreamReset) and e.stream_id == stream)


async def test_refused_messages_do_not_use_up_the_window(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig:
        peer = await rig.connect()
        for _ in range(40):
            stream = await peer.begin()
            peer.http.send_data(stream, b"\1" + bytes(16_000))
            await peer.flush()
            assert (await peer.status(stream))[0] == Status.UNIMPLEMENTED
        assert peer.http.outbound_flow_control_window > limits.GRPC_WINDOW_BYTES / 4


async def test_more_calls_than_a_connection_may_have_end_it(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig:
        peer = await rig.connect()
        with suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(limits.GRPC_STREAMS_MAX + 1):
                await peer.call(message(b"x"), WAIT)
        await peer.hear_end()
        await rig.until(lambda: rig.waiting == 0)
        await rig.still_serves()


async def test_unanswered_calls_of_one_process_are_bounded_over_all_its_connections(tmp_path: Path) -> None:
    """And those behind them are answered once there is room: nothing is lost."""
    async with serving(tmp_path) as rig:
        peers = [await rig.connect() for _ in range(4)]
        for peer in peers:
            for _ in range(limits.GRPC_STREAMS_MAX // 2 + 20):
                await peer.call(message(b"x"), WAIT)
        await rig.until(lambda: rig.waiting == limits.GRPC_PROGRAM_CALLS_MAX)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert rig.waiting == limits.GRPC_PROGRAM_CALLS_MAX
        rig.go.set()
        for peer in peers:
            wanted = limits.GRPC_STREAMS_MAX // 2 + 20
            while sum(isinstance(event, TrailersReceived) for event in peer.events) < wanted:
                seen = len(peer.events)
                await peer.hear(lambda e, p=peer, n=seen: e in p.events[n:])  # type: ignore[misc]


async def test_bytes_of_one_process_that_are_not_answered_yet_are_bounded_and_given_back(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig:
        channel = Channel(rig.path)
        refused: list[GrpcError] = []

        async def ask() -> None:
            try:
                await said(channel, bytes(limits.GRPC_REQUEST_BYTES_MAX), WAIT)
            except GrpcError as error:
                refused.append(error)
                rig.changed.unpark_all()

        fit = limits.GRPC_PROGRAM_BYTES_MAX // (limits.GRPC_REQUEST_BYTES_MAX + 5)
        async with trio.open_nursery() as nursery:
            for _ in range(fit + 2):
                nursery.start_soon(ask)
            await rig.until(lambda: rig.waiting + len(refused) == fit + 2)
            rig.go.set()
        assert refused
        assert {error.status for error in refused} == {Status.RESOURCE_EXHAUSTED}
        (program,) = rig.server._programs.values()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert program.held == 0
        channel.close()


async def test_of_one_process_so_many_connections_are_served_and_the_others_wait_their_turn(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig:
        served = [await rig.connect() for _ in range(limits.GRPC_PROGRAM_SERVED_MAX)]
        for peer in served:
            await peer.call(message(b"x"), WAIT)
        await rig.until(lambda: rig.waiting == len(served))
        late = await rig.connect()
        stream = await late.call(message(b"late"))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert rig.callers == []
        served[0].sock.close()
        await late.hear(lambda e: isinstance(e, TrailersReceived) and e.stream_id == stream)


async def test_connections_beyond_the_limit_of_a_process_are_closed(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig:
        peers = [await rig.connect() for _ in range(limits.GRPC_PROGRAM_CONNECTIONS_MAX + 1)]
        await peers[-1].hear_end()
        assert peers[-1].closed
        assert [key for key, _ in rig.notes] == ["grpc.busy"]
        for peer in peers[:10]:
            peer.sock.close()
        await trio.testing.wait_all_tasks_blocked(0.01)
        again = await rig.connect()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert len(rig.notes) == 1
        again.sock.close()


@pytest.mark.parametrize(
    ("begin", "after_s"),
    [
        ("nothing", limits.GRPC_REQUEST_S),
        ("a greeting", limits.GRPC_IDLE_S),
        ("half a request", limits.GRPC_REQUEST_S),
    ],
)
async def test_who_connects_and_hangs_is_hung_up_on(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, begin: str, after_s: float
) -> None:
    async with serving(tmp_path, FOR_EVER_S) as rig:
        started = trio.current_time()
        peer = await rig.connect(greet=begin != "nothing")
        if begin == "half a request":
            stream = await peer.begin()
            peer.http.send_data(stream, b"\0\0\0\1\0half")
            await peer.flush()
        await peer.hear_end()
        assert after_s <= trio.current_time() - started < 1.5 * after_s
        await rig.still_serves()


async def test_who_drips_a_request_byte_by_byte_is_hung_up_on(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(tmp_path) as rig:
        started = trio.current_time()
        peer = await rig.connect()
        stream = await peer.begin()
        with suppress(BrokenPipeError, ConnectionResetError, EOFError):
            for byte in message(bytes(1000)):
                peer.http.send_data(stream, bytes([byte]))
                await peer.flush()
                await trio.sleep(1)
        assert trio.current_time() - started < limits.GRPC_REQUEST_S + 3


async def test_a_connection_on_which_nothing_is_asked_is_closed_and_one_that_waits_for_an_answer_is_not(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(tmp_path, FOR_EVER_S) as rig:
        idle, waiting = await rig.connect(), await rig.connect()
        await idle.call(message(b"x"))
        stream = await waiting.call(message(b"x"), WAIT)
        started = trio.current_time()
        await idle.hear_end()
        assert trio.current_time() - started >= limits.GRPC_IDLE_S - 1
        await trio.sleep(10 * limits.GRPC_IDLE_S)
        rig.go.set()
        await waiting.hear(lambda e: isinstance(e, TrailersReceived) and e.stream_id == stream)


async def test_a_ping_is_answered_while_a_call_waits(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig:
        peer = await rig.connect()
        await peer.call(message(b"x"), WAIT)
        await rig.until(lambda: rig.waiting == 1)
        peer.http.ping(b"12345678")
        await peer.flush()
        await peer.hear(lambda e: isinstance(e, PingAckReceived))


async def test_who_opens_no_window_for_its_answer_is_hung_up_on(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(tmp_path) as rig:
        peer = await rig.connect()
        await peer.hear(lambda e: isinstance(e, RemoteSettingsChanged))
        stream = await peer.begin()
        data = message(bytes(100_000))  # more comes back than a window of 65,535
        for start in range(0, len(data), 16_000):
            peer.http.send_data(stream, data[start : start + 16_000])
        peer.http.end_stream(stream)
        await peer.flush()
        await peer.hear_end()
        await rig.still_serves()


async def test_who_does_not_read_is_not_read_from_and_hung_up_on(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Pings without end, whose answers it leaves where they are: what is queued for it stays bounded."""
    async with serving(tmp_path) as rig:
        peer = await rig.connect()
        ping = b"\0\0\x08\x06\0\0\0\0\0" + bytes(8)
        sent = 0
        with suppress(BrokenPipeError, ConnectionResetError):
            while True:
                sent += await peer.sock.send(ping * 1000)
                assert sent < 64 * limits.MIB
        await rig.still_serves()


async def test_calls_that_are_reset_as_fast_as_they_are_made_leave_nothing_behind(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig:
        peer = await rig.connect()
        for _ in range(3000):
            stream = await peer.call(message(b"x"), WAIT)
            peer.http.reset_stream(stream)
        await peer.flush()
        last = await peer.call(message(b"x"))
        await peer.hear(lambda e: isinstance(e, TrailersReceived) and e.stream_id == last)
        assert rig.waiting == 0
        (program,) = rig.server._programs.values()
        assert program.calls.value == limits.GRPC_PROGRAM_CALLS_MAX


async def test_a_flood_on_one_connection_does_not_keep_others_from_being_served(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig:
        over = threading.Event()

        def flood() -> None:
            with real_client(rig.path) as channel:
                call = real_call(channel, SAY)
                while not over.is_set():
                    for future in [call.future(b"x") for _ in range(100)]:
                        future.result(PATIENCE_S)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, flood)
            channel = Channel(rig.path)
            for _ in range(50):
                assert await said(channel) == b"you said hello"
            channel.close()
            over.set()
