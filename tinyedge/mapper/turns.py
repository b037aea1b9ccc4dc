"""One turn at a device: what the engine has decided, done with the functions of a driver. Knows no event loop: `invoke`
calls a function of the driver on the one that there is, or in a thread, and gives it up when it takes too long."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from tinyedge.mapper.contract import Device, Driver, Property, Refused, Scalar, texts_of, value_of
from tinyedge.mapper.jobs import CallNow, Job, Outcome, is_away

CALL_S_MAX = 8  # for one function of a driver; the daemon gives a mapper 10 s for everything

_Given = Scalar | Exception | None


class Invoke(Protocol):
    """Calls `function` for the device of this key. Raises Offline when it takes longer than `CALL_S_MAX`."""

    async def __call__(self, key: str, function: Callable[..., Any], /, *arguments: Any) -> Any: ...


class _Away(Exception):
    """The device does not answer: the end of its turn."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class Turns:
    """Turns at the devices of one driver."""

    def __init__(self, driver: Driver, invoke: Invoke) -> None:
        self._driver = driver
        self._invoke = invoke

    async def carry_out(self, job: Job) -> Outcome:
        """Raises nothing that a driver has raised."""
        outcome = Outcome()
        if job.close is not None:
            await self._tried(job.close.key, "close", job.close)
        if job.open and (error := await self._tried(job.device.key, "open", job.device)) is not None:
            return Outcome(opened=False, failed=error)
        try:
            for prop, text in job.write:
                outcome.written[prop.name] = self._unless_away(await self._write(job.device, prop, text))
            if job.call is not None:
                await self._call(job.device, job.call, outcome)
            await self._read(job.device, job.read, outcome)
        except _Away as away:
            outcome.failed = away.error
        return outcome

    async def _tried(self, key: str, name: str, *arguments: Any) -> Exception | None:
        """Call a function that the driver need not have; what went wrong."""
        function = getattr(self._driver, name, None)
        if function is None:
            return None
        try:
            await self._invoke(key, function, *arguments)
        except Exception as error:  # noqa: BLE001 - whatever a driver raises is about its device
            return error
        return None

    def _unless_away(self, error: Exception | None) -> Exception | None:
        """A device that does not answer ends the turn: each further try would wait as long."""
        if error is not None and is_away(error):
            raise _Away(error)
        return error

    async def _write(self, device: Device, prop: Property, text: str) -> Exception | None:
        if not hasattr(self._driver, "write"):
            return Refused(f"{prop.name} can't be written", "its driver only reads")
        try:
            value = value_of(prop, text)
        except Refused as refused:
            return refused
        return await self._tried(device.key, "write", device, prop, value)

    async def _call(self, device: Device, call: CallNow, outcome: Outcome) -> None:
        function = getattr(self._driver, "call", None)
        if function is None:
            await self._call_by_writing(device, call, outcome)
            return
        try:
            values = await self._invoke(device.key, function, device, call.method, dict(call.arguments))
            outcome.called = texts_of(device, values or {})
        except Exception as error:  # noqa: BLE001 - whatever a driver raises is about its device
            outcome.call_failed = self._unless_away(error)

    async def _call_by_writing(self, device: Device, call: CallNow, outcome: Outcome) -> None:
        if not call.arguments:
            known = ", ".join(device.methods[call.method]) or "nothing"
            why = f"its driver knows methods only as writing, and it takes {known}"
            outcome.call_failed = Refused(f"{call.method} without a value does nothing", why, "such as PROPERTY=VALUE")
            return
        for name, _ in call.arguments:
            if name not in device.methods[call.method] or name not in device.properties:
                known = ", ".join(device.methods[call.method]) or "nothing"
                outcome.call_failed = Refused(f"{call.method} takes no {name}", f"it takes {known}")
                return
        for name, text in call.arguments:
            error = self._unless_away(await self._write(device, device.properties[name], text))
            outcome.call_failed = outcome.call_failed or error

    async def _read(self, device: Device, props: tuple[Property, ...], outcome: Outcome) -> None:
        if not props:
            return
        many: Callable[..., Awaitable[Mapping[str, _Given]]] | None = getattr(self._driver, "read_many", None)
        if many is not None:
            outcome.values = await self._read_many(device, props, many)
            return
        for prop in props:
            value = await self._read_one(device, prop)
            outcome.values[prop.name] = value
            self._unless_away(value if isinstance(value, Exception) else None)

    async def _read_one(self, device: Device, prop: Property) -> _Given:
        try:
            value: _Given = await self._invoke(device.key, self._driver.read, device, prop)
        except Exception as error:  # noqa: BLE001 - whatever a driver raises is about its device
            return error
        return value

    async def _read_many(
        self, device: Device, props: tuple[Property, ...], many: Callable[..., Any]
    ) -> dict[str, _Given]:
        try:
            values = await self._invoke(device.key, many, device, props)
            return {prop.name: values.get(prop.name) for prop in props}
        except Exception as error:  # noqa: BLE001 - whatever a driver raises is about its device
            self._unless_away(error)
            return {prop.name: error for prop in props}
