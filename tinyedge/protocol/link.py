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

from tinyedge.limits import (
    LINK_ACKS_MAX,
    LINK_ASKS_MAX,
    LINK_CONTROL_MAX,
    LINK_HELLO_BYTES_MAX,
    LINK_INFLIGHT_BYTES_MAX,
    LINK_INFLIGHT_MAX,
    LINK_MESSAGE_BYTES_MAX,
    LINK_OBJECT_BYTES_MAX,
    LINK_SERIES_WAITING_MAX,
)
from tinyedge.protocol.link_events import (
    Acked,
    Class,
    Event,
    Refused,
    Role,
    SeriesTaken,
    StateRefused,
    StateTaken,
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
    weight,
)
from tinyedge.protocol.link_pace import SECOND_MS, Backoff, Bucket
from tinyedge.protocol.link_streams import Streams, Writable
from tinyedge.protocol.link_window import Item, Window

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


_SYNCED = ("", "")
_WORDS_MAX = 300  # of our last words
_FROM_EDGE = (Hello, Outline, Ack, Refuse, State, Series, Ask, Data, Credit, Close, Ping, Pong, Bye)
_FROM_GATEWAY = (
    *(Welcome, Put, Delete, Synced, StateAck, StateRefuse, SeriesAck, Reply),
    *(Open, Data, Credit, Close, Ping, Pong, Bye),
)


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
        self._hello_said = False  # by the edge: sent, or come
        self._open = False  # Hello and Welcome have been exchanged
        self._saying_bye = False
        self._first: Message | None = None  # our Hello or Welcome: nothing is sent before it
        self._control: deque[Message] = deque()
        self._bulk: deque[Reply] = deque()  # answers that wait for everything else
        self._objects: dict[tuple[str, str], Put | Delete | Synced] = {}  # unsent, in the order of their first call
        self._states: dict[tuple[str, str], tuple[bytes, bytes]] = {}  # unsent: revision, body
        self._series: deque[Series] = deque()
        self._series_acks: dict[tuple[str, int], int] = {}  # unsent: only the last of a series says something
        self._acks: deque[int] = deque()
        self._sent = Window()
        self._came = Window()
        self._asks: set[int] = set()  # ours, not answered
        self._asked: dict[int, bool] = {}  # theirs, until the answer has left: has it been given?
        self._seq = 0
        self._heard_ms = now_ms
        self._spoke_ms = now_ms
        self._pinged_ms: int | None = None  # since then we wait for a word
        self._budgets = {Class(one): Bucket(rate, now_ms) for one, rate in (budgets or {}).items() if rate > 0}

    # --- what comes --------------------------------------------------------------------------------

    def receive(self, data: bytes, now_ms: int) -> list[Event]:
        """What a message means. Raises LinkBroken, and nothing else; a Bye that says why is then all that is left to
        send."""
        if self.closed or self._saying_bye:
            return []
        self.heard(now_ms)
        try:
            return self._receive(data)
        except LinkBroken as error:
            if not self._saying_bye:
                self.bye("Protocol", str(error)[:_WORDS_MAX])
            raise

    def heard(self, now_ms: int) -> None:
        """Something came, be it a part of a message only: a large one over a slow line is no silence."""
        self._heard_ms = now_ms
        self._pinged_ms = None

    def _receive(self, data: bytes) -> list[Event]:
        is_stranger = self.role is Role.GATEWAY and not self._hello_said
        message = unpack(data, LINK_HELLO_BYTES_MAX if is_stranger else LINK_MESSAGE_BYTES_MAX)
        name = type(message).__name__
        if not isinstance(message, self._takes):
            raise LinkBroken(f"the other end sent {name}, which is not its to say")
        if not isinstance(message, Bye) and not self._is_time_for(message):
            raise LinkBroken(f"the other end sent {name} at the wrong time")
        if len(self._control) > LINK_CONTROL_MAX or self.streams.is_stuck:
            raise LinkBroken("the other end says much and takes no answers")
        return self._take(message)

    def _is_time_for(self, message: AnyMessage) -> bool:
        if isinstance(message, Hello):
            return not self._hello_said
        if isinstance(message, Welcome):
            return self._hello_said and not self._open
        return self._open

    def _take(self, message: AnyMessage) -> list[Event]:
        match message:
            case Ping():
                self._control_once(Pong())
                return []
            case Pong():
                return []
            case Ack() | StateAck() | Refuse() | StateRefuse():
                return self._answered(message)
            case Data() | Credit() | Close() | Open():
                return list(self.streams.receive(message))
            case Welcome():
                return [message, *self._welcome_came(message)]
        self._note(message)
        return [message]

    def _note(self, message: Event) -> None:
        """What a message that is passed on means for the session itself."""
        match message:
            case Put() | State():
                self._object_came(message, message.revision, len(message.body))
            case Delete():
                self._object_came(message, b"", 0)
            case Reply():
                if message.id not in self._asks:
                    raise LinkBroken("the gateway answered what was not asked")
                self._asks.discard(message.id)
            case Ask():
                if message.id in self._asked or len(self._asked) >= LINK_ASKS_MAX:
                    raise LinkBroken("the node asks too much at once")
                self._asked[message.id] = False
            case Series():
                if len(self._series_acks) >= LINK_CONTROL_MAX:
                    raise LinkBroken("the node sends series and takes no answers")
            case Hello():
                self._hello_came(message)
            case Bye():
                self.closed = True

    def _object_came(self, message: Put | Delete | State, revision: bytes, size: int) -> None:
        if size > self.limits.object_bytes:
            raise LinkBroken("the other end sent a larger object than it may", f"{size} bytes")
        if self._came.has(message.seq) or not self._came.fits(size, self.limits):
            raise LinkBroken("the other end sent more at once than it may")
        self._came.add(message.seq, Item(message.kind, message.key, revision, size))

    def _hello_came(self, hello: Hello) -> None:
        self._hello_said = True
        self.peer = hello.limits
        self.kinds = frozenset(hello.digests)
        agreed = min(self.versions[1], hello.versions[1])
        if agreed < max(self.versions[0], hello.versions[0]):
            words = f"this gateway speaks versions {self.versions[0]} to {self.versions[1]} of the link"
            self.bye("Version", words, -1)
            raise LinkBroken("the node speaks another version of the link", f"{hello.versions}; {words}")
        self.version = agreed

    def _welcome_came(self, welcome: Welcome) -> list[StateRefused]:
        """What of the states that waited for it the gateway could not take."""
        if not self.versions[0] <= welcome.version <= self.versions[1]:
            raise LinkBroken("the gateway speaks another version of the link", str(welcome.version))
        self.version = welcome.version
        self.peer = welcome.limits
        self.heartbeat_s = max(1, min(self.heartbeat_s, welcome.heartbeat_s))
        self._open = True
        waiting, self._states = self._states, {}
        refused = (self.state(*key, revision, body) for key, (revision, body) in waiting.items())
        return [one for one in refused if one is not None]

    def _answered(self, message: Ack | StateAck | Refuse | StateRefuse) -> list[Event]:
        match message:
            case Ack():
                return [Acked(one.kind, one.key, one.revision) for one in self._pop(message.seqs)]
            case StateAck():
                return [StateTaken(one.kind, one.key, one.revision) for one in self._pop(message.seqs)]
        refused = Refused if isinstance(message, Refuse) else StateRefused
        (one,) = self._pop([message.seq])
        return [refused(one.kind, one.key, one.revision, message.reason, message.message)]

    def _pop(self, seqs: list[int]) -> list[Item]:
        """What these numbers were. An answer to what was never sent breaks the link."""
        found = []
        for seq in seqs:
            item = self._sent.pop(seq)
            if item is None:
                raise LinkBroken("the other end answered what was not sent", f"number {seq}")
            found.append(item)
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
        self._first = Hello(
            self.versions, software, boot_id, machine, clock_ms, self.limits, dict(digests), dict(series or {})
        )

    def outline(self, kind: str, objects: Mapping[str, bytes]) -> None:
        self._control.append(Outline(kind, dict(objects)))

    def ack(self, seq: int) -> None:
        """Once; a second answer is none."""
        if self._came.answer(seq):
            self._acks.append(seq)

    def refuse(self, seq: int, reason: str, message: str) -> None:
        if self._came.answer(seq):
            self._control.append(Refuse(seq, reason, message))

    def state(self, kind: str, key: str, revision: bytes, body: bytes) -> StateRefused | None:
        """Only the newest of a key is sent. While an older one is unanswered the newer one waits for its answer: the
        last that arrives is the last that was said. What the gateway could not take is not sent: it comes back refused,
        from here or, if it has been said before the Welcome, with that."""
        if self._open and len(body) > self.peer.object_bytes:
            self._states.pop((kind, key), None)
            words = f"it is {len(body)} bytes, and the gateway takes {self.peer.object_bytes}"
            return StateRefused(kind, key, revision, "TooLarge", words)
        self._states[kind, key] = (revision, body)
        return None

    def series(self, name: str, epoch: int, first: int, items: list[bytes], dropped: int = 0) -> bool:
        """False when so much waits already that this is not taken: once `series_waiting` is less there is room."""
        if len(self._series) >= LINK_SERIES_WAITING_MAX:
            return False
        self._series.append(Series(name, epoch, first, items, dropped))
        return True

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
        series: Mapping[str, int] | None = None,
    ) -> None:
        held = {kind: dict(objects) for kind, objects in (have or {}).items()}
        common = (self.version, software, time_ms, self.heartbeat_s, backoff_cap_s, self.limits, want or [], held)
        self._first = Welcome(*common) if series is None else Welcome(*common, dict(series))
        self._open = True

    def put(self, kind: str, key: str, revision: bytes, body: bytes) -> Refused | None:
        """Only the newest of a key is sent. What the edge could not take is not sent: it comes back refused."""
        if kind not in self.kinds:
            return Refused(kind, key, revision, "UnknownKind", f"the node's software knows no {kind}")
        most = min(self.peer.object_bytes, LINK_OBJECT_BYTES_MAX)
        if len(body) > most:
            words = f"it is {len(body)} bytes, and the node takes {most}"
            return Refused(kind, key, revision, "TooLarge", words)
        self._objects[kind, key] = Put(0, kind, key, revision, body)
        return None

    def delete(self, kind: str, key: str) -> None:
        self._objects[kind, key] = Delete(0, kind, key)

    def synced(self) -> None:
        """Sent once all that was given before has been."""
        self._objects.pop(_SYNCED, None)
        self._objects[_SYNCED] = Synced()

    def state_taken(self, seq: int) -> None:
        self.ack(seq)

    def state_refused(self, seq: int, reason: str, message: str) -> None:
        if self._came.answer(seq):
            self._control.append(StateRefuse(seq, reason, message))

    def series_taken(self, name: str, epoch: int, through: int) -> None:
        self._series_acks[name, epoch] = max(through, self._series_acks.get((name, epoch), through))

    def reply(
        self, number: int, error: str = "", body: bytes = b"", *, retryable: bool = True, bulk: bool = False
    ) -> None:
        """Once, to what was asked in this session. A `bulk` one waits for everything else."""
        if self._asked.get(number) is False:
            self._asked[number] = True
            (self._bulk if bulk else self._control).append(Reply(number, error, body, retryable))

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

    def close(self, stream: int, error: str = "", reason: str = "") -> None:
        """Without an error what was accepted is sent first. `reason`: PeerError's."""
        self.streams.close(stream, error, reason)

    def bye(self, reason: str, message: str, retry_s: int = 0) -> None:
        """The last message; whatever else waits is not sent."""
        self._first = None
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
        self._leaves(message)
        return pack(message, self.version)

    def _leaves(self, message: Message) -> None:
        """What is answered has left: the other end may send as much again."""
        match message:
            case Hello():
                self._hello_said = True
            case Ack(seqs) | StateAck(seqs):
                for seq in seqs:
                    self._came.pop(seq)
            case Refuse(seq) | StateRefuse(seq):
                self._came.pop(seq)
            case Reply(number):
                self._asked.pop(number, None)
            case Bye():
                self.closed = True

    def _next(self, now_ms: int) -> Message | None:
        if self._saying_bye:
            return self._control.popleft() if self._control else None
        if self._first is not None:
            message, self._first = self._first, None
            return message
        return self._next_in_turn(now_ms) if self._open else None

    def _next_in_turn(self, now_ms: int) -> Message | None:
        for kind in Class:
            bucket = self._budgets.get(kind)
            if bucket is not None and not bucket.has_room(now_ms):
                continue
            message = self._next_of(kind)
            if message is not None:
                if bucket is not None:
                    bucket.take(weight(message))
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
        return self._bulk.popleft() if self._bulk else None

    def _next_control(self) -> Message | None:
        if self._control:
            return self._control.popleft()
        if self._acks:
            seqs = [self._acks.popleft() for _ in range(min(LINK_ACKS_MAX, len(self._acks)))]
            return Ack(seqs) if self.role is Role.EDGE else StateAck(seqs)
        if self._series_acks:
            (name, epoch), through = self._series_acks.popitem()
            return SeriesAck(name, epoch, through)
        if (message := self.streams.next_control()) is not None:
            return message
        return self._next_object()

    def _next_object(self) -> Message | None:
        for key, message in self._objects.items():
            if isinstance(message, Synced):
                del self._objects[key]
                return message
            body = message.body if isinstance(message, Put) else b""
            if not self._sent.fits(len(body), self.peer):
                return None
            del self._objects[key]
            revision = message.revision if isinstance(message, Put) else b""
            seq = self._sends(message.kind, message.key, revision, len(body))
            return Put(seq, *key, revision, body) if isinstance(message, Put) else Delete(seq, *key)
        return None

    def _next_state(self) -> Message | None:
        for key, (revision, body) in self._states.items():
            if not self._sent.fits(len(body), self.peer):
                return None
            if key not in self._sent:
                del self._states[key]
                return State(self._sends(*key, revision, len(body)), *key, revision, body)
        return None

    def _sends(self, kind: str, key: str, revision: bytes, size: int) -> int:
        self._seq += 1
        self._sent.add(self._seq, Item(kind, key, revision, size))
        return self._seq

    def _control_once(self, message: Message) -> None:
        if message not in self._control:
            self._control.append(message)

    # --- time --------------------------------------------------------------------------------------------

    def tick(self, now_ms: int) -> int:
        """Look at the clock; the monotonic time of the next look. Raises LinkBroken when the other end is gone."""
        beat_ms = self.heartbeat_s * SECOND_MS
        dead_ms = self._heard_ms + 2 * beat_ms
        if dead_ms <= now_ms:
            self.closed = True
            raise LinkBroken("the link is dead", f"nothing was heard for {2 * self.heartbeat_s} s")
        wakes = [bucket.free_ms(now_ms) for bucket in self._budgets.values() if not bucket.has_room(now_ms)]
        return min([dead_ms, *wakes, *self._beat(now_ms, beat_ms)])

    def _beat(self, now_ms: int, beat_ms: int) -> list[int]:
        """Ask for a word when none has come or gone for a heartbeat, once; when to look again. The gateway only speaks
        up where the node has been sending for so long that it could not ask."""
        if not self._open:
            return []
        if self.role is Role.GATEWAY:
            due_ms = self._spoke_ms + beat_ms + beat_ms // 2
            if due_ms > now_ms:
                return [due_ms]
            self._control_once(Pong())
            return [now_ms + beat_ms]
        since_ms = min(self._heard_ms, self._spoke_ms)
        if self._pinged_ms is not None:
            since_ms = max(since_ms, self._pinged_ms)
        if since_ms + beat_ms > now_ms:
            return [since_ms + beat_ms]
        self._control_once(Ping())
        self._pinged_ms = now_ms
        return [now_ms + beat_ms]

    @property
    def waiting(self) -> int:
        """Objects and states that are not sent or not answered yet."""
        return len(self._sent) + len(self._objects) + len(self._states)

    @property
    def series_waiting(self) -> int:
        """Series messages that have been given and not sent."""
        return len(self._series)
