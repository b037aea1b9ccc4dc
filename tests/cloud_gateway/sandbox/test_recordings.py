"""What a real API server (Kubernetes 1.36) answered, asked again here.

The recordings are as they were but for three things: managedFields are left out (the sandbox has none), so is what only
that server's distribution adds, and a foreign API group was given another name. Each is asked for in a world like the
one in which it was recorded: what was asked before it is asked before it here.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.cloud_gateway.sandbox.conftest import World, client_of, start

Json = dict[str, Any]

FOLDER = Path(__file__).parent / "recordings"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))

_WEB = ("node-create", "pod-create")
_RUNNING = (*_WEB, "pod-status-strategic-patch")
_CONFIG = ("configmap-create", "configmap-merge-patch")
BEFORE: dict[str, tuple[str, ...]] = {
    "pod-create": ("node-create",),
    "pod-get": _WEB,
    "pod-list": _WEB,
    "pod-list-table": _WEB,
    "pod-list-partialmeta": _WEB,
    "node-list-table": ("node-create",),
    "pod-create-conflict": _WEB,
    "pod-status-strategic-patch": _WEB,
    "pod-status-patch-wrong-uid": _RUNNING,
    "configmap-merge-patch": ("configmap-create",),
    "configmap-json-patch": _CONFIG,
    "configmap-put-stale-rv": (*_CONFIG, "configmap-json-patch"),
    "binding-create": ("node-create", "binding"),
    "pod-delete-graceful": _RUNNING,
    "pod-get-terminating": (*_RUNNING, "pod-delete-graceful"),
    "pod-delete-final-by-kubelet": (*_RUNNING, "pod-delete-graceful"),
    "pod-watch-from-rv": (
        *_RUNNING,
        "binding",
        "binding-create",
        "pod-delete-graceful",
        "pod-delete-final-by-kubelet",
    ),
    "pod-watch-sendInitialEvents": _WEB,
}

# Other tests of this file are about these: we know fewer resources, and can do what that server's storage could not.
OTHERWISE = {"api-v1", "api-aggregated", "apis-legacy", "apis-aggregated", "crd-group", "pod-watch-sendInitialEvents"}

_CHANGING = (
    (re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"), "<uid>"),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"), "<time>"),
    (re.compile(r"kube-api-access-[a-z0-9]{5}"), "kube-api-access-<suffix>"),
    (re.compile(r"too old resource version: 1 \(\d+\)"), "too old resource version: 1 (<number>)"),
    (re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]+|<jwt>"), "<jwt>"),
    (re.compile(r"(192\.0\.2\.2|127\.0\.0\.1):\d+"), "<address>"),
)


@pytest.fixture
async def world(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[World]:
    """Nobody but the test binds pods; and all of it happens in the same second, as it did there: ages are shown."""
    sandbox = await start(nursery, tmp_path / "sandbox", scheduling=False, wall_s=lambda: 1_800_000_000.0)
    async with client_of(sandbox) as client:
        yield World(sandbox, client)


def recording(name: str) -> Json:
    found: Json = json.loads((FOLDER / f"{name}.json").read_text())
    return found


def steady(value: Any, key: str = "") -> Any:
    """The same value with what changes from run to run named instead of told. Its kind and its form still count."""
    if isinstance(value, dict):
        return {one: steady(inner, one) for one, inner in value.items()}
    if isinstance(value, list):
        return [steady(inner) for inner in value]
    if isinstance(value, str):
        if key == "resourceVersion":
            return "<number>" if value.isdigit() else value
        for pattern, name in _CHANGING:
            value = pattern.sub(name, value)
    return value


async def ask(world: World, recorded: Json, memory: dict[str, str]) -> httpx.Response:
    """`memory`: what stands for uids, versions and tokens of the recording here."""
    asked = recorded["request"]
    path = asked["path"]
    if "resourceVersion=1484" in path:
        path = path.replace("resourceVersion=1484", f"resourceVersion={memory['created']}")
    path = re.sub(r"timeoutSeconds=\d+", "timeoutSeconds=1", path)
    body = asked["body"]
    text = None if body is None else json.dumps(body)
    for old, new in memory.items():
        text = text and text.replace(old, new)
    headers = {"accept": asked["accept"]} | ({"content-type": asked["content_type"]} if asked["content_type"] else {})
    return await world.client.request(asked["method"], path, content=text, headers=headers)


async def prepared(world: World, name: str) -> dict[str, str]:
    memory = {"<token>": world.sandbox.admin_token}
    for before in BEFORE.get(name, ()):
        recorded = recording(before)
        answer = await ask(world, recorded, memory)
        assert answer.status_code == recorded["status"], answer.text
        told = answer.json()
        if uid := told.get("metadata", {}).get("uid"):
            memory[recorded["response"]["metadata"]["uid"]] = uid
        if before == "pod-create":
            memory["created"] = told["metadata"]["resourceVersion"]
    return memory


def lines(text: str) -> list[Json]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OTHERWISE and name != "pod-watch-expired"])
async def test_what_a_real_server_answered_is_answered_here(world: World, name: str) -> None:
    recorded = recording(name)
    memory = await prepared(world, name)
    answer = await ask(world, recorded, memory)
    assert answer.status_code == recorded["status"], answer.text
    assert answer.headers["content-type"] == recorded["headers"]["Content-Type"]
    wanted = recorded["response"]
    told: Any = lines(answer.text) if isinstance(wanted, list) else answer.json()
    if name == "version":
        assert set(told) == set(wanted)
        assert (told["major"], told["minor"]) == (wanted["major"], wanted["minor"])
        return
    told, wanted = (json.loads(json.dumps(steady(one)).replace(memory["<token>"], "<token>")) for one in (told, wanted))
    if isinstance(told, list) and told[-1]["type"] == "BOOKMARK":
        told.pop()  # that watch was read for less time than it was asked for
    assert told == wanted


async def test_a_watch_from_too_long_ago_is_told_so_in_its_first_line(tmp_path: Path, nursery: trio.Nursery) -> None:
    recorded = recording("pod-watch-expired")
    sandbox = await start(nursery, tmp_path / "sandbox", log_changes_max=1)
    async with client_of(sandbox) as client:
        answer = await ask(World(sandbox, client), recorded, {})
    assert answer.status_code == recorded["status"]
    assert steady(lines(answer.text)) == steady(recorded["response"])


async def test_a_watch_may_begin_with_all_there_is(world: World) -> None:
    """That server's storage was too old for it, and it said so; ours can."""
    recorded = recording("pod-watch-sendInitialEvents")
    memory = await prepared(world, "pod-watch-sendInitialEvents")
    answer = await ask(world, recorded, memory)
    assert answer.status_code == recorded["status"]
    first, mark, *_ = lines(answer.text)
    assert (first["type"], first["object"]["metadata"]["name"]) == ("ADDED", "web")
    assert mark["type"] == "BOOKMARK"
    assert mark["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
    assert int(mark["object"]["metadata"]["resourceVersion"]) >= int(first["object"]["metadata"]["resourceVersion"])


def crd(plural: str, kind: str, *versions: str) -> Json:
    group = "devices.example.com"
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    listed = [{"name": one, "served": True, "storage": one == versions[0], "schema": schema} for one in versions]
    names = {"plural": plural, "kind": kind, "singular": kind.lower()}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {"group": group, "scope": "Namespaced", "names": names, "versions": listed},
    }


async def with_devices(world: World) -> None:
    for plural, kind in (("devices", "Device"), ("devicestatuses", "DeviceStatus"), ("devicemodels", "DeviceModel")):
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        await world.create(path, crd(plural, kind, "v1beta1", "v1alpha2"))


@pytest.mark.parametrize("name", ["api-v1", "crd-group"])
async def test_resources_are_told_as_they_are_there_but_for_those_we_do_not_have(world: World, name: str) -> None:
    recorded = recording(name)
    await with_devices(world)
    answer = await ask(world, recorded, {})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    told, wanted = answer.json(), recorded["response"]
    known = {one["name"]: {**one, "storageVersionHash": ""} for one in wanted.pop("resources")}
    ours = {one["name"]: {**one, "storageVersionHash": ""} for one in told.pop("resources")}
    assert told == wanted
    assert ours == {name: one for name, one in known.items() if name in ours}
    missing = {one for one in known if "/" not in one} - set(ours)
    assert missing == (set() if name == "crd-group" else NOT_OURS)


# Of the core group. Nodes at the edge need none of them, and nothing here would act on them.
NOT_OURS = {
    "componentstatuses", "endpoints", "limitranges", "podtemplates", "replicationcontrollers", "resourcequotas",
    "services",
}  # fmt: skip
GROUPS = {
    "apiextensions.k8s.io", "authentication.k8s.io", "authorization.k8s.io", "coordination.k8s.io",
    "devices.example.com", "events.k8s.io",
}  # fmt: skip


async def test_groups_are_told_as_they_are_there(world: World) -> None:
    recorded = recording("apis-legacy")
    await with_devices(world)
    answer = await ask(world, recorded, {})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    told, wanted = answer.json(), recorded["response"]
    known = {one["name"]: one for one in wanted.pop("groups")}
    ours = {one["name"]: one for one in told.pop("groups")}
    assert told == wanted
    assert ours == {name: known[name] for name in GROUPS}


def by_name(resources: list[Json]) -> dict[str, Json]:
    return {one["resource"]: one | {"subresources": ()} for one in resources}


@pytest.mark.parametrize("name", ["api-aggregated", "apis-aggregated"])
async def test_everything_is_told_at_once_as_it_is_there(world: World, name: str) -> None:
    recorded = recording(name)
    await with_devices(world)
    answer = await ask(world, recorded, {})
    assert answer.headers["content-type"] == recorded["headers"]["Content-Type"]
    told, wanted = answer.json(), recorded["response"]
    ours, known = told.pop("items"), {one["metadata"].get("name"): one for one in wanted.pop("items")}
    assert told == wanted
    assert {one["metadata"].get("name") for one in ours} == (GROUPS if name == "apis-aggregated" else {None})
    for one in ours:
        there = known[one["metadata"].get("name")]
        assert [version["version"] for version in one["versions"]] == [v["version"] for v in there["versions"]]
        for version, its in zip(one["versions"], there["versions"], strict=True):
            mine, theirs = by_name(version.pop("resources")), by_name(its.pop("resources"))
            assert mine == {resource: theirs[resource] for resource in mine}
            assert version == its


def test_no_recording_is_left_out() -> None:
    assert len(NAMES) == 37
    assert set(NAMES) >= OTHERWISE
