"""What a cluster is told of devices: twins, states, and few writes of its API.

While there is a link, devices of which something is new wait in a queue, those with news of state or desired values
before the others. Up to ten that wait are told at five a second, more at one a second: a handful of devices is shown
within two seconds, and a thousand that report every second cost the API server 120 writes a minute at the most (the
gateway writes two objects for each), which makes the oldest of their values in the cluster seventeen minutes old.
Readings with history arrive by their series, whatever the pace here.

The newest of each device is told whole. It is no part of the digests that are compared when a link comes up: twins
change all the time, so each new link hears of every device that has changed since it was last told.
"""

from __future__ import annotations

from typing import Any

from tinyedge.core.cloud import Cloud
from tinyedge.core.desk import Desk
from tinyedge.core.devices import Devices
from tinyedge.core.run import NEVER
from tinyedge.core.status import rfc3339
from tinyedge.core.twins import Twin, goes_to_cloud
from tinyedge.events import Report, ReportRefused, ReportTaken
from tinyedge.model.device import MAPPER
from tinyedge.protocol import readings
from tinyedge.protocol.revision import encode, revision
from tinyedge.wire import ReadingRow

Json = dict[str, Any]
KIND = "devicestatus"
FEW = 10
FEW_MS, MANY_MS = 200, 1_020  # between two reports: 118 writes a minute, so that nothing else makes it 120
UNDER_WAY_MAX = 16
ONLINE_MS = 600_000


class DeviceReports:
    def __init__(self, desk: Desk, devices: Devices, cloud: Cloud) -> None:
        self._desk = desk
        self._devices = devices
        self._cloud = cloud
        self._urgent: dict[str, None] = {}
        self._waiting: dict[str, None] = {}
        self._told: dict[str, bytes] = {}  # device → revision that the API server has, as far as was heard
        self._of: dict[str, tuple[object, ...]] = {}  # device → what is urgent of it, as it was told
        self._under_way: dict[str, bytes] = {}
        self._next_ms = 0
        self._session = 0
        self.wake_ms = NEVER

    def taken(self, event: ReportTaken) -> None:
        if self._under_way.get(event.key) == event.revision:
            del self._under_way[event.key]
            self._told[event.key] = event.revision

    def refused(self, event: ReportRefused) -> None:
        """It is told again when something of it is new, or by the next link."""
        if self._under_way.get(event.key) != event.revision:
            return
        del self._under_way[event.key]
        self._desk.note(
            "warning", "device.report_refused", device=event.key, reason=event.reason, message=event.message[:200]
        )

    def left(self) -> None:
        self._told.clear()

    def flush(self) -> None:
        """At the end of each step."""
        self.wake_ms = NEVER
        changed, self._devices.changed_twins = self._devices.changed_twins, {}
        if not self._cloud.session:
            self._urgent.clear()
            self._waiting.clear()
            self._under_way.clear()
            self._session = 0
            return
        if self._session != self._cloud.session:
            self._session = self._cloud.session
            changed = dict.fromkeys(self._devices.twins)
        for key in changed:
            self._enqueue(key)
        self._desk.on()
        self._tell()

    def _enqueue(self, key: str) -> None:
        twin = self._devices.twins.get(key)
        self._desk.on("Device", key)
        if twin is None or twin.device is None:
            self._urgent.pop(key, None)
            self._waiting.pop(key, None)
            self._told.pop(key, None)
            self._of.pop(key, None)
        elif goes_to_cloud(twin.device.spec):
            if self._of.get(key) != _urgent_of(twin, self._devices):
                self._waiting.pop(key, None)
                self._urgent[key] = None
            elif key not in self._urgent:
                self._waiting[key] = None

    def _tell(self) -> None:
        now = self._desk.now
        while self._urgent or self._waiting:
            if self._next_ms > now:
                self.wake_ms = self._next_ms
                return
            key = self._free(self._urgent) or self._free(self._waiting)
            if not key or len(self._under_way) >= UNDER_WAY_MAX:
                return  # an answer will come, or the link will go
            pace = FEW_MS if len(self._urgent) + len(self._waiting) <= FEW else MANY_MS
            self._urgent.pop(key, None)
            self._waiting.pop(key, None)
            if self._tell_of(key):
                self._next_ms = now + pace

    def _free(self, queue: dict[str, None]) -> str:
        """The first of which no report is under way."""
        return next((key for key in queue if key not in self._under_way), "")

    def _tell_of(self, key: str) -> bool:
        twin = self._devices.twins[key]
        self._desk.on(*twin.concern)
        body = encode(status(twin, self._devices))
        self._of[key] = _urgent_of(twin, self._devices)
        told = revision(body)
        if self._told.get(key) == told:
            return False
        self._under_way[key] = told
        self._desk.say(Report(KIND, key, told, body))
        return True


def _urgent_of(twin: Twin, devices: Devices) -> tuple[object, ...]:
    return (cloud_state_of(twin, devices), twin.observed, twin.impossible)


def status(twin: Twin, devices: Devices) -> Json:
    """A DeviceStatus: of properties those with reportToCloud. Without a model there are no `twins`: what the cluster
    has of them stays."""
    found = cloud_state_of(twin, devices)
    if twin.shape is not None:
        listed = ((name, one) for name, one in twin.shape.properties.items() if one.to_cloud)
        found["twins"] = [twin_of(twin, name, one.type, devices.latest(f"{twin.key}/{name}")) for name, one in listed]
    if online := rfc3339(_last_online_ms(twin)):
        found["lastOnlineTime"] = online
    return found


def _last_online_ms(twin: Twin) -> int:
    """Coarse while nothing says that it is not online: each change of it would be a report."""
    if twin.row.state in ("offline", "unhealthy"):
        return twin.row.online_ms
    return max(twin.row.online_ms, twin.seen_ms // ONLINE_MS * ONLINE_MS)


def cloud_state_of(twin: Twin, devices: Devices) -> Json:
    """As `state_of`, but a device that nobody serves or that has never said is `unknown`, and why."""
    if twin.shape is None:
        return {"state": "unknown", "reason": devices.no_model(twin)}
    if not twin.mapper:
        return {"state": "unknown", "reason": unserved(twin)}
    found = state_of(twin, devices)
    if "state" not in found:
        found = {"state": "unknown"} | ({"reason": twin.problem} if twin.problem else {})
    return found


def unserved(twin: Twin) -> str:
    """Why no mapper serves it, in words."""
    asked = twin.device.metadata.annotations.get(MAPPER, "") if twin.device else ""
    if asked:
        return f"mapper {asked}, which its annotation {MAPPER} names, has not registered"
    return f"no mapper of protocol {twin.protocol!r} has registered"


def state_of(twin: Twin, devices: Devices) -> Json:
    """`state`, and where somebody says why, `reason` and `reasonTime`; empty of a device that has never said."""
    found: Json = {"state": state} if (state := devices.state(twin)) else {}
    reason, since_ms = devices.reason(twin)
    if reason:
        found["reason"] = reason
        if since := rfc3339(since_ms):
            found["reasonTime"] = since
    return found


def twin_of(twin: Twin, name: str, kind: str, row: ReadingRow | None) -> Json:
    """One property: what its mapper has been told to make of it, and what it was last."""
    found: Json = {"propertyName": name}
    desired: Json = {"value": twin.observed.get(name, ""), "metadata": {}}
    if why := twin.impossible.get(name):
        desired["metadata"] = {"refused": why}
    found["observedDesired"] = desired
    if row is not None:
        metadata = {"timestamp": str(row.at_ms), "type": kind.lower()}
        if row.flags & readings.UNTRUSTED:
            metadata["clock"] = "untrusted"
        found["reported"] = {"value": row.value, "metadata": metadata}
    return found
