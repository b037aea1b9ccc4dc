"""The port of rules over REST: its listener, and a TLS that is as new as its certificate."""

from __future__ import annotations

import ssl
from functools import partial

import trio

from cloud_gateway.adapters.rest_api import Note, RestApi
from cloud_gateway.adapters.serving import Serving
from cloud_gateway.config import Address
from tinyedge.errors import TinyEdgeError, WorldError

REFRESH_S = 60.0


class RestPort:
    def __init__(self, api: RestApi, serving: Serving, note: Note) -> None:
        self._api = api
        self._serving = serving
        self._note = note
        self._stamp: tuple[object, ...] = ()
        self._context: ssl.SSLContext | None = None

    async def serve(self, address: Address, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. Starts with the port that it listens on; raises TinyEdgeError when it can't."""
        await self._refresh()
        host, port = address
        try:
            listeners = await trio.open_tcp_listeners(port, host=host)
        except OSError as error:
            why = error.strerror or str(error)
            raise WorldError(f"can't listen on {host}:{port}", why, "give --rest another address") from None
        task_status.started(listeners[0].socket.getsockname()[1])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_fresh)
            await trio.serve_listeners(self._meet, listeners, handler_nursery=nursery)

    async def _meet(self, transport: trio.SocketStream) -> None:
        try:
            if self._context is not None:
                await self._api.serve(transport, self._context)
        finally:
            await trio.aclose_forcefully(transport)

    async def _keep_fresh(self) -> None:
        while True:
            await trio.sleep(REFRESH_S)
            try:
                await self._refresh()
            except (TinyEdgeError, OSError) as error:  # the one that we have may still be good
                self._note("error", "rest.tls", {"why": str(error)[:300]})

    async def _refresh(self) -> None:
        stamp = await trio.to_thread.run_sync(self._serving.stamp)
        if stamp != self._stamp:
            self._context = await trio.to_thread.run_sync(partial(_context, self._serving))
            self._stamp = stamp


def _context(serving: Serving) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    serving.load(context)
    return context
