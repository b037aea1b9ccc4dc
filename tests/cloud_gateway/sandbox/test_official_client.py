"""A client that nobody here wrote: the official `kubernetes` package for Python, over TLS."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio

from cloud_gateway.sandbox import Sandbox
from tests.cloud_gateway.sandbox.conftest import start

T = TypeVar("T")

kubernetes: Any = pytest.importorskip("kubernetes", reason="needs the kubernetes package (pip install kubernetes)")
client = kubernetes.client


@pytest.fixture
async def api(tmp_path: Path, nursery: trio.Nursery) -> Any:
    sandbox: Sandbox = await start(nursery, tmp_path / "sandbox", tls=True)
    return kubernetes.config.new_client_from_config(config_file=sandbox.kubeconfig)


async def done(call: Callable[[], T]) -> T:
    """It blocks, so it runs beside the sandbox."""
    with trio.fail_after(60):
        return await trio.to_thread.run_sync(call)


def a_pod(name: str) -> Any:
    container = client.V1Container(name="c", image="busybox:1.35", command=["sleep", "1000"])
    metadata = client.V1ObjectMeta(name=name, labels={"app": name})
    return client.V1Pod(metadata=metadata, spec=client.V1PodSpec(containers=[container], node_name="gate-7"))


async def test_a_pod_lives_from_creation_to_its_graceful_end(api: Any) -> None:
    core = client.CoreV1Api(api)

    def life() -> None:
        made = core.create_namespaced_pod("default", a_pod("web"))
        assert made.status.qos_class == "BestEffort"
        assert made.spec.tolerations[0].toleration_seconds == 300
        status = {"status": {"phase": "Running", "podIP": "10.1.1.1"}}
        assert core.patch_namespaced_pod_status("web", "default", status).status.phase == "Running"
        on_node = core.list_pod_for_all_namespaces(field_selector="spec.nodeName=gate-7")
        assert [pod.metadata.name for pod in on_node.items] == ["web"]
        ending = core.delete_namespaced_pod("web", "default")
        assert ending.metadata.deletion_grace_period_seconds == 30
        options = client.V1DeleteOptions(
            grace_period_seconds=0, preconditions=client.V1Preconditions(uid=made.metadata.uid)
        )
        core.delete_namespaced_pod("web", "default", body=options)
        with pytest.raises(client.ApiException) as gone:
            core.read_namespaced_pod("web", "default")
        assert gone.value.status == 404

    await done(life)


async def test_a_watch_tells_what_happens_from_a_list_on(api: Any) -> None:
    core = client.CoreV1Api(api)

    def watching() -> list[tuple[str, str]]:
        start_at = core.list_namespaced_config_map("default").metadata.resource_version
        for name in ("a", "b"):
            core.create_namespaced_config_map("default", {"metadata": {"name": name}, "data": {"x": "1"}})
        core.patch_namespaced_config_map("a", "default", {"data": {"x": "2"}})
        core.delete_namespaced_config_map("b", "default")
        events = kubernetes.watch.Watch().stream(
            core.list_namespaced_config_map, "default", resource_version=start_at, timeout_seconds=1
        )
        return [(event["type"], event["object"].metadata.name) for event in events]

    assert await done(watching) == [("ADDED", "a"), ("ADDED", "b"), ("MODIFIED", "a"), ("DELETED", "b")]


async def test_a_stale_object_is_not_written(api: Any) -> None:
    core = client.CoreV1Api(api)

    def stale() -> None:
        made = core.create_namespaced_config_map("default", {"metadata": {"name": "cfg"}, "data": {"a": "1"}})
        core.patch_namespaced_config_map("cfg", "default", {"data": {"a": "2"}})
        with pytest.raises(client.ApiException) as conflict:
            core.replace_namespaced_config_map("cfg", "default", made)
        assert (conflict.value.status, conflict.value.reason) == (409, "Conflict")

    await done(stale)


async def test_leases_nodes_secrets_and_events_are_read_as_they_were_written(api: Any) -> None:
    core, coordination = client.CoreV1Api(api), client.CoordinationV1Api(api)

    def writing() -> None:
        core.create_node({"metadata": {"name": "gate-7", "labels": {"a": "b"}}})
        assert core.list_node(label_selector="a=b").items[0].spec.taints[0].key == "node.kubernetes.io/not-ready"
        spec = client.V1LeaseSpec(holder_identity="gate-7", lease_duration_seconds=40)
        lease = coordination.create_namespaced_lease(
            "kube-node-lease", client.V1Lease(metadata=client.V1ObjectMeta(name="gate-7"), spec=spec)
        )
        lease.spec.lease_duration_seconds = 41
        again = coordination.replace_namespaced_lease("gate-7", "kube-node-lease", lease)
        assert again.spec.lease_duration_seconds == 41
        core.create_namespaced_secret("default", {"metadata": {"name": "s"}, "stringData": {"a": "b"}})
        assert core.read_namespaced_secret("s", "default").data == {"a": "Yg=="}
        about = {"kind": "Node", "name": "gate-7"}
        core.create_namespaced_event(
            "default",
            {
                "metadata": {"generateName": "gate-7."},
                "involvedObject": about,
                "reason": "Rebooted",
                "type": "Warning",
                "eventTime": "2026-11-23T00:00:00.5+01:00",
            },
        )
        found = core.list_event_for_all_namespaces(field_selector="involvedObject.name=gate-7,type=Warning")
        assert found.items[0].reason == "Rebooted"
        newer = client.EventsV1Api(api).list_event_for_all_namespaces().items[0]
        assert newer.regarding.name == "gate-7"
        assert newer.event_time.isoformat() == "2026-11-22T23:00:00.500000+00:00"

    await done(writing)


async def test_reviews_and_tokens_are_answered(api: Any) -> None:
    core, review = client.CoreV1Api(api), client.AuthenticationV1Api(api)

    def reviewing() -> None:
        asked = client.AuthenticationV1TokenRequest(
            spec=client.V1TokenRequestSpec(audiences=[], expiration_seconds=600)
        )
        token = core.create_namespaced_service_account_token("default", "default", asked).status.token
        found = review.create_token_review(client.V1TokenReview(spec=client.V1TokenReviewSpec(token=token)))
        assert found.status.user.username == "system:serviceaccount:default:default"

    await done(reviewing)


async def test_manifests_are_created_from_files(api: Any) -> None:
    items: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "plant"}},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "plant"}, "data": {"a": "1"}},
    ]

    def creating() -> None:
        for item in items:
            kubernetes.utils.create_from_dict(api, item)
        assert client.CoreV1Api(api).read_namespaced_config_map("c", "plant").data == {"a": "1"}

    await done(creating)
