"""The pods of edge nodes: of each no more than is needed to answer its node."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from cloud_gateway.core import translate
from tinyedge.protocol.revision import revision, status_revision

Json = dict[str, Any]
Reference = tuple[str, str]  # kind, namespace/name


class Said(Struct):
    """What a node says of a pod in its session. `revision` is what the API makes of it, `body` the words themselves,
    packed (empty: said before this gateway heard it), `version` the API's after our last patch."""

    revision: bytes
    body: bytes = b""
    version: str = ""
    busy: int = 0  # patches under way
    tries: int = 0  # at saying it again, because somebody else has written; `again_ms` is when it is, or was last
    again_ms: int = 0


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
    is_mirror: bool = False
    mirror: bytes = b""  # its revision, as its node has it
    refs: frozenset[Reference] = frozenset()
    tokens: frozenset[tuple[str, int]] = frozenset()
    account: str = "default"
    containers: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()
    raw: Json | None = None  # of a pod with claims, until they are resolved
    volumes: Json | None = None  # what stands for its claims
    waits: bool = False  # for its claims: they were looked for in vain
    refused: str = ""  # why its node could not run it, as the API says
    debuggers: tuple[str, ...] = ()  # ephemeral containers that nobody has refused yet
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
        is_mirror=mirror,
        held=held and not mirror,
        ended=status.get("phase") in ("Succeeded", "Failed"),
        refused=str((translate.condition(pod, translate.ACCEPTED) or {}).get("reason", "")),
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
    found.debuggers = translate.new_ephemerals(pod)
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
