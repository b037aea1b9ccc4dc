"""`tinyedge port-forward`: ports of a pod on this machine. Each connection has a stream of its own."""

from __future__ import annotations

import argparse
import selectors
import socket
import sys
import threading
from typing import NamedTuple

from tinyedge.cli.client import Client
from tinyedge.cli.errors import EXIT_USAGE, CliError
from tinyedge.cli.output import client, namespace, pod_name, show
from tinyedge.cli.streams import Streams

DATA, ERROR = 0, 1
READ_BYTES = 32 * 1024
LINGER_S = 10  # for the rest of an answer, once this side has nothing more to say


class Forward(NamedTuple):
    """`local` 0 takes a free port."""

    local: int
    remote: int


def run(args: argparse.Namespace) -> int:
    api, name, within = client(args), pod_name(args.pod), namespace(args)
    forwards = [parse(text) for text in args.ports]
    path = f"/v1/namespaces/{within}/pods/{name}"
    api.get(path)  # an unknown pod is better told now than at the first connection
    with selectors.DefaultSelector() as selector:
        for forward in forwards:
            listener = _listen(args.address or "127.0.0.1", forward)
            host, port = listener.getsockname()[:2]
            show(f"Forwarding from {host}:{port} -> {forward.remote}")
            selector.register(listener, selectors.EVENT_READ, (listener, forward))
        show("Ctrl-C ends it.")
        while True:
            for key, _ in selector.select():
                listener, forward = key.data
                local, _ = listener.accept()
                threading.Thread(target=_serve, args=(api, path, local, forward.remote), daemon=True).start()


def parse(text: str) -> Forward:
    """`8080:80`, `80` for the same port on both sides, `:80` for a free one here."""
    local, colon, remote = text.rpartition(":")
    ports = (local if colon else remote) or "0", remote
    if not all(port.isdigit() and int(port) < 65536 for port in ports) or int(remote) == 0:
        raise CliError(f"{text!r} is no pair of ports", "", "such as 8080:80, 80 or :80", code=EXIT_USAGE)
    return Forward(int(ports[0]), int(ports[1]))


def _listen(address: str, forward: Forward) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return socket.create_server((address, forward.local), family=family)
    except OSError as error:
        raise CliError(
            f"can't listen on {address}:{forward.local}",
            error.strerror or str(error),
            "choose another: :REMOTE takes a free one",
        ) from None


def _serve(api: Client, path: str, local: socket.socket, remote: int) -> None:
    with local:
        try:
            streams = Streams(api.ask("POST", f"{path}/portforward", [("ports", str(remote))])["url"])
            try:
                _pump(local, streams)
            finally:
                streams.close()
        except (CliError, OSError) as error:
            show(f"port {remote}: {error}", file=sys.stderr)


def _pump(local: socket.socket, streams: Streams) -> None:
    """Both ways, until the pod's side ends. That our side has ended can't be told by half: wait for the rest then."""
    greeted: set[int] = set()  # channels whose first message, the port, has come
    ended = False
    while not streams.closed:
        ready, messages = streams.wait([] if ended else [local.fileno()], LINGER_S if ended else None)
        if ended and not messages:
            return
        for channel, data in messages:
            if channel not in greeted:
                greeted.add(channel)
            elif channel == DATA:
                local.sendall(data)
            elif channel == ERROR and data:
                raise CliError("the pod refused the connection", data.decode("utf-8", "replace").strip())
        if ready:
            data = local.recv(READ_BYTES)
            ended = not data
            if data:
                streams.send(DATA, data)
