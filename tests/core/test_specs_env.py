"""The environment of a container, and what a pod can learn about itself."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.worlds import NODE, Held, around, make, secret
from tests.model.pods import config_map, container
from tinyedge.core import env, specs
from tinyedge.core.refs import Unready
from tinyedge.events import NodeFacts


def environment(
    *objects: dict[str, Any], meta: dict[str, Any] | None = None, **fields: Any
) -> dict[str, str] | Unready:
    made = make(container(**fields), meta=meta)
    return env.environment(made, made.spec.containers[0], around(*objects, pod_ip="10.88.0.5", host_ip="192.168.1.7"))


def refused(found: dict[str, str] | Unready) -> str:
    assert isinstance(found, Unready)
    assert found.reason == "CreateContainerConfigError"
    return found.message


# --- $(VAR) --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("$(A)", "1"),
        ("$(A)$(B)", "12"),
        ("x$(A)y", "x1y"),
        ("$(C)", "$(C)"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$$$$(A)", "$$(A)"),
        ("$$", "$"),
        ("$", "$"),
        ("$A", "$A"),
        ("${A}", "${A}"),
        ("$(A", "$(A"),
        ("$(A$$", "$(A$"),
        ("$()", "$()"),
        ("$($(A))", "$($(A))"),
        ("a$", "a$"),
        ("$(E)", ""),
        ("$(D)", "$(A)"),
    ],
)
def test_a_reference_stands_for_its_value_and_two_dollars_for_one(text: str, expanded: str) -> None:
    assert env.expand(text, {"A": "1", "B": "2", "D": "$(A)", "E": ""}) == expanded


def by_the_letter(text: str, known: dict[str, str]) -> str:
    """The rule, read one character at a time."""
    out, at = "", 0
    while at < len(text):
        if text[at] == "$" and text[at + 1 : at + 2] == "$":
            out, at = out + "$", at + 2
        elif text[at] == "$" and text[at + 1 : at + 2] == "(" and ")" in text[at:]:
            end = text.index(")", at)
            out, at = out + known.get(text[at + 2 : end], text[at : end + 1]), end + 1
        else:
            out, at = out + text[at], at + 1
    return out


@given(st.text(alphabet="$()AB\n", max_size=20))
def test_expansion_goes_by_the_letter(text: str) -> None:
    known = {"A": "x", "B": "$(A)"}
    assert env.expand(text, known) == by_the_letter(text, known)


# --- env and envFrom -----------------------------------------------------------------------------


def test_a_variable_sees_those_before_it_and_those_of_envfrom() -> None:
    variables = [
        {"name": "A", "value": "a"},
        {"name": "B", "value": "$(A)$(C)$(ALL)"},
        {"name": "C", "value": "c"},
        {"name": "D", "value": "$(B)$(C)"},
    ]
    found = environment(config_map("all", ALL="all"), env=variables, envFrom=[{"configMapRef": {"name": "all"}}])
    assert found == {"ALL": "all", "A": "a", "B": "a$(C)all", "C": "c", "D": "a$(C)allc"}


def test_what_comes_from_a_configmap_is_not_expanded() -> None:
    source = {"configMapKeyRef": {"name": "c", "key": "k"}}
    found = environment(
        config_map("c", k="$(A)$$"), env=[{"name": "A", "value": "a"}, {"name": "K", "valueFrom": source}]
    )
    assert found == {"A": "a", "K": "$(A)$$"}


def test_a_later_source_goes_before_an_earlier_one_and_env_before_all() -> None:
    found = environment(
        config_map("one", A="1", B="1", C="1"),
        secret("two", B="2", C="2"),
        envFrom=[{"configMapRef": {"name": "one"}}, {"secretRef": {"name": "two"}}],
        env=[{"name": "C", "value": "3"}],
    )
    assert found == {"A": "1", "B": "2", "C": "3"}


def test_a_prefix_goes_before_every_key() -> None:
    found = environment(
        config_map("c", a="1", **{"x-y.z": "2"}), envFrom=[{"prefix": "P_", "configMapRef": {"name": "c"}}]
    )
    assert found == {"P_a": "1", "P_x-y.z": "2"}


def test_keys_come_from_the_pod_s_own_namespace() -> None:
    elsewhere = {**config_map("c", k="v"), "metadata": {"name": "c", "namespace": "other"}}
    fields: dict[str, Any] = {"envFrom": [{"configMapRef": {"name": "c"}}]}
    assert refused(environment(elsewhere, **fields)) == 'configmap "c" not found'
    assert environment(elsewhere, meta={"namespace": "other"}, **fields) == {"k": "v"}


def ref(kind: str, *, optional: bool = False) -> dict[str, Any]:
    source = {f"{kind}KeyRef": {"name": "o", "key": "k", "optional": optional}}
    return {"env": [{"name": "K", "valueFrom": source}]}


def test_what_is_not_there_keeps_the_container_from_being_made() -> None:
    assert refused(environment(**ref("configMap"))) == 'configmap "o" not found'
    assert refused(environment(**ref("secret"))) == 'secret "o" not found'
    assert refused(environment(config_map("o"), **ref("configMap"))) == "couldn't find key k in ConfigMap default/o"
    assert refused(environment(secret("o"), **ref("secret"))) == "couldn't find key k in Secret default/o"
    assert refused(environment(envFrom=[{"secretRef": {"name": "o"}}])) == 'secret "o" not found'


def test_what_is_optional_and_not_there_is_left_out() -> None:
    for objects in ((), (config_map("o"), secret("o"))):
        assert environment(*objects, **ref("configMap", optional=True)) == {}
        assert environment(*objects, **ref("secret", optional=True)) == {}
    for kind in ("configMapRef", "secretRef"):
        assert environment(envFrom=[{kind: {"name": "o", "optional": True}}]) == {}


def test_a_secret_that_is_no_text_can_not_be_a_variable() -> None:
    for data in (b"\xff", b"a\0b"):
        raw = {**secret("o"), "data": {"k": base64.b64encode(data).decode()}}
        assert "not UTF-8 text" in refused(environment(raw, **ref("secret")))
        assert "not UTF-8 text" in refused(environment(raw, envFrom=[{"secretRef": {"name": "o"}}]))


def test_there_are_no_variables_for_services() -> None:
    assert environment() == {}


# --- fieldRef ------------------------------------------------------------------------------------


def field(path: str, **spec: Any) -> str:
    meta = {"name": "web", "namespace": "shop", "labels": {"app": "x", "b": "y"}, "annotations": {"n": "line\n2"}}
    made = make(meta=meta, serviceAccountName="acc", **spec)
    return env.field_value(made, path, around(pod_ip="" if spec else "10.88.0.5", host_ip="192.168.1.7"))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata.name", "web"),
        ("metadata.namespace", "shop"),
        ("metadata.uid", "8a6e0804-2bd0-4672-b79d-d97027f9071a"),
        ("metadata.labels['app']", "x"),
        ("metadata.labels['none']", ""),
        ("metadata.annotations['n']", "line\n2"),
        ("metadata.labels", 'app="x"\nb="y"'),
        ("metadata.annotations", 'n="line\\n2"'),
        ("spec.nodeName", "edge-1"),
        ("spec.serviceAccountName", "acc"),
        ("status.hostIP", "192.168.1.7"),
        ("status.hostIPs", "192.168.1.7"),
        ("status.podIP", "10.88.0.5"),
        ("status.podIPs", "10.88.0.5"),
    ],
)
def test_a_pod_knows_itself(path: str, value: str) -> None:
    assert field(path) == value


def test_the_address_of_a_pod_in_the_node_s_network_is_the_node_s() -> None:
    assert field("status.podIP", hostNetwork=True) == "192.168.1.7"


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ('a"b\\', r'"a\"b\\"'),
        ("\t\r\a\x01\x7f", r'"\t\r\a\x01\x7f"'),
        ("ä€😀", '"ä€😀"'),
        ("\u00a0\u200b", r'"\u00a0\u200b"'),
    ],
)
def test_labels_in_a_file_are_quoted_as_programs_expect_it(text: str, quoted: str) -> None:
    made = make(meta={"annotations": {"a": text}})
    assert env.field_value(made, "metadata.annotations", around()) == f"a={quoted}"


# --- resourceFieldRef ----------------------------------------------------------------------------


def resource(name: str, divisor: str | int = "0", node: NodeFacts = NODE, **given: dict[str, Any]) -> str:
    variable = {"name": "R", "valueFrom": {"resourceFieldRef": {"resource": name, "divisor": divisor}}}
    one = container(resources=given, env=[variable])
    made = make(one)
    found = env.environment(made, made.spec.containers[0], env.Around(node, Held()))
    assert isinstance(found, dict)
    return found["R"]


@pytest.mark.parametrize(
    ("name", "divisor", "value"),
    [
        ("limits.cpu", "0", "2"),
        ("limits.cpu", "1m", "1500"),
        ("limits.memory", "0", "67108864"),
        ("limits.memory", "1Mi", "64"),
        ("limits.memory", "1M", "68"),
        ("requests.cpu", "1m", "250"),
        ("requests.cpu", "1", "1"),
        ("requests.memory", "1", "67108864"),
        ("requests.ephemeral-storage", "1", "0"),
    ],
)
def test_resources_come_in_units_of_the_divisor_rounded_up(name: str, divisor: str, value: str) -> None:
    assert resource(name, divisor, limits={"cpu": "1500m", "memory": "64Mi"}, requests={"cpu": "250m"}) == value


def test_a_limit_that_is_not_set_is_what_the_node_has() -> None:
    assert resource("limits.cpu") == "4"
    assert resource("limits.memory", "1Gi") == "4"
    assert resource("limits.ephemeral-storage", "1Gi") == "32"
    assert resource("requests.cpu") == "0"


def test_resources_of_another_container_can_be_named() -> None:
    source = {"resourceFieldRef": {"resource": "limits.cpu", "containerName": "other"}}
    made = make(
        container(env=[{"name": "R", "valueFrom": source}]), container(name="other", resources={"limits": {"cpu": 3}})
    )
    assert env.environment(made, made.spec.containers[0], around()) == {"R": "3"}


# --- where it is used ----------------------------------------------------------------------------


def test_command_and_arguments_are_expanded_with_the_whole_environment() -> None:
    variables = [{"name": "A", "value": "a"}, {"name": "B", "value": "$(A)"}]
    made = make(container(command=["$(A)", "$$(A)"], args=["-n=$(B)", "$(C)"], env=variables))
    spec = specs.container_spec(made, made.spec.containers[0], 0, NODE, Held())
    assert not isinstance(spec, Unready)
    assert (spec.command, spec.args) == (("a", "$(A)"), ("-n=a", "$(C)"))
    assert spec.env == (("A", "a"), ("B", "a"))
