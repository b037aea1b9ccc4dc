"""The pods of edge nodes, and the objects that they refer to: of each no more than is needed to answer a node."""

from __future__ import annotations

from typing import Any

from msgspec import Struct, field

from cloud_gateway.core import translate
from tinyedge.protocol.revision import revision, status_revision

Json = dict[str, Any]
Reference = tuple[str, str]  # kind, namespace/name


class Pod(Struct):
    """A pod that is bound to an edge node. `key`: what the node calls it (its uid; of a mirror pod the node's own).
    `body` is empty for what is not sent: mirror pods, held ones, and those whose claims are not resolved yet."""

    uid: str
    namespace: str
    name: str
    node: str
    key: str
    status: bytes  # its revision, as the API has it
    body: bytes = b""
    revision: bytes = b""
    mirror: bytes = b""  # revision of a mirror pod
    refs: frozenset[Reference] = frozenset()
    tokens: frozenset[tuple[str, int]] = frozenset()
    account: str = "default"
    containers: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()
    raw: Json | None = None  # of a pod with claims, until they are resolved
    volumes: Json | None = None  # what stands for its claims
    refused: bool = False  # the API says that its node could not run it
    held: bool = False
    ended: bool = False
    deleting: bool = False
    stays_s: int | None = None  # on a node that can't be reached, as the pod itself wants it
    opted_out: bool = False
    endless: list[Json] | None = None  # tolerations that it should have instead
    resource_version: str = ""

    @property
    def named(self) -> str:
        return f"{self.namespace}/{self.name}"


def pod_of(pod: Json, *, held: bool) -> Pod:
    meta, spec, status = pod["metadata"], pod["spec"], pod.get("status") or {}
    annotations = meta.get("annotations") or {}
    mirror = translate.is_mirror(pod)
    found = Pod(
        uid=meta["uid"],
        namespace=meta["namespace"],
        name=meta["name"],
        node=spec["nodeName"],
        key=annotations.get(translate.MIRROR_KEY, meta["uid"]) if mirror else meta["uid"],
        status=status_revision(status),
        held=held and not mirror,
        ended=status.get("phase") in ("Succeeded", "Failed"),
        refused=translate.condition(pod, translate.ACCEPTED) is not None,
        deleting=bool(meta.get("deletionTimestamp")),
        containers=tuple(one["name"] for one in (*spec["containers"], *(spec.get("initContainers") or ()))),
        resource_version=meta.get("resourceVersion", ""),
    )
    if mirror:
        found.mirror = _bytes_of(annotations.get(translate.MIRROR_REVISION))
        return found
    found.opted_out = annotations.get(translate.AUTONOMY, "").strip().lower() in ("none", "0")
    found.stays_s = translate.unreachable_s(pod)
    found.endless = None if found.opted_out else translate.endless_tolerations(pod)
    if found.held:
        return found
    found.refs = translate.references(pod)
    found.tokens = translate.tokens(pod)
    found.account = str(spec.get("serviceAccountName") or "default")
    found.claims = translate.claim_names(pod)
    if found.claims:
        found.raw = pod
    else:
        found.body = translate.pod_body(pod, {})
        found.revision = revision(found.body)
    return found


def _bytes_of(text: object) -> bytes:
    try:
        return bytes.fromhex(text) if isinstance(text, str) else b""
    except ValueError:
        return b""


class Referred(Struct):
    """A ConfigMap or Secret that somebody refers to. `known`: it has been asked for, and `body` is what it is (None:
    there is none). `version` is the newest that a watch has told of."""

    users: dict[str, int] = field(default_factory=dict)  # node → how many of its pods
    known: bool = False
    asking: bool = False
    version: str = ""
    fetched: str = ""  # the version that `body` is of
    body: bytes | None = None
    revision: bytes = b""
    tries: int = 0


class Objects:
    """Every ConfigMap and Secret that pods of edge nodes refer to, and no other."""

    def __init__(self) -> None:
        self.referred: dict[Reference, Referred] = {}

    def refer(self, node: str, refs: frozenset[Reference]) -> list[Reference]:
        """A pod of `node` refers to these; those that are new to the node."""
        fresh = []
        for ref in refs:
            found = self.referred.setdefault(ref, Referred())
            found.users[node] = found.users.get(node, 0) + 1
            if found.users[node] == 1:
                fresh.append(ref)
        return fresh

    def release(self, node: str, refs: frozenset[Reference]) -> list[Reference]:
        """It does so no longer; those that no pod of the node refers to any more."""
        over = []
        for ref in refs:
            found = self.referred[ref]
            found.users[node] -= 1
            if not found.users[node]:
                del found.users[node]
                over.append(ref)
                if not found.users:
                    del self.referred[ref]
        return over

    def outline(self, node_refs: dict[Reference, None], kind: str) -> dict[str, bytes]:
        found = {}
        for ref in node_refs:
            one = self.referred.get(ref)
            if ref[0] == kind and one is not None and one.body is not None:
                found[ref[1]] = one.revision
        return found
