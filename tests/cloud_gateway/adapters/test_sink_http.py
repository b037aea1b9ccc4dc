"""Readings over HTTP: what a server is sent, and what becomes of its answers."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import h11
import pytest
import trio

from cloud_gateway.adapters import sink_http
from cloud_gateway.adapters.sinks import Batch, Line, Readings, Sink, SinkFailed, SinkRefuses, sink
from tests.cloud_gateway.adapters.test_sinks import series

BATCH = Batch("gate-7", "gate-7-9-1-2", (Line("default/d", b'{"id":"1"}'), Line("default/d", b'{"id":"2"}')))


class Server:
    """`answers` are the statuses of the next ones; then 204. `hangs`: it takes a request and says nothing."""

    def __init__(self) -> None:
        self.port = 0
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.answers: list[int] = []
        self.connections = 0
        self.closes = False
        self.hangs = False
        self.refuses = b""  # what no batch may hold

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._meet, listeners)

    async def _meet(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        machine, body = h11.Connection(h11.SERVER), b""
        request: Any = None
        while True:
            event = machine.next_event()
            if event is h11.NEED_DATA:
                machine.receive_data(bytes(await stream.receive_some(65536)))
            elif isinstance(event, h11.Request):
                request, body = event, b""
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                if self.hangs:
                    await trio.sleep_forever()
                closes = self.closes
                await stream.send_all(self._answer(machine, request, body))
                if closes:
                    await stream.aclose()
                    return
                machine.start_next_cycle()
            else:
                return

    def _answer(self, machine: h11.Connection, request: h11.Request, body: bytes) -> bytes:
        headers = {name.decode(): value.decode() for name, value in request.headers}
        plain = gzip.decompress(body)
        status = self.answers.pop(0) if self.answers else 204
        if self.refuses and self.refuses in plain:
            status = 422
        else:
            self.requests.append((request.target.decode(), headers, plain))
        words = b"" if status == 204 else b"because"
        head = h11.Response(status_code=status, headers=[("Content-Length", str(len(words)))])
        parts = (head, h11.Data(data=words), h11.EndOfMessage())
        return b"".join(machine.send(part) or b"" for part in parts)


@pytest.fixture
async def server(nursery: trio.Nursery) -> Server:
    found = Server()
    await nursery.start(found.serve)
    return found


async def opened(nursery: trio.Nursery, server: Server, rest: str = "/in?site=a") -> Sink:
    found = sink(f"http://127.0.0.1:{server.port}{rest}", lambda *_: None)
    await nursery.start(found.run)
    return found


async def test_a_batch_is_one_post_of_json_lines_that_says_what_it_is(server: Server, nursery: trio.Nursery) -> None:
    found = await opened(nursery, server)
    await found.put(BATCH)
    ((target, headers, body),) = server.requests
    assert target == "/in?site=a"
    assert body == b'{"id":"1"}\n{"id":"2"}\n'
    assert headers["content-type"] == "application/x-ndjson"
    assert headers["content-encoding"] == "gzip"
    assert headers["idempotency-key"] == "gate-7-9-1-2"
    assert headers["host"] == f"127.0.0.1:{server.port}"
    assert "authorization" not in headers


async def test_a_connection_is_used_again_and_another_one_made_when_it_was_closed(
    server: Server, nursery: trio.Nursery
) -> None:
    found = await opened(nursery, server)
    await found.put(BATCH)
    await found.put(BATCH)
    assert server.connections == 1
    server.closes = True
    await found.put(BATCH)
    await found.put(BATCH)
    assert len(server.requests) == 4
    assert server.connections == 2


async def test_the_token_is_read_from_its_file_each_time(server: Server, nursery: trio.Nursery, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    found = await opened(nursery, server, f"/in#token-file={file}")
    await found.put(BATCH)
    file.write_text("second")
    await found.put(BATCH)
    assert [one[1]["authorization"] for one in server.requests] == ["Bearer first", "Bearer second"]
    assert server.requests[0][0] == "/in"
    file.unlink()
    with pytest.raises(SinkFailed, match="can't read"):
        await found.put(BATCH)


@pytest.mark.parametrize(
    ("status", "error"), [(503, SinkFailed), (401, SinkFailed), (302, SinkFailed), (413, SinkRefuses)]
)
async def test_what_an_answer_means(server: Server, nursery: trio.Nursery, status: int, error: type[Exception]) -> None:
    server.answers = [status]
    found = await opened(nursery, server)
    with pytest.raises(error, match=f"answers {status}"):
        await found.put(BATCH)
    await found.put(BATCH)


async def test_a_server_that_is_not_there_or_says_nothing_fails(nursery: trio.Nursery, monkeypatch: Any) -> None:
    server = Server()
    await nursery.start(server.serve)
    server.hangs = True
    monkeypatch.setattr(sink_http, "SILENCE_S", 0.05)
    found = await opened(nursery, server)
    with pytest.raises(SinkFailed, match="does not answer"):
        await found.put(BATCH)
    nobody = sink("http://127.0.0.1:1/", lambda *_: None)
    await nursery.start(nobody.run)
    with pytest.raises(SinkFailed, match="does not answer"):
        await nobody.put(BATCH)


async def test_one_report_that_a_server_never_takes_is_left_out_and_all_others_arrive(
    server: Server, nursery: trio.Nursery
) -> None:
    server.refuses = b'"gate-7-7-5"'
    notes: list[str] = []
    readings = Readings([await opened(nursery, server)], lambda _, key, __: notes.append(key))
    assert await readings.store("gate-7", [series(1, 9)]) == 9
    arrived = b"".join(body for _, _, body in server.requests).splitlines()
    assert len(arrived) == 8
    assert notes == ["sink.refused"]
    keys = [headers["idempotency-key"] for _, headers, _ in server.requests]
    assert len(keys) == len(set(keys))
