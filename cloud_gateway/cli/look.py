"""`tinyedge-gateway nodes`, `top`, `status` and `version`: what Kubernetes says of edge nodes, and what a gateway adds.

Kubernetes is asked first; a gateway's live numbers are shown where its metrics address can be reached.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import time
from contextlib import suppress
from typing import Any

import msgspec
import trio

from cloud_gateway.adapters.kube import Kube
from cloud_gateway.adapters.kube_types import LEASES, NODES, KubeError
from cloud_gateway.adapters.replicas import ALIVE_S, PREFIX
from cloud_gateway.cli.cluster import talk
from cloud_gateway.cli.output import show, show_json
from cloud_gateway.config import address
from cloud_gateway.core import translate
from tinyedge import __version__
from tinyedge.cli.text import UNKNOWN, age, duration, pairs, quantity, seconds_of, table

Json = dict[str, Any]
LIVE_S = 2.0
LIVE_BYTES_MAX = 16 * 2**20
AT_ONCE = 16
METRICS_API = "/apis/metrics.k8s.io/v1beta1"


def run(args: argparse.Namespace) -> int:
    return {"nodes": _nodes, "top": _top, "status": _status, "version": _version}[args.command](args)


def _version(args: argparse.Namespace) -> int:
    if args.output:
        show_json({"program": __version__})
    else:
        show(f"tinyedge-gateway {__version__}")
    return 0


# --- nodes -------------------------------------------------------------------------------------------


def _nodes(args: argparse.Namespace) -> int:
    found = [_node(node) for node in talk(args, _edge_nodes)]
    live = {one["name"]: one for one in (_live(args, "/v1/nodes") or {}).get("items", [])}
    for one in found:
        if one["name"] in live:
            one["live"] = live[one["name"]]
    if args.output:
        show_json({"items": found})
        return 0
    if not found:
        show("No edge nodes yet: tinyedge-gateway token create --node NAME, then tinyedge join on the node")
        return 0
    now = time.time()
    rows = [_row(one, now) for one in found]
    show(table(("NAME", "READY", "CONNECTED", "FOR", "SYNCED", "PODS", "AUTONOMY", "VERSION", "AGE"), rows))
    return 0


async def _edge_nodes(kube: Kube) -> list[Json]:
    return await kube.list(NODES, labels=translate.EDGE_LABEL)


def _node(node: Json) -> Json:
    meta, status = node["metadata"], node.get("status") or {}
    conditions = {one.get("type"): one for one in status.get("conditions") or []}
    connected = conditions.get(translate.CONNECTED, {})
    annotations = meta.get("annotations") or {}
    port = ((status.get("daemonEndpoints") or {}).get("kubeletEndpoint") or {}).get("Port", 0)
    return {
        "name": meta["name"],
        "ready": conditions.get("Ready", {}).get("status", "Unknown"),
        "connected": connected.get("status", "Unknown"),
        "connectedSince": connected.get("lastTransitionTime", ""),
        "reason": connected.get("message", ""),
        "autonomy": annotations.get(translate.AUTONOMY, ""),
        "gateway": annotations.get(translate.REPLICA, ""),
        "version": (status.get("nodeInfo") or {}).get("kubeletVersion", ""),
        "port": port,
        "created": meta.get("creationTimestamp", ""),
    }


def _row(one: Json, now: float) -> tuple[str, ...]:
    live = one.get("live")
    since = seconds_of(one["connectedSince"])
    return (
        one["name"],
        one["ready"],
        one["connected"],
        UNKNOWN if since is None else duration(now - since),
        "-" if live is None else ("yes" if live.get("synced") else "no"),
        "-" if live is None else str(live.get("pods", "")),
        one["autonomy"] or "fleet's",
        one["version"],
        age(one["created"], now),
    )


# --- top ---------------------------------------------------------------------------------------------


def _top(args: argparse.Namespace) -> int:
    found = talk(args, _usage)
    if args.output:
        show_json({"items": found})
        return 0
    rows = [(one["name"], _cores(one), _share(one, "cpu"), _memory(one), _share(one, "memory")) for one in found]
    show(table(("NAME", "CPU(cores)", "CPU(%)", "MEMORY(bytes)", "MEMORY(%)"), rows) if rows else "No edge nodes yet.")
    return 0


async def _usage(kube: Kube) -> list[Json]:
    """By metrics-server where there is one; else each node is asked through the API server."""
    nodes = await _edge_nodes(kube)
    measured = await _measured(kube)
    found: list[Json] = []
    room = trio.CapacityLimiter(AT_ONCE)

    async def one(node: Json) -> None:
        name = node["metadata"]["name"]
        async with room:
            usage = measured.get(name) or await _asked(kube, name)
        capacity = (node.get("status") or {}).get("capacity") or {}
        found.append({"name": name, "usage": usage, "capacity": {key: capacity.get(key, "0") for key in _UNITS}})

    async with trio.open_nursery() as nursery:
        for node in nodes:
            nursery.start_soon(one, node)
    return sorted(found, key=lambda entry: str(entry["name"]))


_UNITS = ("cpu", "memory")


async def _measured(kube: Kube) -> dict[str, Json]:
    status, body = await kube.raw("GET", f"{METRICS_API}/nodes")
    if status != 200:
        return {}
    with suppress(msgspec.MsgspecError, KeyError, TypeError):
        return {one["metadata"]["name"]: one["usage"] for one in msgspec.json.decode(body)["items"]}
    return {}


async def _asked(kube: Kube, name: str) -> Json | None:
    """None: it does not say, being away or out of the API server's reach."""
    with suppress(KubeError, msgspec.MsgspecError, KeyError, TypeError):
        status, body = await kube.raw("GET", NODES.path(name=name, subresource="proxy") + "/stats/summary", timeout_s=5)
        if status == 200:
            node = msgspec.json.decode(body)["node"]
            nano, used = node["cpu"]["usageNanoCores"], node["memory"]["workingSetBytes"]
            return {"cpu": f"{nano}n", "memory": str(used)}
    return None


def _cores(one: Json) -> str:
    return f"{round(quantity(one['usage']['cpu']) * 1000)}m" if one["usage"] else UNKNOWN


def _memory(one: Json) -> str:
    return f"{round(quantity(one['usage']['memory']) / 2**20)}Mi" if one["usage"] else UNKNOWN


def _share(one: Json, what: str) -> str:
    whole = quantity(one["capacity"][what])
    return f"{round(100 * quantity(one['usage'][what]) / whole)}%" if one["usage"] and whole else UNKNOWN


# --- status ------------------------------------------------------------------------------------------


def _status(args: argparse.Namespace) -> int:
    async def say(kube: Kube) -> tuple[list[Json], list[Json], str]:
        return await _edge_nodes(kube), await _gateways(kube, args.namespace), ", ".join(kube.endpoint.urls)

    nodes, gateways, where = talk(args, say)
    numbers = _numbers(args)
    connected = [_node(node)["connected"] for node in nodes]
    told: Json = {
        "kubernetes": where,
        "gateways": gateways,
        "nodes": {"known": len(nodes), "connected": connected.count("True"), "away": connected.count("False")},
        "live": numbers,
    }
    if args.output:
        show_json(told)
        return 0
    alive = [one["name"] for one in gateways if one["alive"]]
    counts = told["nodes"]
    rows = [
        ("Kubernetes", where),
        ("Gateways", f"{', '.join(alive) or 'none alive'} (namespace {args.namespace})"),
        ("Nodes", f"{counts['known']}, {counts['connected']} connected, {counts['away']} away"),
    ]
    show(pairs(rows))
    if numbers is None:
        remedy = f"kubectl -n {args.namespace} port-forward deploy/tinyedge-gateway {args.metrics.rpartition(':')[2]}"
        show(f"\nNo gateway answers at {args.metrics}, so no live numbers; --metrics names another place, or: {remedy}")
    else:
        show()
        plain = {name.removeprefix("tinyedge_gateway_"): value for name, value in numbers.items() if "{" not in name}
        show(pairs([(name, f"{value:g}") for name, value in plain.items()]))
        if len(plain) < len(numbers):
            show(
                f"\nAnd {len(numbers) - len(plain)} by verb, resource and code: -o json, or http://{args.metrics}/metrics"
            )
    return 0


async def _gateways(kube: Kube, namespace: str) -> list[Json]:
    now_ms = time.time_ns() // 1_000_000
    found = []
    for lease in await kube.list(LEASES, namespace):
        spec = lease.get("spec") or {}
        if lease["metadata"]["name"].startswith(PREFIX):
            alive = now_ms - translate.unix_ms(spec.get("renewTime")) < ALIVE_S * 1000
            found.append({"name": spec.get("holderIdentity", ""), "alive": alive, "renewed": spec.get("renewTime", "")})
    return found


def _numbers(args: argparse.Namespace) -> dict[str, float] | None:
    body = _fetched(args, "/metrics")
    if body is None:
        return None
    return {
        name: float(value)
        for name, value in re.findall(r"^([a-zA-Z_:][\w:]*(?:\{[^}\n]*\})?) (-?[\d.eE+-]+)$", body, re.MULTILINE)
    }


def _live(args: argparse.Namespace, path: str) -> Json | None:
    body = _fetched(args, path)
    with suppress(ValueError):
        found = json.loads(body) if body else None
        return found if isinstance(found, dict) else None
    return None


def _fetched(args: argparse.Namespace, path: str) -> str | None:
    """What a gateway's metrics address says; None when nobody is there."""
    host, port = address(args.metrics, "--metrics")
    connection = http.client.HTTPConnection(host, port, timeout=LIVE_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.read(LIVE_BYTES_MAX).decode("utf-8", "replace") if answer.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
