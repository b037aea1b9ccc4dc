"""gRPC on unix sockets for a Trio program: calls to others (`Channel`) and calls of others (`Server`), over h2.

    channel = Channel("/run/containerd/containerd.sock")
    answer = await channel.unary("/runtime.v1.RuntimeService/Version", Empty(), VersionResponse, timeout_s=5)
    async with channel.stream(path, request, Event) as events:
        async for event in events: ...

    server = Server({"/v1beta1.DeviceManagerService/ReportDeviceStates": report}, note)
    await server.serve(listener)

Only what tinyedge uses of it: no compression, no deadlines on the wire (a late call is reset, which cancels it at the
peer just as well), and of streams only the answers to one request.
"""

from __future__ import annotations

from tinyedge.grpc.channel import AGENT, Channel, Messages, dialled
from tinyedge.grpc.server import Caller, Handler, Server
from tinyedge.grpc.words import GrpcError, Message, NoAnswer, Refused, Status

__all__ = [
    "AGENT",
    "Caller",
    "Channel",
    "GrpcError",
    "Handler",
    "Message",
    "Messages",
    "NoAnswer",
    "Refused",
    "Server",
    "Status",
    "dialled",
]
