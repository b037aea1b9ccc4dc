"""What a cluster is told of devices: few writes, the urgent ones first, the newest only."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec

from tests.core.device_rig import Json, Site, device, model
from tinyedge import events as ev


class Linked(Site):
    """A node with devices and a link. `heard` is what the API server was told, in order; it takes everything at once
    while time passes."""

    def __init__(self, *objects: Any) -> None:
        super().__init__(*objects)
        self.heard: list[ev.Report] = []
        self.register()
        self.rig.join()
        self.rig.link()

    def wait(self, seconds: float = 0) -> None:
        end = self.rig.now + int(seconds * 1000)
        while True:
            told = self.rig.reports("devicestatus")
            self.heard += told
            if told:
                self.rig.step(*(ev.ReportTaken(one.kind, one.key, one.revision) for one in told))
            elif self.rig.wake and self.rig.wake <= end:
                self.rig.advance(max(self.rig.wake - self.rig.now, 1) / 1000)
            else:
                break
        self.rig.advance(max(end - self.rig.now, 0) / 1000)

    def told(self, seconds: float = 1) -> dict[str, Json]:
        """The newest that the API server was told of each device within so many seconds."""
        self.heard.clear()
        self.wait(seconds)
        return {one.key: msgspec.msgpack.decode(one.body) for one in self.heard}


def linked(count: int = 1, **fields: Any) -> Linked:
    site = Linked(model(), *(device(f"pump-{n}", **fields) for n in range(1, count + 1)))
    site.wait(2 + count)
    return site


def temperature(status: Json) -> str:
    return str(status["twins"][0]["reported"]["value"])


def test_a_value_that_goes_to_the_cloud_is_told_and_one_that_does_not_is_not() -> None:
    site = linked()
    site.report(temperature="21.5", speed="3")
    (twin,) = site.told()["default/pump-1"]["twins"]
    assert twin["propertyName"] == "temperature"
    assert twin["reported"] == {"value": "21.5", "metadata": {"timestamp": str(site.rig.wall - 1000), "type": "float"}}


def test_a_device_of_which_nothing_goes_to_the_cloud_is_not_told() -> None:
    site = linked(properties=[{"name": "speed"}], methods=[])
    site.report(speed="3")
    site.say_state("online")
    assert not site.told(10)


def test_the_newest_is_told_and_what_was_in_between_is_not() -> None:
    site = linked()
    site.report(temperature=0)
    for value in range(1, 50):
        site.report(temperature=value)
    assert temperature(site.told(5)["default/pump-1"]) == "49"
    assert len(site.heard) <= 2


def test_ten_devices_that_report_every_second_are_shown_within_two_seconds() -> None:
    site = linked(10)
    shown: dict[str, list[int]] = {}
    for second in range(30):
        for n in range(1, 11):
            site.report(f"default/pump-{n}", temperature=second)
        for key in site.told(1):
            shown.setdefault(key, []).append(second)
    assert len(shown) == 10
    assert all(later - first <= 2 for seconds in shown.values() for first, later in pairwise(seconds))


def test_many_devices_that_report_every_second_cost_sixty_reports_a_minute_each_in_its_turn() -> None:
    site = Linked(model(), *(device(f"pump-{n}") for n in range(100)))
    site.wait(200)
    told: list[str] = []
    for second in range(60):
        for n in range(100):
            site.report(f"default/pump-{n}", temperature=second)
        told += site.told(1)
    assert 55 <= len(told) <= 61  # both ends of the minute count
    assert len(set(told)) == len(told)


def test_states_and_desired_values_go_before_mere_values() -> None:
    site = linked(60)
    for n in range(1, 61):
        site.report(f"default/pump-{n}", temperature=5)
    site.say_state("offline", "default/pump-60")
    assert "default/pump-60" in site.told(2)
    assert len(site.heard) < 5


def test_nothing_is_told_without_a_link_and_a_new_one_hears_the_newest() -> None:
    site = linked()
    site.rig.unlink()
    for value in range(20):
        site.report(temperature=value)
        assert not site.told(10)
    site.rig.link()
    assert temperature(site.told()["default/pump-1"]) == "19"


def test_what_the_api_server_has_is_not_told_again_by_the_next_link() -> None:
    site = linked()
    site.report(temperature="20")
    assert site.told()
    site.rig.unlink()
    site.rig.link()
    assert not site.told()


def test_of_one_device_one_report_is_under_way() -> None:
    site = linked()
    site.report(temperature="20")
    site.report(temperature="21")
    site.rig.advance(5)
    (report,) = site.rig.reports("devicestatus")
    site.rig.step(ev.ReportTaken(report.kind, report.key, report.revision))
    assert temperature(site.told()["default/pump-1"]) == "21"


def test_a_refused_report_is_noted_and_waits_for_news() -> None:
    site = linked()
    site.report(temperature="20")
    (report,) = site.rig.reports("devicestatus")
    site.rig.step(ev.ReportRefused(report.kind, report.key, report.revision, "Forbidden", "no"))
    assert site.rig.notes[-1].key == "device.report_refused"
    assert not site.told(60)
    site.report(temperature="21")
    assert site.told()


def test_a_device_that_is_gone_is_told_no_more() -> None:
    site = linked()
    site.report(temperature="20")
    site.told()
    site.report(temperature="21")
    site.rig.delete("pump-1", "Device")
    assert len(site.told(10)) <= 1
    assert not site.told(60)


# --- what its state is -----------------------------------------------------------------------------------


def test_a_device_that_nobody_serves_is_unknown_and_says_why() -> None:
    site = Linked(model(), device("pump-1", protocol={"protocolName": "bacnet"}))
    told = site.told()["default/pump-1"]
    assert (told["state"], told["reason"]) == ("unknown", "no mapper of protocol 'bacnet' has registered")


def test_a_device_without_its_model_is_unknown_and_its_values_are_left_alone() -> None:
    site = linked()
    site.report(temperature=20)
    site.say_state("online")
    assert site.told(5)["default/pump-1"]["state"] == "online"
    site.rig.delete("pump-model", "DeviceModel")
    told = site.told(5)["default/pump-1"]
    assert (told["state"], "twins" in told) == ("unknown", False)
    assert "is not on this node" in told["reason"]


def test_a_device_that_only_reports_values_has_a_time_at_which_it_was_last_online() -> None:
    site = linked()
    site.report(temperature=20)
    first = site.told(5)["default/pump-1"]
    assert first["state"] == "unknown"
    site.rig.advance(3600)
    site.report(temperature=21)
    assert site.told(5)["default/pump-1"]["lastOnlineTime"] > first["lastOnlineTime"]


def test_a_bus_that_goes_down_with_all_its_devices_is_few_events() -> None:
    site = Linked(model(), *(device(f"pump-{n}") for n in range(100)))
    for number in range(100):
        site.say_state("offline", f"default/pump-{number}")
    told = [one for one in site.rig.told_events() if one["involvedObject"]["kind"] == "Device"]
    assert len(told) == 25
    site.rig.advance(60)
    for number in range(100):
        site.say_state("online", f"default/pump-{number}")
    later = [one for one in site.rig.told_events() if one["involvedObject"]["kind"] == "Device"]
    assert 30 <= len(later) <= 50
