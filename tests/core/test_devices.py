"""Devices in the core: what is kept of reports, what mappers are told, desired values, and what is asked on site."""

from __future__ import annotations

from typing import Any

import pytest

from tests.core.device_rig import ACME, OWN, Site, device, model
from tests.core.rig import file
from tinyedge import events as ev
from tinyedge import wire
from tinyedge.limits import AUDITS_MAX, DEVICE_REPORT_BYTES_MAX
from tinyedge.protocol import readings

KEY = "default/pump-1"


def served(*, boot_again: bool = False, **desired: str) -> Site:
    """A pump whose mapper has registered."""
    site = Site(model(), device(desired=desired))
    site.register()
    if boot_again:
        site.rig.boot("clean")
    return site


# --- registering ------------------------------------------------------------------------------------


def test_a_mapper_that_registers_gets_its_devices_complete_with_their_models() -> None:
    site = Site(model(), device(desired={"speed": "30"}), device("other", protocol={"protocolName": "opcua"}))
    welcome = site.register()
    assert not welcome.error
    assert [one.key for one in welcome.models] == ["default/pump-model"]
    (told,) = welcome.devices
    assert told.key == KEY
    by_name = {one.name: one for one in told.spec.properties}
    assert by_name["speed"].desired is not None
    assert by_name["speed"].desired.value == "30"
    assert by_name["temperature"].desired is not None  # mappers rely on it, however empty
    assert by_name["temperature"].desired.value == ""
    assert by_name["temperature"].desired.metadata["type"] == "float"
    assert by_name["temperature"].visitors.config_data == {"register": "temperature"}
    assert not site.take()  # nothing is left to tell


def test_defaults_of_the_model_are_filled_in_for_a_mapper() -> None:
    properties = [{"name": "speed", "type": "INT", "visitors": {"configData": {"register": 4, "limit": 1}}}]
    site = Site(
        model(properties=properties, protocolConfigData={"port": 502, "slaveID": 1}),
        device(properties=[{"name": "speed", "visitors": {"configData": {"register": 9}}}], methods=[]),
    )
    (told,) = site.register().devices
    assert told.spec.protocol.config_data == {"port": 1502, "slaveID": 1}
    assert told.spec.properties[0].visitors.config_data == {"register": 9, "limit": 1}
    assert told.spec.properties[0].visitors.protocol_name == "acme"


def test_a_mapper_without_data_is_told_by_calls() -> None:
    site = Site(model(), device())
    welcome = site.register(with_data=False)
    assert (welcome.models, welcome.devices) == ((), ())
    assert site.take() == ["CreateDeviceModel default/pump-model", f"RegisterDevice {KEY}"]


def test_a_mapper_without_protocol_or_with_a_drivers_name_is_refused() -> None:
    site = Site(model(), device())
    assert "protocol" in site.register(ev.MapperInfo("m", "", "/run/m.sock")).error
    assert "name" in site.register(ev.MapperInfo("driver-modbus", "modbus", "/run/m.sock")).error
    assert "name" in site.register(ev.MapperInfo("", "acme", "/run/m.sock")).error
    assert not site.rig.tables.get("mapper")


def test_a_device_that_comes_later_is_told_to_its_mapper_and_one_that_goes_too() -> None:
    site = Site(model())
    site.register()
    site.rig.apply(device())
    assert site.take() == ["CreateDeviceModel default/pump-model", f"RegisterDevice {KEY}"]
    site.rig.apply(device(desired={"speed": "10"}))
    assert site.take() == [f"UpdateDevice {KEY}"]
    site.rig.delete("pump-1", "Device")
    assert site.take() == [f"RemoveDevice {KEY}", "RemoveDeviceModel default/pump-model"]
    assert not site.rig.tables["twin"]


def test_a_model_goes_with_the_last_device_that_has_it_and_comes_back_with_the_next() -> None:
    site = Site(model())
    site.register()
    site.rig.apply(device(), device("pump-2"))
    site.take()
    site.rig.delete("pump-1", "Device")
    assert site.take() == [f"RemoveDevice {KEY}"]
    site.rig.delete("pump-2", "Device")
    assert site.take() == ["RemoveDevice default/pump-2", "RemoveDeviceModel default/pump-model"]
    site.rig.apply(device())
    assert site.take() == ["CreateDeviceModel default/pump-model", f"RegisterDevice {KEY}"]


def test_a_model_that_is_needed_again_while_it_goes_is_made_anew_after_it() -> None:
    site = Site(model(), device())
    site.register(OWN)
    site.rig.delete("pump-1", "Device")
    site.rig.step(ev.MapperCalled(site.rig.calls.pop().op))
    going = site.call()
    assert going.what == "RemoveDeviceModel"
    site.rig.apply(device())
    assert site.rig.calls == [going]
    assert site.take() == [
        "RemoveDeviceModel default/pump-model",
        "CreateDeviceModel default/pump-model",
        f"RegisterDevice {KEY}",
    ]


def test_a_device_that_gets_another_model_leaves_the_first_unused() -> None:
    site = Site(model(), model("other"), device())
    site.register(OWN)
    site.rig.apply(device(deviceModelRef={"name": "other"}))
    assert site.take() == [
        "CreateDeviceModel default/other",
        f"UpdateDevice {KEY}",
        "RemoveDeviceModel default/pump-model",
    ]


def test_a_model_whose_mapper_is_away_goes_when_that_is_back() -> None:
    site = Site(model(), device())
    site.register(OWN)
    site.rig.delete("pump-1", "Device")
    site.rig.step(ev.MapperCalled(site.rig.calls.pop().op))
    site.rig.step(ev.MapperCalled(site.rig.calls.pop().op, "connection refused", away=True))
    assert not site.rig.calls
    site.rig.advance(1)
    assert site.take() == ["RemoveDeviceModel default/pump-model"]
    site.rig.advance(600)
    assert not site.rig.calls


def test_a_mapper_that_does_not_let_go_of_a_model_is_not_asked_again() -> None:
    site = Site(model(), device(), device("other", protocol={"protocolName": "opcua"}))
    site.register(OWN)
    site.rig.delete("pump-1", "Device")
    site.rig.step(ev.MapperCalled(site.rig.calls.pop().op))
    assert site.take("no such model") == ["RemoveDeviceModel default/pump-model"]
    site.rig.advance(600)
    assert not site.rig.calls


def test_a_model_that_changes_is_told_before_its_devices() -> None:
    site = Site(model(), device())
    site.register(OWN)
    site.rig.apply(model(properties=[{"name": "speed", "type": "INT"}, {"name": "temperature", "type": "DOUBLE"}]))
    assert site.take() == ["UpdateDeviceModel default/pump-model", f"UpdateDevice {KEY}"]


def test_a_mapper_of_kubeedges_is_told_of_a_model_before_the_first_device_that_changes() -> None:
    site = served()  # its library knows what it was given when it registered under the model's bare name only
    site.rig.apply(device(desired={"speed": "10"}))
    assert site.take() == ["CreateDeviceModel default/pump-model", f"UpdateDevice {KEY}"]
    site.rig.apply(device(desired={"speed": "11"}))
    assert site.take() == [f"UpdateDevice {KEY}"]


def test_a_mapper_of_ours_knows_the_models_that_it_was_given() -> None:
    site = Site(model(), device())
    site.register(OWN)
    site.rig.apply(device(desired={"speed": "10"}))
    assert site.take() == [f"UpdateDevice {KEY}"]


def test_a_device_waits_for_its_model() -> None:
    site = Site(device())
    assert not site.register().devices
    assert not site.take()
    assert site.why() == ["its model default/pump-model is not on this node"]
    site.rig.apply(model())
    assert site.take() == ["CreateDeviceModel default/pump-model", f"RegisterDevice {KEY}"]
    assert not site.why()


def test_after_a_restart_of_the_daemon_a_mapper_is_told_again_what_it_serves() -> None:
    site = served(boot_again=True)
    assert site.take() == ["CreateDeviceModel default/pump-model", f"RegisterDevice {KEY}"]


def test_what_changed_while_the_daemon_was_down_follows_as_an_update() -> None:
    site = served()
    site.rig.apply(device(desired={"speed": "77"}))  # the call is never answered
    site.rig.boot("crash")
    assert site.take() == ["CreateDeviceModel default/pump-model", f"RegisterDevice {KEY}", f"UpdateDevice {KEY}"]


def test_a_mapper_that_cannot_be_reached_is_told_later_with_growing_pauses() -> None:
    site = served()
    site.rig.apply(device(desired={"speed": "10"}))
    pauses = []
    for _ in range(8):
        call = site.rig.calls.pop()
        before = site.rig.now
        site.rig.step(ev.MapperCalled(call.op, "connection refused", away=True))
        assert not site.rig.calls
        assert site.why() == ["mapper acme-mapper can't be reached"]
        while not site.rig.calls:
            site.rig.advance(0.5)
        pauses.append((site.rig.now - before) // 1000)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    assert site.take() == ["CreateDeviceModel default/pump-model", f"UpdateDevice {KEY}"]
    assert not site.why()


def test_one_device_that_a_mapper_refuses_holds_up_no_other() -> None:
    site = Site(model(), device(), device("pump-2"))
    site.register(with_data=False)
    site.rig.step(ev.MapperCalled(site.rig.calls.pop(0).op))  # the model
    first, second = sorted(site.rig.calls, key=lambda one: one.key)
    site.rig.calls.clear()
    site.rig.step(ev.MapperCalled(first.op, "no such port"), ev.MapperCalled(second.op))
    assert not site.rig.calls
    assert site.why("pump-1") == ["its mapper does not take it"]
    assert not site.why("pump-2")
    assert "MapperRefused" in [one["reason"] for one in site.rig.edge.view.events()]
    site.rig.advance(5)
    assert site.take() == [f"RegisterDevice {KEY}"]
    assert not site.why("pump-1")


def test_at_most_eight_calls_of_a_mapper_are_under_way() -> None:
    site = Site(model(), *(device(f"pump-{n}") for n in range(30)))
    site.register(with_data=False)
    site.rig.step(ev.MapperCalled(site.rig.calls.pop(0).op))
    assert len(site.rig.calls) == 8
    assert len(site.take()) == 30


def test_of_two_mappers_of_a_protocol_the_first_serves_and_the_second_takes_over_when_it_stays_away() -> None:
    site = served()
    other = ev.MapperInfo("spare", "acme", "/run/tinyedge/spare.sock", uid=7)
    assert not site.register(other).devices
    site.rig.apply(device(desired={"speed": "10"}))
    for _ in range(100):
        if not site.rig.calls:
            site.rig.advance(1)
            continue
        call = site.rig.calls.pop()
        gone = call.mapper.name == "acme-mapper"
        site.rig.step(ev.MapperCalled(call.op, "connection refused" if gone else "", away=gone))
    assert site.status()["mapper"] == "spare"
    assert not site.why()


def test_a_device_may_name_its_mapper() -> None:
    site = Site(model(), device(annotations={"tinyedge.io/mapper": "spare"}))
    assert not site.register().devices
    assert site.why() == ["mapper spare, which its annotation tinyedge.io/mapper names, has not registered"]
    assert [one.key for one in site.register(ev.MapperInfo("spare", "acme", "/run/s.sock")).devices] == [KEY]


def test_a_device_that_moves_to_another_mapper_is_taken_from_the_first() -> None:
    site = served()
    site.register(ev.MapperInfo("spare", "acme", "/run/s.sock"))
    site.rig.apply(device(annotations={"tinyedge.io/mapper": "spare"}))
    assert site.take() == [f"RemoveDevice {KEY}", "CreateDeviceModel default/pump-model", f"RegisterDevice {KEY}"]


@pytest.mark.parametrize("device_first", [True, False])
def test_a_device_goes_together_with_its_model(*, device_first: bool) -> None:
    site = Site()
    both = (device(), model()) if device_first else (model(), device())
    site.rig.folder(file("pump.yaml", "1", *both))
    site.register()
    site.rig.folder()
    assert site.take() == [f"RemoveDevice {KEY}"]
    assert (site.rig.edge.view.device_objects(), site.rig.edge.view.models()) == ([], [])
    assert "twin" not in {table for table, rows in site.rig.tables.items() if rows}


def test_a_driver_of_the_daemon_serves_where_no_mapper_has_registered() -> None:
    site = Site(model(protocol="modbus"), device(protocol={"protocolName": "modbus"}))
    first = site.call()
    assert (first.mapper.name, first.mapper.address, first.mapper.own) == ("driver-modbus", "", True)
    site.take()
    assert site.register(ev.MapperInfo("bought", "modbus", "/run/b.sock")).error == ""
    assert site.take() == [
        f"RemoveDevice {KEY}",
        "RemoveDeviceModel default/pump-model",
        "CreateDeviceModel default/pump-model",
        f"RegisterDevice {KEY}",
    ]
    assert site.status()["mapper"] == "bought"


# --- reports ----------------------------------------------------------------------------------------


def test_a_value_with_history_goes_to_the_series_and_one_without_to_its_row() -> None:
    site = served()
    assert site.report(temperature="21.5") == ev.ReportAnswer(site._request)
    assert not site.report(speed="30").code
    assert site.readings() == [readings.Report(KEY, site.rig.wall, 0, (("temperature", "21.5"),))]
    site.report(temperature="22")
    rows = {key: wire.decode("reading", row).value for key, row in site.rig.tables["reading"].items()}
    assert rows == {f"{KEY}/speed": "30", f"{KEY}/temperature": "21.5"}, "of the latter the first alone"
    assert (site.value("temperature"), site.value("speed")) == ("22", "30")


def test_a_step_of_reports_alone_is_patient_and_one_with_more_is_not() -> None:
    site = served()
    site.report(temperature="21.5")
    assert site.rig.last.patient
    site.rig.apply(device("pump-2"))
    assert not site.rig.last.patient


def test_values_of_one_report_stay_together_in_one_item() -> None:
    site = Site(model(), device(annotations={"tinyedge.io/history": "*"}))
    site.register()
    site.report(temperature="20", speed="3", label="a")
    (one,) = site.readings()
    assert one.values == (("temperature", "20"), ("speed", "3"), ("label", "a"))


@pytest.mark.parametrize(
    ("history", "kept"), [("none", []), ("speed, label", ["speed", "label"]), ("*", ["temperature", "speed", "label"])]
)
def test_what_has_history_is_the_devices_to_say(history: str, kept: list[str]) -> None:
    site = Site(model(), device(annotations={"tinyedge.io/history": history}))
    site.register()
    site.report(temperature="20", speed="3", label="a")
    assert [name for one in site.readings() for name, _ in one.values] == kept
    site.report(temperature="21", speed="4", label="b")
    rows = {key.rpartition("/")[2]: wire.decode("reading", row) for key, row in site.rig.tables["reading"].items()}
    assert {name for name, row in rows.items() if row.value in ("21", "4", "b")} == set(rows) - {*kept}


def test_the_newest_value_with_history_is_in_a_table_after_a_quarter_of_an_hour_at_the_latest() -> None:
    site = served()
    site.report(temperature="20")
    site.report(temperature="21")
    assert wire.decode("reading", site.rig.tables["reading"][f"{KEY}/temperature"]).value == "20"
    site.rig.advance(900)
    assert wire.decode("reading", site.rig.tables["reading"][f"{KEY}/temperature"]).value == "21"
    site.rig.boot("power")
    assert site.value("temperature") == "21"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("temperature", "hot", "a number"),
        ("temperature", "126", "at most 125"),
        ("temperature", "-41", "at least -40"),
        ("temperature", "nan", "a number"),
        ("temperature", "1e39", "a number of 32 bits"),
        ("speed", "1.5", "a whole number"),
        ("speed", str(2**64), "a whole number of 64 bits"),
        ("label", "x" * 17_000, "at most 16384 bytes"),
    ],
)
def test_a_value_that_is_none_of_its_type_is_refused_by_name(name: str, value: str, expected: str) -> None:
    site = served()
    values: dict[str, Any] = {name: value}
    answer = site.report(**values)
    assert answer.code == "Invalid"
    assert name in answer.error
    assert answer.error.endswith(expected)
    assert site.value(name) is None


def test_of_a_report_the_right_values_are_kept_whatever_the_others_are() -> None:
    site = served()
    answer = site.report(temperature="20", speed="fast", colour="red")
    assert answer.code == "Invalid"
    assert "speed" in answer.error
    assert "colour" in answer.error
    assert site.value("temperature") == "20"


def test_reports_of_strange_devices_and_of_other_users_are_refused() -> None:
    site = served()
    assert site.report("default/unknown", temperature="1").code == "NotFound"
    assert site.report(uid=8, temperature="1").code == "NotFound"
    assert site.report(uid=0, temperature="1").code == ""
    nobody = Site(model(), device())
    assert "has registered" in nobody.report(temperature="1").error


def test_a_report_that_is_too_large_is_refused_whole() -> None:
    site = Site(model(properties=[{"name": f"p{n}", "type": "STRING"} for n in range(9)]))
    site.rig.apply(device(properties=[{"name": f"p{n}"} for n in range(9)], methods=[]))
    site.register()
    values: dict[str, Any] = {f"p{n}": "x" * (DEVICE_REPORT_BYTES_MAX // 8) for n in range(9)}
    answer = site.report(**values)
    assert (answer.code, site.value("p0")) == ("Invalid", None)


def test_a_mapper_that_floods_is_told_to_wait_and_takes_nothing_from_another() -> None:
    site = Site(model(), device(), device("pump-2", annotations={"tinyedge.io/mapper": "spare"}))
    site.register()
    site.register(ev.MapperInfo("spare", "acme", "/run/s.sock", uid=7))
    codes = [site.report(speed="1").code for _ in range(2500)]
    assert codes.count("") == 2000
    assert set(codes[2000:]) == {"TooMany"}
    assert site.report("default/pump-2", speed="1").code == ""
    site.rig.advance(0.1)
    assert [site.report(speed="1").code for _ in range(201)].count("") == 200


def test_a_mappers_time_is_kept_and_an_older_value_overwrites_no_newer_one() -> None:
    site = served()
    site.report(temperature=("21", 5_000))
    site.report(temperature=("20", 4_000))
    assert [(one.at_ms, one.flags) for one in site.readings()] == [
        (5_000, readings.BY_MAPPER),
        (4_000, readings.BY_MAPPER),
    ]
    assert site.value("temperature") == "21"


def test_a_time_that_is_ours_is_marked_while_the_clock_is_not_trusted() -> None:
    site = served()
    site.rig.trusted = False
    site.report(temperature="21")
    assert site.readings()[0].flags == readings.UNTRUSTED
    assert site.twin("temperature")["quality"] == "untrusted-clock"


def test_a_full_or_read_only_store_takes_no_report() -> None:
    site = served()
    site.rig.store_full = True
    assert site.report(temperature="21").code == "Full"
    site.rig.store_full = False
    site.rig.step(ev.StoreFault("read-only", "the card is worn", read_only=True))
    assert site.report(temperature="21").code == "ReadOnly"
    assert site.register().error
    assert not site.readings()


def test_reports_survive_a_power_cut() -> None:
    site = served()
    site.report(speed="55")
    site.say_state("online")
    site.rig.power_cut()
    assert site.value("speed") == "55"
    assert site.status()["state"] == "online"


# --- states -----------------------------------------------------------------------------------------


def test_states_are_kept_and_told() -> None:
    site = served()
    online = site.rig.wall
    assert not site.say_state("ok").code
    assert site.status()["state"] == "online"
    site.rig.advance(30)
    site.say_state("disconnected")
    assert site.status()["state"] == "offline"
    assert wire.decode("twin", site.rig.tables["twin"][KEY]).online_ms == online
    reasons = [one["reason"] for one in site.rig.edge.view.events()]
    assert reasons[-2:] == ["DeviceOnline", "DeviceOffline"]
    assert site.why() == ["its mapper reports it offline"]
    assert site.say_state("sleepy").code == "Invalid"


def test_a_device_that_stays_online_is_written_once_a_minute_at_the_most() -> None:
    site = served()
    site.say_state("online")
    before = site.rig.writes
    for _ in range(59):
        site.rig.advance(1)
        site.say_state("online")
    assert site.rig.writes == before
    site.rig.advance(1)
    site.say_state("online")
    assert site.rig.writes == before + 1


# --- desired ----------------------------------------------------------------------------------------


def test_a_desired_value_is_told_to_the_mapper_and_observed_once_it_has_taken_it() -> None:
    site = served()
    site.rig.apply(device(desired={"speed": "30"}))
    assert site.twin("speed")["observedDesired"]["value"] == ""
    assert site.take() == ["CreateDeviceModel default/pump-model", f"UpdateDevice {KEY}"]
    assert site.twin("speed")["observedDesired"]["value"] == "30"


def test_a_desired_value_that_cannot_be_had_is_refused_and_the_rest_goes_on() -> None:
    site = Site(model(), device(desired={"speed": "200", "temperature": "20", "label": "ok"}))
    (told,) = site.register().devices
    values = {one.name: one.desired.value for one in told.spec.properties if one.desired}
    assert values == {"speed": "", "temperature": "", "label": "ok"}
    assert set(site.why()) == {"speed can't be set", "temperature can't be set"}
    assert site.twin("speed")["observedDesired"]["metadata"]["refused"] == "'200' is not at most 100"
    assert [one["reason"] for one in site.rig.edge.view.events()].count("DesiredRefused") == 2


def test_what_is_set_on_site_holds_over_a_restart_until_the_manifest_wants_another_value() -> None:
    site = served(speed="30")
    request = site.ask(ev.SetDesired("default", "pump-1", "speed", "80"))
    assert site.answer(request) is None  # until its mapper has taken it
    assert site.take() == ["CreateDeviceModel default/pump-model", f"UpdateDevice {KEY}"]
    answer = site.answer(request)
    assert answer is not None
    assert (answer.error, answer.message) == ("", "speed of default/pump-1 is set to 80")
    assert site.twin("speed")["desiredBy"] == "uid 1000"
    site.rig.boot("power")
    site.take()
    assert site.twin("speed")["desired"] == "80"
    site.rig.apply(device(desired={"speed": "30", "label": "new"}))  # says nothing new of speed
    site.take()
    assert site.twin("speed")["desired"] == "80"
    site.rig.apply(device(desired={"speed": "31", "label": "new"}))
    site.take()
    assert site.twin("speed")["desired"] == "31"
    assert "desiredBy" not in site.twin("speed")


def test_a_value_set_on_site_while_the_mapper_is_away_is_promised_and_set_later() -> None:
    site = served()
    request = site.ask(ev.SetDesired("default", "pump-1", "speed", "80"))
    site.rig.step(ev.MapperCalled(site.rig.calls.pop().op, "connection refused", away=True))
    answer = site.answer(request)
    assert answer is not None
    assert "will be set once it can be" in answer.message
    assert "connection refused" in answer.message
    site.rig.advance(1)
    assert site.take() == ["CreateDeviceModel default/pump-model", f"UpdateDevice {KEY}"]
    assert site.twin("speed")["observedDesired"]["value"] == "80"


def test_a_value_that_nobody_could_set_is_promised_too_when_no_mapper_is_there() -> None:
    site = Site(model(), device())
    answer = site.answer(site.ask(ev.SetDesired("default", "pump-1", "speed", "80")))
    assert answer is not None
    assert "no mapper of protocol 'acme' has registered" in answer.message
    (told,) = site.register().devices
    assert [one.desired.value for one in told.spec.properties if one.desired] == ["", "80", ""]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("speed", "101", "at most 100"), ("temperature", "1", "ReadOnly"), ("colour", "1", "no such property")],
)
def test_what_cannot_be_set_on_site_is_refused_at_once(name: str, value: str, words: str) -> None:
    site = served()
    answer = site.answer(site.ask(ev.SetDesired("default", "pump-1", name, value)))
    assert answer is not None
    assert words in answer.error
    assert not site.rig.calls


def test_what_is_set_on_site_stands_in_the_black_box() -> None:
    site = served()
    site.ask(ev.SetDesired("default", "pump-1", "speed", "80"))
    assert [(one.kind, one.fields["by"]) for one in site.rig.records][-1] == ("device.desired", "uid 1000")


def test_what_is_done_on_site_is_committed_with_its_entry_which_stays_until_the_black_box_has_it() -> None:
    site = served()
    site.ask(ev.SetDesired("default", "pump-1", "speed", "80"))
    assert {"twin", "audit"} <= {one.table for one in site.rig.last.writes if isinstance(one, ev.Put)}
    [told] = [one for one in site.rig.records if one.audit]
    site.rig.power_cut()
    assert [one for one in site.rig.records if one.audit] == [told, told]  # the box may not have it
    site.rig.step(ev.Recorded(told.audit))
    site.rig.power_cut()
    assert [one for one in site.rig.records if one.audit] == [told, told]
    site.rig.step()
    assert not site.rig.tables["audit"]


def test_a_call_leaves_after_its_entry_is_on_disk() -> None:
    site = Site(model(), device())
    site.register(OWN)
    site.ask(ev.CallMethod("default", "pump-1", "reset", {"speed": "0"}))
    [entry] = [one for one in site.rig.last.writes if isinstance(one, ev.Put)]
    assert (entry.table, site.call().what) == ("audit", "CallMethod")
    assert site.rig.records[-1].fields["method"] == "reset"


def test_a_black_box_that_takes_nothing_costs_a_bounded_part_of_the_store() -> None:
    site = served()
    for number in range(AUDITS_MAX + 3):
        site.ask(ev.SetDesired("default", "pump-1", "label", str(number)))
    assert len(site.rig.tables["audit"]) == AUDITS_MAX
    site.rig.boot("crash")
    assert site.rig.records[-1].fields["value"] == str(AUDITS_MAX + 2)


def test_what_rules_and_programs_set_is_recorded_without_waiting_in_the_store() -> None:
    site = served()
    site.rig.edge._devices.set_desired("default/pump-1", "speed", "3", "mqtt")
    site.rig.step()
    assert "audit" not in site.rig.tables
    assert site.rig.records[-1].fields["by"] == "mqtt"


# --- asking -----------------------------------------------------------------------------------------


def owned() -> Site:
    """A pump whose mapper is made with our SDK."""
    site = Site(model(), device())
    site.register(OWN)
    return site


def test_a_mapper_of_kubeedges_is_read_by_http_and_never_over_dmi() -> None:
    site = served()  # GetDevice ends its library with a panic
    refused = site.answer(site.ask(ev.ReadDevice("default", "pump-1")))
    assert refused is not None
    assert "tinyedge.io/mapper-http" in refused.error
    assert not site.rig.calls
    site.rig.apply(device(annotations={"tinyedge.io/mapper-http": "http://127.0.0.1:7777"}))
    site.take()
    site.ask(ev.ReadDevice("default", "pump-1", "speed"))
    assert (site.call().http, site.call().arguments) == ("http://127.0.0.1:7777", (("speed", ""),))
    site.take()
    site.ask(ev.ReadDevice("default", "pump-1"))
    assert [name for name, _ in site.call().arguments] == ["temperature", "speed", "label"]


def test_a_device_is_read_by_asking_its_mapper() -> None:
    site = owned()
    request = site.ask(ev.ReadDevice("default", "pump-1", "temperature"))
    assert (site.call().what, site.call().http) == ("GetDevice", "")
    site.take(values=(ev.Value("temperature", "22.5"), ev.Value("speed", "3")))
    answer = site.answer(request)
    assert answer is not None
    assert (answer.message, answer.data) == ("temperature = 22.5", b'{"temperature":"22.5"}')


def test_a_failed_read_says_why() -> None:
    site = owned()
    request = site.ask(ev.ReadDevice("default", "pump-1"))
    site.take("timed out")
    answer = site.answer(request)
    assert answer is not None
    assert answer.error == "Device default/pump-1: timed out"
    missing = site.answer(site.ask(ev.ReadDevice("default", "nothing")))
    assert missing is not None
    assert missing.error == "Device default/nothing not found"


def test_methods_are_called_where_the_mapper_takes_calls_and_refused_by_name_elsewhere() -> None:
    site = served()
    refused = site.answer(site.ask(ev.CallMethod("default", "pump-1", "reset", {})))
    assert refused is not None
    assert "tinyedge.io/mapper-http" in refused.error
    unknown = site.answer(site.ask(ev.CallMethod("default", "pump-1", "fly", {})))
    assert unknown is not None
    assert unknown.error == "Device default/pump-1 has no method fly; it has: reset"
    own = Site(model(), device())
    own.register(OWN)
    request = own.ask(ev.CallMethod("default", "pump-1", "reset", {"speed": "0"}))
    call = own.call()
    assert (call.what, call.method, call.arguments) == ("CallMethod", "reset", (("speed", "0"),))
    own.take(values=(ev.Value("speed", "0"),))
    answer = own.answer(request)
    assert answer is not None
    assert answer.message == "speed = 0"


def test_a_mappers_http_address_stands_in_the_device() -> None:
    site = Site(model(), device(annotations={"tinyedge.io/mapper-http": "http://127.0.0.1:7777"}))
    site.register()
    site.ask(ev.CallMethod("default", "pump-1", "reset", {}))
    assert site.call().http == "http://127.0.0.1:7777"


# --- pushes -----------------------------------------------------------------------------------------


def test_values_of_our_own_mappers_are_pushed_by_the_node_and_others_push_themselves() -> None:
    push = {"http": {"hostName": "collector", "port": 8080, "requestPath": "/in"}}
    properties = [{"name": "speed", "pushMethod": push}]
    site = Site(model(), device(properties=properties, methods=[]))
    site.register(ACME)
    site.report(speed="1")
    assert not [name for name in site.rig.series if name.startswith("push:")]
    site.register(OWN)
    site.report(speed="2", own=True)
    (items,) = [items for name, items in site.rig.series.items() if name.startswith("push:")]
    assert len(items) == 1
    assert b'"value":"2"' in items[0]


def test_a_push_that_the_node_does_not_know_is_refused_by_name() -> None:
    properties = [{"name": "speed", "pushMethod": {"otel": {"endpointURL": "http://otel"}}}]
    site = Site(model(), device(properties=properties, methods=[]))
    site.register(OWN)
    assert "PushRefused" in [one["reason"] for one in site.rig.edge.view.events()]
