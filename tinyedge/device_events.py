"""What the daemon sees and does of devices, their mappers and the broker: a part of `events.py`, apart for its length.
Import these from `tinyedge.events`.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from tinyedge.model.device import Device, DeviceModel
from tinyedge.wire import ReadingRow

# --- what the daemon sees -------------------------------------------------------------------------


class SetDesired(Struct, frozen=True):
    """On site: `value` is what a property of a device is to have, until the cloud wants another. None: what was set on
    the node is taken back, and what the device's manifest wants holds again."""

    namespace: str
    name: str
    property: str
    value: str | None


class ReadDevice(Struct, frozen=True):
    """Ask the device's mapper for its values now. Answered with `data` in JSON: property → value."""

    namespace: str
    name: str
    property: str = ""  # all


class CallMethod(Struct, frozen=True):
    """Call a method of a device; `arguments` by property."""

    namespace: str
    name: str
    method: str
    arguments: dict[str, str]


class MapperInfo(Struct, frozen=True):
    """A mapper as it introduces itself. `address` is its unix socket, empty for the drivers inside the daemon; `uid`
    the one it registered as. `own` mappers take Doubles and methods (our drivers, and mappers made with our SDK)."""

    name: str
    protocol: str
    address: str = ""
    version: str = ""
    api_version: str = ""
    state: str = ""
    uid: int = 0
    own: bool = False


class MapperRegistered(Struct, frozen=True):
    """Answered by one `MapperWelcome`. `with_data`: it wants to be told now what it is to serve. `unreachable`: why its
    address is none that may be dialled."""

    request: int
    mapper: MapperInfo
    with_data: bool = True
    unreachable: str = ""


class Value(Struct, frozen=True):
    """`at_ms` is the mapper's own time (Unix), 0 if it gave none. `type` as the mapper names it, empty if it did
    not."""

    property: str
    value: str
    at_ms: int = 0
    type: str = ""


class Reported(Struct, frozen=True):
    """A mapper reports values of a device (`key`: namespace/name). Answered by one `ReportAnswer`, once it is durable.
    `own`: it came from a driver inside the daemon or from a mapper made with our SDK, which pushes nothing itself."""

    request: int
    key: str
    values: tuple[Value, ...]
    uid: int = 0
    own: bool = False


class StateReported(Struct, frozen=True):
    """`state` is one of ok, online, offline, disconnected, unhealthy, unknown; `reason` says why, if the mapper does.
    Answered by one `ReportAnswer`."""

    request: int
    key: str
    state: str
    uid: int = 0
    reason: str = ""


class MapperCalled(Struct, frozen=True):
    """The outcome of a `CallMapper` or `DialMapper`. `error` empty: it worked. `away`: the mapper could not be reached
    at all; `late`: it could, and gave no answer in time. `values` are what a read or a call has brought; `refused`:
    property → why it never will have the desired value that it was told of."""

    op: int
    error: str = ""
    away: bool = False
    values: tuple[Value, ...] = ()
    late: bool = False
    refused: Mapping[str, str] = {}


class Remembered(Struct, frozen=True):
    """Once in each life that did not begin with a clean stop: of each property (namespace/name/property) the newest
    value that waits in series `readings`."""

    values: Mapping[str, ReadingRow]


class Stopping(Struct, frozen=True):
    """This life is about to end. Answered by `Saved`."""


class Published(Struct, frozen=True):
    """A message that came from the node's broker. Answered by one `ReportAnswer` unless `request` is 0; until then the
    broker keeps it."""

    topic: str
    payload: bytes
    request: int = 0
    retained: bool = False


class Called(Struct, frozen=True):
    """A program on the node posts something for a rule, under its path. Answered by one `ReportAnswer`."""

    request: int
    path: str
    payload: bytes
    method: str = "POST"
    content_type: str = ""


class PushFailed(Struct, frozen=True):
    """Something could not be pushed to a place: it is tried again, or was `dropped`. `by` is kind and key of the object
    that wants it, such as `Device default/pump`; `series` is that of the place."""

    by: str
    place: str
    why: str
    dropped: bool
    series: str = ""


class PushTaken(Struct, frozen=True):
    """A place has taken a push of `by` after it was away, or after one of these was dropped."""

    by: str
    series: str


class Publish(Struct, frozen=True):
    """A message that the gateway has for the node's broker. Answered by one `ReportAnswer`, once it is in line."""

    request: int
    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False


# --- what the daemon does -------------------------------------------------------------------------


class MapperWelcome(Struct, frozen=True):
    """To a `MapperRegistered`. `error` empty: it is durably known, and what it is to serve is here."""

    request: int
    error: str = ""
    models: tuple[DeviceModel, ...] = ()
    devices: tuple[Device, ...] = ()


class ReportAnswer(Struct, frozen=True):
    """To a `Reported`, `StateReported`, `Published`, `Called` or `Publish`. `error` empty: it is durable. Else `code`
    says why: `NotFound`, `Invalid`, `TooMany` (wait, then again), `Full` or `ReadOnly` (the store takes nothing)."""

    request: int
    code: str = ""
    error: str = ""


class CallMapper(Struct, frozen=True):
    """Call a mapper. `what` is a method of DeviceMapperService (`RegisterDevice`, `UpdateDevice`, `RemoveDevice`,
    `CreateDeviceModel`, `UpdateDeviceModel`, `RemoveDeviceModel`, `GetDevice`), or for `own` mappers also `Write` and
    `CallMethod`; `CallMethod` and `GetDevice` of another go to `http`, the latter for the properties in `arguments`.
    `key` is the device's or the model's. Answered by `MapperCalled`. Devices are as the mapper is to see them: defaults
    of the model filled in, desired values as they are now."""

    op: int
    mapper: MapperInfo
    what: str
    key: str
    device: Device | None = None
    model: DeviceModel | None = None
    method: str = ""
    arguments: tuple[tuple[str, str], ...] = ()  # property, value
    http: str = ""


class DialMapper(Struct, frozen=True):
    """See whether somebody listens on a mapper's socket. Answered by `MapperCalled`, `away` when nobody does."""

    op: int
    mapper: MapperInfo


class Saved(Struct, frozen=True):
    """To a `Stopping`: what was in memory only is durable, as far as it is worth keeping."""


class Subscriptions(Struct, frozen=True):
    """All topic filters that the node's broker is to be asked for, from now on."""

    filters: tuple[str, ...]
