"""The status of rules in the API: LocalRule.status as the node says, and KubeEdge's Rule.status of what all know.

    successMessages, failMessages   counts: what is in the API, and what this replica has seen since
    nodeFailMessages                those of the failures that the node itself has told, in all
    errors                          the newest first, each with its time
    state, message                  Ready, Working, Failing (the last message did not arrive, or waits), or Invalid: it
                                    passes nothing on, and the message says why
    nodeProblem                     why its node passes nothing on

Nothing is kept here: counts go on from what the API has, whichever replica has written it, and are written with its
resourceVersion, so that none is lost between two of them. What was counted and is not written yet goes with this
process: seconds' worth, or SAME_MS of a rule that is busy. A node is believed about rules that name it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from msgspec import Struct, field

from cloud_gateway.core import translate
from cloud_gateway.core.custom_kinds import Reference
from cloud_gateway.core.customs import Customs
from cloud_gateway.core.desk import Desk, again_ms
from cloud_gateway.core.facts import Delete, Done, Reported, RulesUseless, RuleUsed, StateRefused, StateTaken
from cloud_gateway.core.node import Node
from tinyedge.errors import BadInput
from tinyedge.protocol.rules import LOCAL_STATUS, STATUS, LocalRuleReport, RuleReport, decode

Json = dict[str, Any]
KINDS = (LOCAL_STATUS, STATUS)
ERRORS_MAX = 5
FIRST_MS = 2_000  # until what has happened is written
SAME_MS = 10_000  # between two writes of one rule
PACE_MS = 500  # between two writes of any
UNLISTED_MS = 2_000
_KIND = {LOCAL_STATUS: "localrule", STATUS: "rule"}
_WORDS_CHARS = 500


class Telling(Struct, frozen=True):
    """A report that waits to be in the API."""

    node: Node
    event: Reported
    report: LocalRuleReport | RuleReport


class Counted(Struct):
    """What has come since what the API has. `errors` are the newest first; `last` is how the newest message ended,
    Working or Failing, empty for none, and `words` why."""

    good: int = 0
    bad: int = 0
    errors: list[str] = field(default_factory=list)
    last: str = ""
    words: str = ""

    def add(self, older: Counted) -> None:
        """What could not be written."""
        self.good += older.good
        self.bad += older.bad
        self.errors = [*self.errors, *older.errors][:ERRORS_MAX]
        if not self.last:
            self.last, self.words = older.last, older.words


class Known(Struct):
    """One rule. `object` is the newest that the API has told, `problem` why it does nothing by that (None: that is not
    known yet), `telling` what its node said last. `planned`: it will be looked at."""

    object: Json
    counted: Counted = field(default_factory=Counted)
    problem: str | None = None
    telling: Telling | None = None
    planned: bool = False
    busy: bool = False
    next_ms: int = 0
    tries: int = 0


class RuleStatus:
    def __init__(self, desk: Desk, customs: Customs) -> None:
        self._desk = desk
        self._customs = customs
        customs.rule_seen = self.seen
        self._known: dict[Reference, Known] = {}
        self._queue: dict[Reference, Known] = {}
        self._next_ms = 0
        self._pumping = False
        self.writes = 0

    # --- what a watch tells ------------------------------------------------------------------------

    def seen(self, name: Reference, obj: Json | None) -> None:
        known = self._known.get(name)
        if obj is None:
            self._known.pop(name, None)
        elif known is None or known.object["metadata"].get("uid") != obj["metadata"].get("uid"):
            self._known[name] = Known(obj)
        else:
            known.object = obj
            self._plan(name, known)

    # --- what has happened -------------------------------------------------------------------------

    def used(self, event: RuleUsed) -> None:
        """Messages of a rule have arrived, or not."""
        name = "rule", event.rule
        known = self._known.get(name)
        if known is None:
            return
        why = event.why[:_WORDS_CHARS]
        errors = [f"{translate.stamp(self._desk.wall)} {why}"] if why else []
        newer = Counted(event.good, event.bad, errors, "Failing" if why else "Working", why)
        newer.add(known.counted)
        known.counted = newer
        self._plan(name, known)

    def useless(self, event: RulesUseless) -> None:
        """All rules that do nothing by what the API has of them and of their endpoints."""
        for name, known in self._known.items():
            if name[0] == "rule":
                known.problem = event.problems.get(name[1], "")
                self._plan(name, known)

    def reported(self, node: Node, event: Reported) -> None:
        """What a node says of a rule. It is taken once the API has it."""
        name = _KIND[event.kind], event.key
        known = self._known.get(name)
        if self._customs.bound(node.name, name) is None or known is None:
            self._of_another(node, event, name)
            return
        self._customs.kept(node.name, name)
        try:
            report = decode(event.kind, event.body)
        except BadInput as error:
            self._desk.say(StateRefused(event.session, event.seq, "Invalid", str(error)[:_WORDS_CHARS]))
            return
        if known.telling is not None:
            self._taken(known.telling)  # a newer one is here
        known.telling = Telling(node, event, report)
        self._plan(name, known)

    def _of_another(self, node: Node, event: Reported, ref: Reference) -> None:
        if not self._customs.is_listed(ref[0]):
            self._desk.later(UNLISTED_MS, lambda: self.reported(node, event) if _lives(node, event) else None)
        elif self._customs.find(ref) is None:
            self._desk.say(StateTaken(event.session, event.seq))  # it is gone; nobody wants to know
            self._desk.say(Delete(event.session, *ref))
        else:
            words = "a node reports on rules that name it"
            self._desk.say(StateRefused(event.session, event.seq, "Forbidden", words))

    def _taken(self, what: Telling) -> None:
        if _lives(what.node, what.event):
            self._desk.say(StateTaken(what.event.session, what.event.seq))

    # --- writing -----------------------------------------------------------------------------------

    def _plan(self, name: Reference, known: Known) -> None:
        """Have it looked at, not too soon and not too often."""
        if not known.planned and not known.busy:
            known.planned = True
            delay_ms = max(FIRST_MS, known.next_ms - self._desk.now)
            self._desk.later(delay_ms, partial(self._enqueue, name, known))

    def _enqueue(self, name: Reference, known: Known) -> None:
        if self._known.get(name) is known:
            self._queue[name] = known
            self._pump()

    def _pump(self) -> None:
        """One after the other, at a pace."""
        while self._queue and not self._pumping:
            wait_ms = self._next_ms - self._desk.now
            if wait_ms > 0:
                self._pumping = True
                self._desk.later(wait_ms, self._pump_again)
                return
            name = next(iter(self._queue))
            known = self._queue.pop(name)
            known.planned = False
            if self._known.get(name) is known and self._write(name, known):
                self._next_ms = self._desk.now + PACE_MS

    def _pump_again(self) -> None:
        self._pumping = False
        self._pump()

    def _write(self, name: Reference, known: Known) -> bool:
        """False when there is nothing to write."""
        before, told, counted = known.object.get("status") or {}, known.telling, known.counted
        status = _local(told) if name[0] == "localrule" else _of_rule(known, before)
        changed = {key: value for key, value in status.items() if before.get(key) != value}
        if not changed:
            self._concluded(known, told)
            return False
        known.busy, known.counted = True, Counted()
        known.next_ms = self._desk.now + SAME_MS
        self.writes += 1
        meta = known.object["metadata"]
        body: Json = {"metadata": {"uid": meta["uid"]}, "status": changed}
        if name[0] == "rule":
            body["metadata"]["resourceVersion"] = meta.get("resourceVersion", "")
        where = (f"{name[0]}s", meta.get("namespace", ""), meta["name"])
        then = partial(self._written, name, known, told, counted)
        self._desk.call("patch", *where, then, body=body, subresource="status")
        return True

    def _written(self, name: Reference, known: Known, told: Telling | None, counted: Counted, done: Done) -> None:
        known.busy = False
        if self._known.get(name) is not known or done.ok:
            known.tries = 0
            known.object = done.object or known.object
            self._concluded(known, told)
        elif done.refused and done.status != 404:
            self._desk.note("warning", "rule.unwritten", rule=name[1], status=done.status, why=done.message[:200])
            if told is not None and known.telling is told:
                known.telling = None
                if _lives(told.node, told.event):
                    words = (done.message or "the API refuses it")[:_WORDS_CHARS]
                    self._desk.say(StateRefused(told.event.session, told.event.seq, done.reason or "Invalid", words))
            if known.telling is None:
                return
        else:  # after a conflict the watch tells what there is now
            known.counted.add(counted)
            known.next_ms = self._desk.now + again_ms(known.tries)
            known.tries += 1
        self._plan(name, known)

    def _concluded(self, known: Known, told: Telling | None) -> None:
        if told is not None and known.telling is told:
            known.telling = None
            self._taken(told)


def _local(told: Telling | None) -> Json:
    """What is not (any more) is null, which takes it out of the API."""
    report = told.report if told else None
    if not isinstance(report, LocalRuleReport):
        return {}
    return {
        "active": report.active,
        "fired": report.fired,
        "result": report.result,
        "unknown": report.unknown or None,
        "holding": report.holding or None,
        "lastTransitionTime": report.last_transition_time or None,
        "lastFiredTime": report.last_fired_time or None,
        "problem": report.problem or None,
        "lastError": report.last_error or None,
        "lastErrorTime": report.last_error_time or None,
    }


def _of_rule(known: Known, before: Json) -> Json:
    counted, report = known.counted, known.telling.report if known.telling else None
    of_node, errors = _number(before, "nodeFailMessages"), list(counted.errors)
    node_problem, failed = str(before.get("nodeProblem") or ""), 0
    if isinstance(report, RuleReport):
        node_problem = report.problem
        failed = report.failed - of_node if report.failed >= of_node else report.failed  # its store is a new one
        of_node = report.failed
        if failed and report.last_error:
            errors.insert(0, f"{report.last_error_time} on the node: {report.last_error}".lstrip())
    found: Json = {
        "successMessages": _number(before, "successMessages") + counted.good,
        "failMessages": _number(before, "failMessages") + counted.bad + failed,
        "nodeFailMessages": of_node or None,
        "nodeProblem": node_problem or None,
    }
    if known.problem is not None or counted.last or report is not None:
        found["state"], message = _state(known, before, node_problem)
        found["message"] = message or None
    if errors:
        found["errors"] = _newest(errors, before.get("errors"))
    return found


def _newest(errors: list[str], older: object) -> list[str]:
    """Each once, whatever the time that stands before it."""
    found: dict[str, str] = {}
    for one in (*errors, *(older if isinstance(older, list) else ())):
        found.setdefault(str(one).partition(" ")[2] or str(one), str(one))
    return list(found.values())[:ERRORS_MAX]


def _state(known: Known, before: Json, node_problem: str) -> tuple[str, str]:
    accepted = translate.condition(known.object, "Accepted") or {}
    if accepted.get("status") == "False":
        return "Invalid", f"its node refuses it: {accepted.get('message', '')}"[:_WORDS_CHARS]
    if known.problem or node_problem:
        return "Invalid", known.problem or f"its node: {node_problem}"
    if known.counted.last:
        return known.counted.last, known.counted.words
    state, message = str(before.get("state") or ""), str(before.get("message") or "")
    still = known.problem is None and not before.get("nodeProblem")  # it may well do nothing yet
    if state in ("Working", "Failing") or (state == "Invalid" and still):
        return state, message
    return "Ready", ""


def _number(status: Json, name: str) -> int:
    found = status.get(name)
    return found if isinstance(found, int) and found > 0 else 0


def _lives(node: Node, event: Reported) -> bool:
    return node.session is not None and node.session.number == event.session
