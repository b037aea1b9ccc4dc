"""The link to the gateway, kept up: dial, run a session (cloud_session.py), and come back when it ends.

Whatever goes wrong costs one session and a pause: exponential, with full jitter, up to the cap that the gateway has
named. Nobody drives out to a node that has given up, so it never does: one that the gateway does not want any more
asks again every ten minutes, and says so in `tinyedge status`.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import msgspec
import trio
from msgspec import Struct

from tinyedge import events as ev
from tinyedge.adapters.cloud_session import Around, Ask, CloudSession, Effect, Ended, SeriesStore
from tinyedge.adapters.dial import Address, Traffic, address, client_context, dial
from tinyedge.errors import PeerError, TinyEdgeError
from tinyedge.protocol import joining, link
from tinyedge.protocol.revision import digest
from tinyedge.protocol.websocket import WebSocket, WebSocketBroken

__all__ = ["Around", "Ask", "Cloud", "Credentials", "Effect", "SeriesStore", "Settings", "Status"]

CONNECT_S = 20.0  # to dial, and as long again for the answer to the request
STEADY_S = 10.0  # a session that has lasted so long was a good one: the next loss is a new one
UNWANTED_S = 600.0  # between attempts of a node that the gateway does not want
RENEW_AGAIN_S = 3600.0
EXPIRED_AGAIN_S = 300.0
_DAY_S = 86400.0
_READ_BYTES = 16 * 1024
_UNWANTED = ("Revoked", "Twin", "Unknown", "Version", "Left")
_REFUSED_STATUS = (401, 403, 404, 409, 410)


class Credentials(Struct, frozen=True):
    """Who we are, as it is on disk now. `pem`: path of key and chain; `cas`: PEM; times are Unix seconds."""

    url: str
    node: str
    machine: str
    cas: str
    pem: str
    not_before_s: int
    not_after_s: int


Reach = Callable[[Credentials], Awaitable[trio.abc.Stream]]


class Settings(Struct, frozen=True):
    """Budgets in bytes per second, 0 for any."""

    proxy: str = ""
    heartbeat_s: int = 30
    stream_bytes_s: int = 0
    telemetry_bytes_s: int = 0
    software: str = ""
    boot_id: str = ""

    def budgets(self) -> dict[link.Class, int]:
        return {link.Class.STREAM: self.stream_bytes_s, link.Class.TELEMETRY: self.telemetry_bytes_s}


class Sync(Struct, frozen=True):
    """What it took to be in sync again: milliseconds from the open connection on, and bytes since the link before it
    ended. Bytes are those of TLS without its handshakes; attempts that failed are in them."""

    ms: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0


class Status(Struct):
    """For people. `state`: connecting, up, down. `since_wall_ms` 0: the clock was not trusted. `message` says what is
    wrong, and `unwanted` that it will not mend by itself."""

    traffic: Traffic
    state: str = "connecting"
    message: str = ""
    since_wall_ms: int = 0
    sessions: int = 0
    synced: bool = False
    unwanted: bool = False
    sync: Sync = Sync()


class Cloud:
    """`credentials` is asked before each attempt; `renew` gets a new certificate by asking, and makes `credentials` say
    so. `around` is what a session is given. `trusted_wall_ms` is 0 while the clock is not trusted. `reach` is how a
    gateway is reached, by TLS if it is not given."""

    def __init__(
        self,
        *,
        settings: Settings,
        credentials: Callable[[], Credentials],
        around: Around,
        renew: Callable[[Ask], Awaitable[None]],
        trusted_wall_ms: Callable[[], int],
        chance: Callable[[], float] = random.random,
        reach: Reach | None = None,
    ) -> None:
        self._settings = settings
        self._credentials = credentials
        self._around = around
        self._renew = renew
        self._trusted_wall_ms = trusted_wall_ms
        self._chance = chance
        self._reach = reach or self._dial
        self._backoff = link.Backoff()
        self._session: CloudSession | None = None
        self._number = 0
        self.status = Status(Traffic())
        self._spent = (0, 0)  # bytes sent and received when the link before this one ended
        self._opened_at = 0.0
        self.ended = trio.Event()  # set by who runs it

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            began = trio.current_time()
            self._say("connecting", self.status.message)
            ended = await self._attempt()
            await trio.sleep(self._pause_s(ended, trio.current_time() - began))

    # --- one attempt -----------------------------------------------------------------------------------

    async def _attempt(self) -> Ended:
        """Why it has come to its end. Nothing that the network does gets past here."""
        self.status.synced = False
        try:
            return await self._connect()
        except TinyEdgeError as error:
            return _refused(error)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return Ended("the gateway broke off the connection")
        except Exception as error:  # noqa: BLE001 - no input from the network may end the daemon
            words = f"{type(error).__name__}: {error}"
            self._around.note("error", "link.failed", {"error": words})
            return Ended(f"our own mistake: {words}")

    async def _connect(self) -> Ended:
        ours = self._credentials()
        stream = await self._reach(ours)
        try:
            socket = WebSocket(client=True)
            try:
                with trio.fail_after(CONNECT_S):
                    early = await _open(stream, socket, address(ours.url))
            except trio.TooSlowError:
                return Ended(f"the gateway does not answer: nothing within {CONNECT_S:.0f} s")
            return await self._run(stream, socket, early, ours)
        finally:
            await trio.aclose_forcefully(stream)

    async def _dial(self, ours: Credentials) -> trio.abc.Stream:
        context = client_context(ours.cas, identity_pem=ours.pem, check_time=self._trusted_wall_ms() > 0)
        return await dial(ours.url, self._settings.proxy, context, CONNECT_S, self.status.traffic)

    async def _run(self, stream: trio.abc.Stream, socket: WebSocket, early: list[bytes], ours: Credentials) -> Ended:
        settings = self._settings
        machine = link.Session(
            link.Role.EDGE,
            now_ms=int(trio.current_time() * 1000),
            heartbeat_s=settings.heartbeat_s,
            budgets=settings.budgets(),
        )
        digests = {kind: digest(outline) for kind, outline in self._around.outlines().items()}
        machine.hello(
            software=settings.software,
            boot_id=settings.boot_id,
            machine=ours.machine,
            clock_ms=self._trusted_wall_ms(),
            digests=digests,
            series={name: info.last - info.cursor for name, info in self._around.store.series().items()},
        )
        self._number += 1
        self._opened_at = trio.current_time()
        # From here on reports are kept for this session: what changes after the digests were made must not be lost.
        self._session = CloudSession(self._number, stream, socket, machine, around=self._around, owner=self)
        try:
            return await self._session.run(early)
        finally:
            self._session = None
            if self.status.synced:
                self._spent = self._bytes()

    # --- between two -----------------------------------------------------------------------------------

    def _pause_s(self, ended: Ended, lasted_s: float) -> float:
        """How long to wait; told in the status."""
        bye = ended.bye
        if self.status.state == "up" and lasted_s >= STEADY_S:
            self._backoff.reset()
        unwanted = ended.unwanted or (bye is not None and (bye.reason in _UNWANTED or bye.retry_s < 0))
        pause_s = self._backoff.delay_s(self._chance())
        if unwanted:
            pause_s = UNWANTED_S if bye and bye.retry_s < 0 else max(pause_s, self._backoff.cap_s)
        if bye is not None and bye.retry_s > 0:
            pause_s = max(pause_s, min(bye.retry_s * (0.5 + self._chance()), UNWANTED_S))
        self.status.unwanted = unwanted
        known = self.status.state != "up" and self.status.message == ended.why
        level = "debug" if known else "error" if unwanted else "warning"
        self._around.note(level, "link.down", {"why": ended.why, "again_s": int(pause_s)})
        self._say("down", ended.why)
        return pause_s

    def _say(self, state: str, message: str) -> None:
        """Attempts that fail one after the other don't begin anew: it has been down since the first."""
        status = self.status
        if (state == "up") != (status.state == "up") or not status.since_wall_ms:
            status.since_wall_ms = self._trusted_wall_ms()
        status.state, status.message = state, message

    def welcomed(self, welcome: link.Welcome) -> None:
        self._backoff.cap_s = min(max(1.0, float(welcome.backoff_cap_s)), UNWANTED_S)
        self.status.sessions += 1
        self.status.unwanted = False
        self._say("up", "")
        self._around.note("info", "link.up", {"session": self._number, "gateway": welcome.software})

    def synced(self) -> None:
        ms = int((trio.current_time() - self._opened_at) * 1000)
        sent, received = self._bytes()
        self.status.synced = True
        self.status.sync = Sync(ms, sent - self._spent[0], received - self._spent[1])

    def _bytes(self) -> tuple[int, int]:
        traffic = self.status.traffic
        return traffic.sent - traffic.handshake_sent, traffic.received - traffic.handshake_received

    # --- the certificate ---------------------------------------------------------------------------------

    async def tend(self, gateway_ms: int, ask: Ask) -> float:
        """Renew the certificate if its time has come, by our clock if it is trusted, else by the gateway's. Returns the
        seconds until it is to be looked at again. A failure costs nothing but the certificate's age."""
        ours = self._credentials()
        now_s = (self._trusted_wall_ms() or gateway_ms) / 1000
        due_s = joining.renew_at(ours.not_before_s, ours.not_after_s) - now_s
        if due_s > 0:
            return min(due_s, _DAY_S)
        try:
            await self._renew(ask)
        except TinyEdgeError as error:
            self._around.note("warning", "link.not_renewed", {"why": str(error)})
        else:
            self._around.note("info", "link.renewed", {"until_s": self._credentials().not_after_s})
        return EXPIRED_AGAIN_S if now_s >= ours.not_after_s else RENEW_AGAIN_S

    # --- what the core wants -----------------------------------------------------------------------------

    def carry_out(self, effect: Effect) -> None:
        """What is for a session that is over is dropped: the next one compares what both ends have."""
        if self._session is not None:
            self._session.carry_out(effect)
        elif isinstance(effect, ev.RequestToken):
            self._around.later(ev.TokenGiven(effect.op, error="there is no link to the gateway"))

    async def ask(self, what: str, body: bytes) -> bytes:
        """The answer's body. PeerError, also while there is no link."""
        if self._session is None:
            raise PeerError("there is no link to the gateway")
        return await self._session.ask(what, body)

    def look(self) -> None:
        """There may be more in a series."""
        if self._session is not None:
            self._session.look()

    def waiting(self) -> int:
        return self._session.waiting() if self._session is not None else 0

    async def say_bye(self, reason: str) -> None:
        """Returns when it has been said, if there is anybody to say it to."""
        if self._session is not None:
            await self._session.say_bye(reason)


async def _open(stream: trio.abc.Stream, socket: WebSocket, target: Address) -> list[bytes]:
    """Ask for a link; the messages that came with the answer."""
    await stream.send_all(socket.request(target.authority, target.path + joining.LINK_PATH))
    messages: list[bytes] = []
    while not socket.is_open:
        data = await stream.receive_some(_READ_BYTES)
        if not data:
            raise PeerError("the gateway closed the connection", "before it answered")
        messages += socket.receive(bytes(data))
    return messages


def _refused(error: TinyEdgeError) -> Ended:
    """A gateway that does not open a link says why in the body of its answer."""
    if not isinstance(error, WebSocketBroken) or not error.status:
        return Ended(str(error))
    why = error.why
    try:
        said = msgspec.json.decode(error.why, type=joining.Refusal)
        why = str(PeerError(said.what, said.why, said.remedy))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    return Ended(f"the gateway refuses this node: {why}", unwanted=error.status in _REFUSED_STATUS)
