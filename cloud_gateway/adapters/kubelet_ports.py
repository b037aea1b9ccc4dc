"""A port for each node: two nodes behind one address and port can't be told apart by what is asked of them."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from functools import partial

import trio
from msgspec import Struct

from cloud_gateway.adapters.ca import IdentityStore
from cloud_gateway.adapters.kube import Kube
from cloud_gateway.adapters.kube_types import CONFIGMAPS, KubeError
from cloud_gateway.adapters.kubelet_access import Access
from cloud_gateway.adapters.kubelet_api import Find, KubeletApi, Note, Open, Room
from cloud_gateway.adapters.serving import Serving
from cloud_gateway.config import Config
from tinyedge.errors import TinyEdgeError

REFRESH_S = 60.0
AGAIN_S = 5.0  # a port that is taken may be free soon; so may the API server be there
CLIENT_CA = ("kube-system", "extension-apiserver-authentication", "client-ca-file")


class KubeletPorts:
    """`open` and `close` come from the core. `context`: our certificate, and whose clients we know; None until both
    are there, and nobody is served until then."""

    def __init__(self, nursery: trio.Nursery, host: str, make: Callable[[str], KubeletApi], note: Note) -> None:
        self._nursery = nursery
        self._host = host
        self._make = make
        self._note = note
        self._scopes: dict[str, trio.CancelScope] = {}
        self.context: ssl.SSLContext | None = None

    def open(self, node: str, port: int) -> None:
        """A node has one port: another that it had is closed."""
        self.close(node)
        scope = self._scopes[node] = trio.CancelScope()
        self._nursery.start_soon(self._serve, node, port, scope)

    def close(self, node: str) -> None:
        """Also ends the conversations on it."""
        if scope := self._scopes.pop(node, None):
            scope.cancel()

    async def _serve(self, node: str, port: int, scope: trio.CancelScope) -> None:
        api = self._make(node)
        with scope:
            listeners = await self._listeners(node, port)
            await trio.serve_listeners(partial(self._meet, api), listeners)

    async def _listeners(self, node: str, port: int) -> list[trio.SocketListener]:
        told = False
        while True:
            try:
                return await trio.open_tcp_listeners(port, host=self._host)
            except OSError as error:
                if not told:
                    why = error.strerror or str(error)
                    self._note("error", "kubelet.port", {"node": node, "port": port, "why": why})
                told = True
            await trio.sleep(AGAIN_S)

    async def _meet(self, api: KubeletApi, transport: trio.SocketStream) -> None:
        try:
            transport.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_KEEPALIVE, 1)  # a caller may be quiet for hours
            if self.context is not None:
                await api.serve(transport, self.context)
        finally:
            await trio.aclose_forcefully(transport)


async def open_ports(
    config: Config,
    kube: Kube,
    nursery: trio.Nursery,
    *,
    find: Find,
    stream: Open,
    ca: IdentityStore,
    note: Note,
    away: Callable[[str], str] = lambda _: "",
) -> KubeletPorts:
    """Ready to open ports; keeps its TLS fresh for as long as the nursery lives. `away`: since when a node is not
    connected, for people, or nothing."""
    access, room = Access(kube, now_s=trio.current_time), Room()

    def make(node: str) -> KubeletApi:
        return KubeletApi(node, access=access, find=find, stream=stream, note=note, room=room, away=away)

    ports = KubeletPorts(nursery, config.kubelet_listen, make, note)
    if config.kubelet_ports[0]:
        tls = _Tls(config, kube, ca)
        await _refresh(tls, ports, note)
        nursery.start_soon(_keep_fresh, tls, ports, note)
    return ports


async def _keep_fresh(tls: _Tls, ports: KubeletPorts, note: Note) -> None:
    while True:
        await trio.sleep(REFRESH_S if ports.context else AGAIN_S)
        await _refresh(tls, ports, note)


async def _refresh(tls: _Tls, ports: KubeletPorts, note: Note) -> None:
    try:
        ports.context = await tls.context()
    except (TinyEdgeError, OSError, ValueError) as error:
        note("error", "kubelet.tls", {"why": str(error)[:300]})


class _Made(Struct, frozen=True):
    """`of`: all that it was made of."""

    of: tuple[object, ...]
    context: ssl.SSLContext


class _Tls:
    """Made anew when something in it has changed."""

    def __init__(self, config: Config, kube: Kube, store: IdentityStore) -> None:
        self._config = config
        self._kube = kube
        self._serving = Serving(
            store,
            config.kubelet_cert,
            config.kubelet_key,
            address=config.kubelet_address,
            flag="--kubelet-cert",
        )
        self._made: _Made | None = None

    async def context(self) -> ssl.SSLContext:
        """Raises TinyEdgeError, OSError, ValueError."""
        clients = await self._client_ca()
        of = (clients, *await trio.to_thread.run_sync(self._serving.stamp))
        if self._made is None or self._made.of != of:
            self._made = _Made(of, await trio.to_thread.run_sync(self._make, clients))
        return self._made.context

    async def _client_ca(self) -> str:
        """Of the API server's clients, it among them; empty: only tokens are known."""
        if self._config.kubelet_client_ca:
            return await trio.Path(self._config.kubelet_client_ca).read_text()
        namespace, name, key = CLIENT_CA
        try:
            found = await self._kube.get(CONFIGMAPS, name, namespace)
        except KubeError as error:
            if error.not_found or error.forbidden:
                return ""
            raise
        return str((found.get("data") or {}).get(key, ""))

    def _make(self, clients: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if clients:
            context.verify_mode = ssl.CERT_OPTIONAL
            context.load_verify_locations(cadata=clients)
        self._serving.load(context)
        return context
