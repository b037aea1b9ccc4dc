"""A Kubernetes-compatible API server for one machine, on LMDB.

It is for the demo, for tests and for trying things out. It is not a cluster: one process, one machine, no RBAC, no
Deployments or other controllers of workloads, no Services, no server-side apply, no admission webhooks, and no
`managedFields`. What it serves it serves as Kubernetes does: kubectl and other clients need not know.

    async with trio.open_nursery() as nursery:
        sandbox = await nursery.start(partial(serve, "DIR", listen=("127.0.0.1", 6443)))
        sandbox.url, sandbox.ca_pem, sandbox.admin_token, sandbox.kubeconfig
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import trio
from msgspec import Struct

from cloud_gateway import limits
from cloud_gateway.sandbox import certs, fields
from cloud_gateway.sandbox.controllers import Controllers
from cloud_gateway.sandbox.reads import Reads
from cloud_gateway.sandbox.registry import Registry
from cloud_gateway.sandbox.resources import Catalogue
from cloud_gateway.sandbox.routes import Api
from cloud_gateway.sandbox.server import HttpServer
from cloud_gateway.sandbox.store import Change, Store
from cloud_gateway.sandbox.tokens import Tokens
from cloud_gateway.sandbox.watch import Hub

__all__ = ["Sandbox", "serve"]


class Sandbox(Struct, frozen=True):
    """A sandbox that runs. `kubeconfig`: the path of a file for kubectl, 0600. `ca_pem` is empty without TLS."""

    url: str
    ca_pem: str
    admin_token: str
    kubeconfig: str
    store: Store


async def serve(
    directory: str | Path,
    *,
    listen: tuple[str, int] = ("127.0.0.1", 0),
    hosts: Sequence[str] = (),
    tls: bool = True,
    scheduling: bool = True,
    definitions: Sequence[dict[str, Any]] = (),
    wall_s: Callable[[], float] = time.time,
    log_changes_max: int = limits.SANDBOX_LOG_CHANGES_MAX,
    task_status: trio.TaskStatus[Sandbox] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled. `hosts`: further names and addresses of the certificate. Without `scheduling` pods wait
    until somebody binds them; without `tls` is for tests only. `definitions`: packaged.definitions(), or none. Raises
    WorldError when the folder can't be used."""
    folder = Path(directory)
    of_certs = await trio.to_thread.run_sync(certs.open_certs, folder, [listen[0], *hosts], wall_s())
    of_tokens = Tokens(folder, wall_s=wall_s)
    store = Store(folder, index=fields.index, log_changes_max=log_changes_max)
    registry = Registry(store, Catalogue(), wall_s=wall_s)
    hub = Hub()
    controllers = Controllers(registry, of_certs.ca_pem, scheduling=scheduling, definitions=definitions)

    def published(change: Change) -> None:
        hub.publish(change)
        controllers.changed(change)

    store.published = published
    api = Api(registry, Reads(store, hub, wall_s), of_tokens, of_certs.kubelet_context())
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            await controllers.begin()
            nursery.start_soon(controllers.run)
            url = await _listen(nursery, api, of_certs if tls else None, listen)
            text = certs.kubeconfig(url, of_certs.ca_pem, of_tokens.admin_token)
            certs.write_private(folder / "kubeconfig", text.encode())
            ca_pem = of_certs.ca_pem if tls else ""
            task_status.started(Sandbox(url, ca_pem, of_tokens.admin_token, str(folder / "kubeconfig"), store))
    finally:
        store.close()


async def _listen(nursery: trio.Nursery, api: Api, of_certs: certs.Certs | None, listen: tuple[str, int]) -> str:
    """Take connections from now on; returns the URL."""
    server = HttpServer(api.answer, api.user)
    listeners = await trio.open_tcp_listeners(listen[1], host=listen[0], backlog=1024)
    host, port = listeners[0].socket.getsockname()[:2]
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    api.address = shown
    context = _context(of_certs) if of_certs is not None else None

    async def connected(stream: trio.SocketStream) -> None:
        await server.serve(trio.SSLStream(stream, context, server_side=True) if context is not None else stream)

    await nursery.start(partial(trio.serve_listeners, connected, listeners))
    return f"{'http' if context is None else 'https'}://{shown}"


def _context(of_certs: certs.Certs) -> ssl.SSLContext:
    """A client may show a certificate of our CA instead of a token."""
    context = of_certs.server_context()
    context.load_verify_locations(cadata=of_certs.ca_pem)
    context.verify_mode = ssl.CERT_OPTIONAL
    return context
