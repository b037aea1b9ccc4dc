"""A gRPC health server on all addresses of this machine, for pods on the host's network to be probed by."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RequestReceived, StreamEnded

SERVING, NOT_SERVING = 1, 2


class HealthServer:
    """`status` is what it answers; `asked` holds the path of every call."""

    def __init__(self) -> None:
        self.status = SERVING
        self.asked: list[str] = []
        self._listener = socket.create_server(("", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(5)
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        http = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        http.initiate_connection()
        connection.sendall(http.data_to_send())
        while data := connection.recv(65536):
            for event in http.receive_data(data):
                if isinstance(event, RequestReceived):
                    self.asked += [str(value) for name, value in event.headers if str(name) == ":path"]
                elif isinstance(event, StreamEnded):
                    http.send_headers(event.stream_id, [(":status", "200"), ("content-type", "application/grpc")])
                    http.send_data(event.stream_id, b"\0\0\0\0\2\x08" + bytes([self.status]))
                    http.send_headers(event.stream_id, [("grpc-status", "0")], end_stream=True)
            connection.sendall(http.data_to_send())


@contextlib.contextmanager
def health_server() -> Iterator[HealthServer]:
    server = HealthServer()
    try:
        yield server
    finally:
        server.close()
