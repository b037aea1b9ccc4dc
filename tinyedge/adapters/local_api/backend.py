"""What the local API is given: callables of the wiring, behind one protocol."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from msgspec import Struct

from tinyedge.events import Answer, Request
from tinyedge.model.objects import Object
from tinyedge.protocol.joining import Taint

Json = dict[str, Any]
Note = Callable[[str, str, Mapping[str, str | int | bool]], None]  # level, key, fields: log.Log.note


class LogOptions(Struct, frozen=True):
    """`tail_lines`, `since_s` (back from now) and `since_ms` (Unix time) None mean: from the beginning. At most
    `limit_bytes` are told, if it is given."""

    follow: bool = False
    previous: bool = False
    tail_lines: int | None = None
    since_s: int | None = None
    timestamps: bool = False
    since_ms: int | None = None
    limit_bytes: int | None = None


class JoinBody(Struct, frozen=True, forbid_unknown_fields=True):
    """What a person asks for at a join. `name` empty: what the token says, or the node's own."""

    url: str
    token: str
    name: str = ""
    labels: dict[str, str] = {}
    taints: list[Taint] = []

    def __repr__(self) -> str:
        return f"JoinBody(url={self.url!r}, name={self.name!r})"


class Backend(Protocol):
    """What the wiring gives the API. Objects have Kubernetes' JSON shape; `{}` or None means: there is none.

    Views are pure and quick. Anything may raise TinyEdgeError, which the caller gets to read.
    """

    def pods(self) -> Sequence[Json]: ...

    def pod(self, namespace: str, name: str) -> Json | None: ...

    def node(self) -> Json: ...

    def configmaps(self) -> Sequence[Json]: ...

    def secrets(self) -> Sequence[Json]:
        """Secrets without values: `keys` maps each key to its size in bytes; there is no `data`."""

    def devices(self) -> Iterable[Json]:
        """Made one by one as they are asked for: there may be thousands."""

    def device(self, namespace: str, name: str) -> Json | None: ...

    def devicemodels(self) -> Sequence[Json]: ...

    def localrules(self) -> Sequence[Json]: ...

    def rules(self) -> Sequence[Json]: ...

    def ruleendpoints(self) -> Sequence[Json]: ...

    def images(self) -> Sequence[Json]:
        """`{"id", "names": […], "bytes", "pinned", "used"}`."""

    def events(self) -> Sequence[Json]: ...

    def status(self) -> Json:
        """The node at a glance; docs/cli.md shows it under `status`."""

    def usage(self) -> Json:
        """`{"node": NodeMetrics, "pods": [PodMetrics, …]}` as of metrics.k8s.io."""

    def why(self, namespace: str, name: str) -> Json | None:
        """`{"state", "summary", "reasons": [{"container", "what", "why", "since", "remedy"}, …]}`."""

    def why_device(self, namespace: str, name: str) -> Json | None:
        """As `why`, of a device."""

    def why_rule(self, namespace: str, name: str) -> Json | None:
        """As `why`, of a LocalRule."""

    async def history(self, namespace: str, name: str, property_name: str, limit: int) -> Json:
        """The newest `limit` values of a device that wait in the store, of one property or of all (empty): `{"items":
        [{"timestamp" in ms, "clock", "property", "value"}, …], "complete"}`, the oldest first. `clock` is whose time it
        is: `mapper`, `node`, or `untrusted`. `complete`: everything that waits was looked at."""

    def decode(self, documents: Sequence[object]) -> tuple[Object, ...]:
        """Manifests to objects; BadInput names the field."""

    async def request(self, uid: int, what: Request) -> Answer:
        """Returns when the answer is durable, and when a device has answered if it is one that asks it."""

    async def join(self, asked: JoinBody) -> str:
        """Returns words for people when this node belongs to a gateway, durably."""

    async def leave(self, *, local: bool) -> str:
        """`local`: without a word to the gateway."""

    async def upgrade(self, name: str) -> str:
        """Begin the trial of an installed version (empty: start again what is to run); the daemon ends just after."""

    def watch(self, kind: str) -> AsyncGenerator[Json, None]:
        """`{"type": "ADDED" | "MODIFIED" | "DELETED", "object"}`, what there is first. Bounded by itself."""

    def logs(self, namespace: str, name: str, container: str, options: LogOptions) -> AsyncGenerator[bytes, None]: ...

    async def exec_url(
        self,
        namespace: str,
        name: str,
        container: str,
        argv: Sequence[str],
        *,
        stdin: bool,
        stdout: bool = True,
        stderr: bool = True,
        tty: bool,
    ) -> str: ...

    async def attach_url(
        self,
        namespace: str,
        name: str,
        container: str,
        *,
        stdin: bool,
        stdout: bool = True,
        stderr: bool = True,
        tty: bool,
    ) -> str: ...

    async def port_forward_url(self, namespace: str, name: str, ports: Sequence[int]) -> str: ...

    def import_image(self, path: str) -> AsyncGenerator[Json, None]:
        """Progress `{"done", "total"}` in bytes, and last `{"names": […]}`."""

    def pull_image(self, image: str) -> AsyncGenerator[Json, None]:
        """Progress `{"done", "total"}` in bytes, and last `{"id"}`."""

    async def remove_image(self, image: str) -> None: ...

    def blackbox(self) -> Sequence[Json]:
        """Oldest first: `{"time", "kind", …}`."""

    async def store_report(self) -> Json: ...

    def config(self) -> Json: ...

    def metrics(self) -> str: ...

    def health(self) -> Json:
        """`{"ready": bool, "checks": {name: "ok" or what is wrong}}`."""

    def secret_values(self) -> Iterable[bytes]:
        """Every value of every Secret, for taking them out of what is shown."""
