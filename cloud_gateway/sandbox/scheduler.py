"""A simple scheduler: which node a pod goes to. Pure.

Counted: unschedulable nodes, nodeSelector, required node affinity, taints, requests against what is allocatable (also
the number of pods), host ports. Of the nodes that are left the one with the fewest pods is taken. Not counted:
preferences, affinity between pods, topology spread, volumes, preemption.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tinyedge.errors import BadInput
from tinyedge.model import quantity

Json = dict[str, Any]
Amounts = Counter[str]  # resource → thousand-millionths

NO_NODES = "no nodes available to schedule pods"
GATED = "Scheduling is blocked due to non-empty scheduling gates"
_UNSCHEDULABLE = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
_HARD = ("NoSchedule", "NoExecute")
_ANY = ("", "0.0.0.0", "::")  # noqa: S104 - addresses that stand for all


def choose(pod: Json, nodes: Sequence[Json], pods: Iterable[Json]) -> tuple[str | None, str]:
    """(name of the node, "") or (None, why not), in kube-scheduler's words:

        0/2 nodes are available: 1 Insufficient memory, 1 node(s) had untolerated taint {dedicated: edge}.

    `pods` are all pods of the cluster; those that have ended take nothing."""
    spec = pod["spec"]
    if spec.get("schedulingGates"):
        return None, GATED
    if not nodes:
        return None, NO_NODES
    placed: dict[str, list[Json]] = {}
    for other in pods:
        if _takes_room(other):
            placed.setdefault(other["spec"]["nodeName"], []).append(other["spec"])
    why: Counter[str] = Counter()
    fitting: list[tuple[int, str]] = []
    for node in nodes:
        name = node["metadata"]["name"]
        here = placed.get(name, [])
        if reasons := _reasons(spec, node, here):
            why.update(reasons)
        else:
            fitting.append((len(here), name))
    if fitting:
        return min(fitting)[1], ""
    listed = ", ".join(sorted(f"{count} {reason}" for reason, count in why.items()))
    return None, f"0/{len(nodes)} nodes are available: {listed}."


def _takes_room(pod: Json) -> bool:
    ended = (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
    return bool(pod["spec"].get("nodeName")) and not ended


def _reasons(spec: Json, node: Json, here: list[Json]) -> Sequence[str]:
    """Why the pod can't run on this node: all that the first check that fails has to say."""
    tolerations = spec.get("tolerations") or ()
    node_spec = node.get("spec") or {}
    if node_spec.get("unschedulable") and not _tolerated(_UNSCHEDULABLE, tolerations):
        return ("node(s) were unschedulable",)
    for taint in node_spec.get("taints") or ():
        if taint.get("effect") in _HARD and not _tolerated(taint, tolerations):
            return (f"node(s) had untolerated taint {{{taint['key']}: {taint.get('value', '')}}}",)
    if not _selected(spec, node):
        return ("node(s) didn't match Pod's node affinity/selector",)
    if _ports_taken(spec, here):
        return ("node(s) didn't have free ports for the requested pod ports",)
    return _insufficient(spec, node, here)


# --- taints ---


def _tolerated(taint: Mapping[str, Any], tolerations: Iterable[Json]) -> bool:
    return any(_tolerates(one, taint) for one in tolerations)


def _tolerates(toleration: Json, taint: Mapping[str, Any]) -> bool:
    effect, key = toleration.get("effect") or "", toleration.get("key") or ""
    if effect and effect != taint.get("effect"):
        return False
    if key and key != taint["key"]:
        return False
    operator = toleration.get("operator") or "Equal"
    if operator == "Exists":
        return True
    return bool(key) and operator == "Equal" and (toleration.get("value") or "") == (taint.get("value") or "")


# --- selectors ---


def _selected(spec: Json, node: Json) -> bool:
    labels = node["metadata"].get("labels") or {}
    if any(labels.get(key) != value for key, value in (spec.get("nodeSelector") or {}).items()):
        return False
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    if required is None:
        return True
    fields = {"metadata.name": node["metadata"]["name"]}
    return any(_term(term, labels, fields) for term in required.get("nodeSelectorTerms") or ())


def _term(term: Json, labels: Mapping[str, str], fields: Mapping[str, str]) -> bool:
    """A term that says nothing selects nothing."""
    by_label, by_field = term.get("matchExpressions") or (), term.get("matchFields") or ()
    if not by_label and not by_field:
        return False
    return all(_matches(one, labels) for one in by_label) and all(_matches(one, fields) for one in by_field)


def _matches(requirement: Json, values: Mapping[str, str]) -> bool:
    found = values.get(requirement["key"])
    wanted = requirement.get("values") or []
    match requirement.get("operator"):
        case "In":
            return found in wanted
        case "NotIn":
            return found not in wanted
        case "Exists" | "DoesNotExist" as operator:
            return (found is not None) is (operator == "Exists")
        case "Gt" | "Lt" as operator:
            return _compared(found, wanted, more=operator == "Gt")
    return False


def _compared(found: str | None, wanted: Sequence[str], *, more: bool) -> bool:
    if found is None or len(wanted) != 1:
        return False
    try:
        have, limit = int(found), int(wanted[0])
    except ValueError:
        return False
    return have > limit if more else have < limit


# --- host ports ---

Port = tuple[str, str, int]  # address, protocol, number


def _host_ports(spec: Json) -> Iterable[Port]:
    sidecars = [one for one in spec.get("initContainers") or () if one.get("restartPolicy") == "Always"]
    for container in (*(spec.get("containers") or ()), *sidecars):
        for port in container.get("ports") or ():
            number = port.get("hostPort") or (port.get("containerPort") if spec.get("hostNetwork") else 0)
            if number:
                yield port.get("hostIP") or "", port.get("protocol") or "TCP", number


def _ports_taken(spec: Json, here: Iterable[Json]) -> bool:
    wanted = list(_host_ports(spec))
    if not wanted:
        return False
    return any(_clash(mine, theirs) for other in here for theirs in _host_ports(other) for mine in wanted)


def _clash(mine: Port, theirs: Port) -> bool:
    if mine[1:] != theirs[1:]:
        return False
    return mine[0] == theirs[0] or mine[0] in _ANY or theirs[0] in _ANY


# --- resources ---


def _insufficient(spec: Json, node: Json, here: Sequence[Json]) -> Sequence[str]:
    status = node.get("status") or {}
    room = _amounts(status.get("allocatable") or status.get("capacity") or {})
    found = []
    if "pods" in room and (len(here) + 1) * 10**9 > room["pods"]:
        found.append("Too many pods")
    wanted = requests(spec)
    if not wanted:
        return found
    taken: Amounts = Counter()
    for other in here:
        taken.update(requests(other))
    found += [f"Insufficient {name}" for name in sorted(wanted) if 0 < wanted[name] > room[name] - taken[name]]
    return found


def requests(spec: Json) -> Amounts:
    """What a pod asks for: its containers together, or the largest moment of its start; and the overhead."""
    total: Amounts = Counter()
    for container in spec.get("containers") or ():
        total.update(_asked(container))
    sidecars: Amounts = Counter()
    peak: Amounts = Counter()
    for container in spec.get("initContainers") or ():
        mine = _asked(container)
        if container.get("restartPolicy") == "Always":
            sidecars.update(mine)
            mine = sidecars
        else:
            mine = sidecars + mine
        peak |= mine
    total = (total + sidecars) | peak
    for name, amount in _asked(spec).items():  # of the pod as a whole
        total[name] = amount
    total.update(_amounts(spec.get("overhead") or {}))
    return total


def _asked(holder: Json) -> Amounts:
    resources = holder.get("resources") or {}
    return _amounts({**(resources.get("limits") or {}), **(resources.get("requests") or {})})


def _amounts(quantities: Mapping[str, Any]) -> Amounts:
    """What is no quantity counts as nothing: the API has refused it, or should have."""
    found: Amounts = Counter()
    for name, value in quantities.items():
        try:
            found[name] = quantity.nanos(value)
        except BadInput:
            continue
    return found
