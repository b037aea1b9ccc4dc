"""What the daemon sees and does of its gateway: a part of `events.py`, apart for its length. Import these from
`tinyedge.events`.
"""

from __future__ import annotations

from msgspec import Struct

from tinyedge.model.job import NodeJob
from tinyedge.model.objects import Object

# --- what the daemon sees -------------------------------------------------------------------------


class Joined(Struct, frozen=True):
    """This node belongs to a gateway: what happens here is to be reported, now or once there is a link. `node` empty:
    it has left."""

    gateway: str
    node: str


class Linked(Struct, frozen=True):
    """The gateway has welcomed us. `session` counts within this life; what belongs to an earlier one is ignored."""

    session: int


class Unlinked(Struct, frozen=True):
    session: int
    reason: str


class CloudPut(Struct, frozen=True):
    """An object from the gateway, to be kept under `kind` and `key` (of a pod its uid, else namespace/name). `object`
    is None when it does not decode: `problem` tells why, and it is refused."""

    session: int
    seq: int
    kind: str
    key: str
    revision: bytes
    object: Object | NodeJob | None
    problem: str = ""


class CloudDelete(Struct, frozen=True):
    session: int
    seq: int
    kind: str
    key: str


class CloudSynced(Struct, frozen=True):
    """Whatever differed when the link came up has been sent."""

    session: int


class CloudHave(Struct, frozen=True):
    """What the API server holds of a kind that this node reports, where that is not the same: key → revision."""

    session: int
    kind: str
    objects: dict[str, bytes]


class ReportTaken(Struct, frozen=True):
    """The API server has a report."""

    kind: str
    key: str
    revision: bytes


class ReportRefused(Struct, frozen=True):
    kind: str
    key: str
    revision: bytes
    reason: str
    message: str


class SeriesTaken(Struct, frozen=True):
    """The gateway's side has every item up to `through`; another epoch than the store's own means nothing."""

    series: str
    epoch: int
    through: int


class TokenGiven(Struct, frozen=True):
    """Answers `RequestToken`. `error` empty: `token` is good until `expires_ms` (wall clock)."""

    op: int
    token: str = ""
    expires_ms: int = 0
    error: str = ""
    retryable: bool = True

    def __repr__(self) -> str:
        return f"TokenGiven(op={self.op}, expires_ms={self.expires_ms}, error={self.error!r})"


# --- what the daemon does -------------------------------------------------------------------------


class CloudAck(Struct, frozen=True):
    """What came with `seq` is durable here."""

    session: int
    seq: int


class CloudRefuse(Struct, frozen=True):
    """What came with `seq` can't be kept; `reason` is one CamelCase word that shows up in Kubernetes."""

    session: int
    seq: int
    reason: str
    message: str


class Report(Struct, frozen=True):
    """The newest of something that this node reports; sent once there is a link, and only the newest. An empty body
    says that it is no more."""

    kind: str
    key: str
    revision: bytes
    body: bytes


class RequestToken(Struct, frozen=True):
    """A service account's token for a pod. Answered by `TokenGiven`."""

    op: int
    uid: str
    namespace: str
    pod: str
    service_account: str
    audience: str
    expiration_s: int
