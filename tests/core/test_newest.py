"""The newest value of each property: which one that is, and what of it outlives a stop, a power cut, and its device."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from msgspec import structs

from tests.core.device_rig import ACME, Site, device, model
from tinyedge import events as ev
from tinyedge import wire
from tinyedge.core.newest import AHEAD_MS, SAVE_MS, Waiting
from tinyedge.model.device import Device
from tinyedge.protocol import readings
from tinyedge.wire import ReadingRow

KEY = "default/pump-1"
NAME = f"{KEY}/temperature"
MONTH_MS = 30 * 86_400_000


def served(*, reported: bool = True) -> Site:
    """`temperature` has history, `speed` has not."""
    site = Site(model(), device())
    site.register()
    if reported:
        site.report(temperature="1", speed="1")
    return site


def reborn(site: Site, how: str = "power") -> None:
    """Another life, which looks at what waits in the series as the daemon does."""
    site.rig.boot(how)
    site.rig.step(ev.Remembered(of(site.readings())))


def of(reports: Sequence[readings.Report]) -> dict[str, ReadingRow]:
    found = Waiting()
    for number, report in reversed(list(enumerate(reports))):
        found.take(number, report)
    return dict(found.values())


def with_uid(uid: str, *, desired: dict[str, str] | None = None) -> Device:
    one = device(desired=desired)
    return Device.of(structs.replace(one.metadata, uid=uid), one.spec)


# --- over the end of a life ----------------------------------------------------------------------------


def test_the_newest_values_are_there_after_a_stop_whatever_has_become_of_the_readings() -> None:
    site = served()
    site.report(temperature="2")
    site.rig.step(ev.Stopping())
    assert site.rig.saved
    site.rig.boot("clean")
    assert site.value("temperature") == "2"


def test_a_stop_is_answered_after_what_it_saves_is_durable() -> None:
    site = served()
    site.report(temperature="2")
    step = site.rig.step(ev.Stopping())
    assert [one.key for one in step.writes if isinstance(one, ev.Put)] == [NAME]
    assert ev.Saved() in step.effects


def test_after_a_power_cut_the_newest_that_waits_in_the_series_is_shown_and_told_to_the_cloud() -> None:
    site = served()
    site.report(temperature="2")
    site.report(temperature="3")
    site.rig.boot("power")
    assert site.value("temperature") == "1"
    site.rig.step(ev.Remembered(of(site.readings())))
    assert site.value("temperature") == "3"
    site.rig.join()
    site.rig.link()
    twins = site.reported()[KEY]["twins"]
    assert [one["reported"]["value"] for one in twins] == ["3"]


def test_what_was_restored_is_saved_in_time() -> None:
    site = served()
    site.report(temperature="2")
    reborn(site)
    site.rig.advance(SAVE_MS / 1000)
    assert wire.decode("reading", site.rig.tables["reading"][NAME]).value == "2"


def test_a_rule_hears_of_what_was_restored() -> None:
    site = served()
    site.report(temperature="2")
    site.rig.boot("crash")
    values = site.rig.edge._devices
    values.remembered(ev.Remembered(of(site.readings())))
    before = values.changed_values[KEY, "temperature"]
    assert before is not None
    assert before.value == "1"


def test_what_is_reported_before_the_series_was_looked_at_is_newer() -> None:
    site = served()
    site.report(temperature="2")
    waiting = of(site.readings())
    site.rig.boot("power")
    site.report(temperature="3")
    site.rig.step(ev.Remembered(waiting))
    assert site.value("temperature") == "3"


def test_of_mappers_own_times_the_latest_is_the_newest_though_it_is_found_in_the_series() -> None:
    site = served(reported=False)
    site.report(temperature=("1", 1_000))
    site.report(temperature=("9", 9_000))
    site.report(temperature=("5", 5_000))
    waiting = of(site.readings())
    site.rig.boot("power")
    site.report(temperature=("7", 7_000))
    assert site.value("temperature") == "7"
    site.rig.step(ev.Remembered(waiting))
    assert site.value("temperature") == "9"


def test_readings_of_a_device_of_the_same_name_before_are_not_restored() -> None:
    site = served()
    site.report(temperature="2")
    site.rig.delete("pump-1", "Device")
    site.take()
    site.rig.apply(device())
    site.take()
    waiting = of(site.readings())
    site.rig.boot("power")
    site.report(temperature="3")
    site.rig.step(ev.Remembered(waiting))
    assert site.value("temperature") == "3"
    site = served()
    site.rig.apply(with_uid("one"))
    site.rig.apply(with_uid("two"))
    reborn(site)
    assert site.value("temperature") is None


def test_what_waits_of_strangers_and_of_properties_without_history_is_left_alone() -> None:
    site = served()
    site.rig.boot("power")
    found = ("default/none/t", f"{KEY}/none", f"{KEY}/speed")
    site.rig.step(ev.Remembered(dict.fromkeys(found, ReadingRow("7", site.rig.wall))))
    assert (site.value("speed"), site.value("temperature")) == ("1", "1")


def test_what_waits_of_a_device_without_its_model_is_restored_for_when_that_is_back() -> None:
    site = served()
    site.report(temperature="2")
    site.rig.delete("pump-model", "DeviceModel")
    reborn(site)
    site.rig.apply(model())
    assert site.value("temperature") == "2"


def test_a_property_that_has_no_history_any_more_shows_what_comes_then() -> None:
    site = served()
    site.report(temperature="2")
    site.rig.apply(device(annotations={"tinyedge.io/history": "none"}))
    site.take()
    site.report(temperature="3")
    assert site.value("temperature") == "3"


@pytest.mark.parametrize(
    ("times", "newest"),
    [
        ([0, 0, 0], 2),
        ([5, 9, 7], 1),
        ([5, 9, 9], 2),
        ([9, 0, 7], 1),
        ([9, 0, 10], 2),
        ([0, 7, 9], 2),
        ([0, 9, 7], 1),
        ([9, 7, 0], 2),
    ],
)
def test_the_series_tells_the_same_newest_value_as_reports_did(times: list[int], newest: int) -> None:
    site = served(reported=False)
    for number, at in enumerate(times):
        site.report(temperature=(str(number), at * 1000))
    assert site.value("temperature") == str(newest)
    found = of(site.readings())[NAME]
    live = site.rig.edge._devices.latest(NAME)
    assert found == live


# --- times ---------------------------------------------------------------------------------------------


def test_a_time_far_ahead_of_a_clock_that_is_right_freezes_nothing_and_is_marked() -> None:
    site = served(reported=False)
    site.report(temperature=("20", site.rig.wall))
    site.report(temperature=("99", site.rig.wall + MONTH_MS))
    assert (site.value("temperature"), site.twin("temperature")["quality"]) == ("99", "untrusted-clock")
    site.rig.advance(1)
    site.report(temperature=("21", site.rig.wall))
    assert (site.value("temperature"), site.twin("temperature")["quality"]) == ("21", "good")
    assert [(one.values[0][1], one.at_ms - site.rig.wall, one.flags) for one in site.readings()] == [
        ("20", -1000, readings.BY_MAPPER),
        ("99", -1000, readings.UNTRUSTED),
        ("21", 0, readings.BY_MAPPER),
    ]


def test_a_time_a_little_ahead_is_believed() -> None:
    site = served(reported=False)
    site.report(temperature=("20", site.rig.wall + AHEAD_MS))
    site.report(temperature=("19", site.rig.wall))
    assert site.value("temperature") == "20"


def test_over_a_time_that_turns_out_to_be_ahead_anything_is_newer() -> None:
    for later in (0, 1):
        site = served(reported=False)
        site.rig.trusted = False
        site.report(temperature=("99", site.rig.wall + MONTH_MS))
        site.rig.trusted = True
        site.report(temperature=("21", later and site.rig.wall))
        assert site.value("temperature") == "21"
        site.report(temperature=("22", site.rig.wall))
        assert site.value("temperature") == "22"


def test_an_older_own_time_overwrites_nothing_though_a_value_without_one_came_between() -> None:
    site = served(reported=False)
    site.report(speed=("1", 100_000))
    site.report(speed="2")
    site.report(speed=("3", 50_000))
    assert site.value("speed") == "2"
    site.rig.boot("power")
    site.report(speed=("4", 50_000))
    assert site.value("speed") == "2"
    site.report(speed=("5", 100_000))
    assert site.value("speed") == "5"


def test_while_the_nodes_clock_is_not_trusted_neither_is_a_mappers_beside_it() -> None:
    site = served(reported=False)
    site.rig.trusted = False
    site.report(temperature=("20", site.rig.wall))
    assert site.twin("temperature")["quality"] == "untrusted-clock"
    assert site.readings()[0].flags == readings.BY_MAPPER | readings.UNTRUSTED


# --- devices that go -----------------------------------------------------------------------------------


def remembered(site: Site) -> wire.TwinRow:
    row: wire.TwinRow = wire.decode("twin", site.rig.tables["twin"][KEY])
    return row


@pytest.mark.parametrize("how", ["another uid", "removed"])
def test_a_device_inherits_nothing_of_one_of_its_name_while_the_mapper_is_away(how: str) -> None:
    site = Site(model(), with_uid("one", desired={"speed": "42"}))
    site.register()
    site.say_state("online")
    site.report(temperature="20", speed="10")
    request = site.ask(ev.SetDesired("default", "pump-1", "speed", "10"))
    before = remembered(site)
    site.rig.calls.clear()  # nobody answers
    if how == "removed":
        site.rig.delete("pump-1", "Device")
    else:
        site.rig.apply(with_uid("two", desired={"speed": "42"}))
    assert remembered(site) == wire.TwinRow(mapper=before.mapper, told=before.told)
    assert not site.rig.tables["reading"]
    answer = site.answer(request)
    assert answer is not None
    assert "default/pump-1 was re" in answer.error
    site.rig.apply(with_uid("two", desired={"speed": "42"}))
    assert (site.status()["state"], site.value("temperature"), site.twin("speed")["desired"]) == (
        "unknown",
        None,
        "42",
    )
    assert "desiredBy" not in site.twin("speed")
    site.register(ACME)
    assert site.twin("speed")["observedDesired"]["value"] == "42"


def test_a_device_of_a_file_has_no_uid_and_keeps_what_it_has() -> None:
    site = served()
    site.say_state("online")
    site.rig.apply(with_uid("one"))
    assert (site.status()["state"], site.value("speed")) == ("online", "1")


def test_a_device_that_no_mapper_has_ever_had_is_forgotten_at_once() -> None:
    site = Site(model(), device())
    site.ask(ev.SetDesired("default", "pump-1", "speed", "80"))
    assert site.rig.tables["twin"]
    site.rig.delete("pump-1", "Device")
    assert not site.rig.tables["twin"]
    site.rig.apply(device())
    assert "desired" not in site.twin("speed")


def test_a_property_that_a_device_has_no_more_leaves_no_row() -> None:
    site = served()
    site.report(temperature="2")
    names = [one.name for one in device().spec.properties]
    assert {"temperature", "speed"} <= {*names}
    site.rig.apply(device(properties=[{"name": "label"}], methods=[]))
    assert not site.rig.tables["reading"]
    site.rig.advance(SAVE_MS / 1000)
    assert not site.rig.tables["reading"]
