"""Tokens of service accounts for pods from the cloud: asked for when there is a link, kept, renewed at 80 % of their
life, and kept on when they have run out and there is no link.

A token is a row of table `token`, its key made of what it is for. None stands in a note, an event, or a repr.
"""

from __future__ import annotations

from msgspec import Struct, field

from tinyedge.core.desk import Desk
from tinyedge.core.run import CRASH_CAP_MS, NEVER, RETRY_CAP_MS, RETRY_FIRST_MS, Backoff, PodRun
from tinyedge.core.tables import token_key
from tinyedge.events import RequestToken, TokenGiven
from tinyedge.limits import EVENT_MESSAGE_BYTES_MAX, TOKEN_BYTES_MAX
from tinyedge.model.pod import Pod
from tinyedge.wire import CLOUD, TokenRow

LOOK_MS = 600_000  # the wall clock may be set: due times are worked out anew so often
RENEW_PERCENT = 80


class Want(Struct):
    """One token of one pod. `op` is the request under way, 0 for none; `given_ms` when it came in this life, in
    monotonic time, -1 if it did not."""

    run: PodRun
    service_account: str
    audience: str
    expiration_s: int
    op: int = 0
    given_ms: int = -1
    backoff: Backoff = field(default_factory=Backoff)
    error: str = ""


class Tokens:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._tables = desk.tables
        self._wants: dict[str, Want] = {}
        self._of: dict[str, list[str]] = {}  # uid → keys
        self._asked: dict[int, str] = {}  # op → key
        self._linked = False
        self.wake_ms = NEVER

    # --- what has happened -----------------------------------------------------------------------

    def booted(self) -> None:
        """Rows of pods that are no more."""
        for key in [key for key in self._tables.tokens if key.partition(" ")[0] not in self._of]:
            self._tables.delete("token", key)

    def follow(self, run: PodRun) -> None:
        """A pod is wanted, or has changed."""
        wanted = wants_of(run) if run.row and run.row.source == CLOUD else {}
        for key in self._of.pop(run.uid, []):
            if key not in wanted:
                self._wants.pop(key, None)
                self._tables.delete("token", key)
        for key, want in wanted.items():
            known = self._wants.get(key)
            if known is None:
                self._wants[key] = want
            else:
                known.run = run
        if wanted:
            self._of[run.uid] = list(wanted)
        self.wake_ms = 0

    def forget(self, uid: str) -> None:
        """A pod is gone."""
        for key in self._of.pop(uid, []):
            self._wants.pop(key, None)
            self._tables.delete("token", key)

    def linked(self, *, up: bool) -> None:
        """What was asked over a link that has gone is asked again over the next."""
        self._linked = up
        self.wake_ms = 0
        self._asked.clear()
        for want in self._wants.values():
            want.op = 0
            want.backoff = Backoff()

    def clock_set(self) -> None:
        self.wake_ms = 0

    def given(self, event: TokenGiven) -> PodRun | None:
        """The pod whose volumes are to be brought up to date, if any."""
        key = self._asked.pop(event.op, "")
        want = self._wants.get(key)
        if want is None or want.op != event.op:
            return None
        want.op = 0
        self.wake_ms = 0
        error = event.error or ("" if 0 < len(event.token) <= TOKEN_BYTES_MAX else "it is empty, or too large")
        if error:
            self._failed(want, error[:EVENT_MESSAGE_BYTES_MAX], retryable=event.retryable)
            return want.run
        want.error, want.given_ms = "", self._desk.now
        want.backoff = Backoff()
        issued = self._desk.wall if self._desk.trusted else 0
        self._tables.put("token", key, TokenRow(event.token, event.expires_ms, issued))
        self._desk.note("debug", "token.given", pod=want.run.key, audience=want.audience)
        return want.run

    def _failed(self, want: Want, error: str, *, retryable: bool) -> None:
        want.backoff.grow(RETRY_FIRST_MS if retryable else CRASH_CAP_MS, RETRY_CAP_MS if retryable else CRASH_CAP_MS)
        want.backoff.hold(self._desk.now)
        if want.error != error:
            want.error = error
            self._desk.event(want.run, "Warning", "FailedToCreateToken", f"no token for the pod: {error}")
            self._desk.note("warning", "token.refused", pod=want.run.key, audience=want.audience, message=error)

    # --- asking ----------------------------------------------------------------------------------

    def ask(self) -> None:
        """At the end of each step: order what is due."""
        if not self._linked:
            self.wake_ms = NEVER
            return
        if self.wake_ms > self._desk.now:
            return
        self.wake_ms = NEVER
        for key, want in self._wants.items():
            if want.op or (want.run.row and want.run.row.deletion) or want.run.state.terminal:
                continue
            due = max(self._due(key, want), want.backoff.until_ms)
            if due <= self._desk.now:
                self._request(key, want)
            else:
                self.wake_ms = min(self.wake_ms, due, self._desk.now + LOOK_MS)

    def _due(self, key: str, want: Want) -> int:
        """When to ask, in monotonic ms."""
        row = self._tables.tokens.get(key)
        now, wall = self._desk.now, self._desk.wall
        if row is None:
            return now
        if self._desk.trusted:
            issued = row.issued_ms or row.expires_ms - want.expiration_s * 1000
            return now + max(issued + (row.expires_ms - issued) * RENEW_PERCENT // 100 - wall, 0)
        if want.given_ms >= 0:
            return want.given_ms + want.expiration_s * 10 * RENEW_PERCENT
        return NEVER

    def _request(self, key: str, want: Want) -> None:
        run = want.run
        want.op = self._desk.number()
        self._asked[want.op] = key
        args = (run.uid, run.namespace, run.name, want.service_account, want.audience, want.expiration_s)
        self._desk.say(RequestToken(want.op, *args))

    # --- looking ---------------------------------------------------------------------------------

    def waiting(self) -> int:
        """Tokens that are wanted and not there."""
        return sum(key not in self._tables.tokens for key in self._wants)

    def error(self, uid: str) -> str:
        """Why a pod still has no token, if the cloud has said so."""
        return next((want.error for key in self._of.get(uid, ()) if (want := self._wants[key]).error), "")


def wants_of(run: PodRun) -> dict[str, Want]:
    pod: Pod | None = run.pod
    found: dict[str, Want] = {}
    for volume in pod.spec.volumes if pod else ():
        for source in volume.projected.sources if volume.projected else ():
            one = source.service_account_token
            if pod and one:
                account = pod.spec.service_account_name or "default"
                want = Want(run, account, one.audience, one.expiration_seconds)
                found[token_key(run.uid, one)] = want
    return found
