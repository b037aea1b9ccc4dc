"""Tokens and nodes, by the program, against a sandbox."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from cloud_gateway.adapters import ca
from cloud_gateway.adapters.kube import Kube
from cloud_gateway.adapters.kube_types import LEASES, NODES, PODS, SECRETS, KubeError, Resource
from cloud_gateway.core import authority, translate
from cloud_gateway.core.authority import Binding, State
from tests.cloud_gateway.cli.conftest import Cluster, Ran
from tinyedge.cli.errors import EXIT_USAGE
from tinyedge.protocol.joining import claims_of, unseal

Json = dict[str, Any]
Here = Callable[..., Ran]


@pytest.fixture
def state(cluster: Cluster, here: Here) -> Iterator[Callable[[], State]]:
    """What the Secret holds; gate-7 has joined."""
    assert here("token", "create", "--node", "x").code == 0  # makes both Secrets

    def write(after: State) -> None:
        secret = cluster.do(lambda kube: kube.get(SECRETS, ca.STATE_SECRET, "tinyedge"))
        packed = base64.b64encode(authority.encode_state(after, int(time.time()))).decode()
        secret["data"] = {ca.STATE_KEY: packed}
        cluster.do(lambda kube: kube.replace(SECRETS, ca.STATE_SECRET, secret, "tinyedge"))

    def read() -> State:
        secret = cluster.do(lambda kube: kube.get(SECRETS, ca.STATE_SECRET, "tinyedge"))
        return authority.decode_state(base64.b64decode(secret["data"][ca.STATE_KEY]))

    write(State(bindings={"gate-7": Binding("ab" * 32, "01" * 8, int(time.time()) - 7200)}))
    yield read
    write(State())


# --- tokens ------------------------------------------------------------------------------------------


def test_a_token_stands_alone_on_standard_output(here: Here) -> None:
    ran = here("token", "create", "--node", "gate-7", "--ttl", "90m")
    assert ran.code == 0
    token = ran.out.strip()
    claims = claims_of(unseal(token)[0])
    assert (claims.node, claims.pattern) == ("gate-7", "")
    assert abs(claims.expires_s - time.time() - 5400) < 60
    assert "tinyedge join wss://" in ran.err
    assert token not in ran.err


def test_a_token_as_json_says_for_whom_and_until_when(here: Here) -> None:
    told = json.loads(here("token", "create", "--pattern", "gate-*", "-o", "json").out)
    assert set(told) == {"token", "pattern", "expires"}
    assert claims_of(unseal(told["token"])[0]).pattern == told["pattern"] == "gate-*"


def test_labels_and_taints_go_into_the_token(here: Here) -> None:
    words = ["--label", "site=roof", "--label", "tier=", "--taint", "a=b:NoSchedule", "--taint", "c:NoExecute"]
    claims = claims_of(unseal(here("token", "create", "--node", "n", *words).out.strip())[0])
    assert claims.labels == {"site": "roof", "tier": ""}
    assert [(one.key, one.value, one.effect) for one in claims.taints] == [
        ("a", "b", "NoSchedule"),
        ("c", "", "NoExecute"),
    ]


def test_tokens_of_one_cluster_are_made_by_one_ca(here: Here) -> None:
    one, other = (claims_of(unseal(here("token", "create", "--node", "n").out.strip())[0]) for _ in range(2))
    assert one.ca == other.ca
    assert one.id != other.id


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "--node"),
        (["--node", "a", "--pattern", "b*"], "--node"),
        (["--node", "UPPER"], "--node"),
        (["--node", "a", "--ttl", "0s"], "--ttl"),
        (["--node", "a", "--ttl", "91d"], "--ttl"),
        (["--node", "a", "--ttl", "soon"], "not a duration"),
        (["--node", "a", "--label", "x"], "--label"),
        (["--node", "a", "--taint", "x"], "--taint"),
    ],
)
def test_a_token_that_makes_no_sense_is_wrong_usage(here: Here, words: list[str], named: str) -> None:
    ran = here("token", "create", *words)
    assert (ran.code, ran.out) == (EXIT_USAGE, "")
    assert named in ran.err


def test_a_namespace_that_is_not_there_is_told(here: Here) -> None:
    ran = here("token", "create", "--node", "a", "-n", "elsewhere")
    assert ran.code == 1
    assert "there is no namespace elsewhere" in ran.err


# --- nodes -------------------------------------------------------------------------------------------


def test_who_has_joined_is_listed(here: Here, state: Callable[[], State]) -> None:
    lines = here("node", "list").out.splitlines()
    assert [line.split() for line in lines] == [
        ["NAME", "STATE", "MACHINE", "JOINED"],
        ["gate-7", "Joined", "ab" * 6, "120m"],
    ]
    (told,) = json.loads(here("node", "list", "-o", "json").out)["items"]
    assert (told["name"], told["state"], told["machine"]) == ("gate-7", "Joined", "ab" * 32)


def test_revoking_replacing_and_deleting_change_the_state(here: Here, state: Callable[[], State]) -> None:
    assert here("node", "revoke", "gate-7").code == 0
    assert state().bindings["gate-7"].revoked_s > 0
    assert "Revoked" in here("node", "list").out
    assert here("node", "replace", "gate-7").code == 0
    assert "gate-7" in state().replace
    assert "Replaceable" in here("node", "list").out
    assert json.loads(here("node", "delete", "gate-7", "-o", "json").out) == {"name": "gate-7", "done": "delete"}
    assert state().bindings == {}
    assert "No node has joined yet" in here("node", "list").out


@pytest.mark.parametrize("verb", ["revoke", "replace", "delete"])
def test_a_node_that_never_joined_is_refused(here: Here, state: Callable[[], State], verb: str) -> None:
    before = state()
    ran = here("node", verb, "gate-8")
    assert (ran.code, ran.out) == (1, "")
    assert "there is no node gate-8" in ran.err
    assert state() == before


def _node(labels: dict[str, str]) -> Json:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "gate-7", "labels": labels}}


def _pod(name: str, node: str) -> Json:
    spec = {"nodeName": node, "containers": [{"name": "main", "image": "app"}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


@pytest.fixture
def furnished(cluster: Cluster) -> Iterator[Callable[[], set[str]]]:
    """What the cluster has of gate-7, which nobody looks after, and of another node."""
    lease = translate.lease("gate-7", "", 0)
    objects = [(LEASES, lease, "kube-node-lease", "gate-7")]
    objects += [(PODS, _pod(name, node), "default", name) for name, node in (("a", "gate-7"), ("b", "gate-8"))]
    for resource, body, namespace, _ in objects:
        cluster.create(resource, body, namespace)

    def left() -> set[str]:
        found = set()
        for resource, _, namespace, name in [(NODES, {}, "", "gate-7"), *objects]:
            with suppress(KubeError):
                cluster.do(partial(_get, resource=resource, name=name, namespace=namespace))
                found.add(f"{resource.plural}/{name}")
        return found

    yield left
    for resource, _, namespace, name in [(NODES, {}, "", "gate-7"), *objects]:
        with suppress(KubeError):
            cluster.do(partial(_remove, resource=resource, name=name, namespace=namespace))


async def _get(kube: Kube, resource: Resource, name: str, namespace: str) -> None:
    await kube.get(resource, name, namespace)


async def _remove(kube: Kube, resource: Resource, name: str, namespace: str) -> None:
    await kube.delete(resource, name, namespace, grace_s=0)


def test_deleting_takes_all_that_the_cluster_has_of_a_node_while_no_gateway_runs(
    here: Here, cluster: Cluster, state: Callable[[], State], furnished: Callable[[], set[str]]
) -> None:
    cluster.create(NODES, _node({translate.EDGE_LABEL: ""}))
    assert here("node", "delete", "gate-7").code == 0
    assert furnished() == {"pods/b"}
    assert state().bindings == {}
    ran = here("node", "delete", "gate-7")
    assert (ran.code, "there is no node gate-7" in ran.err) == (1, True)


def test_deleting_once_more_takes_what_is_left_of_a_node_whose_name_is_free_already(
    here: Here, cluster: Cluster, state: Callable[[], State], furnished: Callable[[], set[str]]
) -> None:
    assert here("node", "delete", "gate-7").code == 0
    cluster.create(NODES, _node({translate.EDGE_LABEL: ""}))
    assert here("node", "delete", "gate-7").code == 0
    assert furnished() == {"pods/b"}


def test_deleting_leaves_a_node_of_the_cluster_that_is_none_of_ours(
    here: Here, cluster: Cluster, state: Callable[[], State], furnished: Callable[[], set[str]]
) -> None:
    cluster.create(NODES, _node({}))
    before = furnished()
    assert here("node", "delete", "gate-7").code == 0
    assert furnished() == before
    assert state().bindings == {}
