"""A mapper for devices of protocol `example`: copy this folder, and say here how such a device is read and written.

Run it with `python mapper.py`. What else a mapper may have (open, close, methods, devices that speak of their own
accord) stands in docs/mapper.md.
"""

from __future__ import annotations

from tinyedge.mapper import Device, Property, Scalar, run


class Example:
    """Devices in memory, in place of real ones."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], Scalar] = {}

    def read(self, device: Device, prop: Property) -> Scalar:
        """The value of one property now. `device.config` is `protocol.configData`, `prop.config` is
        `visitors.configData`. Raise Offline, or let an OSError through, when the device does not answer."""
        initial: Scalar = prop.config.get("initial", 0)
        return self._values.get((device.key, prop.name), initial)

    def write(self, device: Device, prop: Property, value: Scalar) -> None:
        """Give one property a value of its type, within its limits. Raise Refused for what never can be."""
        self._values[device.key, prop.name] = value


if __name__ == "__main__":
    run(Example(), protocol="example", name="example-mapper")
