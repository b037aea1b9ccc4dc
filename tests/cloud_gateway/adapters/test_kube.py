"""Requests of the Kubernetes client, against an API server that behaves badly on purpose."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

from cloud_gateway import limits
from cloud_gateway.adapters import kube
from cloud_gateway.adapters.kube import Kube
from cloud_gateway.adapters.kube_config import from_url
from cloud_gateway.adapters.kube_types import (
    BY_PLURAL,
    CONFIGMAPS,
    LEASES,
    NODES,
    PODS,
    SERVICEACCOUNTS,
    KubeError,
    Resource,
)
from tests.fakes.api_server import (
    ApiServer,
    Request,
    Wire,
    answers,
    api_server,
    page,
    pod,
    refuses,
    status,
)
from tinyedge.errors import BadInput


@pytest.fixture
def quick_clock() -> MockClock:
    """Waits cost nothing, once nothing but waiting is left; a little real time is left to loopback."""
    return MockClock(autojump_threshold=0.02)


@pytest.fixture
async def server() -> AsyncIterator[ApiServer]:
    async with api_server() as made:
        yield made


@pytest.fixture
async def client(server: ApiServer) -> AsyncIterator[Kube]:
    async with Kube(from_url(server.url, token="s3cret"), chance=lambda: 0.0) as made:
        yield made


async def failure(client: Kube, server: ApiServer, code: int, reason: str) -> KubeError:
    server.script = [refuses(code, reason)] * limits.KUBE_TRIES_MAX
    with pytest.raises(KubeError) as caught:
        await client.get(PODS, "web", "default")
    return caught.value


# --- requests ----------------------------------------------------------------------------------------


async def test_each_call_is_the_request_that_kubernetes_expects(server: ApiServer, client: Kube) -> None:
    server.otherwise = answers(200, {"kind": "X"})
    await client.get(NODES, "gate-7", subresource="status")
    await client.create(PODS, {"a": 1}, "default")
    await client.create(SERVICEACCOUNTS, {"b": 2}, "default", name="app", subresource="token")
    await client.replace(LEASES, "gate-7", {"c": 3}, "kube-node-lease")
    await client.patch(PODS, "web", {"d": 4}, "default", subresource="status")
    await client.patch(NODES, "gate-7", [{"op": "test"}], content_type=kube.JSON_PATCH)
    assert [(r.method, r.path, r.headers.get("content-type")) for r in server.requests] == [
        ("GET", "/api/v1/nodes/gate-7/status", None),
        ("POST", "/api/v1/namespaces/default/pods", "application/json"),
        ("POST", "/api/v1/namespaces/default/serviceaccounts/app/token", "application/json"),
        ("PUT", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/gate-7", "application/json"),
        ("PATCH", "/api/v1/namespaces/default/pods/web/status", "application/strategic-merge-patch+json"),
        ("PATCH", "/api/v1/nodes/gate-7", "application/json-patch+json"),
    ]
    assert [r.json() for r in server.requests[1:]] == [{"a": 1}, {"b": 2}, {"c": 3}, {"d": 4}, [{"op": "test"}]]
    assert {r.headers["authorization"] for r in server.requests} == {"Bearer s3cret"}


async def test_a_delete_says_what_it_deletes_and_how(server: ApiServer, client: Kube) -> None:
    await client.delete(PODS, "web", "default", uid="u-1", resource_version="7", grace_s=0, propagation="Background")
    assert server.requests[0].json() == {
        "kind": "DeleteOptions",
        "apiVersion": "v1",
        "preconditions": {"uid": "u-1", "resourceVersion": "7"},
        "gracePeriodSeconds": 0,
        "propagationPolicy": "Background",
    }


async def test_a_delete_without_conditions_has_none(server: ApiServer, client: Kube) -> None:
    await client.delete(NODES, "gate-7")
    assert server.requests[0].json() == {"kind": "DeleteOptions", "apiVersion": "v1"}


@pytest.mark.parametrize("name", ["..", ".", "a/b", "../../secrets/x"])
async def test_a_name_never_leads_to_another_path(server: ApiServer, client: Kube, name: str) -> None:
    with pytest.raises(BadInput):
        await client.get(PODS, name, "default")
    with pytest.raises(BadInput):
        await client.get(PODS, "web", name)
    assert server.requests == []


async def test_strange_characters_of_a_name_are_escaped(server: ApiServer, client: Kube) -> None:
    await client.get(PODS, "a?watch=1", "default")
    assert server.requests[0].path == "/api/v1/namespaces/default/pods/a%3Fwatch%3D1"
    assert server.requests[0].params == {}


async def test_metadata_alone_is_asked_for_by_the_accept_header(server: ApiServer, client: Kube) -> None:
    await client.get(CONFIGMAPS, "cfg", "default", metadata_only=True)
    await client.list(CONFIGMAPS, metadata_only=True)
    assert "as=PartialObjectMetadata;" in server.requests[0].headers["accept"]
    assert "as=PartialObjectMetadataList;" in server.requests[1].headers["accept"]


async def test_raw_gives_any_status_and_body(server: ApiServer, client: Kube) -> None:
    server.script = [answers(503, b"not yet")]
    assert await client.raw("GET", "/readyz", params={"verbose": "1"}) == (503, b"not yet")
    assert (server.requests[0].path, server.requests[0].params) == ("/readyz", {"verbose": "1"})


def test_every_resource_is_found_by_its_plural() -> None:
    assert BY_PLURAL["leases"] is LEASES
    assert LEASES.api_version == "coordination.k8s.io/v1"
    assert PODS.path() == "/api/v1/pods"
    custom = Resource("example.com", "v1alpha1", "things", "Thing", namespaced=False)
    assert custom.path("ignored", "one") == "/apis/example.com/v1alpha1/things/one"


# --- errors ------------------------------------------------------------------------------------------


ERRORS = {
    "unauthorized": (401, "Unauthorized", False),
    "forbidden": (403, "Forbidden", False),
    "not_found": (404, "NotFound", False),
    "conflict": (409, "Conflict", True),
    "exists": (409, "AlreadyExists", True),
    "expired": (410, "Expired", True),
    "invalid": (422, "Invalid", False),
    "throttled": (429, "TooManyRequests", True),
    "server_failed": (500, "InternalError", True),
}


@pytest.mark.parametrize("named", ERRORS)
async def test_errors_are_told_apart(quick_clock: MockClock, server: ApiServer, client: Kube, named: str) -> None:
    code, reason, retryable = ERRORS[named]
    error = await failure(client, server, code, reason)
    assert (error.status, error.reason, error.retryable) == (code, reason, retryable)
    assert [kind for kind in (*ERRORS, "unreachable") if getattr(error, kind)] == [named]


async def test_an_error_says_what_was_tried_and_what_the_server_said(server: ApiServer, client: Kube) -> None:
    causes = [{"reason": "FieldValueInvalid", "message": "no", "field": "spec.x"}]
    server.script = [answers(422, status(422, "Invalid", 'Pod "web" is invalid', causes=causes))]
    with pytest.raises(KubeError) as caught:
        await client.patch(PODS, "web", {}, "default", subresource="status")
    assert str(caught.value) == 'patch pods/status default/web: Invalid: Pod "web" is invalid'
    assert caught.value.causes == tuple(causes)


async def test_an_error_that_is_no_status_is_told_by_its_text(server: ApiServer, client: Kube) -> None:
    server.script = [answers(502, b"<html>bad gateway</html>")]
    with pytest.raises(KubeError, match="bad gateway") as caught:
        await client.get(PODS, "web", "default")
    assert caught.value.status == 502


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b'"x"', b"\xff", b""])
async def test_a_good_status_with_a_body_that_is_no_object_is_an_error(
    server: ApiServer, client: Kube, body: bytes
) -> None:
    server.otherwise = answers(200, body)
    with pytest.raises(KubeError, match="can't be read"):
        await client.get(PODS, "web", "default")
    with pytest.raises(KubeError, match="can't be read"):
        await client.list(PODS)


async def test_an_answer_that_is_too_large_is_not_read_to_its_end(
    server: ApiServer, client: Kube, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = 0

    async def endless(_: Request, wire: Wire) -> None:
        nonlocal sent
        await wire.begin()
        while True:
            await wire.text(b"x" * 65536)
            sent += 65536

    server.script = [endless]
    with pytest.raises(KubeError, match="larger than") as caught:
        await client.get(PODS, "web", "default")
    assert caught.value.reason == "TooLarge"
    assert sent < 4 * limits.KUBE_OBJECT_BYTES_MAX


async def test_a_server_that_says_nothing_is_given_up_after_a_time(
    quick_clock: MockClock, server: ApiServer, client: Kube
) -> None:
    async def silent(_: Request, wire: Wire) -> None:
        await trio.sleep_forever()

    server.otherwise = silent
    began = trio.current_time()
    with pytest.raises(KubeError) as caught:
        await client.patch(PODS, "web", {}, "default")
    assert caught.value.unreachable
    assert caught.value.retryable
    assert trio.current_time() - began == pytest.approx(limits.KUBE_REQUEST_S_MAX, abs=1)


async def test_an_answer_that_trickles_is_given_up_after_the_same_time(
    quick_clock: MockClock, server: ApiServer, client: Kube
) -> None:
    async def slow(_: Request, wire: Wire) -> None:
        await wire.begin()
        while True:
            await wire.text(b" ")
            await trio.sleep(1)

    server.otherwise = slow
    began = trio.current_time()
    with pytest.raises(KubeError):
        await client.get(PODS, "web", "default")
    assert trio.current_time() - began == pytest.approx(limits.KUBE_REQUEST_S_MAX, abs=1)


# --- being turned away -------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [429, 503])
async def test_retry_after_is_waited_for_and_then_it_is_tried_again(
    quick_clock: MockClock, server: ApiServer, client: Kube, code: int
) -> None:
    server.script = [refuses(code, "Busy", headers={"Retry-After": "7"}), answers(201, pod("web", 3))]
    began = trio.current_time()
    created = await client.create(PODS, {"x": 1}, "default")
    assert created["metadata"]["name"] == "web"
    assert trio.current_time() - began == pytest.approx(7, abs=0.5)
    assert client.counters.throttled_s == pytest.approx(7, abs=0.5)
    assert client.counters.requests == {("create", "pods", code): 1, ("create", "pods", 201): 1}


async def test_who_is_turned_away_too_often_is_told(quick_clock: MockClock, server: ApiServer, client: Kube) -> None:
    server.otherwise = refuses(429, "TooManyRequests", headers={"Retry-After": "2"})
    with pytest.raises(KubeError) as caught:
        await client.get(PODS, "web", "default")
    assert caught.value.throttled
    assert caught.value.retry_after_s == 2
    assert len(server.requests) == limits.KUBE_TRIES_MAX


async def test_a_server_error_without_retry_after_may_have_been_carried_out_and_is_not_repeated(
    server: ApiServer, client: Kube
) -> None:
    server.script = [refuses(503, "ServiceUnavailable")]
    with pytest.raises(KubeError):
        await client.create(PODS, {}, "default")
    assert len(server.requests) == 1


async def test_no_server_can_make_us_wait_for_ever(quick_clock: MockClock, server: ApiServer, client: Kube) -> None:
    server.script = [refuses(429, "TooManyRequests", headers={"Retry-After": "999999999"})]
    began = trio.current_time()
    await client.get(PODS, "web", "default")
    assert trio.current_time() - began <= limits.KUBE_RETRY_AFTER_S_MAX * 1.3


async def test_our_own_limit_lets_a_burst_through_and_then_one_after_the_other(
    quick_clock: MockClock, server: ApiServer
) -> None:
    async with Kube(from_url(server.url), qps=2, burst=4) as client:
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for n in range(10):
                nursery.start_soon(client.get, PODS, f"p{n}", "default")
        assert trio.current_time() - began == pytest.approx(3, abs=0.3)
        assert client.counters.throttled_s > 0


async def test_a_storm_of_requests_does_not_hold_up_leases(quick_clock: MockClock, server: ApiServer) -> None:
    async with Kube(from_url(server.url), qps=1, burst=1) as client, trio.open_nursery() as nursery:
        for n in range(50):
            nursery.start_soon(client.get, PODS, f"p{n}", "default")
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        await client.replace(LEASES, "gate-7", {}, "kube-node-lease")
        assert trio.current_time() - began < 1
        nursery.cancel_scope.cancel()


async def test_requests_that_hang_do_not_hold_up_leases(server: ApiServer, client: Kube) -> None:
    async def hang_unless_lease(request: Request, wire: Wire) -> None:
        if "leases" not in request.path:
            await trio.sleep_forever()
        await wire.answer(200, {})

    server.otherwise = hang_unless_lease
    async with trio.open_nursery() as nursery:
        for n in range(3 * kube.AT_ONCE):
            nursery.start_soon(client.get, PODS, f"p{n}", "default")
        while len(server.requests) < kube.AT_ONCE:
            await trio.lowlevel.checkpoint()
        await client.replace(LEASES, "gate-7", {}, "kube-node-lease")
        assert len(server.requests) == kube.AT_ONCE + 1
        nursery.cancel_scope.cancel()


# --- several addresses, and connections that break ---------------------------------------------------


async def test_when_an_address_can_not_be_connected_to_the_next_one_is_used_and_kept(server: ApiServer) -> None:
    async with Kube(from_url(["http://127.0.0.1:1", server.url])) as client:
        await client.get(PODS, "web", "default")
        server.requests.clear()
        await client.get(PODS, "web", "default")
        assert len(server.requests) == 1
        assert client._wire._at == 1  # no further try of the dead one


async def test_when_no_address_answers_all_are_named(server: ApiServer) -> None:
    async with Kube(from_url(["http://127.0.0.1:1", "http://127.0.0.1:2"])) as client:
        with pytest.raises(KubeError, match=r"127\.0\.0\.1:1.*127\.0\.0\.1:2") as caught:
            await client.get(PODS, "web", "default")
        assert caught.value.unreachable
        assert client.counters.requests == {("get", "pods", 0): 1}


async def test_an_address_that_stops_answering_is_left_for_the_next(quick_clock: MockClock, server: ApiServer) -> None:
    async def silent(_: Request, wire: Wire) -> None:
        await trio.sleep_forever()

    server.otherwise = silent
    async with api_server() as other, Kube(from_url([server.url, other.url])) as client:
        with pytest.raises(KubeError):
            await client.create(PODS, {}, "default")
        await client.create(PODS, {}, "default")
        assert len(other.requests) == 1


async def test_a_kept_connection_that_was_closed_meanwhile_does_not_fail_a_read(
    server: ApiServer, client: Kube
) -> None:
    async def closes(_: Request, wire: Wire) -> None:
        await wire.cut()

    server.script = [closes]
    await client.get(PODS, "web", "default")
    assert len(server.requests) == 2


async def test_a_write_whose_answer_was_lost_is_not_repeated(server: ApiServer, client: Kube) -> None:
    async def closes(_: Request, wire: Wire) -> None:
        await wire.cut()

    server.script = [closes]
    with pytest.raises(KubeError) as caught:
        await client.create(PODS, {}, "default")
    assert caught.value.unreachable
    assert len(server.requests) == 1


# --- lists -------------------------------------------------------------------------------------------


async def pages_of(client: Kube, **more: Any) -> list[tuple[list[str], bool, bool]]:
    async with aclosing(client.list_pages(PODS, **more)) as pages:
        return [([p["metadata"]["name"] for p in one.objects], one.first, one.last) async for one in pages]


async def test_a_list_comes_page_by_page(server: ApiServer, client: Kube) -> None:
    server.script = [
        answers(200, page(pod("a", 1), pod("b", 2), following="c1")),
        answers(200, page(pod("c", 3), following="c2")),
        answers(200, page(pod("d", 4))),
    ]
    found = await pages_of(client, labels="app=web", fields="spec.nodeName=gate-7", limit=2)
    assert found == [(["a", "b"], True, False), (["c"], False, False), (["d"], False, True)]
    selected = {"labelSelector": "app=web", "fieldSelector": "spec.nodeName=gate-7", "limit": "2"}
    assert [r.params for r in server.requests] == [
        selected,
        selected | {"continue": "c1"},
        selected | {"continue": "c2"},
    ]


async def test_a_list_that_expires_in_its_middle_begins_anew(server: ApiServer, client: Kube) -> None:
    server.script = [
        answers(200, page(pod("old", 1), following="c1")),
        refuses(410, "Expired"),
        answers(200, page(pod("a", 5), following="c2")),
        answers(200, page(pod("b", 6))),
    ]
    assert await pages_of(client) == [(["old"], True, False), (["a"], True, False), (["b"], False, True)]
    server.script = [
        answers(200, page(pod("old", 1), following="c1")),
        refuses(410, "Expired"),
        answers(200, page(pod("a", 5))),
    ]
    assert [p["metadata"]["name"] for p in await client.list(PODS)] == ["a"]


async def test_a_list_that_always_expires_ends(server: ApiServer, client: Kube) -> None:
    async def flaky(request: Request, wire: Wire) -> None:
        if "continue" in request.params:
            await wire.answer(410, status(410, "Expired"))
        else:
            await wire.answer(200, page(pod("a", 1), following="c1"))

    server.otherwise = flaky
    with pytest.raises(KubeError) as caught:
        await client.list(PODS)
    assert caught.value.expired


async def test_items_of_a_list_say_what_they_are(server: ApiServer, client: Kube) -> None:
    server.script = [answers(200, page({"metadata": {"name": "a"}}))]
    assert await client.list(PODS) == [{"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a"}}]


async def test_an_empty_list_may_have_no_items_at_all(server: ApiServer, client: Kube) -> None:
    server.script = [answers(200, {"metadata": {"resourceVersion": "1"}, "items": None})]
    assert await client.list(PODS) == []


async def test_only_one_page_is_fetched_at_a_time(server: ApiServer, client: Kube) -> None:
    under_way, most = 0, 0

    async def counted(_: Request, wire: Wire) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await trio.testing.wait_all_tasks_blocked(0.001)
        under_way -= 1
        await wire.answer(200, page())

    server.otherwise = counted
    async with trio.open_nursery() as nursery:
        for resource in (PODS, NODES, CONFIGMAPS):
            nursery.start_soon(client.list, resource)
    assert most == 1
