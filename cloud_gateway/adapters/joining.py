"""Joins, renewals and farewells: from the bytes of a request to an answer, and to what the gateway is to do next.

The HTTP and the link around it are adapters/edges.py's. What is refused comes as authority.Refused, with the body for
the answer; other TinyEdgeErrors mean that Kubernetes or this machine failed, and that the node may try again.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable

from msgspec import Struct

from cloud_gateway import limits
from cloud_gateway.adapters import ca
from cloud_gateway.adapters.ca import IdentityStore
from cloud_gateway.core import authority
from cloud_gateway.core.authority import Admitted, Asked, CertFacts, Policy, Refused, State, Verdict
from tinyedge.errors import BadInput
from tinyedge.protocol import joining
from tinyedge.protocol.joining import Claims, JoinAnswer, JoinRequest, LeaveRequest, RenewRequest, Taint

Foreign = Callable[[str], Awaitable[bool]]
"""Whether the cluster has a Node of this name that is not an edge node: nobody may join as it."""


class Joined(Struct, frozen=True):
    """`answer` for the node; the Node is to be made with `labels` and `taints` (when `first`, or they are missing);
    a live session of this name is to be ended with Bye(`Replaced`) when `rebound`."""

    answer: JoinAnswer
    name: str
    machine: str
    labels: dict[str, str]
    taints: tuple[Taint, ...]
    rebound: bool


class Joining:
    """What the endpoint and the sessions ask. `wall_s` tells Unix time."""

    def __init__(
        self,
        store: IdentityStore,
        *,
        wall_s: Callable[[], float],
        foreign: Foreign,
        policy: Policy | None = None,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._store = store
        self._wall_s = wall_s
        self._foreign = foreign
        self._random = random
        self.policy = policy or Policy()

    def cas(self) -> bytes:
        """The answer to GET /v1/ca (application/x-pem-file)."""
        return self._store.ca.trusted.encode()

    def make_token(
        self,
        *,
        node: str = "",
        pattern: str = "",
        ttl_s: int,
        labels: dict[str, str] | None = None,
        taints: tuple[Taint, ...] = (),
    ) -> str:
        """For `tinyedge-gateway token create`. Nothing is written. BadInput says what is wrong."""
        return authority.make_token(
            self._store.ca.token_key,
            node=node,
            pattern=pattern,
            ttl_s=ttl_s,
            now_s=self._now(),
            ca=self._store.ca.fingerprint,
            random=self._random(12),
            labels=labels,
            taints=taints,
        )

    async def join(self, body: bytes) -> Joined:
        """POST /v1/join. Raises Refused."""
        if len(body) > limits.EDGE_JOIN_BYTES_MAX:
            raise Refused("BadRequest", "the request is too large", f"{limits.EDGE_JOIN_BYTES_MAX} bytes are allowed")
        try:
            request = joining.decode(body, JoinRequest, "the request")
            key = ca.read_csr(request.csr)
        except BadInput as error:
            raise Refused("BadRequest", error.what, error.why, "update tinyedge on the node") from None
        claims = authority.verify_token(self._store.ca.token_key, request.token, self._now())
        labels, taints = authority.granted(claims, request.labels, tuple(request.taints))
        asked = Asked(request.name, request.machine, ca.key_digest(key), labels, taints)
        admitted = await self._admitted(claims, asked)
        chain = self._store.ca.sign_node(key, admitted.name, admitted.line, self._now(), self.policy.life_s)
        answer = JoinAnswer(admitted.name, chain, self._store.ca.trusted)
        return Joined(answer, admitted.name, asked.machine, labels, taints, admitted.rebound)

    async def _admitted(self, claims: Claims, asked: Asked) -> Admitted:
        """Once it is written down: a token that was used twice at once, at two replicas, is refused to one of them."""
        name = claims.node or asked.name
        if joining.valid_name(name) and name not in self._store.state.bindings and await self._foreign(name):
            why = "the cluster has a Node of this name that is no edge node"
            raise Refused("NameBound", f"the name {name} is taken", why, "choose another name")
        line = self._random(joining.LINE_BYTES).hex()

        def change(state: State) -> tuple[State, Admitted]:
            admitted = authority.may_join(state, claims, asked, line=line, now_s=self._now(), policy=self.policy)
            return admitted.state, admitted

        return await self._store.update(change)

    async def connect(self, facts: CertFacts, machine: str) -> Verdict:
        """For a Hello. Before it refuses it looks whether another replica has changed something since; when Kubernetes
        can't be asked its error is raised, and the node may come back later."""
        verdict = self.may_connect(facts, machine)
        if verdict.kind == "refused":
            await self._store.refresh_shared(every_s=1)
            verdict = self.may_connect(facts, machine)
        return verdict

    def may_connect(self, facts: CertFacts, machine: str) -> Verdict:
        """By what is known here; for live sessions whenever the state has changed."""
        return authority.may_connect(self._store.state, facts, machine, self._now(), self.policy)

    def renew(self, facts: CertFacts, machine: str, body: bytes) -> JoinAnswer:
        """Ask("renew") of a session whose TLS has proven the key of this certificate. Nothing is written. Raises
        Refused."""
        authority.may_renew(self._store.state, facts, machine, self._now(), self.policy)
        try:
            key = ca.read_csr(joining.decode(body, RenewRequest, "the request").csr)
        except BadInput as error:
            raise Refused("BadRequest", error.what, error.why, "update tinyedge on the node") from None
        line = facts.serial[: 2 * joining.LINE_BYTES]
        chain = self._store.ca.sign_node(key, facts.name, line, self._now(), self.policy.life_s)
        return JoinAnswer(facts.name, chain, self._store.ca.trusted)

    async def leave(self, facts: CertFacts, body: bytes) -> None:
        """POST /v1/leave with the node's certificate: that is void from now on. The live session (Bye `Left`), the Node
        and its pods are the caller's to end. Raises Refused, also to a copy of the node."""
        try:
            machine = joining.decode(body, LeaveRequest, "the request").machine
        except BadInput as error:
            raise Refused("BadRequest", error.what, error.why, "update tinyedge on the node") from None
        verdict = await self.connect(facts, machine)
        if verdict.kind == "refused" and verdict.reason != "Expired":
            raise Refused(verdict.reason, f"{facts.name} can't leave", verdict.message)
        await self._store.update(lambda state: (authority.leave(state, facts, self._now(), self.policy), None))

    async def revoke(self, name: str) -> None:
        """`node revoke`: live sessions are to be asked again (may_connect). Raises Refused."""
        await self._store.update(lambda state: (authority.revoke(state, name, self._now()), None))

    async def replace(self, name: str) -> None:
        """`node replace`. Raises Refused."""
        await self._store.update(lambda state: (authority.replace(state, name, self._now()), None))

    async def delete(self, name: str) -> None:
        """`node delete`. Raises Refused."""
        await self._store.update(lambda state: (authority.delete(state, name, self._now(), self.policy), None))

    def _now(self) -> int:
        return int(self._wall_s())
