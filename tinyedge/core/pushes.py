"""What is to be pushed to places beyond this node: a series for each, so that one that is away holds up no other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from tinyedge.core.desk import Desk
from tinyedge.core.digest import digest
from tinyedge.core.twins import Twin
from tinyedge.events import PushFailed, PushTaken, Value
from tinyedge.limits import PUSH_TARGETS_MAX, SERIES_ITEM_BYTES_MAX
from tinyedge.model.device import PushMethod
from tinyedge.protocol import outgoing
from tinyedge.protocol.outgoing import HttpTarget, MqttTarget, Push

Target = HttpTarget | MqttTarget
_PORTS = {"http": "80", "https": "443"}
_DROPS_MAX = 1000  # objects of which it is known that pushes of theirs were dropped


class Trouble(Struct, frozen=True):
    """Why pushes to a place wait, or were `dropped`; `since_ms` by the wall clock, 0 while that is not trusted."""

    place: str
    why: str
    dropped: bool
    since_ms: int


class Pushes:
    """`places` are those of this life, by series; `users` tell where anything may be pushed to now."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.places: dict[str, str] = {}
        self.users: list[Callable[[], Iterable[Target]]] = []
        self._away: dict[str, Trouble] = {}
        self._dropped: dict[str, Trouble] = {}

    def append(self, push: Push) -> str:
        """Why not; empty when it will leave once it is durable."""
        series = series_of(push.target)
        if series not in self.places and len(self.places) >= PUSH_TARGETS_MAX:
            wanted = {series_of(target) for user in self.users for target in user()}
            self.places = {name: place for name, place in self.places.items() if name in wanted}
            if len(self.places) >= PUSH_TARGETS_MAX:
                return f"this node pushes to {PUSH_TARGETS_MAX} other places already"
        item = outgoing.encode(push)
        if len(item) > SERIES_ITEM_BYTES_MAX:
            return f"it is {len(item)} bytes, more than {SERIES_ITEM_BYTES_MAX}"
        self.places[series] = place_of(push.target)
        self._desk.tables.append(series, item)
        return ""

    def failed(self, event: PushFailed) -> None:
        known = self._dropped.get(event.by) if event.dropped else self._away.get(event.series)
        now_ms = self._desk.wall if self._desk.trusted else 0
        trouble = Trouble(event.place, event.why, event.dropped, known.since_ms if known else now_ms)
        if not event.dropped:
            self._away[event.series] = trouble
            return
        self._dropped[event.by] = trouble
        if len(self._dropped) > _DROPS_MAX:
            del self._dropped[next(iter(self._dropped))]

    def taken(self, event: PushTaken) -> None:
        """A place takes pushes again, and one of `by`."""
        self._away.pop(event.series, None)
        self._dropped.pop(event.by, None)

    def troubles(self, twin: Twin) -> Iterator[Trouble]:
        """What is wrong with pushes of a device."""
        if (dropped := self._dropped.get(f"Device {twin.key}")) is not None:
            yield dropped
        for series in dict.fromkeys(series_of(target) for target in targets(twin)):
            if (away := self._away.get(series)) is not None:
                yield away


def series_of(target: Target) -> str:
    return outgoing.PUSH + digest(place_of(target))


def place_of(target: Target) -> str:
    """Scheme, host and port: what is away or there as a whole."""
    if isinstance(target, MqttTarget):
        return f"mqtt {target.address}"
    parts = urlsplit(target.url)
    _, _, host = parts.netloc.lower().rpartition("@")
    return f"{parts.scheme} {host}" if parts.port else f"{parts.scheme} {host}:{_PORTS.get(parts.scheme, '')}"


# --- what a device wants pushed -------------------------------------------------------------------


def targets(twin: Twin) -> list[Target]:
    """Where values of a device go."""
    return [target for one in (twin.shape.properties if twin.shape else {}).values() for target in _targets(one.push)]


def unsupported(twin: Twin) -> list[tuple[str, str]]:
    """(property, method) of each method that the node does not carry out."""
    found = []
    for name, one in (twin.shape.properties if twin.shape else {}).items():
        push = one.push or PushMethod()
        found += [(name, f"dbMethod.{database}") for database in push.db_method or ()]
        found += [(name, "otel")] if push.otel is not None else []
        found += [(name, "anomalyDetection")] if push.anomaly_detection is not None else []
    return found


def pushes_of(twin: Twin, value: Value, at_ms: int) -> list[Push]:
    """A value on its way to each place to which its property is pushed."""
    one = twin.shape.properties.get(value.property) if twin.shape else None
    if one is None or one.push is None:
        return []
    namespace, _, name = twin.key.partition("/")
    payload = msgspec.json.encode(
        {
            "namespace": namespace,
            "device": name,
            "property": value.property,
            "value": value.value,
            "type": value.type or one.type.lower(),
            "timestamp": at_ms,
        }
    )
    return [Push(target, payload, "application/json", f"Device {twin.key}") for target in _targets(one.push)]


def _targets(push: PushMethod | None) -> list[Target]:
    found: list[Target] = []
    if push is not None and push.http is not None:
        found.append(HttpTarget(push.http.url, timeout_s=max(push.http.timeout, 0)))
    if push is not None and push.mqtt is not None:
        found.append(MqttTarget(push.mqtt.address, push.mqtt.topic, push.mqtt.qos, push.mqtt.retained))
    return found
