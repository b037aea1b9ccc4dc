"""KubeEdge's Rules, as far as they concern a node: which messages of its broker, and which calls of its programs, go to
the gateway for them.

    eventbus  ─▶ rest   what is published under the rule's topic
    servicebus ─▶ rest  what a program on the node posts for the rule's target_url (or path)

They wait in series `messages`; the gateway posts them where the rule says, and acknowledges them then. The other two
ways, rest ─▶ eventbus and rest ─▶ servicebus, are the gateway's alone: the node publishes, or calls, as it is asked.
"""

from __future__ import annotations

from msgspec import Struct

from tinyedge.core.desk import Desk
from tinyedge.core.run import NEVER
from tinyedge.core.status import rfc3339
from tinyedge.errors import BadInput
from tinyedge.events import Called, ReportAnswer
from tinyedge.limits import ROUTES_MAX, RULE_ERROR_CHARS_MAX, SERIES_ITEM_BYTES_MAX
from tinyedge.model.rule import EVENTBUS, REST, SERVICEBUS, Rule
from tinyedge.protocol import outgoing
from tinyedge.protocol.mqtt_topics import check_filter, matches
from tinyedge.protocol.outgoing import Routed
from tinyedge.protocol.rules import RuleReport
from tinyedge.wire import RouteStateRow

SAVE_MS = 60_000


class Route(Struct, frozen=True):
    """`topic` is a filter of a broker's messages, or `path` what a program calls; `why`: the rule does nothing here."""

    rule: str
    topic: str = ""
    path: str = ""
    why: str = ""


class Routes:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._tables = desk.tables
        self._routes: dict[str, Route] | None = None
        self._states: dict[str, RouteStateRow] = dict(desk.tables.route_states)
        self._changed: dict[str, None] = {}
        self._save_at = NEVER

    def changed(self, kind: str, key: str) -> None:
        """A Rule or a RuleEndpoint was added, changed or removed."""
        if kind not in ("Rule", "RuleEndpoint"):
            return
        self._routes = None
        self._changed |= dict.fromkeys([*self._tables.rules, key] if kind == "RuleEndpoint" else [key])
        if kind == "Rule" and key not in self._tables.rules:
            self._states.pop(key, None)
            self._tables.delete("routestate", key)

    def flush(self) -> None:
        """At the end of each step. How many messages failed is kept once a minute: whoever sent them was told."""
        if self._save_at <= self._desk.now:
            self._save_at = NEVER
            for key, row in self._states.items():
                self._tables.put("routestate", key, row)

    @property
    def wake_ms(self) -> int:
        return self._save_at

    def take_changed(self) -> tuple[str, ...]:
        """Keys of rules of which `report` may have changed since the last call."""
        changed, self._changed = tuple(self._changed), {}
        return changed

    def report(self, key: str) -> RuleReport:
        """What a cluster is told of a rule that is here."""
        route, row = self.all()[key], self._states.get(key, RouteStateRow())
        why = route.why
        if route.topic and not self._desk.node.mqtt:
            why = "the node has no MQTT broker (mqtt.url)"
        at = (rfc3339(row.error_ms) or "") if row.error else ""
        return RuleReport(why[:RULE_ERROR_CHARS_MAX], row.failed, row.error, at)

    def all(self) -> dict[str, Route]:
        """By the rule's namespace/name."""
        if self._routes is None:
            self._routes = {key: self._route(row.object) for key, row in sorted(self._tables.rules.items())}
            self._desk.on()
        return self._routes

    def filters(self) -> tuple[str, ...]:
        """Of topics, each once, in order."""
        return tuple(sorted({one.topic for one in self.all().values() if one.topic}))

    def published(self, topic: str, payload: bytes) -> tuple[str, str]:
        """A message of the node's broker, for every rule that it is for: (code, why not)."""
        rules = [one.rule for one in self.all().values() if one.topic and matches(one.topic, topic)]
        return self._append_all([Routed(rule, topic, payload) for rule in rules])

    def called(self, event: Called) -> None:
        self._desk.say(ReportAnswer(event.request, *self._called(event)))

    def _called(self, event: Called) -> tuple[str, str]:
        desk, path = self._desk, event.path.strip("/")
        if desk.read_only:
            return "ReadOnly", f"the node's store can't be written: {desk.read_only}"
        if desk.full:
            return "Full", "the node's store is full: free space on its disk"
        rules = [one.rule for one in self.all().values() if one.path and one.path == path]
        if not rules:
            return "NotFound", f"no rule takes messages for {event.path[:200]!r} from this node"
        routed = [Routed(rule, path, event.payload, event.method, event.content_type) for rule in rules]
        return self._append_all(routed)

    def _append_all(self, messages: list[Routed]) -> tuple[str, str]:
        if len(messages) > ROUTES_MAX:
            self._desk.note("warning", "route.too_many", rules=len(messages), path=messages[0].path[:200])
            for one in messages[ROUTES_MAX:]:
                self._fail(one.rule, f"a message is for {len(messages)} rules, and {ROUTES_MAX} get it")
        answers = [self._append(one) for one in messages[:ROUTES_MAX]]
        return next((answer for answer in answers if answer[0]), ("", ""))

    def _append(self, message: Routed) -> tuple[str, str]:
        item = outgoing.encode(message)
        if len(item) > SERIES_ITEM_BYTES_MAX:
            self._desk.note("warning", "route.too_large", rule=message.rule, bytes=len(item))
            why = f"the message is {len(item)} bytes, more than {SERIES_ITEM_BYTES_MAX}"
            self._fail(message.rule, why)
            return "Invalid", why
        self._tables.append(outgoing.MESSAGES, item)
        return "", ""

    def _fail(self, rule: str, why: str) -> None:
        at_ms = self._desk.wall if self._desk.trusted else 0
        failed = self._states.get(rule, RouteStateRow()).failed
        self._states[rule] = RouteStateRow(failed + 1, why[:RULE_ERROR_CHARS_MAX], at_ms)
        self._changed[rule] = None
        self._save_at = min(self._save_at, self._desk.now + SAVE_MS)

    def _route(self, rule: Rule) -> Route:
        """What of a rule is this node's part; none, with its reason, when it has none."""
        self._desk.on("Rule", rule.key)
        source, target = self._type(rule.source), self._type(rule.target)
        if not source or not target:
            missing = rule.source if not source else rule.target
            why = self._tables.why_unreadable("ruleendpoint", missing)
            words = f"can't be used: {why}" if why else "is not on this node"
            return Route(rule.key, why=f"RuleEndpoint {missing.partition('/')[2]} {words}")
        resource = rule.spec.source_resource
        if target != REST or source not in (EVENTBUS, SERVICEBUS):
            return Route(rule.key, why=f"a rule from {source} to {target} is not this node's to follow")
        if resource.get("node_name", self._desk.node.name) != self._desk.node.name:
            return Route(rule.key, why=f"it is for node {resource['node_name']}")
        if source == SERVICEBUS:
            path = (resource.get("target_url") or resource.get("path") or "").strip("/")
            return Route(rule.key, path=path) if path else Route(rule.key, why="sourceResource names no target_url")
        try:
            check_filter(resource.get("topic", ""), "sourceResource.topic")
        except BadInput as error:
            return Route(rule.key, why=str(error))
        return Route(rule.key, topic=resource["topic"])

    def _type(self, key: str) -> str:
        row = self._tables.rule_endpoints.get(key)
        return row.object.spec.rule_endpoint_type if row else ""
