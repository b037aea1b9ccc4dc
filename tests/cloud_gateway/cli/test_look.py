"""`nodes`, `top` and `status`: what Kubernetes says, with a gateway beside it and without."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from cloud_gateway.adapters import status_page
from cloud_gateway.adapters.kube import Kube
from cloud_gateway.adapters.kube_types import LEASES, NODES
from cloud_gateway.cli import look
from cloud_gateway.core import translate
from tests.cloud_gateway.cli.conftest import Cluster, Ran

Here = Callable[..., Ran]
NOBODY = ("--metrics", "127.0.0.1:1")


def stamp(ago_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - ago_s))


async def say_status(name: str, status: dict[str, Any], kube: Kube) -> None:
    await kube.patch(NODES, name, {"status": status}, subresource="status")


@pytest.fixture
def nodes(cluster: Cluster) -> Iterator[None]:
    """gate-1 is connected, gate-2 has been away for three hours, gate-3 has said nothing yet; other is no edge node."""
    for name, connected, ago_s in (("gate-1", "True", 60), ("gate-2", "False", 10800), ("gate-3", "", 0)):
        node = translate.node_object(name, {}, [], "replica-a")
        if name == "gate-2":
            node["metadata"]["annotations"]["tinyedge.io/autonomy"] = "72h"
        cluster.create(NODES, node)
        condition = {"type": translate.CONNECTED, "status": connected, "reason": "X"}
        condition |= {"message": "m", "lastTransitionTime": stamp(ago_s), "lastHeartbeatTime": stamp(0)}
        ready = {"type": "Ready", "status": "True", "lastTransitionTime": stamp(ago_s)}
        status = {
            "conditions": [ready, condition] if connected else [],
            "capacity": {"cpu": "4", "memory": "4Gi"},
        }
        cluster.do(partial(say_status, name, status))
    cluster.create(NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "other"}})
    yield
    for name in ("gate-1", "gate-2", "gate-3", "other"):
        cluster.delete(NODES, name)


@pytest.fixture
def gateway() -> Iterator[tuple[str, str]]:
    """The pages of a running gateway: --metrics and its address."""
    known = [{"name": "gate-1", "connected": True, "synced": True, "pods": 7, "port": 0, "awaySeconds": 0}]
    pages = {
        "/v1/nodes": json.dumps({"items": known}),
        "/metrics": status_page.text({"tinyedge_gateway_nodes": ("Nodes.", 3), 'tinyedge_x{a="b"}': ("X.", 1.5)}),
    }

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = pages[self.path].encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield "--metrics", f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def rows(ran: Ran) -> list[list[str]]:
    assert ran.code == 0, ran.err
    return [line.split() for line in ran.out.splitlines()]


def test_nodes_are_listed_with_who_is_connected_since_when(here: Here, nodes: None) -> None:
    header, *lines = rows(here("nodes", *NOBODY))
    assert header == ["NAME", "READY", "CONNECTED", "FOR", "SYNCED", "PODS", "AUTONOMY", "VERSION", "AGE"]
    assert [line[:3] for line in lines] == [
        ["gate-1", "True", "True"],
        ["gate-2", "True", "False"],
        ["gate-3", "Unknown", "Unknown"],
    ]
    assert [line[3:7] for line in lines[1:]] == [["3h", "-", "-", "72h"], ["<unknown>", "-", "-", "fleet's"]]


def test_a_running_gateway_adds_what_only_it_knows(here: Here, nodes: None, gateway: tuple[str, str]) -> None:
    _, *lines = rows(here("nodes", *gateway))
    assert [line[4:6] for line in lines] == [["yes", "7"], ["-", "-"], ["-", "-"]]
    told = {one["name"]: one for one in json.loads(here("nodes", "-o", "json", *gateway).out)["items"]}
    assert told["gate-1"]["live"]["synced"] is True
    assert "live" not in told["gate-2"]
    assert told["gate-2"]["autonomy"] == "72h"
    assert told["gate-1"]["gateway"] == "replica-a"


def test_no_nodes_yet_is_no_failure(here: Here) -> None:
    ran = here("nodes", *NOBODY)
    assert ran.code == 0
    assert "token create" in ran.out


def test_status_counts_nodes_and_names_the_gateways_that_are_alive(here: Here, nodes: None, cluster: Cluster) -> None:
    for name, ago_s in (("one", 5), ("two", 500)):
        spec = {"holderIdentity": name, "renewTime": translate.micro_stamp(int((time.time() - ago_s) * 1000))}
        lease = {"apiVersion": LEASES.api_version, "kind": "Lease", "metadata": {"name": f"gateway-{name}"}}
        cluster.create(LEASES, lease | {"spec": spec}, "tinyedge")
    ran = here("status", *NOBODY)
    assert ran.code == 0
    assert "Gateways:    one (namespace tinyedge)" in ran.out
    assert "Nodes:       3, 1 connected, 1 away" in ran.out
    assert "No gateway answers at 127.0.0.1:1" in ran.out
    told = json.loads(here("status", "-o", "json", *NOBODY).out)
    assert [(one["name"], one["alive"]) for one in told["gateways"]] == [("one", True), ("two", False)]
    assert told["nodes"] == {"known": 3, "connected": 1, "away": 1}
    assert told["live"] is None


def test_status_shows_the_numbers_of_a_gateway_that_answers(here: Here, gateway: tuple[str, str]) -> None:
    assert json.loads(here("status", "-o", "json", *gateway).out)["live"] == {
        "tinyedge_gateway_nodes": 3,
        'tinyedge_x{a="b"}': 1.5,
    }
    shown = here("status", *gateway).out
    assert "nodes:" in shown
    assert "tinyedge_x" not in shown
    assert "And 1 by verb, resource and code: -o json" in shown


def test_top_shows_what_is_measured_and_what_is_not(here: Here, nodes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    async def measured(_: object) -> dict[str, dict[str, str]]:
        return {"gate-1": {"cpu": "500m", "memory": "1Gi"}}

    monkeypatch.setattr(look, "_measured", measured)
    header, *lines = rows(here("top"))
    assert header == ["NAME", "CPU(cores)", "CPU(%)", "MEMORY(bytes)", "MEMORY(%)"]
    assert lines[0] == ["gate-1", "500m", "12%", "1024Mi", "25%"]
    assert lines[1] == ["gate-2", *["<unknown>"] * 4]
    told = json.loads(here("top", "-o", "json").out)["items"]
    assert [one["usage"] for one in told] == [{"cpu": "500m", "memory": "1Gi"}, None, None]


def test_no_node_can_steer_the_terminal(here: Here, cluster: Cluster) -> None:
    node = translate.node_object("gate-1", {}, [], "r")
    node["metadata"]["annotations"]["tinyedge.io/autonomy"] = "\x1b[2J"
    cluster.create(NODES, node)
    try:
        assert "\x1b" not in here("nodes", *NOBODY).out
    finally:
        cluster.delete(NODES, "gate-1")
