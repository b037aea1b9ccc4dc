"""The local API over a real unix socket, with a node of plain values behind it."""

from __future__ import annotations

import json
import os
import socket
import stat
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import h11
import pytest
import trio
import trio.testing

from tests.fakes import backend as fakes
from tests.fakes.backend import MARKER, FakeBackend
from tinyedge import limits
from tinyedge.adapters.local_api import JoinBody, LocalApi
from tinyedge.errors import BadInput, PeerError, StoreReadOnly, WorldError
from tinyedge.events import Answer, Apply, DeleteObject, Release, RestartPod

Fields = Mapping[str, str | int | bool]


class Rig:
    """A served API, its backend, and what it has logged."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.backend = FakeBackend()
        self.notes: list[tuple[str, str, dict[str, Any]]] = []
        self.api = LocalApi(self.backend, self._note)

    def _note(self, level: str, key: str, fields: Fields) -> None:
        self.notes.append((level, key, dict(fields)))

    async def ask(self, method: str, target: str, body: bytes = b"") -> tuple[int, Any, dict[str, str]]:
        """Status, body (decoded when it is JSON) and trailers of one request on its own connection."""
        stream = await trio.open_unix_socket(self.path)
        async with stream:
            client = Client(stream)
            await client.send(method, target, body)
            head = await client.head()
            data, trailers = await client.body()
        kind = dict(head.headers)[b"content-type"].decode()
        return head.status_code, json.loads(data) if kind == "application/json" else data, trailers

    async def get(self, target: str) -> Any:
        status, body, _ = await self.ask("GET", target)
        assert status == 200, body
        return body


class Client:
    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.conn = h11.Connection(h11.CLIENT)

    async def send(self, method: str, target: str, body: bytes = b"") -> None:
        head = h11.Request(method=method, target=target, headers=[("host", "x"), ("content-length", str(len(body)))])
        await self.stream.send_all(self.conn.send(head) or b"")
        await self.stream.send_all(
            (self.conn.send(h11.Data(data=body)) or b"") + (self.conn.send(h11.EndOfMessage()) or b"")
        )

    async def event(self) -> Any:
        while (event := self.conn.next_event()) is h11.NEED_DATA:
            self.conn.receive_data(await self.stream.receive_some(65536))
        return event

    async def head(self) -> h11.Response:
        event = await self.event()
        assert isinstance(event, h11.Response)
        return event

    async def body(self) -> tuple[bytes, dict[str, str]]:
        data = b""
        while isinstance(event := await self.event(), h11.Data):
            data += event.data
        assert isinstance(event, h11.EndOfMessage)
        return data, {name.decode(): value.decode() for name, value in event.headers}


@asynccontextmanager
async def served(tmp_path: Path) -> AsyncIterator[Rig]:
    rig = Rig(str(tmp_path / "run" / "api.sock"))
    async with trio.open_nursery() as nursery:
        await nursery.start(rig.api.serve, rig.path)
        yield rig
        nursery.cancel_scope.cancel()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with served(tmp_path) as rig:
        yield rig


# --- reading ---------------------------------------------------------------------------------------


async def test_lists_have_the_shape_of_kubernetes_lists(rig: Rig) -> None:
    rig.backend.pod_list.append(fakes.pod("db", "plant"))
    everywhere = await rig.get("/v1/pods")
    assert (everywhere["kind"], [p["metadata"]["name"] for p in everywhere["items"]]) == ("PodList", ["web", "db"])
    assert [p["metadata"]["name"] for p in (await rig.get("/v1/namespaces/plant/pods"))["items"]] == ["db"]
    assert (await rig.get("/v1/nodes"))["items"] == [fakes.node()]
    assert (await rig.get("/v1/namespaces/default/configmaps/site"))["data"] == {"index.html": "<h1>north</h1>"}
    assert (await rig.get("/v1/images"))["items"][0]["names"][:1] == ["docker.io/library/busybox:1.36"]


@pytest.mark.parametrize(
    ("target", "status", "what"),
    [
        ("/v1/namespaces/default/pods/nope", 404, 'pods "nope" not found in namespace default'),
        ("/v1/namespaces/plant/pods/web", 404, 'pods "web" not found in namespace plant'),
        ("/v1/gizmos", 404, "there is no kind gizmos"),
        ("/elsewhere", 404, "there is nothing at /elsewhere"),
        ("/v1/namespaces/default/pods/web/exec", 405, "GET /v1/namespaces/default/pods/web/exec is not"),
        ("/v1/namespaces/default/pods/web/log?tailLines=-1", 400, "?tailLines is '-1'"),
        ("/v1/namespaces/default/pods/web/log?container=db", 400, 'pod "web" has no container "db"'),
        ("/v1/namespaces/default/pods/%zz", 400, "the request's path is '%zz'"),
    ],
)
async def test_an_error_says_what_and_has_a_status(rig: Rig, target: str, status: int, what: str) -> None:
    got, body, _ = await rig.ask("GET", target)
    assert got == status
    assert body["what"].startswith(what)
    assert set(body) == {"what", "why", "remedy", "reason"}


async def test_metrics_and_health_are_where_a_collector_looks(rig: Rig) -> None:
    assert b"tinyedge_up 1" in await rig.get("/metrics")
    assert await rig.get("/healthz") == b"ok\n"
    assert (await rig.get("/readyz"))["ready"] is True
    rig.backend.is_ready = False
    status, body, _ = await rig.ask("GET", "/readyz")
    assert (status, body["checks"]) == (503, {"runtime": "does not answer"})


async def test_percent_encoded_names_and_repeated_parameters_arrive_as_they_were(rig: Rig) -> None:
    target = "/v1/namespaces/default/pods/web/exec?command=echo&command=a%20b%26c%2B%C3%A9&tty=1"
    assert (await rig.ask("POST", target))[0] == 200
    assert rig.backend.urls_asked == [("exec", "default", "web", "web", "echo", "a b&c+é", "stdin=False", "tty=True")]


async def test_two_requests_may_share_a_connection(rig: Rig) -> None:
    stream = await trio.open_unix_socket(rig.path)
    async with stream:
        client = Client(stream)
        for _ in range(2):
            await client.send("GET", "/healthz")
            assert (await client.head()).status_code == 200
            assert (await client.body())[0] == b"ok\n"
            client.conn.start_next_cycle()


@pytest.mark.parametrize("error", [KeyError("planted"), ZeroDivisionError("planted"), RecursionError("planted")])
async def test_a_view_that_fails_costs_an_answer_and_not_the_server(rig: Rig, error: Exception) -> None:
    rig.backend.store_error = error
    status, body, _ = await rig.ask("GET", "/v1/store")
    assert (status, body["reason"]) == (500, "InternalError")
    assert [(level, key) for level, key, _ in rig.notes] == [("error", "api.failed")]
    assert await rig.get("/healthz") == b"ok\n"


@pytest.mark.parametrize("sent", [0, 1])
async def test_a_stream_that_breaks_costs_its_reader_alone(
    rig: Rig, sent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> AsyncGenerator[bytes, None]:
        for _each in range(sent):
            yield b"x"
        raise KeyError("planted")

    monkeypatch.setattr(rig.backend, "logs", broken)
    if sent:
        with pytest.raises(h11.RemoteProtocolError):
            await rig.ask("GET", "/v1/namespaces/default/pods/web/log")
    else:
        status, body, _ = await rig.ask("GET", "/v1/namespaces/default/pods/web/log")
        assert (status, body["reason"]) == (500, "InternalError")
    assert [(level, key) for level, key, _ in rig.notes] == [("error", "api.failed")]
    assert await rig.get("/healthz") == b"ok\n"


# --- streams ---------------------------------------------------------------------------------------


async def test_a_watch_sends_what_there_is_and_then_what_changes(rig: Rig) -> None:
    stream = await trio.open_unix_socket(rig.path)
    async with stream:
        client = Client(stream)
        await client.send("GET", "/v1/pods?watch=1")
        await client.head()
        first = json.loads((await client.event()).data)
        assert (first["type"], first["object"]["metadata"]["name"]) == ("ADDED", "web")
        rig.backend.pod_list = [fakes.pod(phase="Failed"), fakes.pod("db")]
        rig.backend.changes.touch("pods")
        assert json.loads((await client.event()).data)["type"] == "MODIFIED"
        assert json.loads((await client.event()).data)["object"]["metadata"]["name"] == "db"
        rig.backend.pod_list = rig.backend.pod_list[:1]
        rig.backend.changes.touch("pods")
        gone = json.loads((await client.event()).data)
        assert (gone["type"], gone["object"]["metadata"]["name"]) == ("DELETED", "db")


async def test_a_followed_log_goes_on_until_the_client_hangs_up(rig: Rig) -> None:
    stream = await trio.open_unix_socket(rig.path)
    client = Client(stream)
    await client.send("GET", "/v1/namespaces/default/pods/web/log?follow=1&timestamps=true&sinceSeconds=60")
    assert (await client.head()).status_code == 200
    assert (await client.event()).data == b"2026-11-23T10:00:00Z listening on 8080\n"
    await client.event()
    rig.backend.say("web", b"one more\n")
    assert (await client.event()).data.endswith(b"one more\n")
    options = rig.backend.log_options[0]
    assert (options.follow, options.timestamps, options.since_s, options.tail_lines) == (True, True, 60, None)
    await stream.aclose()
    with trio.fail_after(60):
        while not rig.backend.closed_streams:
            await trio.lowlevel.checkpoint()


async def test_a_stream_that_fails_before_its_first_piece_has_an_error_status(rig: Rig) -> None:
    rig.backend.log_lines = {}
    status, body, _ = await rig.ask("GET", "/v1/namespaces/default/pods/web/log")
    assert (status, body["why"], body["reason"]) == (502, "it has not started yet", "RuntimeError")


async def test_a_stream_that_fails_later_says_so_in_its_trailer(rig: Rig) -> None:
    rig.backend.image_error = PeerError("can't pull", "no route to host", "import it from a file")
    status, body, trailers = await rig.ask("POST", "/v1/images/pull?image=busybox")
    assert (status, body) == (200, b'{"done":1,"total":2}\n')
    assert json.loads(trailers["tinyedge-error"])["why"] == "no route to host"


# --- changing --------------------------------------------------------------------------------------

MANIFEST = {"kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}


async def test_objects_are_applied_in_one_request_in_the_callers_name(rig: Rig) -> None:
    rig.backend.answer = Answer(0, message="pod/a created")
    body = json.dumps({"items": [MANIFEST, {"kind": "ConfigMap", "metadata": {"name": "b"}}]}).encode()
    status, answer, _ = await rig.ask("POST", "/v1/apply", body)
    assert (status, answer["message"]) == (200, "pod/a created")
    assert [(o["name"], o["created"]) for o in answer["objects"]] == [("a", True), ("b", True)]
    [(uid, what)] = rig.backend.requests
    assert uid == os.getuid()
    assert isinstance(what, Apply)
    assert [o.metadata.name for o in what.objects] == ["a", "b"]


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"items": []}', b'{"items": [{"kind": "Pod"', b'{"items": [3]}', b"[" * 100_000]
)
async def test_a_body_that_does_not_decode_changes_nothing(rig: Rig, body: bytes) -> None:
    assert (await rig.ask("POST", "/v1/apply", body))[0] == 400
    assert rig.backend.requests == []


async def test_deleting_and_restarting_reach_the_core(rig: Rig) -> None:
    assert (await rig.ask("DELETE", "/v1/namespaces/default/pods/web?gracePeriodSeconds=5"))[0] == 200
    assert (await rig.ask("DELETE", "/v1/namespaces/default/configmaps/site"))[0] == 200
    assert (await rig.ask("POST", "/v1/namespaces/default/pods/web/restart?container=web"))[0] == 200
    assert (await rig.ask("POST", "/v1/namespaces/default/pods/web/release"))[0] == 200
    assert (await rig.ask("POST", "/v1/release"))[0] == 200
    assert [what for _, what in rig.backend.requests] == [
        DeleteObject("Pod", "default", "web", 5),
        DeleteObject("ConfigMap", "default", "site"),
        RestartPod("default", "web", "web"),
        Release("default", "web"),
        Release(),
    ]
    assert (await rig.ask("POST", "/v1/namespaces/default/pods/other/release"))[0] == 404
    assert (await rig.ask("DELETE", "/v1/namespaces/default/events/web.1"))[0] == 405


@pytest.mark.parametrize(
    ("error", "status"), [("NotFound", 404), ("Invalid", 422), ("StoreReadOnly", 503), ("it is not known", 409)]
)
async def test_a_refused_request_says_why(rig: Rig, error: str, status: int) -> None:
    rig.backend.answer = Answer(0, error=error, message="the store is read-only: input/output error")
    got, body, _ = await rig.ask("DELETE", "/v1/namespaces/default/pods/web")
    assert (got, body["what"]) == (status, "the store is read-only: input/output error")


@pytest.mark.parametrize(
    ("method", "target", "key"),
    [
        ("POST", "/v1/namespaces/default/pods/web/exec?command=sh", "api.exec"),
        ("POST", "/v1/namespaces/default/pods/web/attach", "api.attach"),
        ("POST", "/v1/namespaces/default/pods/web/portforward?ports=80", "api.port-forward"),
        ("POST", "/v1/namespaces/default/pods/web/restart", "api.restart"),
        ("POST", "/v1/release", "api.release"),
        ("DELETE", "/v1/namespaces/default/pods/web", "api.delete"),
        ("POST", "/v1/images/pull?image=busybox", "api.image.pull"),
        ("POST", "/v1/images/import?path=/tmp/x.tar", "api.image.import"),
        ("DELETE", "/v1/images?image=docker.io/library/busybox:1.36", "api.image.remove"),
    ],
)
async def test_every_change_is_logged_with_who_made_it(rig: Rig, method: str, target: str, key: str) -> None:
    assert (await rig.ask(method, target))[0] == 200
    [(level, got, fields)] = rig.notes
    assert (level, got) == ("info", key)
    assert (fields["uid"], fields["pid"], fields["outcome"]) == (os.getuid(), os.getpid(), "ok")


async def test_work_on_an_image_that_fails_is_logged_with_its_reason(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def failing(*_: object) -> AsyncGenerator[dict[str, object], None]:
        yield {"done": 1, "total": 2}
        raise PeerError("ErrImagePull", "the registry is gone")

    monkeypatch.setattr(rig.backend, "pull_image", failing)
    await rig.ask("POST", "/v1/images/pull?image=busybox")
    [(level, key, fields)] = rig.notes
    assert (level, key, fields["outcome"]) == ("warning", "api.image.pull", "ErrImagePull: the registry is gone")


async def test_a_refused_change_is_logged_with_its_reason(rig: Rig) -> None:
    rig.backend.answer = Answer(0, error="NotFound", message="no such pod")
    await rig.ask("DELETE", "/v1/namespaces/default/pods/web")
    assert rig.notes[0][0] == "warning"
    assert rig.notes[0][2]["outcome"] == "no such pod"


async def test_a_store_that_can_not_promise_is_told_apart_from_a_bad_request(rig: Rig) -> None:
    rig.backend.store_error = StoreReadOnly("the store is read-only", "input/output error", "replace the card")
    status, body, _ = await rig.ask("GET", "/v1/store")
    assert (status, body["reason"], body["remedy"]) == (503, "StoreReadOnly", "replace the card")


# --- redaction -------------------------------------------------------------------------------------


async def test_redaction_takes_every_spelling_of_a_secret_out(rig: Rig) -> None:
    pod = rig.backend.pod_list[0]
    pod["spec"]["containers"][0]["env"].append({"name": "COPY", "value": f"user:{MARKER}@db"})
    assert MARKER in json.dumps(await rig.get("/v1/pods"))
    assert MARKER not in json.dumps(await rig.get("/v1/pods?redact=1"))
    log = await rig.get("/v1/namespaces/default/pods/web/log?redact=1")
    assert log == b"listening on 8080\nlogin <redacted>\n"


async def test_a_secret_on_the_border_of_two_pieces_is_found(rig: Rig) -> None:
    half = len(MARKER) // 2
    rig.backend.log_lines["web"] = [f"x {MARKER[:half]}".encode(), f"{MARKER[half:]} y\nend".encode()]
    assert await rig.get("/v1/namespaces/default/pods/web/log?redact=1") == b"x <redacted> y\nend"


# --- limits ----------------------------------------------------------------------------------------


async def test_the_socket_is_for_owner_and_group_only_and_goes_away_at_the_end(tmp_path: Path) -> None:
    async with served(tmp_path) as rig:
        mode = os.stat(rig.path).st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o660
    assert os.listdir(tmp_path / "run") == []


async def test_a_socket_left_by_a_dead_daemon_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "run" / "api.sock"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with served(tmp_path) as rig:
        assert await rig.get("/healthz") == b"ok\n"
        with pytest.raises(WorldError, match="another daemon listens there"):
            await LocalApi(FakeBackend(), rig._note).serve(rig.path)


async def test_an_unknown_group_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no-such-group"):
        await LocalApi(FakeBackend(), lambda *_: None).serve(str(tmp_path / "s"), "no-such-group")


async def test_a_path_that_is_too_long_is_explained(tmp_path: Path) -> None:
    with pytest.raises(WorldError, match="shorter than 108 bytes"):
        await LocalApi(FakeBackend(), lambda *_: None).serve(str(tmp_path / ("x" * 120)))


async def test_a_body_beyond_the_limit_is_refused(rig: Rig) -> None:
    stream = await trio.open_unix_socket(rig.path)
    async with stream, trio.open_nursery() as nursery:
        client = Client(stream)
        size = limits.API_REQUEST_BYTES_MAX + 1
        head = h11.Request(method="POST", target="/v1/apply", headers=[("host", "x"), ("content-length", str(size))])
        await stream.send_all(client.conn.send(head) or b"")

        async def pour() -> None:
            with suppress(trio.BrokenResourceError):
                await stream.send_all(b" " * size)

        nursery.start_soon(pour)
        assert (await client.head()).status_code == 413


async def test_what_is_not_http_is_answered_and_closed(rig: Rig) -> None:
    stream = await trio.open_unix_socket(rig.path)
    async with stream:
        await stream.send_all(b"\x16\x03\x01hello\r\n\r\n")
        assert (await stream.receive_some(12)) == b"HTTP/1.1 400"


async def test_a_head_without_end_is_cut(rig: Rig) -> None:
    stream = await trio.open_unix_socket(rig.path)
    async with stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nx: " + b"a" * (limits.API_HEAD_BYTES_MAX + 1))
        assert (await stream.receive_some(12)) == b"HTTP/1.1 431"


async def test_one_user_can_not_take_every_connection_and_a_silent_client_is_dropped(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with served(tmp_path) as rig:
        silent = [await trio.open_unix_socket(rig.path) for _ in range(limits.API_CALLER_CONNECTIONS_MAX)]
        await trio.testing.wait_all_tasks_blocked()
        status, body, _ = await rig.ask("GET", "/healthz")
        assert (status, body["reason"]) == (503, "Busy")
        assert await silent[0].receive_some(1) == b""  # after API_IDLE_S
        assert await rig.get("/healthz") == b"ok\n"
        for stream in silent:
            await stream.aclose()


async def test_a_client_that_takes_nothing_is_dropped_and_others_are_served(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with served(tmp_path) as rig:
        stuck = await trio.open_unix_socket(rig.path)
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, struct.pack("i", 4096))
        rig.backend.log_lines["web"] = [b"x" * 100_000 + b"\n"] * 100
        client = Client(stuck)
        await client.send("GET", "/v1/namespaces/default/pods/web/log?follow=1")
        await trio.testing.wait_all_tasks_blocked()
        assert rig.backend.closed_streams == 0
        assert await rig.get("/healthz") == b"ok\n"
        await trio.sleep(limits.API_STALL_S + 1)
        assert rig.backend.closed_streams == 1
        await stuck.aclose()


# --- the gateway -----------------------------------------------------------------------------------


async def test_a_join_is_passed_on_and_its_token_is_in_no_log(rig: Rig) -> None:
    body = {"url": "wss://gate:1", "token": "te1.secret", "labels": {"site": "north"}}
    status, answer, _ = await rig.ask("POST", "/v1/join", json.dumps(body).encode())
    assert (status, answer) == (200, {"message": "gate-7 has joined wss://gate:1"})
    [asked] = rig.backend.joined
    assert isinstance(asked, JoinBody)
    assert (asked.token, asked.labels, asked.taints) == ("te1.secret", {"site": "north"}, [])
    [(level, key, fields)] = rig.notes
    assert (level, key, fields["target"], fields["outcome"]) == ("info", "api.join", "wss://gate:1", "ok")
    assert "secret" not in repr(rig.notes) + repr(asked)


async def test_a_join_that_the_gateway_refuses_says_whose_fault_it_is(rig: Rig) -> None:
    rig.backend.image_error = PeerError("the token has been used", "by gate-7", "make a new one")
    body = {"url": "wss://user:word@gate:1", "token": "te1.secret"}
    status, answer, _ = await rig.ask("POST", "/v1/join", json.dumps(body).encode())
    assert (status, answer["reason"], answer["what"]) == (502, "GatewayError", "the token has been used")
    assert "word" not in repr(rig.notes)


@pytest.mark.parametrize("body", [b"", b"[]", b'{"url": "wss://gate:1"}', b'{"url": 1, "token": "te1.secret"}'])
async def test_what_is_no_join_is_refused_and_not_shown(rig: Rig, body: bytes) -> None:
    status, answer, _ = await rig.ask("POST", "/v1/join", body)
    assert (status, rig.backend.joined) == (400, [])
    assert "secret" not in repr(answer)


async def test_a_leave_is_passed_on(rig: Rig) -> None:
    for query, local in (("", False), ("?local=1", True)):
        status, answer, _ = await rig.ask("DELETE", f"/v1/join{query}")
        assert (status, answer, rig.backend.joined[-1]) == (200, {"message": "gate-7 has left"}, local)


async def test_another_version_is_asked_for_by_its_name_and_that_is_logged(rig: Rig) -> None:
    status, answer, _ = await rig.ask("POST", "/v1/upgrade", b'{"name": "0.2.0-amd64"}')
    assert (status, answer, rig.backend.upgrades) == (
        200,
        {"message": "0.2.0-amd64 is started on trial"},
        ["0.2.0-amd64"],
    )
    assert [(key, fields["target"]) for _, key, fields in rig.notes] == [("api.upgrade", "0.2.0-amd64")]
    for body in (b"", b"{}", b'{"name": 3}', b'{"name": "x", "more": 1}'):
        status, answer, _ = await rig.ask("POST", "/v1/upgrade", body)
        assert (status, answer["reason"]) == (400, "BadRequest")
    rig.backend.image_error = WorldError("can't try it", "another one is on trial", "wait")
    status, answer, _ = await rig.ask("POST", "/v1/upgrade", b'{"name": "0.2.0-amd64"}')
    assert (status, answer["why"]) == (500, "another one is on trial")
