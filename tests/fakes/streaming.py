"""A runtime's streaming server: one WebSocket connection, `v4.channel.k8s.io` or v5, acted out by a function."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, RejectConnection, RejectData, Request


class Peer:
    """The server's end, blocking. `receive` gives (channel, data), or None at the end."""

    def __init__(self, sock: socket.socket, version: str, refusal: str = "") -> None:
        self._sock = sock
        self._ws = WSConnection(ConnectionType.SERVER)
        self._waiting: list[tuple[int, bytes]] = []
        self._partial = b""
        self._ended = False
        self.target = ""
        self.refused = bool(refusal)
        request = self._request()
        self.target = request.target
        if refusal:
            self._send(RejectConnection(status_code=404, has_body=True, headers=[(b"content-type", b"text/plain")]))
            self._send(RejectData(data=refusal.encode()))
        else:
            self._send(AcceptConnection(subprotocol=version))

    def _request(self) -> Request:
        while True:
            self._ws.receive_data(self._sock.recv(65536))
            for event in self._ws.events():
                assert isinstance(event, Request)
                return event

    def receive(self) -> tuple[int, bytes] | None:
        while not self._waiting and not self._ended:
            data = self._sock.recv(65536)
            self._ended = not data
            self._ws.receive_data(data or None)
            for event in self._ws.events():
                if isinstance(event, BytesMessage):
                    self._partial += event.data
                    if event.message_finished:
                        self._waiting.append((self._partial[0], self._partial[1:]))
                        self._partial = b""
                elif isinstance(event, CloseConnection):
                    self._ended = True
        return self._waiting.pop(0) if self._waiting else None

    def send(self, channel: int, data: bytes) -> None:
        self._send(BytesMessage(data=bytes([channel]) + data))

    def _send(self, event: object) -> None:
        self._sock.sendall(self._ws.send(event))  # type: ignore[arg-type]


class StreamingServer:
    """Serves `connections` connections at `url`, each by `act`; what goes wrong in there is raised by `close`."""

    def __init__(
        self,
        act: Callable[[Peer], None],
        *,
        version: str = "v4.channel.k8s.io",
        refusal: str = "",
        connections: int = 1,
    ) -> None:
        self._act = act
        self._version = version
        self._refusal = refusal
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(10)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/exec/token?x=1"
        self.targets: list[str] = []
        self._errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, args=(connections,))
        self._thread.start()

    def _run(self, connections: int) -> None:
        try:
            for _ in range(connections):
                sock, _ = self._listener.accept()
                with sock:
                    sock.settimeout(10)
                    peer = Peer(sock, self._version, self._refusal)
                    self.targets.append(peer.target)
                    if not peer.refused:
                        self._act(peer)
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
            self._errors.append(error)

    def close(self) -> None:
        self._thread.join(60)
        self._listener.close()
        assert not self._thread.is_alive()
        if self._errors:
            raise self._errors[0]
