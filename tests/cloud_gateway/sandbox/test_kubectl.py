"""A client that nobody here wrote: kubectl, over TLS, with the kubeconfig that the sandbox writes."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest
import trio

from cloud_gateway.sandbox import Sandbox
from tests.cloud_gateway.sandbox.conftest import start

pytestmark = [pytest.mark.kubectl]

POD = """
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  containers:
  - name: c
    image: busybox:1.35
    command: [sleep, "1000"]
    env: [{name: A, value: "1"}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: cfg}
data: {a: "1", b: "2"}
"""
PUMP = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: pumps.plant.example.com}
spec:
  group: plant.example.com
  scope: Namespaced
  names: {plural: pumps, kind: Pump, shortNames: [pu]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    additionalPrinterColumns: [{name: Rate, type: integer, jsonPath: .spec.rate}]
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [rate]
            properties: {rate: {type: integer, minimum: 1}, mode: {type: string, default: auto}}
          status: {type: object, properties: {flow: {type: integer}}}
"""


class Kubectl:
    """Runs kubectl against one sandbox."""

    def __init__(self, sandbox: Sandbox, folder: Path) -> None:
        self.sandbox = sandbox
        self._options = [f"--kubeconfig={sandbox.kubeconfig}", f"--cache-dir={folder / 'cache'}"]

    async def run(self, *words: str, given: str = "") -> subprocess.CompletedProcess[bytes]:
        with trio.fail_after(60):
            return await trio.run_process(
                ["kubectl", *self._options, *words],
                stdin=given.encode(),
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env={**os.environ, "HOME": "/nonexistent"},
            )

    async def __call__(self, *words: str, given: str = "") -> str:
        done = await self.run(*words, given=given)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    async def fails(self, *words: str, given: str = "") -> str:
        done = await self.run(*words, given=given)
        assert done.returncode != 0, done.stdout.decode()
        return done.stderr.decode()


@pytest.fixture
async def kubectl(tmp_path: Path, nursery: trio.Nursery) -> Kubectl:
    return Kubectl(await start(nursery, tmp_path / "sandbox", tls=True), tmp_path)


async def test_apply_changes_what_differs_and_nothing_else(kubectl: Kubectl) -> None:
    assert "pod/web created" in await kubectl("apply", "-f", "-", given=POD)
    again = await kubectl("apply", "-f", "-", given=POD.replace('b: "2"', 'c: "3"'))
    assert "pod/web unchanged" in again
    assert "configmap/cfg configured" in again
    assert json.loads(await kubectl("get", "cm", "cfg", "-o", "jsonpath={.data}")) == {"a": "1", "c": "3"}


async def test_objects_are_shown_described_labelled_patched_and_deleted(kubectl: Kubectl) -> None:
    await kubectl("apply", "-f", "-", given=POD)
    shown = await kubectl("get", "pods", "-o", "wide")
    assert shown.split()[:9] == ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE", "NOMINATED", "NODE"]
    assert "web    0/1     Pending   0" in shown
    await kubectl("label", "pod", "web", "tier=front")
    await kubectl("annotate", "pod", "web", "note=here")
    await kubectl("patch", "pod", "web", "-p", '{"spec":{"containers":[{"name":"c","image":"busybox:1.36"}]}}')
    described = await kubectl("describe", "pod", "web")
    assert "tier=front" in described
    assert "busybox:1.36" in described
    assert "node.kubernetes.io/unreachable:NoExecute op=Exists for 300s" in described
    assert "web" in await kubectl("get", "pods", "-l", "tier in (front,back)", "-o", "name")
    assert await kubectl("get", "pods", "-l", "tier=back", "-o", "name") == ""
    await kubectl("delete", "pod", "web")
    assert "NotFound" in await kubectl.fails("get", "pod", "web")


async def test_what_is_wrong_is_said_in_the_words_of_kubernetes(kubectl: Kubectl) -> None:
    unknown = await kubectl.fails("apply", "-f", "-", given=POD.replace("image:", "imagine:"))
    assert 'strict decoding error: unknown field "spec.containers[0].imagine"' in unknown
    await kubectl("apply", "-f", "-", given=POD)
    fixed = await kubectl.fails("patch", "pod", "web", "-p", '{"spec":{"hostNetwork":true}}')
    assert "pod updates may not change fields other than" in fixed
    assert "the server could not find the requested resource" in await kubectl.fails(
        "create", "deployment", "d", "--image=x"
    )


async def test_a_custom_resource_is_defined_checked_filled_in_and_printed(kubectl: Kubectl) -> None:
    await kubectl("apply", "-f", "-", given=PUMP)
    await kubectl("wait", "--for=condition=Established", "crd/pumps.plant.example.com")
    pump = "apiVersion: plant.example.com/v1\nkind: Pump\nmetadata: {name: p1}\nspec: {rate: 5}\n"
    await kubectl("apply", "-f", "-", given=pump)
    assert (await kubectl("get", "pu")).split() == ["NAME", "RATE", "p1", "5"]
    assert json.loads(await kubectl("get", "pump", "p1", "-o", "jsonpath={.spec}")) == {"rate": 5, "mode": "auto"}
    wrong = await kubectl.fails("apply", "-f", "-", given=pump.replace("5", "0"))
    assert "spec.rate: Invalid value: 0: spec.rate in body should be greater than or equal to 1" in wrong
    status = '{"spec":{"rate":9},"status":{"flow":3}}'
    await kubectl("patch", "pump", "p1", "--type=merge", "--subresource=status", "-p", status)
    told = await kubectl("get", "pump", "p1", "-o", "jsonpath={.spec.rate} {.status.flow} {.metadata.generation}")
    assert told == "5 3 1"
    await kubectl("delete", "crd", "pumps.plant.example.com")
    assert await kubectl("get", "crd", "-o", "name") == ""


async def test_what_typed_clients_send_in_protobuf_arrives_whole(kubectl: Kubectl) -> None:
    await kubectl("create", "namespace", "plant")
    await kubectl("-n", "plant", "create", "secret", "generic", "s", "--from-literal=a=b")
    assert json.loads(await kubectl("-n", "plant", "get", "secret", "s", "-o", "jsonpath={.data}")) == {"a": "Yg=="}
    token = (await kubectl("-n", "plant", "create", "token", "default", "--duration=20m")).strip()
    who = await kubectl("auth", "whoami", "-o", "json")
    assert json.loads(who)["status"]["userInfo"]["username"] == "admin"
    assert token.count(".") == 2
    await kubectl("delete", "namespace", "plant")
    assert "NotFound" in await kubectl.fails("get", "namespace", "plant")


async def test_a_node_is_drained(kubectl: Kubectl) -> None:
    await kubectl("create", "-f", "-", given="apiVersion: v1\nkind: Node\nmetadata: {name: gate-7}\n")
    ready = '{"status":{"conditions":[{"type":"Ready","status":"True"}]}}'
    await kubectl("patch", "node", "gate-7", "--subresource=status", "--type=strategic", "-p", ready)
    await kubectl("run", "web", "--image=busybox:1.35")
    await kubectl("wait", "--for=condition=PodScheduled", "pod/web")
    assert await kubectl("get", "pod", "web", "-o", "jsonpath={.spec.nodeName}") == "gate-7"
    await kubectl.run("drain", "gate-7", "--force", "--timeout=1s")
    assert "Ready,SchedulingDisabled" in await kubectl("get", "nodes")
    assert await kubectl("get", "pod", "web", "-o", "jsonpath={.metadata.deletionGracePeriodSeconds}") == "30"


async def test_the_kubeconfig_is_for_its_owner_alone(kubectl: Kubectl) -> None:
    mode = (await trio.Path(kubectl.sandbox.kubeconfig).stat()).st_mode
    assert stat.S_IMODE(mode) == 0o600
    denied = await kubectl.fails("get", "pods", "--token=nonsense")
    assert "Unauthorized" in denied or "must be logged in" in denied
    assert 'pods is forbidden: User "jane" cannot list resource "pods"' in await kubectl.fails(
        "get", "pods", "--as=jane"
    )
