"""`tinyedge status`: the node at a glance, its mappers and jobs, then all that waits for somebody or needs a look."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from tinyedge.cli.output import client, show, structured
from tinyedge.cli.podtext import PodLine, pod_line
from tinyedge.cli.text import UNKNOWN, age, duration, now_s, pairs, size, table
from tinyedge.cli.why import in_words

Json = dict[str, Any]
LINE_CHARS_MAX = 110

BOOT_REASONS = {
    "first": "first start",
    "clean": "clean stop",
    "crash": "crash of the daemon",
    "power": "power cut, or the machine was reset",
    "watchdog": "hardware watchdog: the machine hung",
    "store": "started itself again: the store could not be written, or can be again",
}


def run(args: argparse.Namespace) -> int:
    api = client(args)
    status, pods = api.get("/v1/status"), api.get("/v1/pods")["items"]
    if args.output:
        show(structured(status, args.output))
        return 0
    now = now_s()
    show(pairs(list(_overview(status, [pod_line(pod, now) for pod in pods], now))))
    if status.get("mappers"):
        show("\nMappers:\n" + _mappers(status["mappers"], now))
    troubles = list(_troubles(status))
    strange = list(_strange(status.get("devices", {})))
    failing = [f"  {one['rule']}: {_one_line(in_words(one))}" for one in status.get("rules", {}).get("problems", ())]
    away = [f"  {one['place']}: {_one_line(one['message'])}" for one in status.get("pushes", ()) if one.get("message")]
    notes = [f"  {note}" for note in status.get("runtime", {}).get("notes", ())]
    unknown = [f"  {_one_line(key)}" for key in status.get("unknownKeys", ())]
    for title, found in (
        ("Keys of the configuration that this version does not know, and passes over", unknown),
        ("Jobs of the fleet", list(_jobs(status.get("jobs", ())))),
        ("Updates that are held (tinyedge release)", list(_held(status))),
        ("Pods that need a look", troubles),
        ("Devices that need a look", strange),
        ("Rules that need a look", failing),
        ("Places that values can't be pushed to", away),
        ("Manifests that can't be used", list(_bad(status))),
        ("The runtime says", notes),
    ):
        if found:
            show("\n".join(["", f"{title}:", *found]))
    if troubles or strange or failing:
        show("\ntinyedge why NAME says what would help.")
    return 0


def _mappers(mappers: Sequence[Json], now: float) -> str:
    rows = [
        (
            f"  {one['name']}",
            one["protocol"],
            one.get("socket") or "(in the daemon)",
            str(one["devices"]),
            _here(one, now),
        )
        for one in mappers
    ]
    return table(("  NAME", "PROTOCOL", "SOCKET", "DEVICES", "STATE"), rows)


def _here(mapper: Json, now: float) -> str:
    """Whether it can be reached, since when, and why not."""
    since = age(mapper.get("since", ""), now)
    words: str = "not called yet since the start" if mapper["state"] == "unknown" else mapper["state"]
    words += "" if since == UNKNOWN else f" for {since}"
    return words + (f": {_one_line(mapper['message'])}" if mapper.get("message") else "")


def _strange(devices: Json) -> Iterator[str]:
    shown = devices.get("problems", ())
    for problem in shown:
        yield f"  {problem.get('device', '')}: {_one_line(in_words(problem))}"
    if (more := devices.get("withProblems", 0) - len(shown)) > 0:
        yield f"  and {more} more: tinyedge get devices -A -o wide"


def _troubles(status: Json) -> Iterator[str]:
    for problem in status.get("pods", {}).get("problems", ()):
        yield f"  {problem.get('pod', '')}: {_one_line(in_words({**problem, 'since': ''}))}"


def _held(status: Json) -> Iterator[str]:
    for one in status.get("pods", {}).get("held", ()):
        yield f"  {one['pod']}: {one['what']}"


def _jobs(jobs: Sequence[Json]) -> Iterator[str]:
    for one in jobs:
        words = [one["phase"], *(one[name] for name in ("progress", "reason") if one.get(name))]
        yield f"  {one['job']}: {_one_line(': '.join(words))}"


def _one_line(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= LINE_CHARS_MAX else flat[: LINE_CHARS_MAX - 1] + "…"


def _overview(status: Json, lines: Sequence[PodLine], now: float) -> Iterator[tuple[str, str]]:
    node = status.get("node", {})
    state = "ready" if node.get("ready") else "NOT READY"
    yield "Node", f"{node.get('name', '')}: {state}" + (f": {node['message']}" if node.get("message") else "")
    if "uptimeSeconds" in node:
        boot = node.get("lastBoot", {})
        before = BOOT_REASONS.get(boot.get("reason", ""), boot.get("reason", ""))
        since = duration(node["uptimeSeconds"])
        yield "Daemon", f"version {node.get('version', '')}, up {since}; before that: {before or 'unknown'}"
    if words := _upgrade(status.get("upgrade", {})):
        yield "Upgrade", words
    if not node.get("clockTrusted", True):
        yield "Clock", "not trusted (not set since the boot); nothing is expired by it"
    link = status.get("link", {})
    yield "Link", _link(link, now)
    if link.get("certificateExpiry"):
        yield "Certificate", _certificate(link["certificateExpiry"] - now)
    yield "Runtime", _runtime(status.get("runtime", {}))
    yield "Store", _store(status.get("store", {}))
    yield "Pressure", ", ".join(name for name, short in status.get("pressure", {}).items() if short) or "none"
    machine = status.get("machine", {})
    if machine.get("memoryTotalBytes"):
        yield "Memory", _free(machine, "memoryAvailableBytes", "memoryTotalBytes")
    if machine.get("diskTotalBytes"):
        yield "Disk", _free(machine, "diskFreeBytes", "diskTotalBytes")
    yield "Pods", _counts(lines)
    if status.get("devices", {}).get("total"):
        yield "Devices", _devices(status["devices"])
    if status.get("rules", {}).get("total"):
        yield "Rules", f"{status['rules']['total']}: {status['rules']['active']} active"
    waiting = "are kept here" if link.get("state") == "none" else "wait for the cloud"
    if broker := status.get("broker"):
        yield "Broker", _broker(broker)
    for name, title, waits in (
        ("readings", "Readings", waiting),
        ("push", "Pushes", "wait for where they go"),
        ("mqtt", "Messages", "wait for the broker"),
        ("messages", "To rules", "wait for the gateway"),
    ):
        if words := _queue(status.get("series", {}).get(name, {}), waits):
            yield title, words


def _upgrade(upgrade: Json) -> str:
    """The trial that is under way, or what became of the last one."""
    if trial := upgrade.get("trial"):
        words = f"{trial['version']} is on trial, start {trial['attempt']} of {trial['attempts']}"
        return words + (f": {'; '.join(trial['missing'])}" if trial["missing"] else ": all is well so far")
    return str(upgrade.get("last", {}).get("message", ""))


def _devices(devices: Json) -> str:
    counts = sorted(devices.get("states", {}).items(), key=lambda one: -one[1])
    words = f"{devices['total']}: " + ", ".join(f"{count} {state}" for state, count in counts if count)
    return words + (f"; {devices['withProblems']} with problems" if devices.get("withProblems") else "")


def _broker(broker: Json) -> str:
    words = f"{'up' if broker['state'] == 'up' else 'DOWN'}, {broker['address']}"
    words += f": {_one_line(broker['message'])}" if broker["state"] != "up" and broker.get("message") else ""
    refused = broker.get("refusedTopics", ())
    return words + (f"; it does not let us have {_one_line(', '.join(refused))}" if refused else "")


def _queue(series: Json, waits: str) -> str:
    words = [f"{series['waiting']} {waits}"] if series.get("waiting") else []
    words += [f"{series['dropped']} were dropped for want of room"] if series.get("dropped") else []
    return ", ".join(words)


def _link(link: Json, now: float) -> str:
    """State and since when, to whom, why, and what it has cost so far."""
    state, message = link.get("state", "none"), link.get("message", "")
    if state == "none":
        return message or "none"
    since = age(link.get("since", ""), now)
    words: str = state if state in ("up", "joining", "connecting") else state.upper()
    words += "" if since == UNKNOWN else f" for {since}"
    words += f", {link['gateway']}" if link.get("gateway") else ""
    if state == "up":
        words += ", in sync" if link.get("synced") else ", comparing"
    words += f": {message}" if message else ""
    if link.get("sentBytes") or link.get("receivedBytes"):
        words += f"; sent {size(link.get('sentBytes', 0))}, received {size(link.get('receivedBytes', 0))}"
    return words + (f", {link['reconnects']} reconnects" if link.get("reconnects") else "")


def _certificate(left_s: float) -> str:
    if left_s > 0:
        return f"good for {duration(left_s)}"
    return f"EXPIRED {duration(-left_s)} ago; a new one is asked for as soon as there is a link"


def _runtime(runtime: Json) -> str:
    name = " ".join(filter(None, (runtime.get("name") or runtime.get("kind", ""), runtime.get("version", ""))))
    if runtime.get("state") == "up":
        return f"{name}: up"
    why = f": {runtime['message']}" if runtime.get("message") else ""
    if name in ("", "unknown"):
        return f"DOWN, and has not been seen yet{why}; tinyedge check says what is missing"
    return f"{name}: DOWN{why}"


def _store(store: Json) -> str:
    state = str(store.get("state", ""))
    words = state if state in ("ok", "repaired") else state.upper()
    if store.get("stateBytesMax"):
        words += f", {size(store.get('stateBytes', 0))} of {size(store['stateBytesMax'])}"
    return words + (f": {store['message']}" if store.get("message") else "")


def _free(machine: Json, free: str, total: str) -> str:
    share = round(100 * machine.get(free, 0) / machine[total])
    return f"{size(machine.get(free, 0))} of {size(machine[total])} free ({share}%)"


def _counts(lines: Sequence[PodLine]) -> str:
    if not lines:
        return "none"
    counts: dict[str, int] = {}
    for line in lines:
        counts[line.status] = counts.get(line.status, 0) + 1
    return f"{len(lines)}: " + ", ".join(f"{n} {status}" for status, n in sorted(counts.items(), key=lambda x: -x[1]))


def _bad(status: Json) -> Iterator[str]:
    for folder in status.get("manifests", ()):
        path = folder.get("folder", "")
        if folder.get("problem"):
            yield f"  {path}: {folder['problem']}"
        for problem in folder.get("problems", ()):
            line = f", line {problem['line']}" if problem.get("line") else ""
            field = f", {problem['field']}" if problem.get("field") else ""
            yield f"  {problem.get('file', path)}{line}{field}: {problem.get('message', '')}"
