"""What devices want pushed: by which methods, to how many places, and how it is told that a place takes nothing."""

from __future__ import annotations

from typing import Any

from tests.core.device_rig import ACME, OWN, Site, device, model
from tinyedge import events as ev
from tinyedge.core.pushes import series_of
from tinyedge.core.status import rfc3339
from tinyedge.limits import PUSH_TARGETS_MAX
from tinyedge.protocol.outgoing import HttpTarget, MqttTarget

HTTP: dict[str, Any] = {"hostName": "collector", "port": 8080, "requestPath": "/in"}
MQTT: dict[str, Any] = {"address": "tcp://broker:1883", "topic": "plant/speed"}
TO_HTTP, TO_MQTT = HttpTarget("http://collector:8080/in"), MqttTarget("tcp://broker:1883", "plant/speed")


def pushing(*, mapper: ev.MapperInfo = OWN, **methods: Any) -> Site:
    site = Site(model(), device(properties=[{"name": "speed", "pushMethod": methods}], methods=[]))
    site.register(mapper)
    site.take()
    return site


def pushed(site: Site) -> dict[str, int]:
    return {name: len(items) for name, items in site.rig.series.items() if name.startswith("push:")}


def refusals(site: Site) -> list[str]:
    return [one["message"] for one in site.rig.edge.view.events() if one["reason"] == "PushRefused"]


def test_a_value_goes_to_each_place_that_its_property_names() -> None:
    site = pushing(http=HTTP, mqtt=MQTT)
    site.report(speed="1", own=True)
    assert pushed(site) == {series_of(TO_HTTP): 1, series_of(TO_MQTT): 1}


def test_each_method_that_is_not_carried_out_is_named_beside_those_that_are() -> None:
    site = pushing(http=HTTP, otel={"endpointURL": "http://otel"}, dbMethod={"influxdb2": {}, "redis": {}})
    named = ["dbMethod.influxdb2", "dbMethod.redis", "otel"]
    assert [one.split(" is not")[0] for one in refusals(site)] == [f"speed: pushMethod.{name}" for name in named]
    assert site.why() == [f"speed is not pushed by pushMethod.{name}" for name in named]
    assert str(site.status()["problem"]).startswith("speed is not pushed by pushMethod.dbMethod.influxdb2: the node")
    site.report(speed="1", own=True)
    assert list(pushed(site).values()) == [1]


def test_a_mapper_of_kubeedges_pushes_itself_by_whatever_method() -> None:
    site = pushing(mapper=ACME, dbMethod={"influxdb2": {}})
    assert (refusals(site), site.why()) == ([], [])


def test_a_device_whose_pushes_are_dropped_says_so_until_one_is_taken() -> None:
    site = pushing(mqtt=MQTT)
    since = rfc3339(site.rig.wall)
    for _ in range(2):
        site.rig.step(ev.PushFailed("Device default/pump-1", "mqtt://broker:1883", "it must not be dialled", True, "x"))
        site.rig.advance(5)
    explained = site.rig.edge.view.why_device("default", "pump-1")
    assert explained is not None
    [reason] = explained["reasons"]
    assert (reason["what"], reason["why"]) == ("pushes to mqtt://broker:1883 are dropped", "it must not be dialled")
    assert reason["since"] == since
    site.rig.step(ev.PushTaken("Device default/pump-1", "x"))
    assert site.why() == []


def test_a_place_that_is_away_is_a_reason_of_each_device_that_pushes_there() -> None:
    site = pushing(http=HTTP)
    other = device("pump-2", properties=[{"name": "speed", "pushMethod": {"http": HTTP}}], methods=[])
    site.rig.apply(other, device("pump-3"))
    site.take()
    away = series_of(TO_HTTP)
    site.rig.step(ev.PushFailed("Device default/pump-1", "http://collector:8080", "no route", False, away))
    for name, why in (("pump-1", 1), ("pump-2", 1), ("pump-3", 0)):
        assert site.why(name) == ["pushes to http://collector:8080 wait"] * why
    site.rig.step(ev.PushTaken("Device default/pump-2", away))
    assert site.why("pump-1") == []


def test_places_that_nobody_names_any_more_make_room_for_others() -> None:
    site = pushing(http=HTTP)
    for number in range(PUSH_TARGETS_MAX + 10):
        push = {"http": HTTP | {"hostName": f"collector-{number}"}}
        site.rig.apply(device(properties=[{"name": "speed", "pushMethod": push}], methods=[]))
        site.take()
        site.report(speed=str(number % 100), own=True)
    assert len(pushed(site)) == PUSH_TARGETS_MAX + 10
    assert refusals(site) == []


def test_a_node_pushes_to_no_more_than_so_many_places() -> None:
    pumps = [
        device(f"pump-{number}", properties=[{"name": "speed", "pushMethod": {"http": HTTP | {"port": 8000 + number}}}])
        for number in range(PUSH_TARGETS_MAX + 1)
    ]
    site = Site(model(), *(one for one in pumps))
    site.register(OWN)
    for number in range(PUSH_TARGETS_MAX + 1):
        site.report(f"default/pump-{number}", speed="1", own=True)
    assert len(pushed(site)) == PUSH_TARGETS_MAX
    assert [one.split(": ")[1] for one in refusals(site)] == [
        f"this node pushes to {PUSH_TARGETS_MAX} other places already"
    ]
