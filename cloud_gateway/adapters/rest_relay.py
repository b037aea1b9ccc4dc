"""A request over REST for a node whose session is at another replica goes there: to the address that the Node has. The
caller's token goes along, and the other replica asks again who it is and what it may."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import aclosing
from ipaddress import ip_address

from cloud_gateway import limits
from cloud_gateway.adapters.kube import Kube
from cloud_gateway.adapters.kube_types import NODES, KubeError
from cloud_gateway.adapters.serving import Trust
from cloud_gateway.core.translate import kubelet_endpoint
from tinyedge.errors import PeerError
from tinyedge.http_client import Answer, HttpClient

HERE = "x-tinyedge-relayed"  # a request is relayed once
RELAY_S = 60.0
_OF_ONE_CONNECTION = frozenset({"host", "content-length", "connection", "transfer-encoding", "expect"})


class Relay:
    """`address`: ours, as a Node's status has it. `port`: of REST, the same at all replicas. `trust`: in what they show
    there."""

    def __init__(self, kube: Kube, trust: Callable[[], Trust], *, address: str, port: int) -> None:
        self._kube = kube
        self._trust = trust
        self._address = address
        self._port = port

    async def ask(
        self, node: str, method: str, target: str, headers: Iterable[tuple[str, str]], body: bytes
    ) -> Answer | None:
        """None: no other replica has the node. Raises TinyEdgeError when that can't be said, or it does not answer."""
        address = await self._find(node)
        if not address:
            return None
        host = f"[{address}]" if ":" in address else address
        trust = self._trust()
        client = HttpClient(
            f"https://{host}:{self._port}",
            body_bytes_max=limits.REST_BODY_BYTES_MAX + 1,
            context=trust.context,
            server_name=trust.name,
        )
        passed = {name: value for name, value in headers if name not in _OF_ONE_CONNECTION} | {HERE: "1"}
        async with aclosing(client):
            answer = await client.request(method, target, passed, body, timeout_s=RELAY_S)
        if len(answer.body) > limits.REST_BODY_BYTES_MAX:
            raise PeerError("its answer has no end")
        return answer

    async def _find(self, node: str) -> str:
        try:
            address, _ = kubelet_endpoint(await self._kube.get(NODES, node))
        except KubeError as error:
            if error.not_found:
                return ""
            raise
        try:
            return "" if ip_address(address) == ip_address(self._address) else address
        except ValueError:
            return ""
