"""What the local API is given of devices: the core's view, what waits in the store, and who watches."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any, cast

import trio
import trio.testing

from tests.core.device_rig import Site, device, model
from tests.core.test_rules import rule
from tests.store.rig import Rig as StoreRig
from tinyedge.backend import DaemonBackend, Life
from tinyedge.config import Config
from tinyedge.events import Append, Trim
from tinyedge.protocol import readings
from tinyedge.store.store import Store

KEY = "default/pump-1"


def made(site: Site, store: Store | None = None) -> DaemonBackend:
    nothing = cast("Any", None)
    return DaemonBackend(
        config=Config(),
        life=Life("first", 0, 0),
        edge=site.rig.edge,
        store=store or StoreRig().open(),
        blackbox=None,
        runtime=nothing,
        post=nothing,
        logs=nothing,
        images_changed=nothing,
        numbers=dict,
        mono_ms=lambda: 0,
        wall_ms=lambda: 0,
        uplink=cast("Any", NoLink()),
        upgrades=cast("Any", NoUpgrades()),
    )


class NoUpgrades:
    def status(self) -> dict[str, Any]:
        return {}


class NoLink:
    def status(self) -> dict[str, Any]:
        return {"state": "none"}


def reading(n: int, device_key: str = KEY, flags: int = 0, **values: str) -> Append:
    return Append(readings.SERIES, readings.encode(readings.Report(device_key, n, flags, tuple(values.items()))))


def test_devices_are_made_one_by_one() -> None:
    site = Site(model(), device(), device("cold"))
    backend = made(site)
    listed = backend.devices()
    assert next(listed)["metadata"]["name"] == "cold"
    site.rig.delete("pump-1", "Device")
    assert list(listed) == []
    assert backend.device("default", "cold") is not None
    assert [one["metadata"]["name"] for one in backend.devicemodels()] == ["pump-model"]


async def test_who_watches_devices_hears_of_a_reported_state(autojump_clock: trio.testing.MockClock) -> None:
    site = Site(model(), device())
    site.register()
    backend = made(site)
    async with aclosing(backend.watch("devices")) as watch:
        assert (await anext(watch))["object"]["status"]["state"] == "unknown"
        site.say_state("ok")
        backend.touch()
        assert (await anext(watch))["object"]["status"]["state"] == "online"


async def test_who_watches_rules_hears_of_what_happens_and_not_of_ages(autojump_clock: trio.testing.MockClock) -> None:
    site = Site(model(), device(), rule())
    site.register()
    site.report(temperature="20")
    backend = made(site)
    async with aclosing(backend.watch("localrules")) as watch:
        assert (await anext(watch))["object"]["status"]["active"] is False
        site.rig.advance(5)
        backend.touch()
        with trio.move_on_after(1) as scope:
            await anext(watch)
        assert scope.cancelled_caught
    async with aclosing(backend.watch("localrules")) as watch:
        await anext(watch)
        site.report(temperature="90")
        backend.touch()
        assert (await anext(watch))["object"]["status"]["active"] is True


def test_series_that_wait_are_counted_by_kind() -> None:
    store = StoreRig().open()
    store.commit([reading(n, temperature="20") for n in range(5)], 0)
    store.commit([Trim("readings", 2), Append("push:a", b"1"), Append("push:b", b"2"), Append("push:b", b"3")], 0)
    assert made(Site(), store).status()["series"] == {
        "readings": {"waiting": 3, "dropped": 0},
        "push": {"waiting": 3, "dropped": 0},
    }


def test_series_that_were_dropped_are_counted() -> None:
    found = StoreRig()
    store = found.open()
    for n in range(500):
        store.commit([reading(n, temperature="20")], 0)
    store.enforce_bounds(0)
    series = made(Site(), store).status()["series"]["readings"]
    assert series["dropped"] > 0
    assert series["waiting"] + series["dropped"] == 500


# --- history ---------------------------------------------------------------------------------------


async def told(store: Store, property_name: str = "", limit: int = 100) -> tuple[list[tuple[int, str, str]], bool]:
    found = await made(Site(), store).history("default", "pump-1", property_name, limit)
    return [(one["timestamp"], one["property"], one["value"]) for one in found["items"]], found["complete"]


async def test_the_newest_values_of_one_device_are_told_in_order() -> None:
    store = StoreRig().open()
    for n in range(40):
        store.commit([reading(n, temperature=str(n), speed="1"), reading(n, "default/other", temperature="9")], 0)
    everything, complete = await told(store)
    assert everything == [
        (n, name, value) for n in range(40) for name, value in (("temperature", str(n)), ("speed", "1"))
    ]
    assert complete
    assert await told(store, "temperature", 2) == ([(38, "temperature", "38"), (39, "temperature", "39")], False)


async def test_what_the_cloud_has_taken_is_history_of_the_node_no_more() -> None:
    store = StoreRig().open()
    store.commit([reading(n, temperature=str(n)) for n in range(5)], 0)
    store.commit([Trim("readings", 3)], 0)
    assert await told(store) == ([(3, "temperature", "3"), (4, "temperature", "4")], True)


async def test_a_history_says_whose_clock_it_is_and_skips_what_it_can_not_read() -> None:
    store = StoreRig().open()
    flags = (0, readings.BY_MAPPER, readings.UNTRUSTED)
    store.commit([*(reading(1, flags=one, speed="1") for one in flags), Append(readings.SERIES, b"\xc1")], 0)
    found = await made(Site(), store).history("default", "pump-1", "", 10)
    assert [one["clock"] for one in found["items"]] == ["node", "mapper", "untrusted"]


async def test_who_asks_for_the_past_reads_a_bounded_part_of_the_journal() -> None:
    store = StoreRig().open()
    for n in range(200):
        store.commit([reading(n, temperature=str(n))], 0)
    found, complete = await told(store, limit=10_000)
    assert not complete
    assert found[-1] == (199, "temperature", "199")
    assert len(found) < 200
