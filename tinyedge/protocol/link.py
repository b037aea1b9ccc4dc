"""The link between an edge and its gateway: a session without I/O, the same file at both ends.

    edge                                    gateway
    Hello(digests of all kinds)  ────────▶
                                 ◀────────  Welcome(want: kinds that differ, have: what the API holds of reports)
    all the same: in sync after one round trip, nothing more is sent
    Outline(kind) for each want  ────────▶
                                 ◀────────  Put, Delete, … Synced       many in flight, acknowledged by sequence
    Ack | Refuse, object by object ──────▶  after the edge's commit; a refusal blocks nothing else
    State (newest only)          ────────▶
                                 ◀────────  StateAck | StateRefuse      once the API server has it
    Series (in order)            ────────▶
                                 ◀────────  SeriesAck                   once the API server or the sink has it
    Ask                          ────────▶  Reply
                                 ◀────────  Open; Data, Credit, Close both ways: streams
    Ping, Pong, Bye both ways

A message is one WebSocket message: a byte that says how it is packed (0 plain, 1 deflate) and msgpack of one of the
structs below. Only broken framing ends a session; an object that a peer can't take is refused by itself.

The session never waits: `receive` takes a message in and returns what it means, `next` gives the next message to send
when the wire is free, in the order of the classes and within their budgets, `tick` tells it the time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from enum import Enum, IntEnum

from msgspec import Struct

from tinyedge.limits import (
    LINK_ACKS_MAX,
    LINK_ASKS_MAX,
    LINK_INFLIGHT_BYTES_MAX,
    LINK_INFLIGHT_MAX,
    LINK_OBJECT_BYTES_MAX,
)
from tinyedge.protocol.link_messages import (
    OLDEST,
    VERSION,
    Ack,
    AnyMessage,
    Ask,
    Bye,
    Close,
    Credit,
    Data,
    Delete,
    Hello,
    Limits,
    LinkBroken,
    Message,
    Open,
    Outline,
    Param,
    Ping,
    Pong,
    Put,
    Refuse,
    Reply,
    Series,
    SeriesAck,
    State,
    StateAck,
    StateRefuse,
    Synced,
    Welcome,
    pack,
    unpack,
)
from tinyedge.protocol.link_pace import SECOND_MS, Backoff, Bucket
from tinyedge.protocol.link_streams import Streams, Writable

__all__ = [
    "OLDEST",
    "VERSION",
    "Acked",
    "AnyMessage",
    "Ask",
    "Backoff",
    "Bye",
    "Class",
    "Close",
    "Data",
    "Delete",
    "Event",
    "Hello",
    "Limits",
    "LinkBroken",
    "Open",
    "Outline",
    "Param",
    "Put",
    "Refused",
    "Reply",
    "Role",
    "Series",
    "SeriesTaken",
    "Session",
    "State",
    "StateRefused",
    "StateTaken",
    "Synced",
    "Welcome",
    "Writable",
    "our_limits",
    "pack",
    "unpack",
]


class Role(Enum):
    EDGE = "edge"
    GATEWAY = "gateway"


class Class(IntEnum):
    """What may wait for what: a lower one never waits for a higher one."""

    CONTROL = 0
    STATUS = 1
    STREAM = 2
    TELEMETRY = 3
    BULK = 4


class Acked(Struct, frozen=True):
    """The edge holds it, durably. `revision` empty: it holds nothing of it any more."""

    kind: str
    key: str
    revision: bytes


class Refused(Struct, frozen=True):
    """The edge can't take it, or would not know what it is."""

    kind: str
    key: str
    revision: bytes
    reason: str
    message: str


class StateTaken(Struct, frozen=True):
    kind: str
    key: str
    revision: bytes


class StateRefused(Struct, frozen=True):
    kind: str
    key: str
    revision: bytes
    reason: str
    message: str


SeriesTaken = SeriesAck

Event = (
    Hello
    | Welcome
    | Outline
    | Put
    | Delete
    | Synced
    | Acked
    | Refused
    | State
    | StateTaken
    | StateRefused
    | Series
    | SeriesAck
    | Ask
    | Reply
    | Open
    | Data
    | Close
    | Writable
    | Bye
)

_FROM_EDGE = (Hello, Outline, Ack, Refuse, State, Series, Ask, Data, Credit, Close, Ping, Pong, Bye)
_FROM_GATEWAY = (
    *(Welcome, Put, Delete, Synced, StateAck, StateRefuse, SeriesAck, Reply),
    *(Open, Data, Credit, Close, Ping, Pong, Bye),
)


class _Sent(Struct):
    """What the other end has not answered yet."""

    kind: str
    key: str
    revision: bytes
    bytes: int


def our_limits() -> Limits:
    return Limits(LINK_OBJECT_BYTES_MAX, LINK_INFLIGHT_MAX, LINK_INFLIGHT_BYTES_MAX)


class Session:
    """One session at either end, from the open WebSocket to its close. Nothing of it outlives it.

    `budgets`: bytes per second that a class may send, 0 for any. `heartbeat_s`: after so long without a word the edge
    asks for one; after two of them without an answer the link is dead, at both ends.
    """

    def __init__(
        self,
        role: Role,
        *,
        now_ms: int,
        limits: Limits | None = None,
        heartbeat_s: int = 30,
        budgets: Mapping[Class, int] | None = None,
        versions: tuple[int, int] = (OLDEST, VERSION),
    ) -> None:
        self.role = role
        self.limits = limits or our_limits()
        self.heartbeat_s = heartbeat_s
        self.versions = versions
        self.version = versions[0]  # the agreed one, once there is one
        self.peer: Limits = Limits(0, 0, 0)
        self.kinds: frozenset[str] = frozenset()  # that the edge knows
        self.closed = False
        self.streams = Streams()
        self._takes = _FROM_GATEWAY if role is Role.EDGE else _FROM_EDGE
        self._open = False  # Hello and Welcome have been exchanged
        self._saying_bye = False
        self._control: deque[Message] = deque()
        self._objects: dict[tuple[str, str], Put | Delete | Synced] = {}  # unsent, in the order of their first call
        self._states: dict[tuple[str, str], tuple[bytes, bytes]] = {}  # unsent: revision, body
        self._series: deque[Series] = deque()
        self._acks: list[int] = []
        self._sent: dict[int, _Sent] = {}
        self._sent_bytes = 0
        self._asks: set[int] = set()
        self._seq = 0
        self._heard_ms = now_ms
        self._spoke_ms = now_ms
        self._ping = False
        self._budgets = {Class(one): Bucket(rate, now_ms) for one, rate in (budgets or {}).items() if rate}

    # --- what comes --------------------------------------------------------------------------------

    def receive(self, data: bytes, now_ms: int) -> list[Event]:
        """What a message means. Raises LinkBroken, and nothing else."""
        if self.closed:
            return []
        message = unpack(data)
        self._heard_ms = now_ms
        if not isinstance(message, self._takes):
            raise LinkBroken(f"the other end sent {type(message).__name__}, which is not its to say")
        first = Hello if self.role is Role.GATEWAY else Welcome
        if isinstance(message, first) == self._open and not isinstance(message, Bye):
            raise LinkBroken(f"the other end sent {type(message).__name__} at the wrong time")
        return self._take(message)

    def _take(self, message: AnyMessage) -> list[Event]:
        match message:
            case Ping() | Pong():
                if isinstance(message, Ping):
                    self._control_once(Pong())
                return []
            case Ack() | StateAck() | Refuse() | StateRefuse():
                return self._answered(message)
            case Data() | Credit() | Close() | Open():
                return list(self.streams.receive(message))
        self._note(message)
        return [message]

    def _note(self, message: Event) -> None:
        """What a message that is passed on means for the session itself."""
        match message:
            case Reply():
                if message.id not in self._asks:
                    raise LinkBroken("the gateway answered what was not asked")
                self._asks.discard(message.id)
            case Hello():
                self._hello_came(message)
            case Welcome():
                self._welcome_came(message)
            case Bye():
                self.closed = True

    def _hello_came(self, hello: Hello) -> None:
        self.peer = hello.limits
        self.kinds = frozenset(hello.digests)
        agreed = min(self.versions[1], hello.versions[1])
        if agreed < max(self.versions[0], hello.versions[0]):
            words = f"this gateway speaks versions {self.versions[0]} to {self.versions[1]} of the link"
            self.bye("Version", words, -1)
            raise LinkBroken("the node speaks another version of the link", f"{hello.versions}; {words}")
        self.version = agreed

    def _welcome_came(self, welcome: Welcome) -> None:
        if not self.versions[0] <= welcome.version <= self.versions[1]:
            raise LinkBroken("the gateway speaks another version of the link", str(welcome.version))
        self.version = welcome.version
        self.peer = welcome.limits
        self.heartbeat_s = max(1, min(self.heartbeat_s, welcome.heartbeat_s))
        self._open = True

    def _answered(self, message: Ack | StateAck | Refuse | StateRefuse) -> list[Event]:
        match message:
            case Ack():
                return [Acked(one.kind, one.key, one.revision) for one in self._pop(message.seqs)]
            case StateAck():
                return [StateTaken(one.kind, one.key, one.revision) for one in self._pop(message.seqs)]
        refused = Refused if isinstance(message, Refuse) else StateRefused
        (one,) = self._pop([message.seq])
        return [refused(one.kind, one.key, one.revision, message.reason, message.message)]

    def _pop(self, seqs: list[int]) -> list[_Sent]:
        """What these numbers were. An answer to what was never sent breaks the link."""
        found = []
        for seq in seqs:
            one = self._sent.pop(seq, None)
            if one is None:
                raise LinkBroken("the other end answered what was not sent", f"number {seq}")
            self._sent_bytes -= one.bytes
            found.append(one)
        return found

    # --- what is to be said: the edge ----------------------------------------------------------------

    def hello(
        self,
        *,
        software: str,
        boot_id: str,
        machine: str,
        clock_ms: int,
        digests: Mapping[str, bytes],
        series: Mapping[str, int] | None = None,
    ) -> None:
        self._control.append(
            Hello(self.versions, software, boot_id, machine, clock_ms, self.limits, dict(digests), dict(series or {}))
        )

    def outline(self, kind: str, objects: Mapping[str, bytes]) -> None:
        self._control.append(Outline(kind, dict(objects)))

    def ack(self, seq: int) -> None:
        self._acks.append(seq)

    def refuse(self, seq: int, reason: str, message: str) -> None:
        self._control.append(Refuse(seq, reason, message))

    def state(self, kind: str, key: str, revision: bytes, body: bytes) -> None:
        """Only the newest of a key is sent. While an older one is unanswered the newer one waits for its answer: the
        last that arrives is the last that was said."""
        self._states[kind, key] = (revision, body)

    def series(self, name: str, epoch: int, first: int, items: list[bytes], dropped: int = 0) -> None:
        self._series.append(Series(name, epoch, first, items, dropped))

    def ask(self, what: str, body: bytes) -> int:
        """The number that the Reply will have. Raises LinkBroken when too many are unanswered."""
        if len(self._asks) >= LINK_ASKS_MAX:
            raise LinkBroken("the gateway answers nothing", f"{LINK_ASKS_MAX} questions are open")
        self._seq += 1
        self._asks.add(self._seq)
        self._control.append(Ask(self._seq, what, body))
        return self._seq

    # --- what is to be said: the gateway ---------------------------------------------------------------

    def welcome(
        self,
        *,
        software: str,
        time_ms: int,
        backoff_cap_s: int,
        want: list[str] | None = None,
        have: Mapping[str, Mapping[str, bytes]] | None = None,
    ) -> None:
        held = {kind: dict(objects) for kind, objects in (have or {}).items()}
        self._control.append(
            Welcome(self.version, software, time_ms, self.heartbeat_s, backoff_cap_s, self.limits, want or [], held)
        )
        self._open = True

    def put(self, kind: str, key: str, revision: bytes, body: bytes) -> Refused | None:
        """Only the newest of a key is sent. What the edge could not take is not sent: it comes back refused."""
        if kind not in self.kinds:
            return Refused(kind, key, revision, "UnknownKind", f"the node's software knows no {kind}")
        if len(body) > self.peer.object_bytes:
            words = f"it is {len(body)} bytes, and the node takes {self.peer.object_bytes}"
            return Refused(kind, key, revision, "TooLarge", words)
        self._objects[kind, key] = Put(0, kind, key, revision, body)
        return None

    def delete(self, kind: str, key: str) -> None:
        self._objects[kind, key] = Delete(0, kind, key)

    def synced(self) -> None:
        """Sent once all that was given before has been."""
        self._objects["", ""] = Synced()

    def state_taken(self, seq: int) -> None:
        self._acks.append(seq)

    def state_refused(self, seq: int, reason: str, message: str) -> None:
        self._control.append(StateRefuse(seq, reason, message))

    def series_taken(self, name: str, epoch: int, through: int) -> None:
        self._control.append(SeriesAck(name, epoch, through))

    def reply(self, number: int, error: str = "", body: bytes = b"", *, retryable: bool = True) -> None:
        self._control.append(Reply(number, error, body, retryable))

    def open(self, what: str, params: Mapping[str, Param]) -> int:
        """The number of a new stream. Raises LinkBroken when there are too many; that ends no session."""
        return self.streams.open(what, dict(params))

    # --- what is to be said: both --------------------------------------------------------------------

    def send(self, stream: int, data: bytes) -> int:
        """How much of it is accepted now; after less than all, `Writable` comes when there is room again."""
        return self.streams.send(stream, data)

    def eof(self, stream: int) -> None:
        """We send no more on it."""
        self.streams.eof(stream)

    def consumed(self, stream: int, count: int) -> None:
        """So much of what came on a stream has been passed on: the other end may send as much again."""
        self.streams.consumed(stream, count)

    def close(self, stream: int, error: str = "") -> None:
        """Without an error what was accepted is sent first."""
        self.streams.close(stream, error)

    def bye(self, reason: str, message: str, retry_s: int = 0) -> None:
        """The last message; whatever else waits is not sent."""
        self._control.clear()
        self._control.append(Bye(reason, message, retry_s))
        self._saying_bye = True

    # --- what leaves -----------------------------------------------------------------------------------

    def next(self, now_ms: int) -> bytes | None:
        """The next message to send, packed; None when there is nothing that may be sent now."""
        if self.closed:
            return None
        message = self._next(now_ms)
        if message is None:
            return None
        self._spoke_ms = now_ms
        if isinstance(message, Bye):
            self.closed = True
        return pack(message, self.version)

    def _next(self, now_ms: int) -> Message | None:
        if self._saying_bye or not self._open:
            return self._control.popleft() if self._control else None
        for kind in Class:
            bucket = self._budgets.get(kind)
            if bucket is not None and not bucket.has_room(now_ms):
                continue
            message = self._next_of(kind)
            if message is not None:
                if bucket is not None:
                    bucket.take(_size(message))
                return message
        return None

    def _next_of(self, kind: Class) -> Message | None:
        match kind:
            case Class.CONTROL:
                return self._next_control()
            case Class.STATUS:
                return self._next_state()
            case Class.STREAM:
                return self.streams.next()
            case Class.TELEMETRY:
                return self._series.popleft() if self._series else None
        return None

    def _next_control(self) -> Message | None:
        if self._control:
            return self._control.popleft()
        if self._acks:
            seqs, self._acks = self._acks[:LINK_ACKS_MAX], self._acks[LINK_ACKS_MAX:]
            return Ack(seqs) if self.role is Role.EDGE else StateAck(seqs)
        if (message := self.streams.next_control()) is not None:
            return message
        return self._next_object()

    def _next_object(self) -> Message | None:
        for key, message in self._objects.items():
            if isinstance(message, Synced):
                del self._objects[key]
                return message
            body = message.body if isinstance(message, Put) else b""
            if not self._fits(len(body)):
                return None
            del self._objects[key]
            revision = message.revision if isinstance(message, Put) else b""
            seq = self._sends(message.kind, message.key, revision, len(body))
            return Put(seq, *key, revision, body) if isinstance(message, Put) else Delete(seq, *key)
        return None

    def _next_state(self) -> Message | None:
        waiting = {(one.kind, one.key) for one in self._sent.values()} if self._states else set()
        for key, (revision, body) in self._states.items():
            if key in waiting or not self._fits(len(body)):
                continue
            del self._states[key]
            return State(self._sends(*key, revision, len(body)), *key, revision, body)
        return None

    def _fits(self, size: int) -> bool:
        """One is always let through, however large."""
        count = len(self._sent)
        return not count or (count < self.peer.inflight and self._sent_bytes + size <= self.peer.inflight_bytes)

    def _sends(self, kind: str, key: str, revision: bytes, size: int) -> int:
        self._seq += 1
        self._sent[self._seq] = _Sent(kind, key, revision, size)
        self._sent_bytes += size
        return self._seq

    def _control_once(self, message: Message) -> None:
        if message not in self._control:
            self._control.append(message)

    # --- time --------------------------------------------------------------------------------------------

    def tick(self, now_ms: int) -> int:
        """Look at the clock; the monotonic time of the next look. Raises LinkBroken when the other end is gone."""
        beat_ms = self.heartbeat_s * SECOND_MS
        if now_ms - self._heard_ms >= 2 * beat_ms:
            raise LinkBroken("the link is dead", f"nothing was heard for {2 * self.heartbeat_s} s")
        due_ms = self._heard_ms + 2 * beat_ms
        if self.role is Role.EDGE and self._open:
            ping_ms = min(self._heard_ms, self._spoke_ms) + beat_ms
            if ping_ms <= now_ms:
                self._control_once(Ping())
                ping_ms = now_ms + beat_ms
            due_ms = min(due_ms, ping_ms)
        wakes = [bucket.free_ms(now_ms) for bucket in self._budgets.values() if not bucket.has_room(now_ms)]
        return min([due_ms, *wakes])

    @property
    def waiting(self) -> int:
        """Objects and states that are not sent or not answered yet."""
        return len(self._sent) + len(self._objects) + len(self._states)

    @property
    def is_quiet(self) -> bool:
        """Nothing is on its way in either direction as far as is known here; streams and series aside."""
        return not (self._sent or self._objects or self._states or self._control or self._acks)

    @property
    def series_waiting(self) -> int:
        """Series messages that have been given and not sent."""
        return len(self._series)


def _size(message: Message) -> int:
    """About as many bytes as it will be."""
    match message:
        case Data(data=data):
            return len(data) + 16
        case Series(items=items):
            return sum(map(len, items)) + 32
        case Put(body=body) | State(body=body):
            return len(body) + 64
    return 32
