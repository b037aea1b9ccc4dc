"""What a cluster is told of rules that it wants here: of local rules what they are at, of KubeEdge's what their node
knows of them. The newest of each is told whole, again at each link, and at a pace: a rule that wavers, or many of them,
must not cost the API server more than a few writes a minute.
"""

from __future__ import annotations

from tinyedge.core.cloud import Cloud
from tinyedge.core.desk import Desk
from tinyedge.core.routes import Routes
from tinyedge.core.rules import Rules
from tinyedge.core.run import NEVER
from tinyedge.events import Report, ReportRefused, ReportTaken
from tinyedge.protocol.revision import revision
from tinyedge.protocol.rules import LOCAL_STATUS, STATUS, encode
from tinyedge.wire import CLOUD

Name = tuple[str, str]  # kind of the report, namespace/name
FEW = 10
FEW_MS, MANY_MS = 200, 1_000  # between two reports
SAME_MS = 5_000  # between two of one rule
UNDER_WAY_MAX = 16


class RuleReports:
    def __init__(self, desk: Desk, rules: Rules, routes: Routes, cloud: Cloud) -> None:
        self._desk = desk
        self._rules = rules
        self._routes = routes
        self._cloud = cloud
        self._waiting: dict[Name, None] = {}
        self._told: dict[Name, bytes] = {}  # revisions that the API server has, as far as was heard
        self._at: dict[Name, int] = {}  # when it was told last
        self._under_way: dict[Name, bytes] = {}
        self._unwanted: set[str] = set()  # kinds that this gateway does not know
        self._next_ms = 0
        self._session = 0
        self.wake_ms = NEVER

    def taken(self, event: ReportTaken) -> None:
        name = event.kind, event.key
        if self._under_way.get(name) == event.revision:
            self._told[name] = self._under_way.pop(name)

    def refused(self, event: ReportRefused) -> None:
        """It is told again when something of it is new, or by the next link."""
        self._under_way.pop((event.kind, event.key), None)
        if event.reason == "UnknownKind":
            self._unwanted.add(event.kind)
            return
        why = f"{event.reason}: {event.message}"[:200]
        self._desk.note("warning", "rule.report_refused", rule=event.key, why=why)

    def left(self) -> None:
        self._told.clear()

    def flush(self) -> None:
        """At the end of each step."""
        self.wake_ms = NEVER
        changed = [(LOCAL_STATUS, key) for key in self._rules.take_changed()]
        changed += [(STATUS, key) for key in self._routes.take_changed()]
        if not self._cloud.session:
            self._waiting.clear()
            self._under_way.clear()
            self._session = 0
            return
        if self._session != self._cloud.session:
            self._session = self._cloud.session
            self._unwanted.clear()
            tables = self._desk.tables
            changed = [(LOCAL_STATUS, key) for key in tables.local_rules] + [(STATUS, key) for key in tables.rules]
        for name in changed:
            if self._is_wanted(name):
                self._waiting[name] = None
            else:
                self._forget(name)
        self._tell()

    def _is_wanted(self, name: Name) -> bool:
        kind, key = name
        tables = self._desk.tables
        row = tables.local_rules.get(key) if kind == LOCAL_STATUS else tables.rules.get(key)
        return row is not None and row.source == CLOUD and kind not in self._unwanted

    def _forget(self, name: Name) -> None:
        self._waiting.pop(name, None)
        self._told.pop(name, None)
        self._at.pop(name, None)

    def _tell(self) -> None:
        now = self._desk.now
        for name in list(self._waiting):
            if len(self._under_way) >= UNDER_WAY_MAX:
                return  # an answer will come, or the link will go
            if name in self._under_way:
                continue
            due = max(self._next_ms, self._at.get(name, -SAME_MS) + SAME_MS)
            if due > now:
                self.wake_ms = min(self.wake_ms, due)
                continue
            pace = FEW_MS if len(self._waiting) <= FEW else MANY_MS
            del self._waiting[name]
            if self._is_wanted(name) and self._tell_of(name):
                self._next_ms = now + pace

    def _tell_of(self, name: Name) -> bool:
        kind, key = name
        self._desk.on("LocalRule" if kind == LOCAL_STATUS else "Rule", key)
        body = encode(self._rules.report(key) if kind == LOCAL_STATUS else self._routes.report(key))
        self._desk.on()
        told = revision(body)
        if self._told.get(name) == told:
            return False
        self._under_way[name], self._at[name] = told, self._desk.now
        self._desk.say(Report(kind, key, told, body))
        return True
