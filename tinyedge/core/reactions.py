"""What a node does by itself with what devices and messages tell: local rules, KubeEdge's topics and routes."""

from __future__ import annotations

from tinyedge.core.bus import Bus
from tinyedge.core.desk import Desk
from tinyedge.core.devices import Devices
from tinyedge.core.routes import Routes
from tinyedge.core.rules import Rules
from tinyedge.events import PushFailed, PushTaken


class Reactions:
    def __init__(self, desk: Desk, devices: Devices) -> None:
        self._desk = desk
        self._devices = devices
        self.rules = Rules(desk, devices, devices.pushes)
        self.routes = Routes(desk)
        self.bus = Bus(desk, devices, self.routes)

    def changed(self, kind: str, key: str) -> None:
        """An object was added, changed or removed; of devices `Devices` knows it already."""
        if kind in ("Device", "DeviceModel", "LocalRule"):
            self.rules.changed(kind, key)
        self.routes.changed(kind, key)
        self.bus.changed(kind, key)

    def push_failed(self, event: PushFailed) -> None:
        """Told of the object that wants it."""
        self._devices.pushes.failed(event)
        kind, _, key = event.by.partition(" ")
        namespace, _, name = key.partition("/")
        row = self._desk.tables.rows.get(kind.lower(), {}).get(key)
        if row is not None:
            what = "dropped" if event.dropped else "waits"
            about = (kind, namespace, name, row.object.metadata.uid)
            words = f"a push to {event.place} {what}: {event.why}"
            self._desk.device_event(about, "Warning", "PushFailed", words)
            if kind == "LocalRule":
                self.rules.push_failed(key, words)

    def push_taken(self, event: PushTaken) -> None:
        self._devices.pushes.taken(event)

    def note_values(self) -> None:
        """After each event: devices may have told new values, and others wait for them."""
        values, self._devices.changed_values = self._devices.changed_values, {}
        for device, name in values:
            self.rules.value_changed(device, name)
        self.bus.values_changed(values)

    def flush(self) -> None:
        """At the end of each step."""
        self.rules.due()
        self.bus.flush()
        self.routes.flush()

    @property
    def wake_ms(self) -> int:
        return min(self.rules.wake_ms, self.bus.wake_ms, self.routes.wake_ms)
