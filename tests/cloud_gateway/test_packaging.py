"""The manifests of packaging/kubernetes: what they render to, and that they allow what the code asks for, no more."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloud_gateway.adapters import ca, kube_types
from cloud_gateway.adapters.kube_types import BY_PLURAL
from cloud_gateway.cli.main import find, parser
from cloud_gateway.cli.run import config_of
from cloud_gateway.config import Config
from cloud_gateway.core import translate

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "packaging" / "kubernetes"
GATEWAY = ROOT / "cloud_gateway"
ANY = "0.0.0.0"  # noqa: S104
SELECTED = "app.kubernetes.io/name"
Json = dict[str, Any]
Use = tuple[str, str, str]  # verb, resource with its subresource, namespace ('' anywhere)

# What the code asks of the API, by hand; the tests below compare it with the code and with the manifests.
LEASES_IN, OWN = translate.LEASES, "tinyedge"
LOOKED_AT = ("list", "watch")
USES: set[Use] = {
    *((verb, "nodes", "") for verb in ("get", "list", "watch", "create", "patch", "delete")),
    ("patch", "nodes/status", ""),
    *((verb, "pods", "") for verb in ("list", "watch", "create", "patch", "delete")),
    ("patch", "pods/status", ""),
    *((verb, "events", "") for verb in ("create", "patch")),
    *((verb, what, "") for what in ("configmaps", "secrets") for verb in ("get", "list", "watch")),
    ("get", "persistentvolumes", ""),
    ("get", "persistentvolumeclaims", ""),
    ("create", "serviceaccounts/token", ""),
    *((verb, "devices", "") for verb in ("get", "list", "watch")),
    *((verb, what, "") for what in ("devicemodels", "rules", "ruleendpoints", "localrules") for verb in LOOKED_AT),
    *(("patch", f"{what}/status", "") for what in ("devices", "rules", "localrules")),
    *((verb, what, "") for what in ("nodeupgradejobs", "imageprepulljobs", "configupdatejobs") for verb in LOOKED_AT),
    *(("patch", f"{what}/status", "") for what in ("nodeupgradejobs", "imageprepulljobs", "configupdatejobs")),
    *((verb, "devicestatuses", "") for verb in ("get", "create", "patch", "delete")),
    ("create", "tokenreviews", ""),
    ("create", "subjectaccessreviews", ""),
    *((verb, "leases", LEASES_IN) for verb in ("create", "patch", "delete")),
    *((verb, "leases", OWN) for verb in ("list", "create", "patch", "delete")),
    *((verb, "secrets", OWN) for verb in ("get", "list", "watch", "create", "update")),
}
NOT_NEEDED = {("create", "namespaces")}  # tried, for sandboxes; its refusal changes nothing


def rendered(folder: Path) -> list[Json]:
    made = subprocess.run(["kubectl", "kustomize", str(folder)], check=True, capture_output=True, text=True)
    return [one for one in yaml.safe_load_all(made.stdout) if one]


@pytest.fixture(scope="module")
def documents() -> list[Json]:
    if not shutil.which("kubectl"):
        pytest.skip("needs kubectl")
    return rendered(FOLDER)


def of_kind(documents: list[Json], kind: str) -> list[Json]:
    return [one for one in documents if one["kind"] == kind]


def the_pod(documents: list[Json]) -> Json:
    (deployment,) = of_kind(documents, "Deployment")
    return dict(deployment["spec"]["template"])


# --- what the code asks for --------------------------------------------------------------------------


def asked_by_code() -> Iterator[tuple[str, str, str]]:
    """(verb, resource with its subresource, where) of every call that names both in so many words."""
    for path in sorted(GATEWAY.rglob("*.py")):
        name = path.relative_to(GATEWAY).as_posix()
        if name.startswith(("sandbox/", "cli/")) or re.match(r"adapters/kube(_\w+)?\.py", name):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                yield from ((verb, what, f"{name}:{node.lineno}") for verb, what in _asked(node))


def _asked(node: ast.Call) -> Iterator[tuple[str, str]]:
    attr = node.func.attr if isinstance(node.func, ast.Attribute) else ""
    words = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    sub = "".join(
        f"/{word.value.value!s}"
        for word in node.keywords
        if word.arg == "subresource" and isinstance(word.value, ast.Constant)
    )
    if attr in ("call", "insist", "_call"):  # the core's: verb, resource
        verbs = [word for word in words if word in ("get", "list", "create", "patch", "delete")]
        plurals = [word for word in words if word in BY_PLURAL]
        if verbs and plurals:
            yield verbs[0], plurals[0] + sub
        return
    resource = _resource(node)
    if resource is None:
        return
    if attr in ("get", "list", "create", "patch", "delete"):
        yield attr, resource + sub
    elif attr == "replace":
        yield "update", resource + sub
    elif attr == "follow":
        yield from (("list", resource), ("watch", resource))


def _resource(node: ast.Call) -> str | None:
    first = node.args[0] if node.args else None
    named = first.id if isinstance(first, ast.Name) else first.attr if isinstance(first, ast.Attribute) else ""
    found = getattr(kube_types, named, None) if named.isupper() else None
    return found.plural if isinstance(found, kube_types.Resource) else None


def test_every_call_in_the_code_is_on_the_list() -> None:
    listed = {(verb, what) for verb, what, _ in USES} | NOT_NEEDED
    found = list(asked_by_code())
    assert len(found) > 20, "the scan finds what there is"
    missing = {(verb, what, where) for verb, what, where in found if (verb, what) not in listed}
    assert not missing, "put these into USES and into packaging/kubernetes/rbac.yaml"


# --- what the manifests allow ------------------------------------------------------------------------


def allowed(documents: list[Json]) -> set[Use]:
    bound = {
        (one["roleRef"]["kind"], one["roleRef"]["name"], one["metadata"].get("namespace", ""))
        for kind in ("ClusterRoleBinding", "RoleBinding")
        for one in of_kind(documents, kind)
    }
    found: set[Use] = set()
    for kind in ("ClusterRole", "Role"):
        for role in of_kind(documents, kind):
            where = role["metadata"].get("namespace", "")
            assert (kind, role["metadata"]["name"], where) in bound, "a role that is bound to nobody"
            for rule in role["rules"]:
                found |= {(verb, resource, where) for verb in rule["verbs"] for resource in rule["resources"]}
    return found


@pytest.mark.kubectl
def test_the_gateway_may_do_what_its_code_asks_for_and_nothing_else(documents: list[Json]) -> None:
    assert allowed(documents) == USES


@pytest.mark.kubectl
def test_no_rule_has_a_wildcard_and_each_names_the_right_group(documents: list[Json]) -> None:
    for role in [*of_kind(documents, "ClusterRole"), *of_kind(documents, "Role")]:
        for rule in role["rules"]:
            assert "*" not in [*rule["verbs"], *rule["resources"], *rule["apiGroups"]]
            groups = {BY_PLURAL[resource.partition("/")[0]].group for resource in rule["resources"]}
            assert groups == set(rule["apiGroups"])


@pytest.mark.kubectl
def test_only_its_own_secrets_can_be_written(documents: list[Json]) -> None:
    writes = [
        (rule["verbs"], rule.get("resourceNames"), role["metadata"].get("namespace"))
        for role in [*of_kind(documents, "ClusterRole"), *of_kind(documents, "Role")]
        for rule in role["rules"]
        if "secrets" in rule["resources"] and {"create", "update", "patch", "delete"} & set(rule["verbs"])
    ]
    assert writes == [(["create"], None, OWN), (["get", "list", "watch", "update"], [ca.STATE_SECRET], OWN)]
    (own,) = [one for one in of_kind(documents, "Role") if one["metadata"]["namespace"] == OWN]
    assert {name for rule in own["rules"] for name in rule.get("resourceNames", ())} == {ca.CA_SECRET, ca.STATE_SECRET}


@pytest.mark.kubectl
def test_every_binding_is_for_the_gateways_account(documents: list[Json]) -> None:
    bindings = [*of_kind(documents, "ClusterRoleBinding"), *of_kind(documents, "RoleBinding")]
    account = {"kind": "ServiceAccount", "name": "tinyedge-gateway", "namespace": OWN}
    assert len(bindings) == 4
    assert all(one["subjects"] == [account] for one in bindings)
    assert [one["metadata"]["name"] for one in of_kind(documents, "ServiceAccount")] == ["tinyedge-gateway"]


# --- the pod -----------------------------------------------------------------------------------------


@pytest.mark.kubectl
def test_the_pod_has_no_privilege(documents: list[Json]) -> None:
    spec = the_pod(documents)["spec"]
    assert not {"hostNetwork", "hostPID", "hostIPC", "volumes", "initContainers"} & set(spec)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in spec["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not any("hostPort" in port for port in container["ports"])


@pytest.mark.kubectl
def test_no_document_asks_for_privilege_anywhere(documents: list[Json]) -> None:
    text = yaml.safe_dump_all([*documents, *rendered(FOLDER / "autonomy-policy")])
    for word in ("privileged: true", "hostPath", "hostNetwork", "hostPID", "hostIPC", "allowPrivilegeEscalation: true"):
        assert word not in text
    (namespace,) = of_kind(documents, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.fixture
def config(documents: list[Json]) -> Config:
    """The settings that the container's arguments make."""
    (container,) = the_pod(documents)["spec"]["containers"]
    command = find(container["args"])
    assert command is not None
    assert command.name == "run"
    return config_of(parser(command).parse_args(container["args"][1:]))


@pytest.mark.kubectl
def test_the_arguments_are_understood_and_fit_the_ports(documents: list[Json], config: Config) -> None:
    (container,) = the_pod(documents)["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert config.listen == (ANY, ports["link"])
    assert config.metrics == (ANY, ports["metrics"])
    assert (config.kubeconfig, config.sandbox) == ("", "")
    assert config.namespace == OWN
    for probe, path in (("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        assert container[probe]["httpGet"] == {"path": path, "port": "metrics"}


@pytest.mark.kubectl
def test_two_replicas_stand_beside_each_other_and_one_may_go(documents: list[Json]) -> None:
    (deployment,), (budget,) = of_kind(documents, "Deployment"), of_kind(documents, "PodDisruptionBudget")
    assert deployment["spec"]["replicas"] > budget["spec"]["minAvailable"] == 1


@pytest.mark.kubectl
def test_everything_that_selects_selects_the_gateway(documents: list[Json]) -> None:
    labels = the_pod(documents)["metadata"]["labels"]
    selectors = [
        *(one["spec"]["selector"] for one in of_kind(documents, "Service")),
        *(one["spec"]["selector"]["matchLabels"] for one in of_kind(documents, "PodDisruptionBudget")),
        *(one["spec"]["selector"]["matchLabels"] for one in of_kind(documents, "Deployment")),
        *(one["spec"]["podSelector"]["matchLabels"] for one in of_kind(documents, "NetworkPolicy")),
    ]
    assert len(selectors) == 5
    assert all(selector == {SELECTED: labels[SELECTED]} for selector in selectors)


@pytest.mark.kubectl
def test_the_network_policy_lets_in_links_and_kubelet_callers(documents: list[Json], config: Config) -> None:
    (policy,) = of_kind(documents, "NetworkPolicy")
    open_to_all = next(one["ports"] for one in policy["spec"]["ingress"] if "from" not in one)
    assert [(one["port"], one.get("endPort", one["port"])) for one in open_to_all] == [
        (config.listen[1], config.listen[1]),
        config.kubelet_ports,
    ]
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]


# --- the optional policy -----------------------------------------------------------------------------


@pytest.mark.kubectl
def test_the_admission_policy_is_a_component_of_its_own(documents: list[Json]) -> None:
    assert not [one for one in documents if "Admission" in one["kind"]]
    policy, binding = sorted(rendered(FOLDER / "autonomy-policy"), key=lambda one: len(one["kind"]))
    assert policy["apiVersion"] == binding["apiVersion"] == "admissionregistration.k8s.io/v1"
    assert binding["spec"]["policyName"] == policy["metadata"]["name"]
    assert policy["spec"]["failurePolicy"] == "Ignore", "a cluster whose policy is broken still makes pods"
    assert policy["spec"]["matchConstraints"]["resourceRules"] == [
        {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    ]
    conditions = " ".join(one["expression"] for one in policy["spec"]["matchConditions"])
    assert translate.EDGE_LABEL in conditions
    assert translate.AUTONOMY in conditions
    assert len(policy["spec"]["mutations"]) == 1


def test_packaging_is_no_package() -> None:
    assert not list((ROOT / "packaging").rglob("__init__.py")), "it would stand before the library of that name"
