"""The Kubernetes client against an API server that nobody scripted: the sandbox, and any cluster that is named in
TINYEDGE_E2E_KUBECONFIG (it gets a namespace of its own, which is deleted afterwards)."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from cloud_gateway import sandbox
from cloud_gateway.adapters.kube import JSON_PATCH, MERGE_PATCH, Kube
from cloud_gateway.adapters.kube_config import from_kubeconfig
from cloud_gateway.adapters.kube_types import (
    CONFIGMAPS,
    LEASES,
    NAMESPACES,
    SERVICEACCOUNTS,
    Change,
    Gone,
    KubeError,
    Listed,
    ListEnd,
    ListStart,
    Seen,
)

Json = dict[str, Any]
GIVEN = os.environ.get("TINYEDGE_E2E_KUBECONFIG", "")
CLUSTERS = ["sandbox", *(["given"] if GIVEN else [])]


@asynccontextmanager
async def cluster(which: str, folder: Path) -> AsyncIterator[Kube]:
    async with trio.open_nursery() as nursery:
        if which == "sandbox":
            found = await nursery.start(partial(sandbox.serve, folder))
            endpoint = from_kubeconfig(found.kubeconfig)
        else:
            endpoint = from_kubeconfig(GIVEN)
        async with Kube(endpoint) as made:
            yield made
        nursery.cancel_scope.cancel()


@pytest.fixture(params=CLUSTERS)
async def kube(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Kube]:
    async with cluster(request.param, tmp_path) as made:
        yield made


@pytest.fixture
async def space(kube: Kube) -> AsyncIterator[str]:
    name = f"tinyedge-test-{secrets.token_hex(4)}"
    await kube.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield name
    await kube.delete(NAMESPACES, name)


def configmap(name: str, **data: str) -> Json:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"t": "x"}}, "data": data}


async def refused(call: Any) -> KubeError:
    with pytest.raises(KubeError) as caught:
        await call
    return caught.value


async def test_objects_are_made_read_changed_and_deleted(kube: Kube, space: str) -> None:
    made = await kube.create(CONFIGMAPS, configmap("a", k="1"), space)
    assert (await kube.get(CONFIGMAPS, "a", space))["data"] == {"k": "1"}
    assert (await refused(kube.create(CONFIGMAPS, configmap("a"), space))).exists
    patched = await kube.patch(CONFIGMAPS, "a", {"data": {"k": "2"}}, space, content_type=MERGE_PATCH)
    assert patched["data"] == {"k": "2"}
    moved = [{"op": "move", "from": "/data/k", "path": "/data/l"}]
    assert (await kube.patch(CONFIGMAPS, "a", moved, space, content_type=JSON_PATCH))["data"] == {"l": "2"}
    assert (await refused(kube.replace(CONFIGMAPS, "a", made, space))).conflict
    assert (await refused(kube.delete(CONFIGMAPS, "a", space, uid="0" * 8))).conflict
    await kube.delete(CONFIGMAPS, "a", space, uid=made["metadata"]["uid"])
    assert (await refused(kube.get(CONFIGMAPS, "a", space))).not_found


async def test_what_is_not_valid_is_told_with_its_field(kube: Kube, space: str) -> None:
    error = await refused(kube.create(CONFIGMAPS, configmap("UPPER"), space))
    assert error.invalid
    assert [cause["field"] for cause in error.causes] == ["metadata.name"]
    assert not error.retryable


async def test_metadata_alone_holds_no_data(kube: Kube, space: str) -> None:
    await kube.create(CONFIGMAPS, configmap("a", k="1"), space)
    one = await kube.get(CONFIGMAPS, "a", space, metadata_only=True)
    (two,) = await kube.list(CONFIGMAPS, space, labels="t=x", metadata_only=True)
    for found in (one, two):
        assert found["kind"] == "PartialObjectMetadata"
        assert found["metadata"]["name"] == "a"
        assert "data" not in found


async def test_pages_make_up_the_list(kube: Kube, space: str) -> None:
    names = [f"n{i:02}" for i in range(7)]
    for name in names:
        await kube.create(CONFIGMAPS, configmap(name), space)
    pages = [page async for page in kube.list_pages(CONFIGMAPS, space, labels="t=x", limit=3)]
    assert [len(page.objects) for page in pages] == [3, 3, 1]
    assert [(page.first, page.last) for page in pages] == [(True, False), (False, False), (False, True)]
    assert [one["metadata"]["name"] for page in pages for one in page.objects] == names
    assert {(one["kind"], one["apiVersion"]) for page in pages for one in page.objects} == {("ConfigMap", "v1")}


@pytest.mark.parametrize("metadata_only", [False, True])
async def test_a_follower_sees_all_that_happens(kube: Kube, space: str, metadata_only: bool) -> None:
    send, told = trio.open_memory_channel[Change](100)
    await kube.create(CONFIGMAPS, configmap("a", k="1"), space)
    follow = partial(kube.follow, CONFIGMAPS, send=send.send, namespace=space, labels="t=x")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(follow, metadata_only=metadata_only))
        with trio.fail_after(30):
            assert isinstance(await told.receive(), ListStart)
            listed = await told.receive()
            assert isinstance(listed, Listed)
            assert [one["metadata"]["name"] for one in listed.objects] == ["a"]
            assert isinstance(await told.receive(), ListEnd)
            await kube.create(CONFIGMAPS, configmap("b", k="1"), space)
            await kube.patch(CONFIGMAPS, "a", {"data": {"k": "2"}}, space, content_type=MERGE_PATCH)
            await kube.patch(CONFIGMAPS, "b", {"metadata": {"labels": {"t": "y"}}}, space, content_type=MERGE_PATCH)
            await kube.delete(CONFIGMAPS, "a", space)
            found = [await told.receive() for _ in range(4)]
        nursery.cancel_scope.cancel()
    assert [type(one) for one in found] == [Seen, Seen, Gone, Gone]
    objects = [one.object for one in found if isinstance(one, Seen | Gone)]
    assert [one["metadata"]["name"] for one in objects] == ["b", "a", "b", "a"]
    assert all(("data" in one) is not metadata_only for one in objects)


async def test_an_account_gets_a_token_for_an_audience(kube: Kube, space: str) -> None:
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "app"}}
    await kube.create(SERVICEACCOUNTS, account, space)
    asked = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"audiences": ["me"], "expirationSeconds": 3600},
    }
    given = await kube.create(SERVICEACCOUNTS, asked, space, name="app", subresource="token")
    assert given["status"]["token"].count(".") == 2


async def test_a_lease_is_renewed(kube: Kube, space: str) -> None:
    lease = {"apiVersion": LEASES.api_version, "kind": "Lease", "metadata": {"name": "one"}, "spec": {}}
    await kube.create(LEASES, lease, space)
    spec = {"renewTime": "2026-01-01T00:00:00.000000Z", "leaseDurationSeconds": 40}
    await kube.patch(LEASES, "one", {"spec": spec}, space, content_type=MERGE_PATCH)
    (found,) = await kube.list(LEASES, space)
    assert found["spec"]["leaseDurationSeconds"] == 40


async def test_anything_else_can_be_asked_for(kube: Kube) -> None:
    status, body = await kube.raw("GET", "/version")
    assert status == 200
    assert b"gitVersion" in body
    assert (await kube.raw("GET", "/apis/nothing.example.com/v1"))[0] == 404
