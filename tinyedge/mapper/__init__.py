"""Mappers: how a device engineer makes one, with the two functions that only they can write.

    from tinyedge.mapper import Device, Offline, Property, run

    class Station:
        def read(self, device: Device, prop: Property) -> float: ...
        def write(self, device: Device, prop: Property, value: float) -> None: ...

    run(Station(), protocol="weather", name="weather-station")

`contract` says all that a driver may have. The drivers inside the daemon are made the same way.
"""

from __future__ import annotations

from tinyedge.mapper.contract import Device, Driver, Offline, Property, Refused, Scalar

__all__ = ["Device", "Driver", "Offline", "Property", "Refused", "Scalar", "run"]


def run(
    driver: Driver,
    *,
    protocol: str,
    name: str,
    daemon: str = "",
    socket: str = "",
    version: str = "",
    trio_functions: bool = False,
) -> None:
    """Be a mapper: `process.run`, which is imported here, for the drivers inside the daemon do not need it."""
    from tinyedge.mapper import process  # noqa: PLC0415

    process.run(
        driver,
        protocol=protocol,
        name=name,
        daemon=daemon,
        socket=socket,
        version=version,
        trio_functions=trio_functions,
    )
