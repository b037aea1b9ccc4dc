"""The kinds that `get` lists: their names, and the columns they are shown in. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from tinyedge.cli.devicetext import device_row, model_row
from tinyedge.cli.errors import EXIT_USAGE, CliError
from tinyedge.cli.podtext import pod_line
from tinyedge.cli.text import NONE, UNKNOWN, age, size

Json = dict[str, Any]


class Kind(NamedTuple):
    """`row` gives the cells of all columns; the last `wide` of them are shown with -o wide only."""

    plural: str
    singular: str
    aliases: tuple[str, ...]
    header: tuple[str, ...]
    row: Callable[[Json, float], tuple[str, ...]]
    wide: int = 0
    namespaced: bool = True


def _pod_row(pod: Json, now: float) -> tuple[str, ...]:
    return tuple(pod_line(pod, now))


def _node_row(node: Json, now: float) -> tuple[str, ...]:
    info = node.get("status", {}).get("nodeInfo", {})
    labels = node["metadata"].get("labels", {})
    prefix = "node-role.kubernetes.io/"
    roles = ",".join(sorted(label.removeprefix(prefix) for label in labels if label.startswith(prefix)))
    return (
        node["metadata"]["name"],
        node_status(node),
        roles or NONE,
        age(node["metadata"].get("creationTimestamp", ""), now),
        info.get("kubeletVersion") or UNKNOWN,
        _address(node, "InternalIP"),
        info.get("osImage") or UNKNOWN,
        info.get("kernelVersion") or UNKNOWN,
        info.get("containerRuntimeVersion") or UNKNOWN,
    )


def node_status(node: Json) -> str:
    """`Ready` or `NotReady`, and what it is short of."""
    conditions = {c["type"]: c["status"] for c in node.get("status", {}).get("conditions", ())}
    words = ["Ready" if conditions.pop("Ready", "") == "True" else "NotReady"]
    words += [kind for kind, status in conditions.items() if status == "True" and kind.endswith("Pressure")]
    if node.get("spec", {}).get("unschedulable"):
        words.append("SchedulingDisabled")
    return ",".join(words)


def _address(node: Json, kind: str) -> str:
    found = [a["address"] for a in node.get("status", {}).get("addresses", ()) if a["type"] == kind]
    return found[0] if found else NONE


def _configmap_row(item: Json, now: float) -> tuple[str, ...]:
    count = len(item.get("data") or ()) + len(item.get("binaryData") or ())
    return item["metadata"]["name"], str(count), age(item["metadata"].get("creationTimestamp", ""), now)


def _secret_row(item: Json, now: float) -> tuple[str, ...]:
    meta = item["metadata"]
    return (
        meta["name"],
        item.get("type", ""),
        str(len(item.get("keys") or ())),
        age(meta.get("creationTimestamp", ""), now),
    )


def _event_row(event: Json, now: float) -> tuple[str, ...]:
    about = event.get("involvedObject", {})
    count = event.get("count") or 1
    last = age(event_time(event), now)
    first = age(event.get("firstTimestamp") or "", now)
    return (
        f"{last} (x{count} over {first})" if count > 1 else last,
        event.get("type", ""),
        event.get("reason", ""),
        f"{about.get('kind', '').lower()}/{about.get('name', '')}",
        " ".join(event.get("message", "").split()),
    )


def event_time(event: Json) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp") or "")


def _image_row(image: Json, now: float) -> tuple[str, ...]:
    names = image.get("names") or [NONE]
    others = [name for name in names[1:] if "@" not in name]
    name, tag = split_image(names[0])
    tag = ", ".join([tag, *others])
    digest = image.get("id", "").removeprefix("sha256:")[:13]
    used, pinned = ("yes" if image.get(word) else "no" for word in ("used", "pinned"))
    return name, tag, digest, size(image.get("bytes", 0)), used, pinned


def split_image(reference: str) -> tuple[str, str]:
    """`docker.io/library/busybox:1.36` as name and tag; a digest counts as the tag."""
    name, at, digest = reference.partition("@")
    if at:
        return name, digest.removeprefix("sha256:")[:13]
    match = re.fullmatch(r"(.+):([^/:]+)", reference)
    return (match[1], match[2]) if match else (reference, NONE)


def _localrule_row(item: Json, now: float) -> tuple[str, ...]:
    spec, status = item.get("spec", {}), item.get("status", {})
    state = (
        "active" if status.get("active") else "holding" if status.keys() & {"holdingSeconds", "holding"} else "inactive"
    )
    return (
        item["metadata"]["name"],
        state,
        age(status.get("lastTransitionTime") or "", now),
        str(status.get("fired", 0)),
        status.get("result", ""),
        " ".join(spec.get("when", "").split()),
        status.get("problem") or NONE,
    )


def _rule_row(item: Json, now: float) -> tuple[str, ...]:
    spec, meta = item.get("spec", {}), item["metadata"]
    return meta["name"], spec.get("source", ""), spec.get("target", ""), age(meta.get("creationTimestamp", ""), now)


def _endpoint_row(item: Json, now: float) -> tuple[str, ...]:
    kind, meta = item.get("spec", {}).get("ruleEndpointType", ""), item["metadata"]
    return meta["name"], kind, age(meta.get("creationTimestamp", ""), now)


KINDS = (
    Kind(
        "pods",
        "pod",
        ("po",),
        ("NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE"),
        _pod_row,
        wide=2,
    ),
    Kind(
        "nodes",
        "node",
        ("no",),
        (
            "NAME",
            "STATUS",
            "ROLES",
            "AGE",
            "VERSION",
            "INTERNAL-IP",
            "OS-IMAGE",
            "KERNEL-VERSION",
            "CONTAINER-RUNTIME",
        ),
        _node_row,
        wide=4,
        namespaced=False,
    ),
    Kind("configmaps", "configmap", ("cm",), ("NAME", "DATA", "AGE"), _configmap_row),
    Kind("secrets", "secret", (), ("NAME", "TYPE", "DATA", "AGE"), _secret_row),
    Kind("events", "event", ("ev",), ("LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"), _event_row),
    Kind(
        "images",
        "image",
        ("img",),
        ("IMAGE", "TAG", "ID", "SIZE", "USED", "PINNED"),
        _image_row,
        namespaced=False,
    ),
    Kind(
        "devices",
        "device",
        ("dev",),
        ("NAME", "MODEL", "PROTOCOL", "MAPPER", "STATE", "LAST SEEN", "PROBLEM"),
        device_row,
        wide=1,
    ),
    Kind("devicemodels", "devicemodel", (), ("NAME", "PROTOCOL", "PROPERTIES", "AGE"), model_row),
    Kind(
        "localrules",
        "localrule",
        (),
        ("NAME", "STATE", "SINCE", "FIRED", "CONDITION", "WHEN", "PROBLEM"),
        _localrule_row,
        wide=2,
    ),
    Kind("rules", "rule", (), ("NAME", "SOURCE", "TARGET", "AGE"), _rule_row),
    Kind("ruleendpoints", "ruleendpoint", ("re",), ("NAME", "TYPE", "AGE"), _endpoint_row),
)


def kind_named(word: str) -> Kind:
    for kind in KINDS:
        if word.lower() in (kind.plural, kind.singular, *kind.aliases):
            return kind
    known = ", ".join(kind.plural for kind in KINDS)
    raise CliError(f"there is no kind {word!r}", "", f"known are {known}", code=EXIT_USAGE)


def name_of(kind: Kind, item: Json) -> str:
    if kind.plural == "images":
        return f"image/{(item.get('names') or [item.get('id', '')])[0]}"
    return f"{kind.singular}/{item['metadata']['name']}"


# --- labels ----------------------------------------------------------------------------------------


class Selector:
    """Label selectors as kubectl takes them: `a=b,c!=d,e,!f,g in (h,i),j notin (k)`."""

    def __init__(self, text: str) -> None:
        self._terms = [_term(part) for part in re.split(r",(?![^(]*\))", text) if part.strip()] if text else []

    def matches(self, item: Json) -> bool:
        labels = item.get("metadata", {}).get("labels") or {}
        return all(term(labels) for term in self._terms)


Term = Callable[[dict[str, str]], bool]


def _term(text: str) -> Term:
    text = text.strip()
    if match := re.fullmatch(r"(\S+)\s+(in|notin)\s*\(([^)]*)\)", text):
        key, among = match[1], {value.strip() for value in match[3].split(",")}
        return (lambda labels: labels.get(key) in among) if match[2] == "in" else lambda x: x.get(key) not in among
    if match := re.fullmatch(r"([^=!\s]+)\s*(==?|!=)\s*(\S*)", text):
        key, value = match[1], match[3]
        return (lambda x: x.get(key) != value) if match[2] == "!=" else lambda labels: labels.get(key) == value
    if re.fullmatch(r"!?[^=!\s()]+", text):
        key = text.lstrip("!")
        return (lambda labels: key not in labels) if text.startswith("!") else lambda labels: key in labels
    raise CliError(
        f"{text!r} is no label selector", "", "such as app=web, app!=web, app, !app, app in (a,b)", code=EXIT_USAGE
    )
