"""`tinyedge describe`: everything about a pod, a device or the node on one page, with its events. No secret's value."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from tinyedge.cli import devicetext
from tinyedge.cli.client import Client
from tinyedge.cli.errors import EXIT_USAGE, CliError
from tinyedge.cli.kinds import event_time, kind_named, node_status
from tinyedge.cli.output import as_list, client, namespace, show, structured
from tinyedge.cli.podtext import pod_line
from tinyedge.cli.text import NONE, UNKNOWN, age, now_s, pairs, table
from tinyedge.cli.why import explanation

Json = dict[str, Any]
Rows = list[tuple[str, str]]


def run(args: argparse.Namespace) -> int:
    kind, _, name = args.kind.partition("/")
    names = [name, *args.names] if name else args.names
    plural = kind_named(kind).plural
    if plural not in ("pods", "nodes", "devices"):
        raise CliError(f"{plural} can't be described", "", f"tinyedge get {plural} -o yaml shows them", code=EXIT_USAGE)
    api = client(args)
    items = _items(api, args, plural, [part.rpartition("/")[2] for part in names])
    if not items:
        show(f"No resources found in {namespace(args)} namespace.")
        return 0
    if args.output:
        show(structured(items[0] if len(items) == 1 else as_list(items), args.output))
        return 0
    events = api.get("/v1/events")["items"]
    now = now_s()
    pages = []
    for item in items:
        about = [event for event in events if _about(event, item)]
        if plural == "devices":
            told = api.get(f"/v1/namespaces/{namespace(args)}/devices/{item['metadata']['name']}/why")
            pages.append(device(item, about, told, now))
        else:
            pages.append((pod if plural == "pods" else node)(item, about, now))
    show("\n\n\n".join(pages))
    return 0


def _items(api: Client, args: argparse.Namespace, plural: str, names: Sequence[str]) -> list[Json]:
    if plural == "nodes":
        items: list[Json] = api.get("/v1/nodes")["items"]
        return [_picked(items, name) for name in names] if names else items
    path = f"/v1/namespaces/{namespace(args)}/{plural}"
    return [api.get(f"{path}/{name}") for name in names] if names else api.get(path)["items"]


def _picked(nodes: Sequence[Json], name: str) -> Json:
    for item in nodes:
        if item["metadata"]["name"] == name:
            return item
    raise CliError(f'nodes "{name}" not found', "", "tinyedge get nodes lists them")


def _about(event: Json, item: Json) -> bool:
    about, meta = event.get("involvedObject", {}), item["metadata"]
    same = about.get("kind") == item.get("kind") and about.get("name") == meta["name"]
    return same and about.get("namespace", "") in ("", meta.get("namespace", ""))


def _map(values: Any) -> str:
    return "\n".join(f"{key}={value}" for key, value in sorted((values or {}).items())) or NONE


def _page(rows: Rows) -> str:
    """`pairs`, where a value of several lines goes on below itself."""
    width = max(len(name) for name, _ in rows) + 3
    out = []
    for name, value in rows:
        first, *more = value.split("\n")
        out.append((f"{name}:".ljust(width) + first).rstrip())
        out += [" " * width + line for line in more]
    return "\n".join(out)


# --- a pod -----------------------------------------------------------------------------------------


def pod(item: Json, events: Sequence[Json], now: float) -> str:
    meta, spec, status = item["metadata"], item.get("spec", {}), item.get("status", {})
    line = pod_line(item, now)
    rows = [
        ("Name", meta["name"]),
        ("Namespace", meta.get("namespace", "")),
        ("Uid", meta.get("uid", "")),
        ("Node", spec.get("nodeName", "")),
        ("Start Time", _when(status.get("startTime", ""), now)),
        ("Labels", _map(meta.get("labels"))),
        ("Annotations", _map(_short(meta.get("annotations")))),
        ("Status", f"{line.status} (ready {line.ready}, restarts {line.restarts})"),
    ]
    if meta.get("deletionTimestamp"):
        grace = meta.get("deletionGracePeriodSeconds")
        rows.append(
            ("Deleted", _when(meta["deletionTimestamp"], now) + (f", grace {grace}s" if grace is not None else ""))
        )
    rows += [(name, status[key]) for name, key in (("Reason", "reason"), ("Message", "message")) if status.get(key)]
    rows += [
        ("IP", status.get("podIP") or NONE),
        ("QoS Class", status.get("qosClass", "")),
        ("Restart Policy", spec.get("restartPolicy", "Always")),
        ("Priority Class", spec.get("priorityClassName") or NONE),
    ]
    blocks = [_page(rows)]
    for title, key, statuses in (
        ("Init Containers", "initContainers", "initContainerStatuses"),
        ("Containers", "containers", "containerStatuses"),
    ):
        known = {c["name"]: c for c in status.get(statuses, ())}
        if spec.get(key):
            blocks.append("\n".join([f"{title}:", *(_container(c, known.get(c["name"], {}), now) for c in spec[key])]))
    blocks.append(_conditions(status.get("conditions", ()), now))
    blocks.append(_volumes(spec.get("volumes", ())))
    blocks.append(_events(events, now))
    return "\n".join(blocks)


def _short(annotations: Any) -> dict[str, str]:
    """A whole manifest in an annotation tells nothing new, and may hold what must not be shown."""
    hidden = "kubectl.kubernetes.io/last-applied-configuration"
    return {key: value for key, value in (annotations or {}).items() if key != hidden}


def _when(timestamp: str, now: float, never: str = NONE) -> str:
    return f"{timestamp} ({age(timestamp, now)} ago)" if timestamp else never


def _container(spec: Json, status: Json, now: float) -> str:
    rows: Rows = [
        ("Container ID", status.get("containerID") or NONE),
        ("Image", spec.get("image", "")),
        ("Image ID", status.get("imageID") or NONE),
    ]
    if spec.get("ports"):
        rows.append(("Ports", ", ".join(_port(p) for p in spec["ports"])))
    rows += [(word, " ".join(spec[key])) for word, key in (("Command", "command"), ("Args", "args")) if spec.get(key)]
    rows += _state("State", status.get("state"), now)
    if status.get("lastState"):
        rows += _state("Last State", status["lastState"], now)
    rows += [
        ("Ready", str(bool(status.get("ready")))),
        ("Restart Count", str(status.get("restartCount", 0))),
    ]
    for word, key in (("Requests", "requests"), ("Limits", "limits")):
        amounts = (spec.get("resources") or {}).get(key)
        if amounts:
            rows.append((word, ", ".join(f"{name} {amount}" for name, amount in amounts.items())))
    for word in ("liveness", "readiness", "startup"):
        probe = spec.get(f"{word}Probe")
        if probe:
            rows.append((word.capitalize(), _probe(probe)))
    head = pairs(rows, "    ")
    lists = [*_list("Environment", _environment(spec)), *_list("Mounts", _mounts(spec))]
    return "\n".join([f"  {spec['name']}:", head, *lists])


def _port(port: Json) -> str:
    host = f" (host {port['hostPort']})" if port.get("hostPort") else ""
    name = f" {port['name']}" if port.get("name") else ""
    return f"{port['containerPort']}/{port.get('protocol', 'TCP')}{name}{host}"


def _state(title: str, state: Any, now: float) -> Rows:
    for kind, told in (state or {"waiting": {"reason": "not started yet"}}).items():
        rows = [(title, kind.capitalize())]
        for word, key in (
            ("Reason", "reason"),
            ("Message", "message"),
            ("Exit Code", "exitCode"),
            ("Signal", "signal"),
        ):
            if told.get(key) not in (None, ""):
                rows.append((f"  {word}", " ".join(str(told[key]).split())))
        for word, key in (("Started", "startedAt"), ("Finished", "finishedAt")):
            if told.get(key):
                rows.append((f"  {word}", _when(told[key], now)))
        return rows
    return [(title, "Unknown")]


def _probe(probe: Json) -> str:
    if "httpGet" in probe:
        get = probe["httpGet"]
        how = (
            f"http-get {get.get('scheme', 'HTTP').lower()}://{get.get('host', '')}:{get['port']}{get.get('path', '/')}"
        )
    elif "tcpSocket" in probe:
        how = f"tcp-socket {probe['tcpSocket'].get('host', '')}:{probe['tcpSocket']['port']}"
    elif "grpc" in probe:
        how = f"grpc :{probe['grpc']['port']} {probe['grpc'].get('service', '')}".rstrip()
    else:
        how = "exec [" + " ".join(probe.get("exec", {}).get("command", ())) + "]"
    return (
        f"{how} delay={probe.get('initialDelaySeconds', 0)}s timeout={probe.get('timeoutSeconds', 1)}s "
        f"period={probe.get('periodSeconds', 10)}s #success={probe.get('successThreshold', 1)} "
        f"#failure={probe.get('failureThreshold', 3)}"
    )


def _environment(spec: Json) -> Iterator[tuple[str, str]]:
    for source in spec.get("envFrom", ()):
        for word, key in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
            if key in source:
                yield source.get("prefix", "") + "*", f"<all keys of the {word} {source[key].get('name')}>"
    for one in spec.get("env", ()):
        yield one["name"], _env_value(one)


def _env_value(one: Json) -> str:
    source = one.get("valueFrom")
    if not source:
        return str(one.get("value", ""))
    for word, key in (("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")):
        if key in source:
            return f"<the key {source[key].get('key')} of the {word} {source[key].get('name')}>"
    if "fieldRef" in source:
        return f"({source['fieldRef'].get('fieldPath')})"
    return f"({source.get('resourceFieldRef', {}).get('resource', '')})"


def _mounts(spec: Json) -> Iterator[tuple[str, str]]:
    for mount in spec.get("volumeMounts", ()):
        part = f", path {mount['subPath']!r}" if mount.get("subPath") else ""
        yield mount["mountPath"], f"from {mount['name']} ({'ro' if mount.get('readOnly') else 'rw'}{part})"


def _list(title: str, rows: Iterator[tuple[str, str]]) -> list[str]:
    found = list(rows)
    return [f"    {title}:", pairs(found, "      ")] if found else []


def _volumes(volumes: Sequence[Json]) -> str:
    if not volumes:
        return f"Volumes:  {NONE}"
    rows = []
    for volume in volumes:
        kind = next((key for key in volume if key != "name"), "emptyDir")
        source = volume.get(kind) or {}
        about = source.get("name") or source.get("secretName") or source.get("path") or source.get("medium") or ""
        if kind == "projected":
            about = ", ".join(f"{k} {s[k].get('name', '')}".strip() for s in source.get("sources", ()) for k in s)
        rows.append((volume["name"], f"{kind} {about}".rstrip()))
    return "\n".join(["Volumes:", pairs(rows, "  ")])


# --- a device --------------------------------------------------------------------------------------


def device(item: Json, events: Sequence[Json], told: Json, now: float) -> str:
    """`told` is what `why` says of it."""
    meta = item["metadata"]
    rows = [
        ("Name", meta["name"]),
        ("Namespace", meta.get("namespace", "")),
        ("Uid", meta.get("uid", "")),
        ("Labels", _map(meta.get("labels"))),
        ("Annotations", _map(_short(meta.get("annotations")))),
        ("Source", told.get("source") or UNKNOWN),
        *devicetext.head(item, now),
    ]
    blocks = [_page(rows), devicetext.twins(item, now), devicetext.methods(item)]
    if told.get("reasons"):
        blocks.append(f"Problems:\n{explanation({**told, 'summary': ''}).strip()}")
    return "\n".join([*blocks, _events(events, now)])


# --- a node ----------------------------------------------------------------------------------------


def node(item: Json, events: Sequence[Json], now: float) -> str:
    meta, status = item["metadata"], item.get("status", {})
    info = status.get("nodeInfo", {})
    rows = [
        ("Name", meta["name"]),
        ("Status", node_status(item)),
        ("Labels", _map(meta.get("labels"))),
        ("Created", _when(meta.get("creationTimestamp", ""), now, UNKNOWN)),
        ("Addresses", "\n".join(f"{a['type']} {a['address']}" for a in status.get("addresses", ())) or NONE),
        ("Capacity", ", ".join(f"{name} {amount}" for name, amount in (status.get("capacity") or {}).items()) or NONE),
        ("Allocatable", ", ".join(f"{n} {amount}" for n, amount in (status.get("allocatable") or {}).items()) or NONE),
        ("Boot ID", info.get("bootID", "")),
        ("Machine ID", info.get("machineID", "")),
        (
            "System",
            f"{info.get('osImage', '')}, kernel {info.get('kernelVersion', '')}, {info.get('architecture', '')}",
        ),
        ("Runtime", info.get("containerRuntimeVersion", "")),
        ("Version", info.get("kubeletVersion", "")),
    ]
    return "\n".join([_page(rows), _conditions(status.get("conditions", ()), now), _events(events, now)])


# --- both ------------------------------------------------------------------------------------------


def _conditions(conditions: Sequence[Json], now: float) -> str:
    if not conditions:
        return f"Conditions:  {NONE}"
    rows = [
        (
            f"  {c['type']}",
            c["status"],
            age(c.get("lastTransitionTime") or "", now),
            c.get("reason") or "",
            " ".join((c.get("message") or "").split()),
        )
        for c in conditions
    ]
    return "Conditions:\n" + table(("  TYPE", "STATUS", "SINCE", "REASON", "MESSAGE"), rows)


def _events(events: Sequence[Json], now: float) -> str:
    if not events:
        return f"Events:  {NONE}"
    rows = []
    for event in sorted(events, key=event_time):
        count = event.get("count") or 1
        times = f" (x{count} over {age(event.get('firstTimestamp') or '', now)})" if count > 1 else ""
        message = " ".join(event.get("message", "").split())
        rows.append(
            (f"  {event.get('type', '')}", event.get("reason", ""), age(event_time(event), now) + times, message)
        )
    return "Events:\n" + table(("  TYPE", "REASON", "AGE", "MESSAGE"), rows)
