"""What is taken, what is refused and in which words."""

from __future__ import annotations

import base64
import copy
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.model.pods import config_map, container, from_an_api_server, pod, with_everything
from tinyedge.errors import BadInput
from tinyedge.limits import CONTAINERS_PER_POD_MAX, LIST_ITEMS_MAX, OBJECT_BYTES_MAX, VOLUMES_PER_POD_MAX
from tinyedge.model import decode
from tinyedge.model.pod import ConfigMap, Pod, Secret

Json = dict[str, Any]


def found(raw: object) -> dict[str, str]:
    """Field to expected, of every problem."""
    return {one.field: one.expected for one in decode.problems(raw)}


def decoded(raw: object) -> Pod:
    taken = decode.decode_object(raw)
    assert isinstance(taken, Pod)
    return taken


def secret(data: Json | None = None, **fields: Any) -> Json:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": data or {}, **fields}


# --- what is taken -------------------------------------------------------------------------------


def test_the_least_that_is_a_pod_is_taken_with_the_defaults_of_kubernetes() -> None:
    taken = decoded(pod())
    assert taken.key == "default/web"
    spec = taken.spec
    assert (spec.restart_policy, spec.termination_grace_period_seconds, spec.dns_policy) == (
        "Always",
        30,
        "ClusterFirst",
    )
    assert spec.containers[0].termination_message_path == "/dev/termination-log"
    assert spec.containers[0].image_pull_policy == "", "what it means depends on the image: specs.pull_policy"


def test_a_pod_with_every_field_set_is_taken() -> None:
    assert decode.problems(with_everything()) == []


def test_what_is_taken_says_the_same_once_it_is_written_and_read_again() -> None:
    taken = decoded(with_everything())
    written = msgspec.json.decode(msgspec.json.encode(taken))
    assert decoded({"apiVersion": "v1", "kind": "Pod", **written}) == taken


def test_a_pod_as_an_api_server_makes_it_is_taken() -> None:
    taken = decoded(from_an_api_server())
    assert taken.metadata.labels == {"app.kubernetes.io/name": "web"}
    token = taken.spec.volumes[0].projected
    assert token is not None
    assert token.sources[0].service_account_token is not None


def test_the_copy_of_the_object_that_kubectl_keeps_in_an_annotation_is_dropped() -> None:
    assert decoded(from_an_api_server()).metadata.annotations == {"note": "kept"}


def test_a_null_is_a_field_that_was_not_given() -> None:
    raw = pod(container(command=None, resources=None), volumes=None, securityContext=None)
    assert decoded(raw) == decoded(pod())


@pytest.mark.parametrize("field", ["restartPolicy", "dnsPolicy"])
def test_an_empty_text_is_the_default_where_there_is_one(field: str) -> None:
    assert decoded(pod(**{field: ""})) == decoded(pod())


def test_a_probe_s_zeros_are_its_defaults() -> None:
    zeros = dict.fromkeys(("timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"), 0)
    probe = {"tcpSocket": {"port": 80}}
    one = decoded(pod(container(livenessProbe={**probe, **zeros})))
    assert one == decoded(pod(container(livenessProbe=probe)))


def test_a_volume_of_which_nothing_is_said_is_an_emptydir() -> None:
    volume = decoded(pod(volumes=[{"name": "v"}])).spec.volumes[0]
    assert volume.empty_dir is not None


def test_the_older_name_of_the_service_account_counts_when_the_newer_is_not_given() -> None:
    assert decoded(pod(serviceAccount="a")).spec.service_account_name == "a"
    assert decoded(pod(serviceAccount="a", serviceAccountName="b")).spec.service_account_name == "b"


def test_the_text_of_a_secret_goes_before_its_data() -> None:
    data = {"a": base64.b64encode(b"old").decode(), "b": base64.b64encode(b"\xff\x00").decode()}
    taken = decode.decode_object(secret(data, stringData={"a": "new", "c": None}))
    assert isinstance(taken, Secret)
    assert taken.data == {"a": b"new", "b": b"\xff\x00", "c": b""}


def test_base64_may_be_folded_into_lines() -> None:
    folded = base64.encodebytes(bytes(range(256))).decode()
    taken = decode.decode_object(secret({"a": folded}))
    assert isinstance(taken, Secret)
    assert taken.data["a"] == bytes(range(256))


def test_a_configmap_holds_text_and_bytes() -> None:
    taken = decode.decode_object({**config_map(a="b"), "binaryData": {"c": "AP8="}, "immutable": True})
    assert isinstance(taken, ConfigMap)
    assert (taken.data, taken.binary_data, taken.immutable) == ({"a": "b"}, {"c": b"\x00\xff"}, True)


def test_what_was_given_is_not_changed_by_reading_it() -> None:
    for raw in (from_an_api_server(), secret({"a": "YQ=="}, stringData={"b": "c"})):
        before = copy.deepcopy(raw)
        decode.decode_object(raw)
        assert raw == before


# --- kinds and fields ----------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [None, "text", 5, [], [{}]])
def test_what_is_no_object_is_refused(raw: object) -> None:
    with pytest.raises(BadInput, match=r"the document is .* expected an object"):
        decode.decode_object(raw)


def test_another_kind_is_refused_by_name_with_what_to_do_instead() -> None:
    with pytest.raises(
        BadInput, match=r"kind is Deployment, which is not run by the node itself.*the Pod that it would"
    ):
        decode.decode_object({"apiVersion": "apps/v1", "kind": "Deployment"})
    with pytest.raises(BadInput, match="kind is Gadget, which is not run"):
        decode.decode_object({"apiVersion": "v1", "kind": "Gadget"})


@pytest.mark.parametrize("version", [None, "v2", "apps/v1", 1])
def test_a_kind_of_another_version_is_refused(version: object) -> None:
    assert found({**pod(), "apiVersion": version}) == {"apiVersion": "v1 for a Pod"}


def test_an_unknown_field_is_named_with_the_one_that_was_perhaps_meant() -> None:
    raw = pod(container(ports=[{"containerport": 80, "containerPort": 80}], volumeMount=[]), restartpolicy="Never")
    assert found(raw) == {
        "spec.containers[0].ports[0].containerport": "containerPort, perhaps",
        "spec.containers[0].volumeMount": "volumeMounts, perhaps",
        "spec.restartpolicy": "restartPolicy, perhaps",
    }


def test_an_unknown_field_like_no_other_is_answered_with_all_there_are() -> None:
    assert found(pod(hostAliases=[{"ip": "::1", "qqq": 1}])) == {
        "spec.hostAliases[0].qqq": "one that Kubernetes has there: hostnames, ip"
    }


@pytest.mark.parametrize(
    ("spec", "field", "advice"),
    [
        ({"ephemeralContainers": [{"name": "d"}]}, "spec.ephemeralContainers", "tinyedge exec"),
        ({"runtimeClassName": "kata"}, "spec.runtimeClassName", "default handler"),
        ({"hostUsers": False}, "spec.hostUsers", "user namespaces"),
        ({"os": {"name": "windows"}}, "spec.os", "Linux"),
        ({"setHostnameAsFQDN": True}, "spec.setHostnameAsFQDN", "/etc/hosts"),
        ({"readinessGates": [{"conditionType": "x"}]}, "spec.readinessGates", "readinessProbe"),
        ({"resources": {"limits": {"cpu": 1}}}, "spec.resources", "each container"),
        ({"volumes": [{"name": "v", "nfs": {"server": "s"}}]}, "spec.volumes[0].nfs", "hostPath"),
        ({"volumes": [{"name": "v", "persistentVolumeClaim": {}, "csi": {"a": 1}}]}, "spec.volumes[0].csi", "cluster"),
        ({"containers": [container(volumeDevices=[{}])]}, "spec.containers[0].volumeDevices", "BlockDevice"),
        (
            {"containers": [container(lifecycle={"stopSignal": "SIGINT"})]},
            "spec.containers[0].lifecycle.stopSignal",
            "image",
        ),
    ],
)
def test_a_field_that_the_node_can_not_serve_is_refused_with_advice(spec: Json, field: str, advice: str) -> None:
    problems = found({**pod(), "spec": {**pod()["spec"], **spec}})
    assert field in problems
    assert "left out" in problems[field]
    assert advice in problems[field]


def test_read_only_mounts_below_are_refused_when_asked_for_and_taken_when_wished_for() -> None:
    mount = {"name": "v", "mountPath": "/v", "readOnly": True}
    for value, problems in (("IfPossible", 0), ("Disabled", 0), ("Enabled", 1)):
        raw = pod(container(volumeMounts=[{**mount, "recursiveReadOnly": value}]), volumes=[{"name": "v"}])
        assert len(decode.problems(raw)) == problems


def test_an_extended_resource_is_refused_unless_none_of_it_is_asked_for() -> None:
    field = "spec.containers[0].resources.limits.nvidia.com/gpu"
    assert found(pod(container(resources={"limits": {"nvidia.com/gpu": "1"}}))).keys() == {field}
    assert found(pod(container(resources={"limits": {"nvidia.com/gpu": "0"}}))) == {}
    assert found(pod(container(resources={"limits": {"hugepages-2Mi": "2Mi"}})))


@pytest.mark.parametrize("name", ["metadata", "spec"])
def test_what_must_be_there_is_missed(name: str) -> None:
    raw = pod()
    del raw[name]
    assert found(raw).keys() == {name}
    assert "missing" in str(decode.problems(raw)[0])


def test_several_mistakes_are_told_at_once() -> None:
    raw = pod({"name": "A"}, container(name="b", image=""), restartPolicy="always")
    assert found(raw).keys() == {"spec.containers[0].image"}, "first what is not there"
    raw["spec"]["containers"][0]["image"] = "a"
    assert found(raw).keys() == {"spec.containers[0].name", "spec.containers[1].image", "spec.restartPolicy"}


def test_the_first_mistake_is_raised_with_where_the_object_stands() -> None:
    with pytest.raises(BadInput) as caught:
        decode.decode_object(pod(restartPolicy="always"), "web.yaml:7")
    assert str(caught.value) == ("web.yaml:7: spec.restartPolicy is 'always': expected Always, OnFailure or Never")
    assert caught.value.field == "spec.restartPolicy"


# --- types ---------------------------------------------------------------------------------------


CPU_LIST = container(resources={"limits": {"cpu": []}})
HALF_A_PORT = container(livenessProbe={"tcpSocket": {"port": 1.5}})


@pytest.mark.parametrize(
    ("spec", "field", "expected"),
    [
        ({"hostNetwork": "yes"}, "spec.hostNetwork", "true or false"),
        ({"hostNetwork": 1}, "spec.hostNetwork", "true or false"),
        ({"terminationGracePeriodSeconds": "30"}, "spec.terminationGracePeriodSeconds", "a whole number"),
        ({"terminationGracePeriodSeconds": 1.5}, "spec.terminationGracePeriodSeconds", "a whole number"),
        ({"terminationGracePeriodSeconds": True}, "spec.terminationGracePeriodSeconds", "a whole number"),
        ({"hostname": 5}, "spec.hostname", "a text (in quotes"),
        ({"containers": {}}, "spec.containers", "a list"),
        ({"containers": [5]}, "spec.containers[0]", "a mapping of fields"),
        ({"containers": [container(command="sleep 5")]}, "spec.containers[0].command", "a list of texts"),
        ({"containers": [container(args=["-n", 5])]}, "spec.containers[0].args", "a list of texts"),
        ({"containers": [CPU_LIST]}, "spec.containers[0].resources.limits.cpu", "500m"),
        ({"securityContext": {"supplementalGroups": ["a"]}}, "spec.securityContext.supplementalGroups", "numbers"),
        ({"containers": [HALF_A_PORT]}, "spec.containers[0].livenessProbe.tcpSocket.port", "a port number"),
    ],
)
def test_a_value_of_another_type_is_named_with_what_would_be_right(spec: Json, field: str, expected: str) -> None:
    problems = found({**pod(), "spec": {**pod()["spec"], **spec}})
    assert list(problems) == [field]
    assert expected in problems[field]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"apiVersion": "v1"}, "kind is missing: "),
        ({"kind": "Pod"}, "apiVersion is missing: "),
        ({"kind": 5}, "kind is 5: "),
        (pod(hostname=5), "spec.hostname is 5: "),
        (pod(hostname=["a", "b"]), "spec.hostname is a list: "),
        (pod(hostname={"a": "b"}), "spec.hostname is a mapping: "),
        (pod(container(env=[{"name": 5}])), "spec.containers[0].env[0].name is 5: "),
        (pod(container(ports={"containerPort": 1})), "spec.containers[0].ports is a mapping: "),
    ],
)
def test_what_was_found_is_shown_when_it_is_plain_and_else_what_it_is(raw: Json, words: str) -> None:
    assert str(decode.problems(raw)[0]).startswith(words)


def test_a_number_as_a_variable_s_value_is_not_shown() -> None:
    problem = decode.problems(pod(container(env=[{"name": "PIN", "value": 31337}])))[0]
    assert problem.field == "spec.containers[0].env[0].value"
    assert "31337" not in f"{problem}{problem.value!r}"


def test_a_number_in_a_configmap_wants_quotes() -> None:
    assert "in quotes" in found({**config_map(), "data": {"port": 8080}})["data.port"]
    assert "in quotes" in found({**config_map(), "data": {8080: "a"}})["data"]


def test_a_list_longer_than_any_needs_to_be_is_not_walked() -> None:
    raw = pod(container(env=[{"name": "A"}] * (LIST_ITEMS_MAX + 1)))
    assert found(raw) == {"spec.containers[0].env": f"at most {LIST_ITEMS_MAX} items"}
    assert found(pod(container(args=["a"] * (LIST_ITEMS_MAX + 1))))


def test_an_object_that_is_too_large_is_refused() -> None:
    huge = "x" * (OBJECT_BYTES_MAX + 1)
    assert found(config_map(a=huge)).keys() == {"data"}
    assert found(pod(container(args=[huge]))) == {"the document": f"at most {OBJECT_BYTES_MAX} bytes"}


# --- secrets -------------------------------------------------------------------------------------

WORD = "hunter2hunter2"


@pytest.mark.parametrize(
    "raw",
    [
        secret({"a": WORD + "!"}),
        secret({"a": {"b": WORD}}),
        secret({"a b": WORD}),
        secret({"a": [WORD]}),
        {**secret(), "data": WORD},
        {**secret(), "data": [WORD]},
        secret(stringData=WORD),
        secret(stringData={"a": [WORD]}),
        secret(stringData={"a b": WORD}),
        secret(strinData={"a": WORD}),
        secret(spec={"a": WORD}),
        secret(type="kubernetes.io/dockerconfigjson", stringData={".dockerconfigjson": WORD}),
        secret(type="kubernetes.io/tls", stringData={"tls.key": WORD}),
        {**secret(), "metadata": {"name": "s", "annotations": {"a": [WORD]}}},
        {**secret(), "metadata": {"name": "s", "annotations": {"a b": WORD}}},
        {**secret(), "metadata": {"name": "s", "labels": {"a": WORD + "!"}}},
        {**secret(), "metadata": WORD},
        pod(container(env=[{"name": "A", "value": [WORD]}])),
        pod(container(env=[{"name": "A", "value": WORD, "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}])),
        pod(container(env=[{"name": "A", "value": WORD + "\0"}])),
    ],
)
def test_no_value_of_a_secret_or_variable_stands_in_an_error(raw: Json) -> None:
    problems = decode.problems(raw)
    assert problems
    for problem in problems:
        assert WORD not in f"{problem}{problem!r}{problem.value!r}{problem.args}{problem.expected}"


def test_what_names_a_secret_is_shown() -> None:
    assert "'S'" in str(decode.problems({**secret(), "metadata": {"name": "S"}})[0])


@pytest.mark.parametrize(
    ("kind", "data", "field"),
    [
        ("kubernetes.io/dockerconfigjson", {}, "data..dockerconfigjson"),
        ("kubernetes.io/dockerconfigjson", {".dockerconfigjson": "no"}, "data..dockerconfigjson"),
        ("kubernetes.io/dockercfg", {}, "data..dockercfg"),
        ("kubernetes.io/tls", {"tls.crt": "a"}, "data.tls.key"),
        ("kubernetes.io/ssh-auth", {}, "data.ssh-privatekey"),
    ],
)
def test_a_secret_of_a_known_type_holds_what_belongs_to_it(kind: str, data: Json, field: str) -> None:
    assert found(secret(type=kind, stringData=data)).keys() == {field}


def test_a_registry_secret_is_taken() -> None:
    assert decode.problems(secret(type="kubernetes.io/dockerconfigjson", stringData={".dockerconfigjson": "{}"})) == []


def test_a_key_can_not_be_both_text_and_bytes() -> None:
    assert found({**config_map(a="b"), "binaryData": {"a": "YQ=="}}).keys() == {"binaryData.a"}


# --- anything at all -----------------------------------------------------------------------------

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(ANYTHING)
def test_whatever_is_given_is_taken_or_refused_in_words(raw: object) -> None:
    assert all(str(one) for one in decode.problems(raw))


def paths(raw: object, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    items = raw.items() if isinstance(raw, dict) else enumerate(raw) if isinstance(raw, list) else ()
    return [at, *(path for key, value in items for path in paths(value, (*at, key)))]


EVERYWHERE = paths(with_everything())[1:]


@given(st.sampled_from(EVERYWHERE), ANYTHING)
def test_a_pod_with_anything_anywhere_is_taken_or_refused_in_words(path: tuple[str | int, ...], value: object) -> None:
    raw: Any = with_everything()
    inner = raw
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    assert all(one.field and one.expected for one in decode.problems(raw))


def test_a_pod_that_only_limits_bounds_is_taken() -> None:
    containers = [container(name=f"c{index}") for index in range(CONTAINERS_PER_POD_MAX)]
    volumes = [{"name": f"v{index}"} for index in range(VOLUMES_PER_POD_MAX)]
    assert decode.problems(pod(*containers, volumes=volumes)) == []
    assert found(pod(*containers, initContainers=[container(name="more")])).keys() == {"spec.containers"}
    assert found(pod(volumes=[*volumes, {"name": "more"}])).keys() == {"spec.volumes"}
