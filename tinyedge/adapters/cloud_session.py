"""One session of the link: from the open WebSocket to its end.

    the socket ──▶ read ──▶ link.Session ──▶ events to the core, bytes to streams
    effects, streams, series ──▶ link.Session ──▶ write ──▶ the socket

Two tasks own the socket, one each way; a third keeps the time, so that a peer that takes nothing is noticed while a
write waits for it. Everything else (streams, questions, series, the certificate) is a task beside them, and none
outlives the session. Whatever comes is decoded with limits; what makes no sense ends the session and nothing more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec
import trio
from msgspec import Struct

from tinyedge import events as ev
from tinyedge.errors import BadInput, PeerError, TinyEdgeError
from tinyedge.limits import (
    CLOUD_ASK_S_MAX,
    CLOUD_SERIES_ITEMS_MAX,
    CLOUD_SERIES_MESSAGE_BYTES,
    CLOUD_SERIES_WINDOW_BYTES,
    LINK_ASKS_MAX,
)
from tinyedge.model.job import KIND as JOB
from tinyedge.model.job import NodeJob, decode_job
from tinyedge.model.objects import API_VERSIONS, Object
from tinyedge.protocol import asks, link
from tinyedge.protocol.websocket import WebSocket

Json = dict[str, Any]
Note = Callable[[str, str, Mapping[str, str | int | bool]], None]
Ask = Callable[[str, bytes], Awaitable[bytes]]
"""(what, body) → the answer's body. Raises PeerError."""
Decode = Callable[[object], Object]
"""A manifest to an object; BadInput says why it is none."""
Effect = ev.CloudAck | ev.CloudRefuse | ev.Report | ev.RequestToken

_READ_BYTES = 64 * 1024
_PIECE_BYTES = 16 * 1024  # that leave at a time: a slow line is one that takes these, a dead one takes none
_GONE = (trio.BrokenResourceError, trio.ClosedResourceError)
OVER_THE_LINK = ("events", "messages", "readings")  # others are for this node's own broker, and for whom it calls
_KINDS = {kind.lower(): kind for kind in API_VERSIONS}  # as the link names them → kinds of objects
_FULL_S = 1.0  # until there is room again for what waits to be sent
_WORDS_MAX = 1000  # of an error that the other end gets to read


class Info(Protocol):
    """`store.series.SeriesInfo`: items `first`..`last` can be read, those up to `cursor` have been taken."""

    @property
    def last(self) -> int: ...
    @property
    def cursor(self) -> int: ...
    @property
    def epoch(self) -> int: ...


class SeriesStore(Protocol):
    """What of the store is read here. `read` blocks on the disk."""

    def series(self) -> Mapping[str, Info]: ...

    def read(self, series: str, after: int, max_items: int, max_bytes: int) -> list[tuple[int, bytes]]: ...


class Pipe:
    """One stream of the session, as who serves it sees it: cloud_streams.Pipe."""

    def __init__(self, number: int, session: CloudSession) -> None:
        self._number = number
        self._session = session
        self._came = bytearray()  # joined: many small pieces weigh more than their bytes
        self._ended = False
        self._passed_on = 0
        self._changed = trio.Event()
        self.scope = trio.CancelScope()

    async def receive(self) -> bytes:
        """What came before counts as passed on now."""
        await trio.lowlevel.checkpoint()
        self._session.consumed(self._number, self._passed_on)
        self._passed_on = 0
        while not self._came and not self._ended:
            await self._change()
        data = bytes(self._came[:_READ_BYTES])
        del self._came[:_READ_BYTES]
        self._passed_on = len(data)
        return data

    async def send(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        if not data:
            self._session.end_of(self._number)
            return
        while data:
            data = data[self._session.send(self._number, data) :]
            if data:
                await self._change()

    def feed(self, data: bytes) -> None:
        """From the other end, which sends no more than it was allowed to."""
        self._came += data
        self._ended = self._ended or not data
        self.changed()

    def changed(self) -> None:
        """Who waits looks again: one task may wait for data while another one waits for room."""
        self._changed.set()
        self._changed = trio.Event()

    async def _change(self) -> None:
        await self._changed.wait()


Serve = Callable[[str, Json, Pipe], Awaitable[None]]
"""cloud_streams.CloudStreams.serve"""


class Around(Struct, frozen=True):
    """What a session is given of everything around it. `later` posts without waiting."""

    outlines: Callable[[], dict[str, dict[str, bytes]]]
    store: SeriesStore
    decode: Decode
    serve: Serve
    post: Callable[[ev.Event], Awaitable[None]]
    later: Callable[[ev.Event], None]
    note: Note


class Owner(Protocol):
    """`cloud.Cloud`."""

    def welcomed(self, welcome: link.Welcome) -> None: ...

    def synced(self) -> None: ...

    async def tend(self, gateway_ms: int, ask: Ask) -> float:
        """Look after the certificate; returns the seconds until the next look."""


class Ended(Struct, frozen=True):
    """Why a session is over. `bye` is the gateway's, where it said one. `unwanted`: it knows us, and says no."""

    why: str
    bye: link.Bye | None = None
    unwanted: bool = False


class _Series(Struct):
    """How far one series has been sent, and what of it has not been acknowledged: (last number, bytes)."""

    epoch: int
    sent: int
    unacknowledged: deque[tuple[int, int]]

    def bytes(self) -> int:
        return sum(size for _, size in self.unacknowledged)


class CloudSession:
    """`number` is this session's for the core. `machine` has its Hello to say. Reports are kept from the moment at
    which this is made."""

    def __init__(
        self,
        number: int,
        stream: trio.abc.Stream,
        socket: WebSocket,
        machine: link.Session,
        *,
        around: Around,
        owner: Owner,
    ) -> None:
        self._number = number
        self._stream = stream
        self._socket = socket
        self._machine = machine
        self._around = around
        self._owner = owner
        self._woken = trio.Event()
        self._looked = trio.Event()
        self._pipes: dict[int, Pipe] = {}
        self._answers: dict[int, tuple[trio.Event, list[link.Reply]]] = {}
        self._asking = trio.CapacityLimiter(LINK_ASKS_MAX // 2)
        self._series: dict[str, _Series] = {}
        self._windows: dict[str, int] = {}  # series that the gateway takes → bytes that may be unacknowledged
        self._welcome = trio.Event()
        self._over = trio.Event()
        self._time_ms = 0  # the gateway's, at
        self._time_at = 0.0
        self._ended: Ended | None = None
        self._tasks: trio.Nursery | None = None

    async def run(self, early: Sequence[bytes]) -> Ended:
        """Until it is over. `early` are messages that have come already."""
        try:
            async with trio.open_nursery() as self._tasks:
                for work in (self._write, self._watch, self._pump, self._tend):
                    self._tasks.start_soon(self._guard, work)
                await self._guard(lambda: self._read(early))
        finally:
            self._tasks = None
            self._over.set()
            for heard, _ in self._answers.values():
                heard.set()
            if self._welcome.is_set():
                self._around.later(ev.Unlinked(self._number, self._ended.why if self._ended else "stopped"))
        return self._ended or Ended("it ended")

    async def _guard(self, work: Callable[[], Awaitable[None]]) -> None:
        """One of the tasks that a session can't do without: it ends all when it ends in an error."""
        try:
            await work()
        except TinyEdgeError as error:
            self._end(Ended(str(error)))
        except _GONE:
            self._end(Ended("the connection broke"))
        except Exception as error:  # noqa: BLE001 - no input from the network may end the daemon
            words = f"{type(error).__name__}: {error}"
            self._around.note("error", "link.failed", {"error": words})
            self._end(Ended(f"our own mistake: {words}"))

    def _end(self, ended: Ended) -> None:
        self._ended = self._ended or ended
        if self._tasks is not None:
            self._tasks.cancel_scope.cancel()

    # --- the socket ------------------------------------------------------------------------------------

    async def _read(self, early: Sequence[bytes]) -> None:
        messages = early
        while True:
            for message in messages:
                for event in self._machine.receive(message, _now_ms()):
                    await self._take(event)
            self._wake()
            if self._socket.is_closed:
                self._end(Ended("the gateway closed the link"))
                return
            data = await self._stream.receive_some(_READ_BYTES)
            if not data:
                self._end(Ended("the gateway closed the connection"))
                return
            self._machine.heard(_now_ms())
            messages = self._socket.receive(bytes(data))

    async def _write(self) -> None:
        while True:
            self._woken = trio.Event()
            wake_ms = self._machine.tick(_now_ms())
            while data := self._next():
                await self._send(data)
            if self._machine.closed and self._ended is None:
                self._end(Ended("we said goodbye"))
                return
            with trio.move_on_at(_when(wake_ms)):
                await self._woken.wait()

    async def _send(self, data: bytes) -> None:
        """However long it takes, as long as the gateway takes some of it."""
        view = memoryview(data)
        for start in range(0, len(view), _PIECE_BYTES):
            stall_s = 2 * self._machine.heartbeat_s
            with trio.move_on_after(stall_s):
                await self._stream.send_all(view[start : start + _PIECE_BYTES])
                continue
            raise PeerError("the gateway takes nothing", f"{len(view) - start} bytes have waited for {stall_s} s")

    def _next(self) -> bytes:
        """Answers of the WebSocket itself (pongs) go first."""
        if data := self._socket.to_send():
            return data
        message = self._machine.next(_now_ms())
        return self._socket.send(message) if message is not None else b""

    async def _watch(self) -> None:
        while True:
            wake_ms = self._machine.tick(_now_ms())
            self._wake()
            await trio.sleep_until(_when(wake_ms))

    def _wake(self) -> None:
        self._woken.set()

    async def say_bye(self, reason: str) -> None:
        """Returns when it has left, or when the session is over."""
        if self._tasks is not None:
            self._machine.bye(reason, "")
            self._wake()
            await self._over.wait()

    # --- what comes --------------------------------------------------------------------------------------

    async def _take(self, event: link.Event) -> None:
        match event:
            case link.Welcome():
                await self._welcomed(event)
            case link.Put() | link.Delete():
                await self._around.post(self._object(event))
            case link.Synced():
                await self._synced()
            case link.StateTaken(kind, key, revision):
                await self._around.post(ev.ReportTaken(kind, key, revision))
            case link.StateRefused(kind, key, revision, reason, message):
                await self._around.post(ev.ReportRefused(kind, key, revision, reason, message))
            case link.SeriesTaken():
                await self._series_taken(event)
            case link.Reply():
                self._answered(event)
            case link.Bye():
                self._end(Ended(event.message or event.reason, event))
            case _:
                self._of_stream(event)

    async def _welcomed(self, welcome: link.Welcome) -> None:
        self._time_ms, self._time_at = welcome.time_ms, trio.current_time()
        self._owner.welcomed(welcome)
        windows = {name: welcome.series[name] for name in OVER_THE_LINK if name in welcome.series}
        self._windows = {name: min(most, CLOUD_SERIES_WINDOW_BYTES) for name, most in windows.items()}
        self._welcome.set()
        await self._around.post(ev.Linked(self._number))
        for kind, objects in welcome.have.items():
            await self._around.post(ev.CloudHave(self._number, kind, objects))
        if not welcome.want:
            await self._synced()
            return
        outlines = self._around.outlines()
        for kind in welcome.want:
            self._machine.outline(kind, outlines.get(kind, {}))

    async def _synced(self) -> None:
        self._owner.synced()
        await self._around.post(ev.CloudSynced(self._number))

    def _object(self, event: link.Put | link.Delete) -> ev.CloudPut | ev.CloudDelete:
        if isinstance(event, link.Delete):
            return ev.CloudDelete(self._number, event.seq, event.kind, event.key)
        found: Object | NodeJob | None = None
        problem = ""
        try:
            found = decode_job(event.body) if event.kind == JOB else self._around.decode(_manifest(event))
        except BadInput as error:
            problem = str(error)[:_WORDS_MAX]
        except Exception as error:  # noqa: BLE001 - an object that we can't read is refused, and blocks nothing
            problem = f"it can't be read: {type(error).__name__}"
            self._around.note("error", "link.failed", {"kind": event.kind, "key": event.key, "error": repr(error)})
        return ev.CloudPut(self._number, event.seq, event.kind, event.key, event.revision, found, problem)

    # --- what the core wants -----------------------------------------------------------------------------

    def carry_out(self, effect: Effect) -> None:
        match effect:
            case ev.CloudAck(session, seq):
                if session == self._number:
                    self._machine.ack(seq)
            case ev.CloudRefuse(session, seq, reason, message):
                if session == self._number:
                    self._machine.refuse(seq, reason, message)
            case ev.Report(kind, key, revision, body):
                if (refused := self._machine.state(kind, key, revision, body)) is not None:
                    self._around.later(ev.ReportRefused(kind, key, revision, refused.reason, refused.message))
            case ev.RequestToken():
                if self._tasks is not None:
                    self._tasks.start_soon(self._token, effect)
                else:
                    self._around.later(ev.TokenGiven(effect.op, error="there is no link to the gateway"))
        self._wake()

    async def _token(self, wanted: ev.RequestToken) -> None:
        answer = ev.TokenGiven(wanted.op, error="the link to the gateway broke")
        try:
            body = asks.encode(
                asks.TokenAsk(
                    wanted.uid,
                    wanted.namespace,
                    wanted.pod,
                    wanted.service_account,
                    wanted.audience,
                    wanted.expiration_s,
                )
            )
            grant = asks.read_grant(await self.ask(asks.TOKEN, body))
            answer = ev.TokenGiven(wanted.op, grant.token, grant.expires_ms)
        except PeerError as error:
            answer = ev.TokenGiven(wanted.op, error=str(error), retryable=error.retryable)
        except BadInput as error:
            answer = ev.TokenGiven(wanted.op, error=str(error))
        finally:
            self._around.later(answer)  # also when the session ends meanwhile

    async def ask(self, what: str, body: bytes) -> bytes:
        """The answer's body, or PeerError. Waits its turn when much has been asked already."""
        async with self._asking:
            number = self._machine.ask(what, body)
            heard, replies = self._answers[number] = (trio.Event(), [])
            self._wake()
            try:
                with trio.move_on_after(CLOUD_ASK_S_MAX):
                    await heard.wait()
            finally:
                del self._answers[number]
        if not replies and self._over.is_set():
            raise PeerError("the link to the gateway broke")
        if not replies:
            raise PeerError("the gateway does not answer", f"it was asked for {what} {CLOUD_ASK_S_MAX} s ago")
        if replies[0].error:
            raise PeerError(replies[0].error, retryable=replies[0].retryable)
        return replies[0].body

    def _answered(self, reply: link.Reply) -> None:
        if reply.id in self._answers:
            heard, replies = self._answers[reply.id]
            replies.append(reply)
            heard.set()

    async def _tend(self) -> None:
        await self._welcome.wait()
        while True:
            passed_ms = int((trio.current_time() - self._time_at) * 1000)
            await trio.sleep(await self._owner.tend(self._time_ms + passed_ms, self.ask))

    # --- series ------------------------------------------------------------------------------------------

    def look(self) -> None:
        """There may be more in a series."""
        self._looked.set()

    async def _pump(self) -> None:
        await self._welcome.wait()
        while True:
            self._looked = trio.Event()
            more = False
            infos = self._around.store.series()
            for name in self._windows:
                if name in infos:
                    more |= await self._send_series(name, infos[name])
            if not more:
                await self._looked.wait()

    async def _send_series(self, name: str, info: Info) -> bool:
        """One message of a series, if there is something in it and it is not too far ahead of its reader."""
        state = self._series.get(name)
        if state is None or state.epoch != info.epoch:
            state = self._series[name] = _Series(info.epoch, info.cursor, deque())
        after, window = max(state.sent, info.cursor), self._windows[name]
        if info.last <= after or state.bytes() >= window:
            return False
        most = min(window, CLOUD_SERIES_MESSAGE_BYTES)
        items = await trio.to_thread.run_sync(self._around.store.read, name, after, CLOUD_SERIES_ITEMS_MAX, most)
        if not items:
            state.sent = info.last  # damaged, or dropped meanwhile: the next item says how many are missing
            return False
        first = items[0][0]
        run = [item for n, (number, item) in enumerate(items) if number == first + n]
        if not self._machine.series(name, info.epoch, first, run, first - after - 1):
            await trio.sleep(_FULL_S)  # many series, and a slow line
            return True
        state.sent = first + len(run) - 1
        state.unacknowledged.append((state.sent, sum(map(len, run))))
        self._wake()
        return True

    async def _series_taken(self, taken: link.SeriesTaken) -> None:
        state = self._series.get(taken.series)
        if state is None or taken.epoch != state.epoch:
            return
        if taken.through > state.sent:
            raise PeerError("the gateway acknowledged what was not sent", f"{taken.series} {taken.through}")
        while state.unacknowledged and state.unacknowledged[0][0] <= taken.through:
            state.unacknowledged.popleft()
        await self._around.post(ev.SeriesTaken(taken.series, taken.epoch, taken.through))
        self.look()

    # --- streams -----------------------------------------------------------------------------------------

    def _of_stream(self, event: link.Event) -> None:
        match event:
            case link.Open():
                if self._tasks is not None:
                    pipe = self._pipes[event.stream] = Pipe(event.stream, self)
                    self._tasks.start_soon(self._serve, event, pipe)
            case link.Data(stream, data):
                if stream in self._pipes:
                    self._pipes[stream].feed(data)
            case link.Writable(stream):
                if stream in self._pipes:
                    self._pipes[stream].changed()
            case link.Close(stream):
                if stream in self._pipes:
                    self._pipes[stream].scope.cancel()

    async def _serve(self, opened: link.Open, pipe: Pipe) -> None:
        error = reason = ""
        try:
            with pipe.scope:
                await self._around.serve(opened.what, dict(opened.params), pipe)
        except TinyEdgeError as refused:
            error, reason = str(refused)[:_WORDS_MAX], _reason(refused)
        except Exception as bug:  # noqa: BLE001 - a stream that fails costs its caller an answer, not the daemon
            words = f"{type(bug).__name__}: {bug}"
            self._around.note("error", "link.stream_failed", {"stream": opened.what, "error": words})
            error = f"{opened.what} failed: {words}"[:_WORDS_MAX]
        finally:
            del self._pipes[opened.stream]
        self._machine.close(opened.stream, error, reason)
        self._wake()

    def send(self, stream: int, data: bytes) -> int:
        sent = self._machine.send(stream, data)
        self._wake()
        return sent

    def end_of(self, stream: int) -> None:
        self._machine.eof(stream)
        self._wake()

    def consumed(self, stream: int, count: int) -> None:
        if count:
            self._machine.consumed(stream, count)
            self._wake()

    def waiting(self) -> int:
        """Reports and messages of series that wait for an answer."""
        return self._machine.waiting + sum(len(one.unacknowledged) for one in self._series.values())


def _reason(error: TinyEdgeError) -> str:
    if isinstance(error, PeerError):
        return error.reason
    return "Invalid" if isinstance(error, BadInput) else ""


def _manifest(put: link.Put) -> Json:
    """The body as a manifest, or BadInput."""
    try:
        body = msgspec.msgpack.decode(put.body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"{put.kind} {put.key[:100]}", "(not shown)", f"msgpack ({error})") from None
    if not isinstance(body, dict) or put.kind not in _KINDS:
        raise BadInput(f"{put.kind} {put.key[:100]}", "(not shown)", f"one of {', '.join(_KINDS)}, as an object")
    kind = _KINDS[put.kind]
    return {"apiVersion": API_VERSIONS[kind], "kind": kind, **body}


def _now_ms() -> int:
    return int(trio.current_time() * 1000)


def _when(wake_ms: int) -> float:
    """A moment at which `_now_ms` is past `wake_ms`, however it is rounded."""
    return (wake_ms + 1) / 1000
