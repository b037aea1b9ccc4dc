"""Jobs between kubectl and nodes: a whole gateway, its cluster, and nodes in plain values at the other end."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cloud_gateway.adapters import kube_types as types
from cloud_gateway.adapters.kube_types import Resource
from cloud_gateway.sandbox import packaged
from tests.cloud_gateway.sandbox.test_kubectl import Kubectl
from tests.cloud_gateway.test_crds import MANIFESTS
from tests.cloud_gateway.test_daemon import Rig, running
from tests.fakes.link_edge import LinkEdge
from tinyedge.model import job as words
from tinyedge.model.job import Action
from tinyedge.protocol import jobs
from tinyedge.protocol.jobs import FileAsk, JobReport

Json = dict[str, Any]
KEY = "nodeupgradejob/up"
SPEC: Json = {"version": "v0.3.0", "labelSelector": {"matchLabels": {"node-role.kubernetes.io/edge": ""}}}


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with running(tmp_path, definitions=packaged.definitions(), tls=True) as found:
        yield found


async def make(rig: Rig, spec: Json, resource: Resource = types.NODE_UPGRADE_JOBS, name: str = "up") -> str:
    body = {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": {"name": name}, "spec": spec}
    made = await rig.cluster.kube.create(resource, body)
    return str(made["metadata"]["uid"])


async def phase(rig: Rig, wanted: str, resource: Resource = types.NODE_UPGRADE_JOBS, name: str = "up") -> Json:
    found: Json = await rig.cluster.until(resource, name, lambda one: one.get("status", {}).get("phase") == wanted)
    return found


def report(edge: LinkEdge, uid: str, at: str, **more: Any) -> None:
    edge.report(jobs.STATUS, KEY, msgspec.msgpack.decode(jobs.encode(JobReport(uid, at, **more))))


async def test_a_job_goes_down_and_what_its_nodes_say_stands_in_its_status(rig: Rig) -> None:
    gateway = await rig.gateway()
    edge = await rig.node(gateway)
    other = await rig.node(gateway, "gate-8", "bb" * 16)
    uid = await make(rig, SPEC)
    await edge.until(lambda: KEY in edge.objects["nodejob"])
    assert KEY not in other.objects["nodejob"]
    report(edge, uid, words.SUCCESSFUL, flow=(Action(words.CHECK, words.TRUE),), version="0.3.0")
    await other.until(lambda: KEY in other.objects["nodejob"])
    await edge.until(lambda: KEY not in edge.objects["nodejob"])
    report(other, uid, words.SUCCESSFUL)
    found = await phase(rig, "Completed")
    assert found["status"]["summary"] == "2 done"
    first, second = found["status"]["nodeStatus"]
    assert (first["nodeName"], first["currentVersion"]) == ("gate-7", "0.3.0")
    assert first["actionFlow"][0]["action"] == "Check"
    assert second["phase"] == "Successful"


async def test_the_next_gateway_goes_on_with_a_job(rig: Rig) -> None:
    gateway = await rig.gateway()
    edge = await rig.node(gateway)
    uid = await make(rig, SPEC)
    await edge.until(lambda: KEY in edge.objects["nodejob"])
    gateway.scope.cancel()
    await edge.until(lambda: not edge.up)
    edge.port = (await rig.gateway()).port
    await rig.link(edge)
    assert KEY in edge.objects["nodejob"]
    report(edge, uid, words.FAILURE, reason="the new version does not start")
    found = await phase(rig, "Failure")
    assert found["status"]["nodeStatus"][0]["reason"] == "the new version does not start"


async def test_a_node_that_is_at_an_upgrade_is_given_its_file_and_no_other_node_is(rig: Rig, tmp_path: Path) -> None:
    data = os.urandom(100_000)
    (tmp_path / "tinyedge-0.3.0-arm64.run").write_bytes(data)
    gateway = await rig.gateway(upgrade_source=str(tmp_path))
    edge = await rig.node(gateway)
    other = await rig.node(gateway, "gate-8", "bb" * 16)
    await make(rig, SPEC)
    await edge.until(lambda: KEY in edge.objects["nodejob"])
    found = b""
    while True:
        reply = await edge.answer(edge.ask(jobs.FILE, jobs.encode(FileAsk(KEY, len(found), 16_384))))
        grant = jobs.read_file_grant(reply.body)
        assert (grant.size, grant.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        found += grant.data
        if len(found) == grant.size:
            break
    assert found == data
    refused = await other.answer(other.ask(jobs.FILE, jobs.encode(FileAsk(KEY, 0, 100))))
    assert refused.error == "this node is at no such upgrade"


async def test_a_gateway_without_a_source_says_so(rig: Rig) -> None:
    edge = await rig.node(await rig.gateway())
    await make(rig, SPEC)
    await edge.until(lambda: KEY in edge.objects["nodejob"])
    reply = await edge.answer(edge.ask(jobs.FILE, jobs.encode(FileAsk(KEY))))
    assert not reply.retryable
    assert "--upgrade-source" in reply.error


@pytest.mark.kubectl
async def test_kubectl_applies_what_people_have_and_shows_how_it_gets_on(rig: Rig, tmp_path: Path) -> None:
    gateway = await rig.gateway()
    edge = await rig.node(gateway)
    kubectl = Kubectl(rig.sandbox, tmp_path)
    await kubectl("apply", "-f", str(MANIFESTS / "jobs.yaml"))
    await phase(rig, "Failure", types.IMAGE_PREPULL_JOBS, "imageprepull-example")
    await edge.until(lambda: len(edge.objects["nodejob"]) == 1)
    table = await kubectl("get", "nodeupgradejobs")
    assert "Failure" in table, "its only node is no edge node"
    reasons = await kubectl("get", "imageprepulljob", "imageprepull-example", "-o", "jsonpath={.status.reason}")
    assert reasons == "1 of 1 nodes have failed, and a share of 0.1 may"
    (key,) = edge.objects["nodejob"]
    told = msgspec.msgpack.decode(edge.objects["nodejob"][key][1])["spec"]
    assert told["type"] in ("NodeUpgradeJob", "ConfigUpdateJob")
    await kubectl("apply", "-f", str(MANIFESTS / "jobs.yaml"))
    await kubectl("delete", "-f", str(MANIFESTS / "jobs.yaml"))
    await edge.until(lambda: not edge.objects["nodejob"])
    assert await kubectl("get", "configupdatejobs", "-o", "name") == ""
