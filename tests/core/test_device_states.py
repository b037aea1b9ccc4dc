"""States of devices with their reasons, mappers that are not there any more, and what a call may be given."""

from __future__ import annotations

import msgspec
import pytest

from tests.core.device_rig import ACME, OWN, Json, Site, device, model
from tinyedge import events as ev
from tinyedge import wire
from tinyedge.core.mappers import DIAL_MS, QUIET_MS, YIELD_MS
from tinyedge.core.status import rfc3339
from tinyedge.limits import DEVICE_REASON_CHARS_MAX

KEY = "default/pump-1"
REFUSED = "can't reach 10.0.0.7:502: Connection refused"
REPORTS_IT = "its mapper reports it offline"


def owned(*more: str) -> Site:
    site = Site(model(), device(), *(device(name) for name in more))
    site.register(OWN)
    return site


def served() -> Site:
    site = Site(model(), device())
    site.register(ACME)
    return site


def reasons(site: Site) -> list[Json]:
    found = site.rig.edge.view.why_device("default", "pump-1")
    assert found is not None
    return [{name: one[name] for name in ("what", "why", "since")} for one in found["reasons"]]


def events(site: Site, reason: str) -> list[str]:
    return [one["message"] for one in site.rig.edge.view.events() if one["reason"] == reason]


def mapper(site: Site) -> str:
    (found,) = site.rig.edge.view.status()["mappers"]
    return f"{found['state']}: {found['message']}" if found["message"] else str(found["state"])


def read(site: Site, name: str = "pump-1") -> int:
    return site.ask(ev.ReadDevice("default", name))


def error(site: Site, request: int) -> str:
    answer = site.answer(request)
    assert answer is not None
    return answer.error


def told(site: Site) -> Json:
    """The newest that the cluster is told of the pump, which takes all that it is told."""
    newest: Json = {}
    while found := site.rig.reports("devicestatus"):
        newest = msgspec.msgpack.decode(found[-1].body)
        site.rig.step(*(ev.ReportTaken(one.kind, one.key, one.revision) for one in found))
        site.rig.advance(1)
    return newest


def lose(site: Site) -> None:
    """Its mapper is asked until that has been in vain for long."""
    read(site)
    site.take("connection refused", away=True)
    for _ in range(YIELD_MS // 1000 + 10):
        site.rig.advance(1)
        site.take("connection refused", away=True)


# --- why a device is what it is -----------------------------------------------------------------------


def test_why_a_device_is_offline_is_shown_with_its_time_wherever_its_state_is() -> None:
    site = owned()
    since = rfc3339(site.rig.wall)
    site.say_state("offline", reason=REFUSED)
    assert (site.status()["reason"], site.status()["reasonTime"]) == (REFUSED, since)
    assert site.status()["problem"] == f"{REPORTS_IT}: {REFUSED}"
    assert reasons(site) == [{"what": REPORTS_IT, "why": REFUSED, "since": since}]
    assert events(site, "DeviceOffline") == [f"{REPORTS_IT}: {REFUSED}"]
    assert site.rig.edge.view.status()["devices"]["problems"][0]["why"] == REFUSED


def test_the_cluster_is_told_why_and_no_longer_once_it_is_over() -> None:
    site = owned()
    site.rig.join()
    site.rig.link()
    site.say_state("offline", reason=REFUSED)
    seen = told(site)
    assert (seen["state"], seen["reason"], seen["reasonTime"]) == ("offline", REFUSED, site.status()["reasonTime"])
    site.say_state("online")
    seen = told(site)
    assert (seen["state"], {"reason", "reasonTime"} & seen.keys()) == ("online", set())


def test_another_reason_for_the_same_state_is_the_newest_and_no_event() -> None:
    site = owned()
    site.say_state("unhealthy", reason="exception 2 at 40001")
    site.rig.advance(60)
    site.say_state("unhealthy", reason="exception 4 at 40001")
    assert (site.status()["reason"], site.status()["reasonTime"]) == ("exception 4 at 40001", rfc3339(site.rig.wall))
    site.rig.advance(60)
    since = site.status()["reasonTime"]
    site.say_state("unhealthy", reason="exception 4 at 40001")
    assert site.status()["reasonTime"] == since
    assert len(events(site, "DeviceUnhealthy")) == 1


def test_a_device_that_is_online_has_no_reason_whatever_its_mapper_says() -> None:
    site = owned()
    site.say_state("offline", reason=REFUSED)
    site.say_state("online", reason="all is well")
    assert "reason" not in site.status()
    assert REPORTS_IT not in site.why()


def test_a_mapper_that_gives_no_reason_has_none_shown() -> None:
    site = served()
    site.say_state("offline")
    assert "reason" not in site.status()
    assert reasons(site) == [{"what": REPORTS_IT, "why": "", "since": ""}]


def test_a_reason_is_one_line_and_bounded_whatever_a_mapper_says() -> None:
    site = owned()
    site.say_state("offline", reason="one\n\x1b[31mtwo\t three " + "x" * 100_000)
    reason = site.status()["reason"]
    assert reason.startswith("one [31mtwo three xxx")
    assert len(reason) == DEVICE_REASON_CHARS_MAX


def test_a_reason_outlives_a_restart() -> None:
    site = owned()
    site.say_state("offline", reason=REFUSED)
    since = site.status()["reasonTime"]
    site.rig.boot("power")
    assert (site.status()["reason"], site.status()["reasonTime"]) == (REFUSED, since)
    row = wire.decode("twin", site.rig.tables["twin"][KEY])
    assert row.reason == REFUSED


# --- a mapper that is not there -----------------------------------------------------------------------


@pytest.mark.parametrize("what", [ev.ReadDevice("default", "pump-1"), ev.CallMethod("default", "pump-1", "reset", {})])
def test_a_read_or_call_that_finds_nobody_shows_the_mapper_away_at_once(what: ev.ReadDevice | ev.CallMethod) -> None:
    site = owned()
    request = site.ask(what)
    site.take("connection refused", away=True)
    assert error(site, request) == f"Device {KEY}: mapper sdk-mapper can't be reached: connection refused"
    assert mapper(site) == "away: connection refused"
    assert site.why() == ["mapper sdk-mapper can't be reached"]


def test_a_mapper_that_does_not_answer_a_read_in_time_is_away_until_it_answers() -> None:
    site = owned()
    read(site)
    site.take("no answer within 10 s", late=True)
    assert mapper(site) == "away: no answer within 10 s"
    site.rig.advance(1)
    assert site.take("no answer within 10 s", late=True) == [f"RegisterDevice {KEY}"]
    assert mapper(site) == "away: no answer within 10 s"
    site.rig.advance(2)
    site.take()
    assert mapper(site) == "up"


def test_it_is_asked_again_with_growing_pauses_until_it_is_back() -> None:
    site = owned()
    read(site)
    pauses = []
    for _ in range(7):
        before = site.rig.now
        site.take("connection refused", away=True)
        while not site.rig.calls:
            site.rig.advance(0.5)
        pauses.append((site.rig.now - before) // 1000)
    assert pauses == [1, 2, 4, 8, 16, 32, 60]
    assert site.take() == [f"RegisterDevice {KEY}"]
    assert mapper(site) == "up"
    site.rig.advance(QUIET_MS / 1000 - 1)
    assert not site.rig.calls


def test_who_reads_often_does_not_make_the_pauses_longer() -> None:
    site = owned()
    for _ in range(10):
        read(site)
        call = site.rig.calls.pop()
        site.rig.step(ev.MapperCalled(call.op, "connection refused", away=True))
    site.rig.advance(1)
    assert site.take() == [f"RegisterDevice {KEY}"]


def test_a_read_that_is_refused_or_answered_shows_that_the_mapper_is_there() -> None:
    for said in ("no such register", ""):
        site = owned()
        read(site)
        site.take("connection refused", away=True)
        read(site)
        call = site.rig.calls.pop()
        site.rig.step(ev.MapperCalled(call.op, said))
        assert mapper(site) == "up"


def test_a_device_that_keeps_its_mapper_busy_does_not_make_that_one_away() -> None:
    site = owned()
    site.rig.apply(device(desired={"speed": "7"}))
    site.rig.advance(DIAL_MS / 1000)
    site.take("no answer within 10 s", late=True)
    assert mapper(site) == "unknown"
    assert site.why()[0] == "its mapper does not take it"


def test_a_web_server_that_is_not_there_is_a_reason_to_ask_the_mapper_and_no_more() -> None:
    site = Site(model(), device(annotations={"tinyedge.io/mapper-http": "http://10.0.0.2:7777"}))
    site.register(ACME)
    request = read(site)
    call = site.rig.calls.pop()
    site.rig.step(ev.MapperCalled(call.op, "can't reach 10.0.0.2:7777", away=True))
    assert error(site, request) == f"Device {KEY}: can't reach 10.0.0.2:7777"
    assert mapper(site) == "unknown"
    assert [one.what for one in site.rig.calls] in (["RegisterDevice"], ["CreateDeviceModel"])
    site.take("connection refused", away=True)
    assert mapper(site) == "away: connection refused"


def test_what_a_mapper_was_asked_before_it_registered_anew_tells_nothing_of_it() -> None:
    site = owned()
    read(site)
    call = site.rig.calls.pop()
    site.register(OWN)
    site.rig.step(ev.MapperCalled(call.op, "connection refused", away=True))
    assert mapper(site) == "unknown"


def test_devices_of_a_mapper_that_stays_away_are_unknown_until_it_is_back() -> None:
    site = owned()
    site.report(temperature="20", own=True)
    site.say_state("online")
    site.rig.advance(1)
    lose(site)
    since = mapper(site)
    assert (site.status()["state"], site.twin("temperature")["quality"]) == ("unknown", "stale")
    assert site.status()["reason"] == "mapper sdk-mapper can't be reached: connection refused"
    assert events(site, "MapperAway") == ["mapper sdk-mapper can't be reached: connection refused"]
    assert site.rig.edge.view.status()["devices"]["states"]["unknown"] == 1
    while not site.rig.calls:
        site.rig.advance(1)
    site.take()
    assert since.startswith("away")
    assert (site.status()["state"], site.twin("temperature")["quality"]) == ("online", "good")


def test_a_device_of_which_a_mapper_tells_though_it_can_not_be_reached_is_what_it_tells() -> None:
    site = owned("pump-2")
    site.say_state("online")
    site.say_state("online", "default/pump-2")
    lose(site)
    assert {site.status(name)["state"] for name in ("pump-1", "pump-2")} == {"unknown"}
    site.report(temperature="20", own=True)
    assert (site.status("pump-1")["state"], site.status("pump-2")["state"]) == ("online", "unknown")
    site.say_state("offline", "default/pump-2", reason=REFUSED)
    assert (site.status("pump-2")["state"], site.status("pump-2")["reason"]) == ("offline", REFUSED)


def test_the_cluster_is_told_that_a_state_is_unknown_and_that_it_is_known_again() -> None:
    site = owned()
    site.rig.join()
    site.rig.link()
    site.say_state("online")
    assert told(site)["state"] == "online"
    lose(site)
    assert told(site)["state"] == "unknown"
    site.register(OWN)
    assert told(site)["state"] == "online"


def test_a_mapper_that_was_killed_is_noticed_though_nobody_asks_for_it() -> None:
    site = owned()
    site.say_state("online")
    site.rig.advance(DIAL_MS / 1000)
    assert mapper(site) == "up"
    site.rig.nobody = lambda _: "connection refused"
    site.rig.advance(DIAL_MS / 1000 - 0.001)
    assert mapper(site) == "up"
    site.rig.advance(0.001)
    assert mapper(site) == "away: connection refused"
    assert site.why()[0] == "mapper sdk-mapper can't be reached"
    site.rig.advance(YIELD_MS / 1000)
    assert (site.status()["state"], events(site, "MapperAway")) == (
        "unknown",
        ["mapper sdk-mapper can't be reached: connection refused"],
    )
    site.rig.nobody = lambda _: ""
    site.rig.advance(60)
    assert (mapper(site), site.status()["state"]) == ("up", "online")


def test_a_mapper_that_listens_and_answers_nothing_is_away_after_a_minute_of_silence() -> None:
    site = owned()
    site.rig.advance((DIAL_MS + QUIET_MS) / 1000)
    assert mapper(site) == "up"
    site.take("no answer within 10 s", late=True)
    assert mapper(site) == "away: no answer within 10 s"


def test_another_mapper_of_the_protocol_takes_over_half_a_minute_after_one_was_killed() -> None:
    site = owned()
    site.rig.advance(DIAL_MS / 1000)
    site.register(ACME)
    site.rig.nobody = lambda name: "connection refused" if name == "sdk-mapper" else ""
    site.rig.advance(DIAL_MS / 1000)
    assert site.status()["mapper"] == "sdk-mapper"
    site.rig.advance(YIELD_MS / 1000)
    assert site.status()["mapper"] == "acme-mapper"
    assert site.take() == ["CreateDeviceModel default/pump-model", f"RegisterDevice {KEY}"]


def test_a_device_that_is_removed_while_its_mapper_is_away_for_long_is_forgotten() -> None:
    site = owned()
    site.rig.nobody = lambda _: "connection refused"
    site.rig.advance((DIAL_MS + YIELD_MS) / 1000)
    site.rig.delete("pump-1", "Device")
    assert not site.rig.tables["twin"]


def test_when_a_device_was_last_online_is_kept_once_its_mapper_is_away_for_long() -> None:
    site = owned()
    site.say_state("online")
    site.rig.advance(9)
    site.report(temperature="20", own=True)
    heard = site.rig.wall
    site.rig.nobody = lambda _: "connection refused"
    site.rig.advance((DIAL_MS + YIELD_MS) / 1000)
    assert wire.decode("twin", site.rig.tables["twin"][KEY]).online_ms == heard


def test_a_mapper_is_up_once_somebody_was_found_at_its_socket_and_not_before() -> None:
    site = Site()
    for nobody, state in (("", "up"), ("connection refused", "away: connection refused")):
        site.rig.nobody = lambda _, why=nobody: why  # type: ignore[misc]
        site.register(OWN)
        assert mapper(site) == "unknown"
        for _ in range(10):  # what it reports says nothing of its socket
            site.rig.advance(DIAL_MS / 10_000)
            site.rig.edge._devices.mappers.lines["sdk-mapper"].may_report(site.rig.now)
        assert mapper(site) == state


def test_of_a_mapper_without_devices_no_event_tells_that_it_is_away() -> None:
    site = Site()
    site.register(OWN)
    site.rig.nobody = lambda _: "connection refused"
    site.rig.advance((DIAL_MS + YIELD_MS) / 1000 + 10)
    assert mapper(site) == "away: connection refused"
    assert not events(site, "MapperAway")


def test_an_address_that_is_not_dialled_is_refused_to_our_mappers_and_told_of_others() -> None:
    site = Site(model(), device())
    why = "the mapper's socket /tmp/x.sock is not dialled: it is not inside /run"
    site.rig.step(ev.MapperRegistered(1, OWN, unreachable=why))
    site.rig.step(ev.MapperRegistered(2, ACME, unreachable=why))
    refused, taken = site.rig.told_mappers[-2:]
    assert (refused.error, taken.error) == (why, "")
    assert mapper(site) == f"away: {why}"
    assert not site.report(temperature="20").code
    site.rig.nobody = lambda _: why
    site.rig.advance(YIELD_MS / 1000 + 10)
    assert mapper(site) == f"away: {why}"


# --- whose a name is -----------------------------------------------------------------------------------


def of_user(uid: int, info: ev.MapperInfo = OWN) -> ev.MapperInfo:
    return msgspec.structs.replace(info, uid=uid, address="/run/tinyedge/other.sock")


def test_the_name_of_a_mapper_that_is_here_or_has_devices_is_not_another_users() -> None:
    site = owned()
    error = site.register(of_user(8)).error
    assert error.startswith("name 'sdk-mapper' is that of a mapper of user 7")
    assert not site.report(temperature="20", own=True).code
    site.rig.nobody = lambda _: "connection refused"
    site.rig.advance((DIAL_MS + YIELD_MS) / 1000)
    assert site.register(of_user(8)).error, "it has a device"
    site.rig.delete("pump-1", "Device")
    assert not site.register(of_user(8)).error


def test_root_and_the_same_user_may_register_a_name_again() -> None:
    site = owned()
    assert not site.register(of_user(7)).error
    assert not site.register(of_user(0)).error
    assert site.register(of_user(7)).error


def test_a_mapper_that_reports_is_not_asked() -> None:
    site = owned()
    for _ in range(10):
        site.rig.advance(QUIET_MS / 2000)
        site.report(temperature="20", own=True)
    assert not site.rig.calls


def test_a_mapper_without_devices_and_a_driver_of_the_daemon_are_not_asked() -> None:
    site = Site(model(protocol="modbus"), device(protocol={"protocolName": "modbus"}))
    site.register(OWN)
    site.take()
    site.rig.advance(DIAL_MS / 1000)  # then it is known that it listens
    site.rig.nobody = lambda _: "connection refused"
    site.rig.advance(10 * QUIET_MS / 1000)
    assert not site.rig.calls
    assert {one["state"] for one in site.rig.edge.view.status()["mappers"]} == {"up"}


# --- what a call may be given --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"label": "x"}, "reset takes no 'label'; it takes speed"),
        ({"speed": "0", "torque": "1"}, "reset takes no 'torque'; it takes speed"),
        ({"speed": "fast"}, "speed is 'fast', expected a whole number"),
        ({"speed": "101"}, "speed is '101', expected at most 100"),
        ({"speed": ""}, "speed is '', expected a whole number"),
    ],
)
def test_arguments_of_a_call_that_are_wrong_are_refused_by_name_before_any_mapper_is_asked(
    arguments: dict[str, str], why: str
) -> None:
    site = owned()
    request = site.ask(ev.CallMethod("default", "pump-1", "reset", arguments))
    assert error(site, request) == f"reset of {KEY} can't be called: {why}"
    assert not site.rig.calls


def test_a_method_that_names_no_properties_takes_no_arguments() -> None:
    site = Site(model(), device(methods=[{"name": "beep"}]))
    site.register(OWN)
    request = site.ask(ev.CallMethod("default", "pump-1", "beep", {"speed": "1"}))
    assert error(site, request) == f"beep of {KEY} can't be called: beep takes no 'speed'; it takes nothing"
    site.ask(ev.CallMethod("default", "pump-1", "beep", {}))
    assert site.call().method == "beep"


def test_arguments_of_a_call_that_are_right_reach_the_mapper() -> None:
    site = owned()
    site.ask(ev.CallMethod("default", "pump-1", "reset", {"speed": "100"}))
    assert site.call().arguments == (("speed", "100"),)
