"""Behaviour that no recording holds: lists page by page, watches, selectors, deletion, dry runs, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from tests.cloud_gateway.sandbox.conftest import JSON_PATCH, MERGE, STRATEGIC, World, client_of, start

Json = dict[str, Any]
CONFIGS = "/api/v1/namespaces/default/configmaps"
PODS = "/api/v1/namespaces/default/pods"
PARTIAL = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io,application/json"


def config(name: str, **labels: str) -> Json:
    return {"metadata": {"name": name, "labels": labels}, "data": {"a": "1"}}


def pod(name: str, node: str = "", **spec: Any) -> Json:
    bound = {"nodeName": node} if node else {}
    return {"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "x:1"}], **bound, **spec}}


async def names(world: World, path: str) -> list[str]:
    return [item["metadata"]["name"] for item in (await world.get(path))["items"]]


async def test_a_list_is_read_page_by_page_as_it_was_at_its_beginning(world: World) -> None:
    for name in "abcde":
        await world.create(CONFIGS, config(name, mine="yes"))
    first = await world.get(f"{CONFIGS}?labelSelector=mine&limit=2")
    await world.done("DELETE", f"{CONFIGS}/d")
    await world.create(CONFIGS, config("f", mine="yes"))
    token = first["metadata"]["continue"]
    second = await world.get(f"{CONFIGS}?labelSelector=mine&limit=2&continue={token}")
    third = await world.get(f"{CONFIGS}?labelSelector=mine&limit=2&continue={second['metadata']['continue']}")
    pages = [[item["metadata"]["name"] for item in page["items"]] for page in (first, second, third)]
    assert pages == [["a", "b"], ["c", "d"], ["e"]]
    assert "continue" not in third["metadata"]
    assert {page["metadata"]["resourceVersion"] for page in (first, second, third)} == {
        first["metadata"]["resourceVersion"]
    }
    lost = await world.refused("GET", f"{CONFIGS}?limit=2&continue={token}")
    assert (lost["code"], lost["reason"]) == (410, "Expired")


@pytest.mark.parametrize(
    ("selector", "wanted"),
    [
        ("labelSelector=tier=front", ["a"]),
        ("labelSelector=tier!=front", ["b", "c", "kube-root-ca.crt"]),
        ("labelSelector=tier in (front,back)", ["a", "b"]),
        ("labelSelector=tier,tier notin (front)", ["b"]),
        ("labelSelector=!tier", ["c", "kube-root-ca.crt"]),
        ("labelSelector=rank>5", ["b"]),
        ("fieldSelector=metadata.name=c", ["c"]),
        ("fieldSelector=metadata.name!=c,metadata.namespace==default", ["a", "b", "kube-root-ca.crt"]),
    ],
)
async def test_lists_are_selected(world: World, selector: str, wanted: list[str]) -> None:
    await world.create(CONFIGS, config("a", tier="front", rank="3"))
    await world.create(CONFIGS, config("b", tier="back", rank="7"))
    await world.create(CONFIGS, config("c"))
    assert await names(world, f"{CONFIGS}?{selector}") == wanted


@pytest.mark.parametrize("selector", ["labelSelector=a b", "labelSelector=a in (b", "fieldSelector=spec.x=1"])
async def test_a_selector_that_is_none_is_refused(world: World, selector: str) -> None:
    assert (await world.refused("GET", f"{CONFIGS}?{selector}"))["reason"] == "BadRequest"


async def test_a_watch_sees_objects_come_into_its_selection_and_leave_it(world: World) -> None:
    since = (await world.get(CONFIGS))["metadata"]["resourceVersion"]
    await world.create(CONFIGS, config("a"))
    for value in ("yes", "no"):
        change = {"metadata": {"labels": {"mine": value}}}
        await world.done("PATCH", f"{CONFIGS}/a", change, content_type=MERGE)
    seen = await world.watched(
        f"{CONFIGS}?watch=1&labelSelector=mine=yes&resourceVersion={since}&timeoutSeconds=1&allowWatchBookmarks=1"
    )
    assert [event["type"] for event in seen] == ["ADDED", "DELETED", "BOOKMARK"]


async def test_an_open_watch_is_told_of_its_node_only(world: World, nursery: trio.Nursery) -> None:
    found: list[str] = []
    done = trio.Event()

    async def follow() -> None:
        event = await world.seen(f"{PODS}?watch=1&fieldSelector=spec.nodeName=n2", "ADDED")
        found.append(event["object"]["metadata"]["name"])
        done.set()

    nursery.start_soon(follow)
    await world.create(PODS, pod("one", "n1"))
    await world.create(PODS, pod("two", "n2"))
    await done.wait()
    assert found == ["two"]


async def test_a_watch_goes_on_where_it_was_after_a_restart(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        sandbox = await start(nursery, tmp_path)
        async with client_of(sandbox) as client:
            world = World(sandbox, client)
            since = (await world.create(CONFIGS, config("a")))["metadata"]["resourceVersion"]
            await world.create(CONFIGS, config("b"))
        nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        sandbox = await start(nursery, tmp_path)
        async with client_of(sandbox) as client:
            world = World(sandbox, client)
            seen = await world.watched(f"{CONFIGS}?watch=1&resourceVersion={since}&timeoutSeconds=1")
            assert [(event["type"], event["object"]["metadata"]["name"]) for event in seen] == [("ADDED", "b")]
            assert await names(world, f"{CONFIGS}?fieldSelector=metadata.name!=kube-root-ca.crt") == ["a", "b"]
        nursery.cancel_scope.cancel()


async def test_metadata_alone_is_watched_and_read_where_that_is_asked_for(world: World) -> None:
    await world.create(CONFIGS, config("a"))
    answer = await world.ask("GET", f"{CONFIGS}/a", accept=PARTIAL)
    assert answer.json()["kind"] == "PartialObjectMetadata"
    assert "data" not in answer.json()


async def test_a_dry_run_answers_and_changes_nothing(world: World) -> None:
    made = await world.create(f"{CONFIGS}?dryRun=All", config("a"))
    assert made["metadata"]["uid"]
    assert (await world.refused("GET", f"{CONFIGS}/a"))["code"] == 404


async def test_a_change_that_changes_nothing_makes_no_revision(world: World) -> None:
    made = await world.create(CONFIGS, config("a"))
    again = await world.done("PATCH", f"{CONFIGS}/a", {"data": {"a": "1"}}, content_type=MERGE)
    assert again == made


async def test_unknown_fields_are_warned_of_and_dropped(world: World) -> None:
    answer = await world.ask("POST", PODS, pod("web") | {"speck": {}})
    assert answer.headers["warning"] == '299 - "unknown field \\"speck\\""'
    assert "speck" not in answer.json()
    ignored = await world.ask("POST", f"{PODS}?fieldValidation=Ignore", pod("web2") | {"speck": {}})
    assert "warning" not in ignored.headers


async def test_an_object_with_a_finalizer_waits_for_it(world: World) -> None:
    body = config("a")
    body["metadata"]["finalizers"] = ["example.com/wait"]
    await world.create(CONFIGS, body)
    ending = await world.done("DELETE", f"{CONFIGS}/a")
    assert ending["metadata"]["deletionTimestamp"]
    more = [{"op": "add", "path": "/metadata/finalizers/-", "value": "example.com/more"}]
    assert (await world.refused("PATCH", f"{CONFIGS}/a", more, content_type=JSON_PATCH))["reason"] == "Invalid"
    await world.done("PATCH", f"{CONFIGS}/a", {"metadata": {"finalizers": None}}, content_type=MERGE)
    assert (await world.refused("GET", f"{CONFIGS}/a"))["code"] == 404


async def test_an_unbound_pod_is_gone_at_once_and_a_bound_one_has_its_time(world: World) -> None:
    await world.create(PODS, pod("free"))
    await world.create(PODS, pod("bound", "n1", terminationGracePeriodSeconds=7))
    await world.done("DELETE", f"{PODS}/free")
    assert (await world.refused("GET", f"{PODS}/free"))["code"] == 404
    assert (await world.done("DELETE", f"{PODS}/bound"))["metadata"]["deletionGracePeriodSeconds"] == 7
    other = {"preconditions": {"uid": "other"}, "gracePeriodSeconds": 0}
    assert (await world.refused("DELETE", f"{PODS}/bound", other))["reason"] == "Conflict"


async def test_the_seconds_of_a_bound_pods_tolerations_may_be_taken_away_and_no_more(world: World) -> None:
    made = await world.create(PODS, pod("web", "n1"))
    forever = [{k: v for k, v in one.items() if k != "tolerationSeconds"} for one in made["spec"]["tolerations"]]
    changed = await world.done("PATCH", f"{PODS}/web", {"spec": {"tolerations": forever}}, content_type=STRATEGIC)
    assert changed["spec"]["tolerations"] == forever
    refused = await world.refused("PATCH", f"{PODS}/web", {"spec": {"tolerations": []}}, content_type=STRATEGIC)
    assert refused["details"]["causes"][0]["field"] == "spec.tolerations"
    refused = await world.refused("PATCH", f"{PODS}/web", {"spec": {"nodeName": "n2"}}, content_type=MERGE)
    assert "pod updates may not change fields other than" in refused["message"]


async def test_a_deleted_namespace_is_emptied_and_takes_nothing_more(world: World, nursery: trio.Nursery) -> None:
    await world.create("/api/v1/namespaces", {"metadata": {"name": "plant"}})
    path = "/api/v1/namespaces/plant/pods"
    uid = (await world.create(path, pod("web", "n1")))["metadata"]["uid"]
    since = (await world.done("DELETE", "/api/v1/namespaces/plant"))["metadata"]["resourceVersion"]
    refused = await world.refused("POST", path, pod("late"))
    assert (refused["code"], refused["details"]["causes"][0]["reason"]) == (403, "NamespaceTerminating")
    await world.seen(f"{path}?watch=1&resourceVersion={since}", "MODIFIED")  # it gets its grace
    await world.done("DELETE", f"{path}/web", {"gracePeriodSeconds": 0, "preconditions": {"uid": uid}})
    await world.seen(f"/api/v1/namespaces?watch=1&resourceVersion={since}", "DELETED", of="plant")


async def test_a_pod_is_bound_once_a_node_is_ready(world: World) -> None:
    await world.create("/api/v1/nodes", {"metadata": {"name": "gate-7"}})
    since = (await world.create(PODS, pod("web")))["metadata"]["resourceVersion"]
    ready = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    await world.done("PATCH", "/api/v1/nodes/gate-7/status", ready, content_type=STRATEGIC)
    await world.seen(f"{PODS}?watch=1&resourceVersion={since}&fieldSelector=spec.nodeName=gate-7", "ADDED", of="web")


async def test_who_is_unknown_or_may_not_is_told_so(world: World) -> None:
    nobody = await world.client.get(PODS, headers={"authorization": "Bearer nonsense"})
    assert (nobody.status_code, nobody.json()["reason"]) == (401, "Unauthorized")
    asked = {"spec": {"expirationSeconds": 600}}
    path = "/api/v1/namespaces/default/serviceaccounts/default/token"
    token = (await world.create(path, asked))["status"]["token"]
    denied = await world.client.get(PODS, headers={"authorization": f"Bearer {token}"})
    assert (denied.status_code, denied.json()["reason"]) == (403, "Forbidden")
    assert (await world.client.get("/healthz", headers={"authorization": ""})).text == "ok"


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/apis/apps/v1/namespaces/default/deployments", 404),
        ("GET", "/api/v1/namespaces/default/nodes", 404),
        ("GET", "/nope", 404),
        ("POST", "/api/v1/configmaps", 405),
        ("PUT", "/api/v1/namespaces/default/configmaps", 405),
        ("DELETE", "/version", 405),
    ],
)
async def test_what_is_not_there_is_not_there(world: World, method: str, path: str, code: int) -> None:
    assert (await world.ask(method, path, {} if method in ("POST", "PUT") else None)).status_code == code


@pytest.mark.parametrize("body", [b"", b"[]", b"nonsense", b'{"metadata": 1}', b'{"metadata": {"name": 1}}', b"\xff"])
async def test_a_body_that_is_none_is_refused_and_nothing_else_happens(world: World, body: bytes) -> None:
    answer = await world.client.post(CONFIGS, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert (await world.client.get("/readyz")).text == "ok"


async def test_a_body_that_is_too_large_is_refused(world: World) -> None:
    answer = await world.client.post(
        CONFIGS, content=b"x" * (3 * 1024 * 1024 + 1), headers={"content-type": "application/json"}
    )
    assert answer.status_code == 413


async def test_a_log_that_no_node_can_give_is_refused_in_words(world: World) -> None:
    await world.create(PODS, pod("web", "gone"))
    refused = await world.refused("GET", f"{PODS}/web/log")
    assert (refused["code"], refused["details"]["name"]) == (404, "gone")
    await world.create(PODS, pod("free"))
    assert (await world.ask("GET", f"{PODS}/free/log")).text == ""


@pytest.mark.parametrize("thing", [{}, [], "x", 7, None, {"a": []}, [{}]])
@pytest.mark.parametrize("place", ["metadata", "spec", "status", "metadata.labels", "spec.containers", "spec.volumes"])
async def test_no_value_in_the_wrong_place_is_an_error_of_ours(world: World, place: str, thing: Any) -> None:
    body: Json = pod("web")
    holder = body
    *parts, last = place.split(".")
    for part in parts:
        holder = holder[part]
    holder[last] = thing
    answer = await world.ask("POST", PODS, body)
    assert answer.status_code in (201, 400, 422), answer.text


@pytest.mark.parametrize("thing", [{}, [], "x", 7, {"a": []}, [{}], [{"op": "add", "path": "/spec", "value": 7}]])
@pytest.mark.parametrize("kind", [JSON_PATCH, MERGE, STRATEGIC])
async def test_no_patch_is_an_error_of_ours(world: World, kind: str, thing: Any) -> None:
    await world.create(PODS, pod("web"))
    for body in (thing, {"metadata": thing}, {"spec": thing}, {"spec": {"containers": thing}}, {"status": thing}):
        answer = await world.ask("PATCH", f"{PODS}/web", body, content_type=kind)
        assert answer.status_code in (200, 400, 422), answer.text


@pytest.mark.parametrize("spec", [{}, {"names": 7}, {"versions": [{}]}, {"versions": {}}, {"group": "x", "names": {}}])
async def test_no_definition_is_an_error_of_ours(world: World, spec: Json) -> None:
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    answer = await world.ask("POST", path, {"metadata": {"name": "a.b"}, "spec": spec})
    assert answer.status_code in (400, 422), answer.text
