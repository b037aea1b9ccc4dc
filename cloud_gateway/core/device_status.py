"""What nodes report of their devices, on its way into the API: DeviceStatus, and Device.status for older clients.

A node is believed about devices that name it, and what it says of one never replaces what the API knows better: of each
property the value with the newer timestamp stays. So a node that has lost its store shows what was known, until it has
read anew. What the API knows is looked up once for each device and session; from then on it is what was written.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from msgspec import Struct, field

from cloud_gateway.core.customs import Custom, Customs
from cloud_gateway.core.desk import Desk, again_ms
from cloud_gateway.core.facts import Delete, Done, Reported, StateRefused, StateTaken
from cloud_gateway.core.node import Node
from tinyedge.errors import BadInput
from tinyedge.limits import DEVICE_PROPERTIES_MAX

Json = dict[str, Any]

KIND = "devicestatus"
BOTH, DEVICE, STATUS = "both", "device", "devicestatus"  # what is written
TARGETS = (BOTH, STATUS, DEVICE)
_OBJECTS = {BOTH: ("devicestatuses", "devices"), STATUS: ("devicestatuses",), DEVICE: ("devices",)}
_AHEAD_MS = 300_000  # a value from later than this was taken by a clock that was wrong, and replaces nothing
UNLISTED_MS = 2_000  # between two looks at whether it is known what devices there are
_SUMMARY_CHARS, _VALUE_CHARS, _WORDS_CHARS, _REASON_CHARS = 120, 24, 1000, 400


class Known(Struct):
    """What the API has of a device's properties. `newest` are times, `kept` the twins of those that its node knows only
    older ones of, or none."""

    uid: str
    revision: bytes
    made: bool = False  # there is a DeviceStatus
    newest: dict[str, int] = field(default_factory=dict)
    kept: dict[str, Json] = field(default_factory=dict)


class _Telling(Struct):
    """A report on its way. `left`: objects that do not have it yet; `busy` of them are being written, and `failed` is
    how the first of those that could not be written failed in this try."""

    node: Node
    event: Reported
    device: Custom
    body: Json
    left: set[str]
    busy: int = 0
    failed: Done | None = None
    tries: int = 0


class DeviceStatus:
    def __init__(self, desk: Desk, customs: Customs, target: str) -> None:
        self._desk = desk
        self._customs = customs
        self._objects = _OBJECTS[target]
        self._known: dict[str, dict[str, Known]] = {}  # node → device
        self.writes = 0

    def closed(self, node: str) -> None:
        """Another replica may write from now on."""
        self._known.pop(node, None)

    def reported(self, node: Node, event: Reported) -> None:
        ref = ("device", event.key)
        device = self._customs.bound(node.name, ref)
        if device is None:
            self._of_another(node, event)
            return
        if not event.body:
            self._desk.say(StateTaken(event.session, event.seq))
            return
        try:
            found = _read(event.body)
        except BadInput as error:
            self._desk.say(StateRefused(event.session, event.seq, "Invalid", str(error)[:_WORDS_CHARS]))
            return
        what = _Telling(node, event, device, found, set(self._objects))
        known = self._known.get(node.name, {}).get(event.key)
        if known is None or (known.uid, known.revision) != (device.uid, device.revision):
            self._look(what)
        else:
            self._write(what, known)

    def _of_another(self, node: Node, event: Reported) -> None:
        if not self._customs.is_listed("device"):
            self._desk.later(UNLISTED_MS, lambda: self.reported(node, event) if _lives(node, event) else None)
        elif self._customs.find(("device", event.key)) is None:
            self._desk.say(StateTaken(event.session, event.seq))  # it is gone; nobody wants to know
            self._desk.say(Delete(event.session, "device", event.key))
        else:
            words = "a node reports on devices that name it in spec.nodeName"
            self._desk.say(StateRefused(event.session, event.seq, "Forbidden", words))

    # --- what the API knows ----------------------------------------------------------------------

    def _look(self, what: _Telling) -> None:
        device = what.device
        self._desk.call("get", self._objects[0], device.namespace, device.name, partial(self._looked, what))

    def _looked(self, what: _Telling, done: Done) -> None:
        if not _lives(what.node, what.event):
            return
        if not done.ok and done.status != 404:
            self._again(what, done, self._look)
            return
        device, obj = what.device, done.object or {}
        if _is_of_another(obj, device):
            self._replace(what, str(obj["metadata"].get("uid", "")))
            return
        known = Known(device.uid, device.revision, made=done.ok)
        for twin in (obj.get("status") or {}).get("twins") or ():
            name, at_ms = twin.get("propertyName"), _at_ms(twin)
            if isinstance(name, str) and 0 < at_ms <= self._desk.wall + _AHEAD_MS:
                known.newest[name], known.kept[name] = at_ms, twin
        self._known.setdefault(what.node.name, {})[what.event.key] = known
        self._write(what, known)

    def _replace(self, what: _Telling, uid: str) -> None:
        """It was made for a device of this name that is gone."""
        where = ("devicestatuses", what.device.namespace, what.device.name)
        self._desk.call("delete", *where, lambda done: self._again(what, done, self._look), uid=uid)

    # --- what it is to know ------------------------------------------------------------------------

    def _write(self, what: _Telling, known: Known) -> None:
        status = _status(what.body, known)
        what.failed, what.busy = None, len(what.left)
        for resource in sorted(what.left):
            if resource == "devicestatuses" and not known.made:
                self._make(what, status, known)
            else:
                self._patch(what, resource, status, known)

    def _make(self, what: _Telling, status: Json, known: Known) -> None:
        device = what.device

        def then(done: Done) -> None:
            known.made = known.made or done.ok or done.status == 409
            if done.status == 409:
                self._patch(what, "devicestatuses", status, known)
            else:
                self._written(what, "devicestatuses", known, done)

        self.writes += 1
        body = _new(device) | {"status": {name: value for name, value in status.items() if value is not None}}
        self._desk.call("create", "devicestatuses", device.namespace, device.name, then, body=body)

    def _patch(self, what: _Telling, resource: str, status: Json, known: Known) -> None:
        device = what.device
        more: Json = {"body": {"status": status}}
        if resource == "devices":
            more = {"body": {"metadata": {"uid": device.uid}, "status": status}, "subresource": "status"}
        then = partial(self._written, what, resource, known)
        self.writes += 1
        self._desk.call("patch", resource, device.namespace, device.name, then, **more)

    def _written(self, what: _Telling, resource: str, known: Known, done: Done) -> None:
        what.busy -= 1
        if done.ok:
            what.left.discard(resource)
        else:
            what.failed = what.failed or done
            known.made = known.made and done.status != 404  # somebody has deleted it
        if not what.busy and _lives(what.node, what.event):
            self._concluded(what, known)

    def _concluded(self, what: _Telling, known: Known) -> None:
        event, failed = what.event, what.failed
        if failed is None or (failed.status in (404, 409) and self._is_gone(what.device, what.node)):
            self._desk.say(StateTaken(event.session, event.seq))
        elif failed.status == 404 and what.tries:
            words = f"{failed.message} (are the definitions of packaging/kubernetes/crds applied?)"
            self._desk.say(StateRefused(event.session, event.seq, "NotFound", words[:_WORDS_CHARS]))
        elif failed.refused and failed.status != 404:
            reason = failed.reason or "Invalid"
            self._desk.say(StateRefused(event.session, event.seq, reason, failed.message[:_WORDS_CHARS]))
        else:
            self._again(what, failed, partial(self._write, known=known))

    def _is_gone(self, device: Custom, node: Node) -> bool:
        current = self._customs.bound(node.name, device.ref)
        return current is None or current.uid != device.uid

    def _again(self, what: _Telling, done: Done, do: Callable[[_Telling], None]) -> None:
        self._desk.later(again_ms(what.tries), lambda: do(what) if _lives(what.node, what.event) else None)
        what.tries += 1
        if what.tries == 2:
            where = {"node": what.node.name, "device": what.device.key}
            self._desk.note("warning", "device.unwritten", **where, status=done.status, why=done.message[:200])


def _merged(twins: list[Json], known: Known) -> list[Json]:
    found = []
    for twin in twins:
        name = twin["propertyName"]
        better = known.kept.get(name)
        if better is not None and _is_older(twin, known.newest[name]):
            found.append({**twin, "reported": better["reported"]})
        else:
            known.kept.pop(name, None)
            found.append(twin)
    return found


def _lives(node: Node, event: Reported) -> bool:
    return node.session is not None and node.session.number == event.session


def _new(device: Custom) -> Json:
    owner = {"apiVersion": device.kind.api_version, "kind": "Device", "name": device.name, "uid": device.uid}
    meta = {"name": device.name, "namespace": device.namespace, "ownerReferences": [owner]}
    return {"apiVersion": device.kind.api_version, "kind": "DeviceStatus", "metadata": meta}


def _is_of_another(obj: Json, device: Custom) -> bool:
    """Whether a DeviceStatus belongs to a device that is not this one."""
    owners = (obj.get("metadata") or {}).get("ownerReferences") or ()
    return any(one.get("kind") == "Device" and one.get("uid") != device.uid for one in owners)


def _status(body: Json, known: Known) -> Json:
    found: Json = {}
    if body.get("twins") is not None:
        twins = _merged(body["twins"], known)
        found = {"twins": twins, "summary": summary(twins)}
    for name in ("state", "lastOnlineTime", "reason", "reasonTime"):
        found[name] = body.get(name, "")[:_REASON_CHARS] or None  # None takes away what another node said, or earlier
    return found


def summary(twins: list[Json]) -> str:
    """The values of twins in one line, shortened to what a table has room for."""
    parts, room = [], _SUMMARY_CHARS
    for twin in twins:
        if "reported" not in twin:
            continue
        value = " ".join(str(twin["reported"].get("value", "")).split())
        shown = value if len(value) <= _VALUE_CHARS else value[: _VALUE_CHARS - 1] + "…"
        part = f"{twin['propertyName']}={shown}"
        room -= len(part) + 1
        if room < 0:
            parts.append("…")
            break
        parts.append(part)
    return " ".join(parts)


def _at_ms(twin: Json) -> int:
    """0 for a value that nobody has reported, or whose time is not known."""
    reported = twin.get("reported")
    metadata = (reported.get("metadata") or {}) if isinstance(reported, dict) else {}
    text = str(metadata.get("timestamp", ""))
    return int(text) if text.isascii() and text.isdigit() and len(text) < 17 else 0


def _is_older(twin: Json, than_ms: int) -> bool:
    """What was just taken under a clock that nobody trusts counts as new."""
    metadata = (twin.get("reported") or {}).get("metadata") or {}
    return metadata.get("clock") != "untrusted" and _at_ms(twin) < than_ms


# --- what is a report ------------------------------------------------------------------------------------------


class _Value(Struct, omit_defaults=True):
    value: str
    metadata: dict[str, str] = field(default_factory=dict)


class _Twin(Struct, rename="camel", omit_defaults=True):
    property_name: str
    observed_desired: _Value | None = None
    reported: _Value | None = None


class _Body(Struct, rename="camel"):
    twins: list[_Twin] | None = None  # None: the node has no model to go by, and what stood there stays
    state: str = ""
    last_online_time: str = ""
    reason: str = ""
    reason_time: str = ""


def _read(body: bytes) -> Json:
    """What of it belongs into a status; BadInput when it is none of a device."""
    try:
        found = msgspec.msgpack.decode(body, type=_Body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadInput("the status of a device", "(not shown)", f"one: {error}") from None
    if found.twins is None and not found.state:
        raise BadInput("the status of a device", "neither twins nor a state", "one of them")
    listed = found.twins or []
    named = {one.property_name for one in listed}
    if len(listed) > DEVICE_PROPERTIES_MAX or len(named) < len(listed):
        expected = f"{DEVICE_PROPERTIES_MAX} at the most, none of them twice"
        raise BadInput("the properties of a device", len(listed), expected)
    plain: Json = msgspec.to_builtins(found)
    return plain
