"""All that the gateway's core can see (Event) and do (Effect). It keeps nothing: Kubernetes does.

Times: `mono_ms` is the monotonic clock of this process, `wall_ms` Unix time. An effect with an `op` is answered by
exactly one `Done`.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from tinyedge.protocol.link import Hello

Json = dict[str, Any]

# --- what is seen: Kubernetes -------------------------------------------------------------------------


class Tick(Struct, frozen=True):
    """First event of every batch."""

    mono_ms: int
    wall_ms: int


class Seen(Struct, frozen=True):
    """An object as the API has it. `resource` is its plural: `pods`, `nodes`; of `configmaps` and `secrets` only the
    metadata."""

    resource: str
    object: Json


class Page(Struct, frozen=True):
    """Some objects of a list: each of them is Seen. One step for all of them, where a step for each would cost more
    than what is done with it."""

    resource: str
    objects: list[Json]


class Gone(Struct, frozen=True):
    """It was deleted, or its watch does not select it any more."""

    resource: str
    object: Json


class Listing(Struct, frozen=True):
    """A list begins: what it does not name before its `Listed` is gone."""

    resource: str


class Listed(Struct, frozen=True):
    resource: str


class Unserved(Struct, frozen=True):
    """The API server has no such resource, for now: its definition may be installed later."""

    resource: str


class Done(Struct, frozen=True):
    """The outcome of an API call. `status` is HTTP's; 0: not reached, and tried often enough. `object` is what the API
    answered, `message` its words when it refused."""

    op: int
    status: int
    object: Json | None = None
    reason: str = ""
    message: str = ""

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def refused(self) -> bool:
        """The same call will be refused again."""
        return 400 <= self.status < 500 and self.status not in (401, 403, 408, 409, 429)


class Replicas(Struct, frozen=True):
    """The gateways that are alive, this one among them."""

    names: frozenset[str]


class Joined(Struct, frozen=True):
    """A node has joined: it is to be made with these labels and taints."""

    node: str
    labels: dict[str, str]
    taints: list[Json]


class Deleted(Struct, frozen=True):
    """A node has left, or was deleted: its Node goes."""

    node: str


class Barred(Struct, frozen=True):
    """All nodes whose identity is revoked: what runs there is Kubernetes' to replace."""

    nodes: frozenset[str]


# --- what is seen: edges -------------------------------------------------------------------------------


class Opened(Struct, frozen=True):
    """A session of a node whose identity was checked."""

    session: int
    node: str
    hello: Hello


class Closed(Struct, frozen=True):
    session: int
    reason: str


class Outlined(Struct, frozen=True):
    session: int
    kind: str
    objects: dict[str, bytes]


class Refused(Struct, frozen=True):
    """The node can't take an object."""

    session: int
    kind: str
    key: str
    reason: str
    message: str


class Kept(Struct, frozen=True):
    """The node holds an object of a custom resource, durably."""

    session: int
    kind: str
    key: str


class Reported(Struct, frozen=True):
    """The newest state of something; an empty body: it is no more."""

    session: int
    seq: int
    kind: str
    key: str
    revision: bytes
    body: bytes


class SeriesCame(Struct, frozen=True):
    session: int
    series: str
    epoch: int
    first: int
    items: list[bytes]


class Asked(Struct, frozen=True):
    """A question that Kubernetes answers (`token`); a renewal is the adapter's own."""

    session: int
    id: int
    what: str
    body: bytes


class RuleUsed(Struct, frozen=True):
    """Messages of a Rule (namespace/name) have arrived, or failed; `why` the newest did not, or waits: empty when it
    has arrived."""

    rule: str
    good: int = 0
    bad: int = 0
    why: str = ""


class RulesUseless(Struct, frozen=True):
    """Rules that do nothing by what the API has of them: namespace/name → why. All others do something."""

    problems: dict[str, str]


Event = (
    Tick
    | Seen
    | Page
    | Gone
    | Listing
    | Listed
    | Unserved
    | Done
    | Replicas
    | Joined
    | Deleted
    | Barred
    | Opened
    | Closed
    | Outlined
    | Refused
    | Kept
    | Reported
    | SeriesCame
    | Asked
    | RuleUsed
    | RulesUseless
)

# --- what is done ------------------------------------------------------------------------------------------


class Call(Struct, frozen=True):
    """A call of the API. `verb`: get, create, patch, delete. `patch` is `merge` or `strategic`. `key` orders: calls of
    one key leave one after the other, in the order in which they were decided."""

    op: int
    key: str
    verb: str
    resource: str
    namespace: str
    name: str
    body: Json | None = None
    subresource: str = ""
    patch: str = "merge"
    uid: str = ""
    grace_s: int | None = None


class Welcome(Struct, frozen=True):
    session: int
    want: list[str]
    have: dict[str, dict[str, bytes]]


class Put(Struct, frozen=True):
    session: int
    kind: str
    key: str
    revision: bytes
    body: bytes


class Delete(Struct, frozen=True):
    session: int
    kind: str
    key: str


class Synced(Struct, frozen=True):
    session: int


class StateTaken(Struct, frozen=True):
    session: int
    seq: int


class StateRefused(Struct, frozen=True):
    session: int
    seq: int
    reason: str
    message: str


class SeriesTaken(Struct, frozen=True):
    session: int
    series: str
    epoch: int
    through: int


class Reply(Struct, frozen=True):
    """A `bulk` one waits for everything else that is to be said to the node."""

    session: int
    id: int
    error: str = ""
    body: bytes = b""
    retryable: bool = True
    bulk: bool = False


class ServeFile(Struct, frozen=True):
    """Answer a question for a file of the upgrade source with `size` bytes of it from `offset` on: `image` if there is
    a file of this name, else the one for this version and architecture. `sha256` that it must have; empty: any."""

    session: int
    id: int
    version: str
    image: str
    architecture: str
    sha256: str
    offset: int
    size: int


class Bye(Struct, frozen=True):
    session: int
    reason: str
    message: str
    retry_s: int = 0


class OpenPort(Struct, frozen=True):
    """Serve the kubelet API of a node on a port of its own."""

    node: str
    port: int


class ClosePort(Struct, frozen=True):
    node: str


class Marked(Struct, frozen=True):
    """The Node has the labels and taints that its join gave it."""

    node: str


class Note(Struct, frozen=True):
    level: str
    key: str
    fields: dict[str, str | int | bool]


Effect = (
    Call
    | Welcome
    | Put
    | Delete
    | Synced
    | StateTaken
    | StateRefused
    | SeriesTaken
    | Reply
    | ServeFile
    | Bye
    | OpenPort
    | ClosePort
    | Marked
    | Note
)


class Step(Struct, frozen=True):
    """`wake_ms`: monotonic time of the next Tick that is wanted."""

    effects: tuple[Effect, ...]
    wake_ms: int
