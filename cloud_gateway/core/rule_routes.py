"""KubeEdge's Rules at the gateway, as the API has them now: an edit counts at once. Pure.

    rest       ─▶ eventbus     a request becomes a message for a node's broker
    rest       ─▶ servicebus   a request becomes a call of a service on a node
    eventbus   ─▶ rest         a node's message is posted to a URL
    servicebus ─▶ rest         the same, of a program on the node

A request's path is /NODE/NAMESPACE/PATH-OF-THE-RULE, and what follows: that is added to the topic, or the service's
path. In a rule's path {…} stands for any one part. Of several rules that fit, the longest and plainest path counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct

from tinyedge.errors import BadInput
from tinyedge.model.rule import EVENTBUS, REST, SERVICEBUS
from tinyedge.protocol.mqtt_topics import check_topic

Json = dict[str, Any]
RULES, ENDPOINTS = "rules", "ruleendpoints"
_WAYS = ((REST, EVENTBUS), (REST, SERVICEBUS), (EVENTBUS, REST), (SERVICEBUS, REST))


class RestRoute(Struct, frozen=True):
    """`rule` is its namespace/name. `topic` of an eventbus, or `port` and `path` of a servicebus."""

    rule: str
    parts: tuple[str, ...]
    topic: str = ""
    port: int = 0
    path: str = ""


class Upward(Struct, frozen=True):
    """Where messages of a node go. `uid` is the rule's."""

    rule: str
    node: str
    url: str
    uid: str


class RuleRoutes:
    """`problems`: rule → why it does nothing. `known`: whether both kinds have been listed, or are not served.
    `missing` are nodes that rules name and that there are not; `has_port`: this gateway takes requests of REST."""

    def __init__(self, *, has_port: bool = True) -> None:
        self._has_port = has_port
        self.missing: frozenset[str] = frozenset()
        self._objects: dict[str, dict[str, Json]] = {RULES: {}, ENDPOINTS: {}}
        self._listing: dict[str, set[str]] = {}
        self._seen: set[str] = set()
        self._compiled = False
        self._rest: dict[str, list[RestRoute]] = {}
        self._up: dict[str, Upward] = {}
        self.problems: dict[str, str] = {}

    # --- what the API tells --------------------------------------------------------------------------

    def listing(self, resource: str) -> None:
        self._listing[resource] = set()

    def page(self, resource: str, objects: Iterable[Json]) -> None:
        for one in objects:
            self.seen(resource, one)
            self._listing.setdefault(resource, set()).add(_key(one))

    def listed(self, resource: str) -> None:
        """What was not listed is no more."""
        there = self._listing.pop(resource, set())
        for key in self._objects[resource].keys() - there:
            del self._objects[resource][key]
        self._seen.add(resource)
        self._compiled = False

    def seen(self, resource: str, one: Json) -> None:
        self._objects[resource][_key(one)] = one
        self._compiled = False

    def gone(self, resource: str, one: Json) -> None:
        self._objects[resource].pop(_key(one), None)
        self._compiled = False

    def unserved(self, resource: str) -> None:
        self._seen.add(resource)

    @property
    def known(self) -> bool:
        return len(self._seen) == 2

    # --- what is asked --------------------------------------------------------------------------------

    def rest(self, namespace: str, parts: tuple[str, ...]) -> tuple[RestRoute, tuple[str, ...]] | None:
        """The route of a request's path behind node and namespace, and what is left of the path."""
        self._compile()
        fitting = [one for one in self._rest.get(namespace, ()) if _fits(one.parts, parts)]
        if not fitting:
            return None
        best = max(fitting, key=lambda one: (len(one.parts), -sum(map(_is_any, one.parts)), one.rule))
        return best, parts[len(best.parts) :]

    def upward(self, rule: str, node: str) -> Upward | str:
        """Where a node's message for a rule goes, or why nowhere. A node speaks only for rules that name it."""
        self._compile()
        found = self._up.get(rule)
        if found is None:
            return self.problems.get(rule, f"there is no rule {rule}")
        return found if found.node == node else f"rule {rule} is not for node {node}"

    def useless(self) -> dict[str, tuple[str, str]]:
        """Rules that do nothing: the uid of each, and why."""
        self._compile()
        found = dict(self.problems)
        for one in () if self._has_port else (one for routes in self._rest.values() for one in routes):
            found[one.rule] = "this gateway takes no requests: it runs without --rest"
        for key, up in self._up.items():
            if up.node in self.missing:
                found[key] = f"there is no node {up.node[:100]}, which sourceResource names as node_name"
        return {key: (str(self._objects[RULES][key]["metadata"].get("uid", "")), why) for key, why in found.items()}

    def nodes(self) -> frozenset[str]:
        """Those that rules name."""
        self._compile()
        return frozenset(one.node for one in self._up.values())

    # --- the rules ------------------------------------------------------------------------------------

    def _compile(self) -> None:
        if self._compiled:
            return
        self._compiled = True
        self._rest, self._up, self.problems = {}, {}, {}
        for key, rule in sorted(self._objects[RULES].items()):
            if why := self._take(key, rule):
                self.problems[key] = why

    def _take(self, key: str, rule: Json) -> str:
        """Why a rule does nothing; empty when it does."""
        spec = _mapping(rule.get("spec"))
        source, target = self._end(rule, spec.get("source")), self._end(rule, spec.get("target"))
        for name, end in (("source", source), ("target", target)):
            if end is None:
                return (
                    f"there is no RuleEndpoint {str(spec.get(name))[:100]} in its namespace, which it names as {name}"
                )
        kinds = (_text(source, "ruleEndpointType"), _text(target, "ruleEndpointType"))
        if kinds not in _WAYS:
            return f"there is no way from {kinds[0]} to {kinds[1]}"
        ours, theirs = _mapping(spec.get("sourceResource")), _mapping(spec.get("targetResource"))
        if kinds[0] == REST:
            return self._take_rest(key, ours, theirs, kinds[1], target or {})
        url = str(theirs.get("resource") or theirs.get("target_url") or "")
        node = str(ours.get("node_name") or "")
        if not url or not node:
            return "sourceResource names no node_name" if url else "targetResource names no resource: a URL"
        self._up[key] = Upward(key, node, url, str(rule["metadata"].get("uid", "")))
        return ""

    def _take_rest(self, key: str, ours: Json, theirs: Json, kind: str, target: Json) -> str:
        parts = tuple(part for part in str(ours.get("path") or "").split("/") if part)
        if not parts:
            return "sourceResource names no path"
        if kind == EVENTBUS:
            topic = str(theirs.get("topic") or "").rstrip("/")
            try:
                check_topic(topic, "targetResource.topic")
            except BadInput as error:
                return str(error)
            route = RestRoute(key, parts, topic=topic)
        else:
            port = str(_mapping(target.get("properties")).get("service_port", ""))
            if not port.isascii() or not port.isdigit() or not 0 < int(port[:6]) < 65536:
                return f"the service_port of its target is {port[:20]!r}, expected a port"
            route = RestRoute(key, parts, port=int(port), path=str(theirs.get("path") or "/").rstrip("/"))
        self._rest.setdefault(key.partition("/")[0], []).append(route)
        return ""

    def _end(self, rule: Json, name: object) -> Json | None:
        found = self._objects[ENDPOINTS].get(f"{rule['metadata'].get('namespace', '')}/{name}")
        return None if found is None else _mapping(found.get("spec"))


def _key(one: Json) -> str:
    meta = one["metadata"]
    return f"{meta.get('namespace', '')}/{meta['name']}"


def _mapping(value: object) -> Json:
    return value if isinstance(value, dict) else {}


def _text(one: Mapping[str, Any] | None, name: str) -> str:
    return str((one or {}).get(name, ""))


def _is_any(part: str) -> bool:
    return len(part) > 2 and part[0] == "{" and part[-1] == "}"


def _fits(rule: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    if len(rule) > len(parts):
        return False
    return all(_is_any(one) or one == part for one, part in zip(rule, parts, strict=False))
