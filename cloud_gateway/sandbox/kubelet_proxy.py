"""Passes log, exec, attach and port-forward of a pod on to the kubelet endpoint of its node.

    pods/log          GET /containerLogs/NS/POD/C       pods/exec          POST /exec/NS/POD/C
    pods/portforward  POST /portForward/NS/POD          pods/attach        POST /attach/NS/POD/C
    nodes/N/proxy     GET /stats/summary, /metrics/…; nothing else

What the endpoint answers is passed on byte by byte. An upgrade (SPDY or WebSocket) is none of our business: its bytes go
both ways until either side has ended.
"""

from __future__ import annotations

import ssl
from typing import Any

import trio
from msgspec import Struct

Json = dict[str, Any]


class Asked(Struct, frozen=True):
    """A request whose head has been read. `subresource`: log, exec, attach or portforward (of a pod); for a node's
    proxy what stands behind `proxy/`. `query` pairs are decoded, `headers` as they came, `rest` is what came behind the
    head."""

    method: str
    subresource: str
    query: tuple[tuple[str, str], ...]
    headers: tuple[tuple[str, str], ...]
    rest: bytes = b""


async def to_pod(asked: Asked, client: trio.abc.Stream, pod: Json, node: Json | None, context: ssl.SSLContext) -> None:
    """Answer `client`. Afterwards its connection is at its end: close it. `node`: the Node of spec.nodeName, None when
    there is none. Raises status.Refused as long as not a byte has been written: answer that as any other refusal."""
    raise NotImplementedError


async def to_node(asked: Asked, client: trio.abc.Stream, node: Json, context: ssl.SSLContext) -> None:
    """The same for GET /api/v1/nodes/N/proxy/…"""
    raise NotImplementedError
