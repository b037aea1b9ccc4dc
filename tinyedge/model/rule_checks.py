"""What must hold in rules beyond the types of their fields."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from tinyedge.errors import BadInput
from tinyedge.limits import RULE_ACTIONS_MAX, RULE_INPUTS_MAX, RULE_TEXT_BYTES_MAX
from tinyedge.model.expression import ExpressionError, is_name, parse
from tinyedge.model.findings import Bad, Shown, must, one_of, one_source, within
from tinyedge.model.rule import (
    EVENTBUS,
    REST,
    SERVICEBUS,
    HTTPAction,
    LocalRuleSpec,
    PublishAction,
    RuleAction,
    RuleEndpointSpec,
    RuleSpec,
)

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
HOLD_SECONDS_MAX = 86_400
_REASON = re.compile(r"[A-Z][A-Za-z0-9]{0,127}")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_OURS = ("host", "content-length", "connection", "transfer-encoding", "idempotency-key")


def local_rule_problems(spec: LocalRuleSpec, bad: Bad) -> None:
    _inputs(spec, bad)
    must(bad, spec.when, "spec.when", spec.when, "a condition such as temperature > 80")
    for path, text in (("spec.when", spec.when), ("spec.clear", spec.clear)):
        if text:
            _expression(spec, path, text, bad)
    within(bad, "spec.holdSeconds", spec.hold_seconds, 0, HOLD_SECONDS_MAX)
    if not 0 < len(spec.actions) <= RULE_ACTIONS_MAX:
        shown = Shown(f"a list of {len(spec.actions)}")
        bad.append(BadInput("spec.actions", shown, f"1 to {RULE_ACTIONS_MAX} actions"))
    for index, action in enumerate(spec.actions):
        _action(f"spec.actions[{index}]", action, bad)


def _inputs(spec: LocalRuleSpec, bad: Bad) -> None:
    if not 0 < len(spec.inputs) <= RULE_INPUTS_MAX:
        bad.append(BadInput("spec.inputs", Shown(f"a mapping of {len(spec.inputs)}"), f"1 to {RULE_INPUTS_MAX} inputs"))
    for name, one in spec.inputs.items():
        words = "letters, digits and _, not a digit first, and no word of the language"
        must(bad, is_name(name), "spec.inputs", Shown(f"keyed {name!r}"), words)
        must(bad, one.device, f"spec.inputs.{name}.device", one.device, "the name of a Device of this namespace")
        must(bad, one.property, f"spec.inputs.{name}.property", one.property, "the name of one of its properties")


def _expression(spec: LocalRuleSpec, path: str, text: str, bad: Bad) -> None:
    try:
        parse(text, spec.inputs)
    except ExpressionError as error:
        shown = Shown(f"wrong at character {error.position} ({error.problem})")
        bad.append(BadInput(path, shown, error.right))


def _action(path: str, action: RuleAction, bad: Bad) -> None:
    one_source(bad, path, action, ("set", "publish", "http", "event"))
    if action.set is not None:
        must(bad, action.set.device, f"{path}.set.device", action.set.device, "the name of a Device of this namespace")
        must(bad, action.set.property, f"{path}.set.property", action.set.property, "the name of one of its properties")
        _size(f"{path}.set.value", action.set.value, bad)
    if action.publish is not None:
        _publish(f"{path}.publish", action.publish, bad)
    if action.http is not None:
        _http(f"{path}.http", action.http, bad)
    if action.event is not None:
        event = action.event
        words = "one word such as PumpStopped, a capital letter first"
        must(bad, _REASON.fullmatch(event.reason), f"{path}.event.reason", event.reason, words)
        one_of(bad, f"{path}.event.type", event.type, ("Normal", "Warning"))
        _size(f"{path}.event.message", event.message, bad)


def _publish(path: str, publish: PublishAction, bad: Bad) -> None:
    _topic(f"{path}.topic", publish.topic, bad)
    within(bad, f"{path}.qos", publish.qos, 0, 2)
    _size(f"{path}.payload", publish.payload, bad)


def _topic(path: str, topic: str, bad: Bad) -> None:
    good = topic and len(topic.encode(errors="replace")) <= 1024 and not set(topic) & {"+", "#", "\0"}
    must(bad, good, path, topic, "a topic of at most 1024 bytes, without + and #")


def _http(path: str, http: HTTPAction, bad: Bad) -> None:
    must(bad, is_url(http.url), f"{path}.url", http.url, "http://HOST[:PORT]/PATH or https://…, without a password")
    one_of(bad, f"{path}.method", http.method, METHODS)
    _size(f"{path}.body", http.body, bad)
    for name, value in http.headers.items():
        good = _HEADER.fullmatch(name) and name.lower() not in _OURS
        must(bad, good, f"{path}.headers", Shown(f"keyed {name!r}"), "names of headers that are not ours to set")
        printable = value.isprintable() and value.isascii()
        shown = Shown("not a line of ASCII (it is not shown)")
        must(bad, printable and len(value) <= 4096, f"{path}.headers.{name}", shown, "one line of ASCII")


def is_url(text: str) -> bool:
    """Whether HTTP can be called there; passwords have no place in an object that many may read."""
    try:
        parts = urlsplit(text)
        port_is_good = parts.port is None or parts.port > 0
    except ValueError:
        return False
    plain = text.isascii() and text.isprintable() and " " not in text and len(text) <= 2048
    return bool(
        plain and parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc and port_is_good
    )


def _size(path: str, text: str, bad: Bad) -> None:
    if len(text.encode(errors="replace")) > RULE_TEXT_BYTES_MAX:
        bad.append(BadInput(path, Shown("too large"), f"at most {RULE_TEXT_BYTES_MAX} bytes"))


# --- KubeEdge's --------------------------------------------------------------------------------------


def endpoint_problems(spec: RuleEndpointSpec, bad: Bad) -> None:
    one_of(bad, "spec.ruleEndpointType", spec.rule_endpoint_type, (REST, EVENTBUS, SERVICEBUS))
    if spec.rule_endpoint_type == SERVICEBUS:
        port = spec.properties.get("service_port", "")
        good = port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536
        must(bad, good, "spec.properties.service_port", port, "the port of the service on the node, as a text")


def rule_problems(spec: RuleSpec, bad: Bad) -> None:
    must(bad, spec.source, "spec.source", spec.source, "the name of a RuleEndpoint of this namespace")
    must(bad, spec.target, "spec.target", spec.target, "the name of a RuleEndpoint of this namespace")
    for path, resource in (
        ("spec.sourceResource", spec.source_resource),
        ("spec.targetResource", spec.target_resource),
    ):
        must(bad, resource, path, Shown("empty"), "path, topic or resource, as the endpoint's type asks for")
