"""`tinyedge top`: who uses CPU and memory."""

from __future__ import annotations

import argparse
from typing import Any

from tinyedge.cli.errors import CliError
from tinyedge.cli.output import client, namespace, show, structured
from tinyedge.cli.text import quantity, table

Json = dict[str, Any]
Line = tuple[list[str], float, float]  # names, cores, bytes


def run(args: argparse.Namespace) -> int:
    usage = client(args).get("/v1/usage")
    if (args.kind or "pods").startswith("no"):
        return _node(args, usage)
    within = namespace(args)
    pods = [p for p in usage.get("pods", ()) if not within or p["metadata"].get("namespace") == within]
    if args.names:
        pods = [_used(args, pods, name) for name in args.names]
    if args.output:
        show(structured({"apiVersion": "metrics.k8s.io/v1beta1", "kind": "PodMetricsList", "items": pods}, args.output))
        return 0
    lines = [line for pod in pods for line in _lines(args, pod)]
    if args.sort_by:
        column = 1 if args.sort_by == "cpu" else 2
        lines.sort(key=lambda line: float(line[column]), reverse=True)  # type: ignore[arg-type]
    if not lines:
        show("No use measured yet: the node looks every few seconds, and at running pods only.")
        return 0
    names = [*([] if within else ["NAMESPACE"]), *(["POD", "NAME"] if args.containers else ["NAME"])]
    show(table([*names, "CPU(cores)", "MEMORY(bytes)"], [[*line[0], cores(line[1]), mib(line[2])] for line in lines]))
    return 0


def _used(args: argparse.Namespace, pods: list[Json], name: str) -> Json:
    for pod in pods:
        if pod["metadata"]["name"] == name:
            return pod
    client(args).get(f"/v1/namespaces/{args.namespace or 'default'}/pods/{name}")  # says so when there is none
    raise CliError(
        f"no use of {name} is measured", "it does not run, or has only just begun to", f"tinyedge why {name}"
    )


def _lines(args: argparse.Namespace, pod: Json) -> list[Line]:
    meta = pod["metadata"]
    first = [*([] if namespace(args) else [meta.get("namespace", "")]), meta["name"]]
    each = [
        ([*first, c["name"]], quantity(c["usage"].get("cpu", 0)), quantity(c["usage"].get("memory", 0)))
        for c in pod.get("containers", ())
    ]
    if args.containers:
        return each
    return [(first, sum(cpu for _, cpu, _ in each), sum(memory for _, _, memory in each))]


def _node(args: argparse.Namespace, usage: Json) -> int:
    found = usage.get("node") or {}
    if args.output:
        show(structured(found, args.output))
        return 0
    node = client(args).get("/v1/node")
    capacity = node.get("status", {}).get("capacity", {})
    used = {name: quantity(found.get("usage", {}).get(name, 0)) for name in ("cpu", "memory")}
    share = {name: _percent(used[name], quantity(capacity.get(name, 0))) for name in used}
    row = (node["metadata"]["name"], cores(used["cpu"]), share["cpu"], mib(used["memory"]), share["memory"])
    show(table(("NAME", "CPU(cores)", "CPU(%)", "MEMORY(bytes)", "MEMORY(%)"), [row]))
    return 0


def cores(number: float) -> str:
    return f"{round(number * 1000)}m"


def mib(count: float) -> str:
    return f"{round(count / 2**20)}Mi"


def _percent(part: float, whole: float) -> str:
    return f"{round(100 * part / whole)}%" if whole else "<unknown>"
