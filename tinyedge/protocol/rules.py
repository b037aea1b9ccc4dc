"""What a node tells its gateway of rules, on the link.

    State("localrulestatus", NAMESPACE/NAME)    ◀─  LocalRuleReport, into LocalRule.status
    State("rulestatus", NAMESPACE/NAME)         ◀─  RuleReport: what KubeEdge's Rule.status can't know without its node

A gateway that does not know them refuses them as UnknownKind, and is not told again over that link.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from tinyedge.errors import BadInput
from tinyedge.limits import RULE_ERROR_CHARS_MAX
from tinyedge.protocol.revision import encode as canonical

LOCAL_STATUS, STATUS = "localrulestatus", "rulestatus"  # kinds of reports


class LocalRuleReport(Struct, frozen=True, rename="camel", omit_defaults=True):
    """`result` of the condition: `true`, `false` or `unknown`, and then `unknown` says of which input why. `holding`:
    the condition is true and has to go on for a while. `problem`: why it does nothing, or could not do what it was to
    do last; `last_error` is the last that there ever was. Times are RFC 3339, empty when they are not known."""

    active: bool
    fired: int
    result: str
    unknown: str = ""
    holding: bool = False
    last_transition_time: str = ""
    last_fired_time: str = ""
    problem: str = ""
    last_error: str = ""
    last_error_time: str = ""


class RuleReport(Struct, frozen=True, rename="camel", omit_defaults=True):
    """`problem`: why the node passes nothing on for it. `failed` counts messages that the node could not take."""

    problem: str = ""
    failed: int = 0
    last_error: str = ""
    last_error_time: str = ""


Report = LocalRuleReport | RuleReport


def encode(report: Report) -> bytes:
    return canonical(msgspec.to_builtins(report))


def decode(kind: str, body: bytes) -> Report:
    """BadInput for what is none."""
    shape: type[Report] = LocalRuleReport if kind == LOCAL_STATUS else RuleReport
    try:
        found = msgspec.msgpack.decode(body, type=shape)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadInput("the status of a rule", "(not shown)", f"one: {error}") from None
    texts = [value for value in msgspec.structs.asdict(found).values() if isinstance(value, str)]
    if max(map(len, texts)) > RULE_ERROR_CHARS_MAX:
        raise BadInput("a text in the status of a rule", "(not shown)", f"at most {RULE_ERROR_CHARS_MAX} characters")
    return found
