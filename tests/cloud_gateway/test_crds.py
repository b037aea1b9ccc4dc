"""The CustomResourceDefinitions of packaging/kubernetes/crds: sound, packaged, and wide enough for what people have."""

from __future__ import annotations

import copy
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml

from cloud_gateway.sandbox import packaged, schema, serve
from tests.cloud_gateway.sandbox.conftest import MERGE, World, client_of, start
from tests.cloud_gateway.sandbox.test_kubectl import Kubectl

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "packaging" / "kubernetes" / "crds"
MANIFESTS = Path(__file__).resolve().parent / "manifests"
JOBS = ("NodeUpgradeJob", "ImagePrePullJob", "ConfigUpdateJob")
DEVICES = "/apis/devices.kubeedge.io/v1beta1/namespaces/default"
Json = dict[str, Any]


@cache
def crds() -> dict[str, Json]:
    return {one["spec"]["names"]["kind"]: one for one in packaged.definitions()}


def schema_of(kind: str) -> Json:
    return dict(crds()[kind]["spec"]["versions"][0]["schema"]["openAPIV3Schema"])


@cache
def manifests() -> list[Json]:
    return [one for path in sorted(MANIFESTS.glob("*.yaml")) for one in yaml.safe_load_all(path.read_text())]


def a(kind: str) -> Json:
    return copy.deepcopy(next(one for one in manifests() if one["kind"] == kind))


def problems(obj: Json) -> list[tuple[str, str]]:
    return [(path, message) for path, message, _ in schema.check(schema_of(obj["kind"]), obj)[1]]


# --- the definitions themselves ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(crds()))
def test_every_definition_is_a_structural_schema(kind: str) -> None:
    assert schema.check_definition(crds()[kind]) == []


def test_what_an_installed_gateway_brings_along_is_what_a_cluster_is_given() -> None:
    given = [yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("*.yaml"))]
    assert [one["spec"] for one in given if "spec" in one] == [one["spec"] for one in packaged.definitions()]
    listed = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
    assert listed == sorted(path.name for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml")


def test_names_versions_and_scopes_are_those_of_kubeedge() -> None:
    found = {
        kind: (one["spec"]["group"], one["spec"]["versions"][0]["name"], one["spec"]["names"]["plural"])
        for kind, one in crds().items()
    }
    assert found == {
        "Device": ("devices.kubeedge.io", "v1beta1", "devices"),
        "DeviceModel": ("devices.kubeedge.io", "v1beta1", "devicemodels"),
        "DeviceStatus": ("devices.kubeedge.io", "v1beta1", "devicestatuses"),
        "Rule": ("rules.kubeedge.io", "v1", "rules"),
        "RuleEndpoint": ("rules.kubeedge.io", "v1", "ruleendpoints"),
        "LocalRule": ("rules.tinyedge.io", "v1alpha1", "localrules"),
        "NodeUpgradeJob": ("operations.kubeedge.io", "v1alpha2", "nodeupgradejobs"),
        "ImagePrePullJob": ("operations.kubeedge.io", "v1alpha2", "imageprepulljobs"),
        "ConfigUpdateJob": ("operations.kubeedge.io", "v1alpha2", "configupdatejobs"),
    }
    cluster = {kind for kind, one in crds().items() if one["spec"]["scope"] == "Cluster"}
    assert cluster == set(JOBS)


@pytest.mark.parametrize("kind", JOBS[:2])
def test_the_older_version_of_a_job_has_the_same_fields(kind: str) -> None:
    newer, older = crds()[kind]["spec"]["versions"]
    assert (older["name"], older["served"], older["storage"]) == ("v1alpha1", True, False)
    assert older["schema"] == newer["schema"]


@pytest.mark.parametrize("kind", ["Device", "DeviceModel"])
def test_a_version_that_a_cluster_may_have_stored_is_named_and_not_served(kind: str) -> None:
    newer, older = crds()[kind]["spec"]["versions"]
    assert (newer["name"], newer["served"], newer["storage"]) == ("v1beta1", True, True)
    assert (older["name"], older["served"], older["storage"]) == ("v1alpha2", False, False)


@pytest.mark.parametrize("obj", manifests(), ids=lambda one: f"{one['kind']} {one['metadata']['name']}")
def test_what_people_have_is_taken_and_nothing_of_it_is_dropped(obj: Json) -> None:
    assert problems(obj) == []
    assert schema.unknown(schema_of(obj["kind"]), obj) == []


# --- what is refused ---------------------------------------------------------------------------------


def test_two_properties_of_one_name_are_refused() -> None:
    device = a("Device")
    device["spec"]["properties"].append({"name": "speed"})
    assert problems(device) == [("spec.properties[3]", 'Duplicate value: {"name":"speed"}')]


def test_a_type_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    model = a("DeviceModel")
    model["spec"]["properties"][0]["type"] = "DECIMAL"
    ((path, message),) = problems(model)
    assert path == "spec.properties[0].type"
    assert '"DOUBLE"' in message


def rules(found: Json) -> list[Json]:
    own = list(found.get("x-kubernetes-validations") or ())
    below = [*(found.get("properties") or {}).values(), found.get("items"), found.get("additionalProperties")]
    return own + [rule for one in below if isinstance(one, dict) for rule in rules(one)]


@pytest.mark.parametrize("kind", ["Rule", "RuleEndpoint", "LocalRule", *JOBS])
def test_every_rule_says_in_words_what_would_be_right(kind: str) -> None:
    found = rules(schema_of(kind))
    assert found
    assert all("\n" not in one["message"] and one["message"][0].islower() for one in found)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"when": ""}, "spec.when"),
        ({"actions": []}, "spec.actions"),
        ({"inputs": {}}, "spec.inputs"),
        ({"holdSeconds": -1}, "spec.holdSeconds"),
        ({"actions": [{"http": {"url": "ftp://there"}}]}, "spec.actions[0].http.url"),
        ({"actions": [{"event": {"reason": "too hot"}}]}, "spec.actions[0].event.reason"),
        ({"actions": [{"publish": {"topic": "t", "qos": 3}}]}, "spec.actions[0].publish.qos"),
    ],
)
def test_a_local_rule_that_makes_no_sense_is_refused(change: Json, path: str) -> None:
    rule = a("LocalRule")
    rule["spec"] |= change
    assert [at for at, _ in problems(rule)] == [path]


# --- in the sandbox ----------------------------------------------------------------------------------


async def definition(world: World, name: str) -> Json:
    return await world.get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}")


async def test_a_sandbox_has_them_from_its_first_moment(tmp_path: Path, nursery: trio.Nursery) -> None:
    sandbox = await start(nursery, tmp_path, definitions=packaged.definitions())
    async with client_of(sandbox) as client:
        world = World(sandbox, client)
        for obj in manifests():
            spec = crds()[obj["kind"]]["spec"]
            space = "/namespaces/default" if spec["scope"] == "Namespaced" else ""
            await world.create(f"/apis/{obj['apiVersion']}{space}/{spec['names']['plural']}", obj)
        device = await world.get(f"{DEVICES}/devices/pump-1")
        assert device["spec"]["properties"][2] == {"name": "running", "visitors": {}}
        assert "status" not in device, "a status is its own subresource"


async def test_a_newer_gateway_brings_a_newer_definition_and_leaves_those_of_others(tmp_path: Path) -> None:
    async def life(definitions: list[Json]) -> tuple[str, str]:
        async with trio.open_nursery() as nursery:
            sandbox = await nursery.start(partial(serve, tmp_path, tls=False, definitions=definitions))
            async with client_of(sandbox) as client:
                world = World(sandbox, client)
                path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
                other = "rules.rules.kubeedge.io"
                patch = {"metadata": {"annotations": {packaged.DIGEST: None, "by": "me"}}}
                await world.done("PATCH", f"{path}/{other}", patch, content_type=MERGE)
                found = [await definition(world, name) for name in ("devices.devices.kubeedge.io", other)]
            nursery.cancel_scope.cancel()
        first, second = (one["spec"]["versions"][0]["additionalPrinterColumns"][0]["name"] for one in found)
        return first, second

    assert await life(packaged.definitions()) == ("Node", "Source")
    newer = packaged.definitions()
    for one in newer:
        columns = one["spec"]["versions"][0].get("additionalPrinterColumns")
        columns[0]["name"] = "Newer"
        one["metadata"]["annotations"][packaged.DIGEST] = "other"
    assert await life(newer) == ("Newer", "Source")


async def test_what_belongs_to_a_device_goes_with_it(tmp_path: Path, nursery: trio.Nursery) -> None:
    sandbox = await start(nursery, tmp_path, definitions=packaged.definitions())
    async with client_of(sandbox) as client:
        world = World(sandbox, client)
        device = await world.create(f"{DEVICES}/devices", a("Device"))
        owner = {"apiVersion": device["apiVersion"], "kind": "Device", "name": "pump-1"}
        for name, uid in (("mine", device["metadata"]["uid"]), ("other", "another")):
            meta = {"name": name, "ownerReferences": [owner | {"uid": uid}]}
            await world.create(f"{DEVICES}/devicestatuses", {"metadata": meta})
        await world.done("DELETE", f"{DEVICES}/devices/pump-1")
        gone = await world.seen(f"{DEVICES}/devicestatuses?watch=1&resourceVersion=1", "DELETED")
        assert gone["object"]["metadata"]["name"] == "mine"
        left = await world.get(f"{DEVICES}/devicestatuses")
        assert [one["metadata"]["name"] for one in left["items"]] == ["other"]


@pytest.mark.kubectl
async def test_kubectl_applies_the_definitions_and_what_people_have(tmp_path: Path, nursery: trio.Nursery) -> None:
    sandbox = await start(nursery, tmp_path / "sandbox", tls=True)
    kubectl = Kubectl(sandbox, tmp_path)
    assert "devices.devices.kubeedge.io created" in await kubectl("apply", "-k", str(FOLDER))
    await kubectl("apply", "-f", str(MANIFESTS))
    await kubectl("apply", "-f", str(MANIFESTS))
    assert await kubectl("get", "device", "pump-1", "-o", "jsonpath={.metadata.generation}") == "1"
    head, pump = (await kubectl("get", "device")).splitlines()
    assert head.split() == ["NAME", "NODE", "MODEL", "PROTOCOL", "STATE", "VALUES", "AGE"]
    assert pump.split()[:4] == ["pump-1", "gate-7", "pump", "modbus"]
    assert "pump-1" in await kubectl("get", "tinyedge")
    assert "temperature > 80" in await kubectl("get", "localrule")
    head, _, upgrade = (await kubectl("get", "nodeupgradejob")).splitlines()
    assert head.split() == ["NAME", "VERSION", "PHASE", "NODES", "AGE"]
    assert upgrade.split()[:2] == ["upgrade-example", "v1.16.0"]
    refused = await kubectl.run("patch", "devicemodel", "pump", "--type=merge", "-p", '{"spec":{"properties":[{}]}}')
    assert refused.returncode
    assert b"spec.properties[0].name: Required value" in refused.stderr
