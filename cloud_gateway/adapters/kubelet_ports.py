"""A port for each node: two nodes behind one address and port can't be told apart by what is asked of them."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from functools import partial
from typing import Any

import trio

from cloud_gateway import limits
from cloud_gateway.adapters.ca import IdentityStore
from cloud_gateway.adapters.kube import Kube
from cloud_gateway.adapters.kube_types import CONFIGMAPS, KubeError
from cloud_gateway.adapters.kubelet_access import Access
from cloud_gateway.adapters.kubelet_api import Find, KubeletApi, Note, Open
from cloud_gateway.config import Config
from tinyedge.errors import TinyEdgeError, WorldError

REFRESH_S = 60.0
CLIENT_CA = ("kube-system", "extension-apiserver-authentication", "client-ca-file")


class KubeletPorts:
    """`open` and `close` come from the core. The context (our certificate, whose clients we know) is made anew each
    minute when something in it has changed."""

    def __init__(self, nursery: trio.Nursery, host: str, make: Callable[[str], KubeletApi], note: Note) -> None:
        self._nursery = nursery
        self._host = host
        self._make = make
        self._note = note
        self._scopes: dict[str, trio.CancelScope] = {}
        self._limit = trio.CapacityLimiter(limits.KUBELET_CONNECTIONS_MAX)
        self.context: ssl.SSLContext | None = None

    def open(self, node: str, port: int) -> None:
        scope = self._scopes[node] = trio.CancelScope()
        self._nursery.start_soon(self._serve, node, port, scope)

    def close(self, node: str) -> None:
        if scope := self._scopes.pop(node, None):
            scope.cancel()

    async def _serve(self, node: str, port: int, scope: trio.CancelScope) -> None:
        api = self._make(node)
        with scope:
            try:
                listeners = await trio.open_tcp_listeners(port, host=self._host)
            except OSError as error:
                self._note("error", "kubelet.port", {"node": node, "port": port, "why": error.strerror or str(error)})
                return
            await trio.serve_listeners(partial(self._meet, api), listeners)

    async def _meet(self, api: KubeletApi, transport: trio.SocketStream) -> None:
        async with self._limit:
            if self.context is not None:
                await api.serve(transport, self.context)
            await trio.aclose_forcefully(transport)


async def open_ports(
    config: Config, kube: Kube, nursery: trio.Nursery, *, find: Find, stream: Open, ca: IdentityStore, note: Note
) -> KubeletPorts:
    """Ready to open ports; keeps its TLS fresh for as long as the nursery lives."""
    access = Access(kube, now_s=trio.current_time)

    def make(node: str) -> KubeletApi:
        return KubeletApi(node, access=access, find=find, stream=stream, note=note)

    ports = KubeletPorts(nursery, config.kubelet_listen, make, note)
    if config.kubelet_ports[0]:
        await _refresh(config, kube, ca, ports, note)
        nursery.start_soon(_keep_fresh, config, kube, ca, ports, note)
    return ports


async def _keep_fresh(config: Config, kube: Kube, ca: IdentityStore, ports: KubeletPorts, note: Note) -> None:
    while True:
        await trio.sleep(REFRESH_S)
        await _refresh(config, kube, ca, ports, note)


async def _refresh(config: Config, kube: Kube, ca: IdentityStore, ports: KubeletPorts, note: Note) -> None:
    try:
        clients = await _client_ca(config, kube)
        ports.context = await trio.to_thread.run_sync(_context, config, ca, clients)
    except (TinyEdgeError, OSError, ssl.SSLError) as error:
        note("error", "kubelet.tls", {"why": str(error)[:300]})


async def _client_ca(config: Config, kube: Kube) -> str:
    """Of the API server's clients, it among them; empty: only tokens are known."""
    if config.kubelet_client_ca:
        return await trio.Path(config.kubelet_client_ca).read_text()
    namespace, name, key = CLIENT_CA
    try:
        found = await kube.get(CONFIGMAPS, name, namespace)
    except KubeError as error:
        if error.not_found or error.forbidden:
            return ""
        raise
    return str((found.get("data") or {}).get(key, ""))


def _context(config: Config, store: IdentityStore, clients: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if clients:
        context.verify_mode = ssl.CERT_OPTIONAL
        context.load_verify_locations(cadata=clients)
    if config.kubelet_cert:
        try:
            context.load_cert_chain(config.kubelet_cert, config.kubelet_key or None)
        except (OSError, ssl.SSLError) as error:
            raise WorldError(f"can't use {config.kubelet_cert}", str(error), "look at --kubelet-cert") from None
        return context
    return _own(context, store, config)


def _own(context: ssl.SSLContext, store: IdentityStore, config: Config) -> ssl.SSLContext:
    import time  # noqa: PLC0415 - the one look at the wall clock here

    signed: Any = store.ca.server(int(time.time()), [config.kubelet_address or "127.0.0.1"])
    handle = os.memfd_create("kubelet", os.MFD_CLOEXEC)  # the ssl module takes a file only
    try:
        os.write(handle, (signed.chain + signed.key).encode())
        context.load_cert_chain(f"/proc/self/fd/{handle}")
    finally:
        os.close(handle)
    return context
