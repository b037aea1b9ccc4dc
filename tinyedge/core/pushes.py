"""What is to be pushed to places beyond this node: a series for each, so that one that is away holds up no other."""

from __future__ import annotations

from urllib.parse import urlsplit

from tinyedge.core.desk import Desk
from tinyedge.core.digest import digest
from tinyedge.limits import PUSH_TARGETS_MAX, SERIES_ITEM_BYTES_MAX
from tinyedge.protocol import outgoing
from tinyedge.protocol.outgoing import HttpTarget, MqttTarget, Push

_PORTS = {"http": "80", "https": "443"}


class Pushes:
    """`places` are those of this life, by series."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.places: dict[str, str] = {}

    def append(self, push: Push) -> str:
        """Why not; empty when it will leave once it is durable."""
        place = place_of(push.target)
        series = outgoing.PUSH + digest(place)
        if series not in self.places and len(self.places) >= PUSH_TARGETS_MAX:
            return f"this node pushes to {PUSH_TARGETS_MAX} other places already"
        item = outgoing.encode(push)
        if len(item) > SERIES_ITEM_BYTES_MAX:
            return f"it is {len(item)} bytes, more than {SERIES_ITEM_BYTES_MAX}"
        self.places[series] = place
        self._desk.tables.append(series, item)
        return ""


def place_of(target: HttpTarget | MqttTarget) -> str:
    """Scheme, host and port: what is away or there as a whole."""
    if isinstance(target, MqttTarget):
        return f"mqtt {target.address}"
    parts = urlsplit(target.url)
    _, _, host = parts.netloc.lower().rpartition("@")
    return f"{parts.scheme} {host}" if parts.port else f"{parts.scheme} {host}:{_PORTS.get(parts.scheme, '')}"
