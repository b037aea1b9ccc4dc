"""What nodes report of their devices: who may say what, what is written, and that nothing old replaces what is new."""

from __future__ import annotations

from typing import Any

import pytest

from cloud_gateway.core import device_status
from tests.cloud_gateway.core.rig import WALL0_MS, Edge, Json, World
from tinyedge.protocol.revision import revision

KEY = "default/pump-1"


@pytest.fixture
def world() -> World:
    return started()


def started(**settings: Any) -> World:
    world = World(**settings)
    world.start()
    return world


@pytest.fixture
def edge(world: World) -> Edge:
    return with_device(world)


def with_device(world: World) -> Edge:
    edge = world.joined("n1")
    world.device("pump-1")
    return edge


def twin(name: str, value: str | None, at_ms: int = 0, desired: str = "", **metadata: str) -> Json:
    found: Json = {"propertyName": name, "observedDesired": {"value": desired}}
    if value is not None:
        found["reported"] = {"value": value, "metadata": {"timestamp": str(at_ms), "type": "int"} | metadata}
    return found


def report(*twins: Json, **more: str) -> Json:
    return {"twins": list(twins)} | more


def values(world: World, resource: str = "devicestatuses") -> dict[str, str]:
    twins = world.status_of(resource, "pump-1")["twins"]
    return {one["propertyName"]: one["reported"]["value"] for one in twins if "reported" in one}


def writes(world: World) -> list[tuple[str, str]]:
    named = ("devices", "devicestatuses")
    return [(one.verb, one.resource) for one in world.api.calls if one.resource in named and one.verb != "get"]


# --- what is written -------------------------------------------------------------------------------------


def test_a_report_becomes_a_device_status_of_its_own_and_the_devices_status(world: World, edge: Edge) -> None:
    online = "2026-01-01T00:00:00Z"
    seq = edge.report("devicestatus", KEY, report(twin("speed", "30", 5), state="online", lastOnlineTime=online))
    assert edge.taken[-1] == seq
    made = world.api.objects["devicestatuses", "default", "pump-1"]
    (owner,) = made["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"]) == ("Device", "pump-1")
    assert owner["uid"] == world.api.objects["devices", "default", "pump-1"]["metadata"]["uid"]
    for resource in ("devicestatuses", "devices"):
        status = world.status_of(resource, "pump-1")
        assert (status["state"], status["lastOnlineTime"], status["summary"]) == ("online", online, "speed=30")
        (found,) = status["twins"]
        assert found["reported"] == {"value": "30", "metadata": {"timestamp": "5", "type": "int"}}


def test_why_a_device_is_offline_stands_beside_its_state_and_goes_with_it(world: World, edge: Edge) -> None:
    why = {"reason": "can't reach 10.0.0.7:502: Connection refused", "reasonTime": "2026-01-01T00:00:00Z"}
    edge.report("devicestatus", KEY, report(state="offline", **why))
    for resource in ("devicestatuses", "devices"):
        assert world.status_of(resource, "pump-1").items() >= why.items()
    edge.report("devicestatus", KEY, report(state="offline", reason="x" * 10_000))
    assert len(world.status_of("devices", "pump-1")["reason"]) < 500
    edge.report("devicestatus", KEY, report(state="online"))
    for resource in ("devicestatuses", "devices"):
        status = world.status_of(resource, "pump-1")
        assert (status["state"], {"reason", "reasonTime"} & status.keys()) == ("online", set())


def test_a_device_that_was_never_offline_has_no_reason_from_its_first_status_on(world: World, edge: Edge) -> None:
    edge.report("devicestatus", KEY, report(state="online"))
    assert "reason" not in world.api.objects["devicestatuses", "default", "pump-1"]["status"]


def test_after_the_first_a_report_is_two_writes_and_no_reads(world: World, edge: Edge) -> None:
    edge.report("devicestatus", KEY, report(twin("speed", "30", 5)))
    world.api.calls.clear()
    edge.report("devicestatus", KEY, report(twin("speed", "31", 6)))
    calls = sorted((one.verb, one.resource) for one in world.api.calls)
    assert calls == [("patch", "devices"), ("patch", "devicestatuses")]
    assert values(world) == values(world, "devices") == {"speed": "31"}
    assert world.core.counts()["device_writes"] == 4


@pytest.mark.parametrize(
    ("target", "written"),
    [
        ("devicestatus", [("create", "devicestatuses")]),
        ("device", [("patch", "devices")]),
    ],
)
def test_one_place_alone_can_be_chosen(target: str, written: list[tuple[str, str]]) -> None:
    world = started(device_status=target)
    edge = with_device(world)
    edge.report("devicestatus", KEY, report(twin("speed", "30", 5)))
    assert writes(world) == written
    assert edge.taken


def test_a_report_is_taken_once_both_have_it(world: World, edge: Edge) -> None:
    world.api.fails = lambda call: 503 if call.resource == "devices" and call.verb == "patch" else 0
    edge.report("devicestatus", KEY, report(twin("speed", "30", 5)))
    assert values(world) == {"speed": "30"}
    assert len(edge.taken) == 1, "only the node's own report"
    world.api.fails = lambda _: 0
    world.api.calls.clear()
    world.wait(2)
    assert len(edge.taken) == 2
    assert writes(world) == [("patch", "devices")], "the other has it already"


def test_a_server_that_is_away_is_asked_again_but_not_faster_and_faster(world: World, edge: Edge) -> None:
    world.api.fails = lambda call: 503 if call.resource in ("devices", "devicestatuses") else 0
    edge.report("devicestatus", KEY, report(twin("speed", "30", 5)))
    world.wait(300)
    asked = [one for one in world.api.calls if one.resource in ("devices", "devicestatuses")]
    assert 5 < len(asked) < 20
    world.api.fails = lambda _: 0
    world.wait(61)
    assert values(world) == {"speed": "30"}
    assert len(edge.taken) == 2


def test_a_status_that_somebody_has_deleted_is_made_anew(world: World, edge: Edge) -> None:
    edge.report("devicestatus", KEY, report(twin("speed", "30", 5)))
    world.api.remove("devicestatuses", "default", "pump-1")
    edge.report("devicestatus", KEY, report(twin("speed", "31", 6)))
    world.wait(2)
    assert values(world) == {"speed": "31"}
    assert len(edge.taken) == 3


def test_the_status_of_a_device_that_is_gone_does_not_become_that_of_the_next(world: World, edge: Edge) -> None:
    edge.report("devicestatus", KEY, report(twin("speed", "30", 5)))
    world.api.remove("devices", "default", "pump-1")
    world.step()
    world.device("pump-1")
    edge.report("devicestatus", KEY, report(twin("speed", None)))
    world.wait(2)
    assert values(world) == {}
    (owner,) = world.api.objects["devicestatuses", "default", "pump-1"]["metadata"]["ownerReferences"]
    assert owner["uid"] == world.api.objects["devices", "default", "pump-1"]["metadata"]["uid"]


def test_definitions_without_a_status_of_their_own_are_named_as_what_is_wrong(world: World, edge: Edge) -> None:
    world.api.fails = lambda call: 404 if call.subresource == "status" and call.resource != "nodes" else 0
    edge.report("devicestatus", KEY, report(twin("speed", "30", 5)))
    world.wait(2)
    assert "packaging/kubernetes/crds" in edge.refused[-1].message


def test_what_the_api_refuses_is_refused_to_the_node(world: World, edge: Edge) -> None:
    world.api.fails = lambda call: 422 if call.resource == "devicestatuses" and call.verb != "get" else 0
    edge.report("devicestatus", KEY, report(twin("speed", "30", 5)))
    assert edge.refused[-1].reason == "Failed"
    assert len(edge.taken) == 1


# --- who may say what ------------------------------------------------------------------------------------


def test_a_node_can_not_report_on_a_device_of_another(world: World, edge: Edge) -> None:
    other = world.joined("n2")
    other.report("devicestatus", KEY, report(twin("speed", "666", 99)))
    assert other.refused[-1].reason == "Forbidden"
    assert writes(world) == []


def test_nor_on_one_that_has_moved_away_from_it(world: World, edge: Edge) -> None:
    edge.report("devicestatus", KEY, report(twin("speed", "30", 5)))
    world.device("pump-1", node="n2")
    edge.report("devicestatus", KEY, report(twin("speed", "666", 99)))
    assert edge.refused[-1].reason == "Forbidden"
    assert values(world) == {"speed": "30"}


def test_a_report_on_a_device_that_is_gone_is_taken_and_the_node_told(world: World, edge: Edge) -> None:
    edge.objects["device"]["default/old"] = (b"r", b"b")
    edge.report("devicestatus", "default/old", report())
    assert len(edge.taken) == 2
    assert "default/old" not in edge.holds("device")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"twins": {}},
        {"twins": [{"propertyName": 7}]},
        {"twins": [twin("a", "1"), twin("a", "2")]},
        {"twins": [twin(f"p{number}", "1") for number in range(201)]},
        {"twins": [{"propertyName": "a", "reported": {"value": "1", "metadata": {"timestamp": 7}}}]},
    ],
)
def test_what_is_no_status_is_refused(world: World, edge: Edge, body: Json) -> None:
    edge.report("devicestatus", KEY, body)
    assert edge.refused[-1].reason == "Invalid"
    assert writes(world) == []


def test_what_else_stands_in_a_report_is_not_written(world: World, edge: Edge) -> None:
    edge.report("devicestatus", KEY, report(twin("speed", "30", 5) | {"spec": "x"}, conditions="x"))
    status = world.status_of("devices", "pump-1")
    assert "conditions" not in status
    assert "spec" not in status["twins"][0]


def test_before_it_is_known_what_devices_there_are_a_report_waits() -> None:
    world = started()
    world.api.unserved = {"devices"}
    world.start()
    edge = world.joined("n1")
    edge.report("devicestatus", KEY, report(twin("speed", "30", 5)))
    assert not edge.refused
    assert len(edge.taken) == 1
    world.api.unserved = set()
    world.device("pump-1")
    world.step(*world.api.lists("devices"))
    world.wait(3)
    assert values(world) == {"speed": "30"}


# --- newer wins --------------------------------------------------------------------------------------------


def test_a_node_that_lost_its_store_does_not_overwrite_what_is_newer(world: World, edge: Edge) -> None:
    edge.report("devicestatus", KEY, report(twin("speed", "30", 1000), twin("heat", "80", 2000)))
    edge.cut()
    edge.connect()
    edge.report("devicestatus", KEY, report(twin("speed", "7", 500, desired="9"), twin("heat", "81", 3000)))
    assert values(world) == values(world, "devices") == {"speed": "30", "heat": "81"}
    (speed, _) = world.status_of("devicestatuses", "pump-1")["twins"]
    assert speed["observedDesired"] == {"value": "9"}, "what it knows of the cloud's wishes is its own to say"
    edge.report("devicestatus", KEY, report(twin("speed", "8", 999), twin("heat", "82", 4000)))
    assert values(world) == {"speed": "30", "heat": "82"}
    edge.report("devicestatus", KEY, report(twin("speed", "9", 1001), twin("heat", "82", 4000)))
    assert values(world) == {"speed": "9", "heat": "82"}


def test_a_value_that_a_node_has_lost_altogether_stays_until_it_has_a_new_one(world: World, edge: Edge) -> None:
    edge.report("devicestatus", KEY, report(twin("speed", "30", 1000)))
    world.start()
    edge.connect()
    edge.report("devicestatus", KEY, report(twin("speed", None)))
    assert values(world) == {"speed": "30"}


def test_a_property_that_is_no_more_goes(world: World, edge: Edge) -> None:
    edge.report("devicestatus", KEY, report(twin("speed", "30", 1000), twin("heat", "80", 1000)))
    world.device("pump-1", properties=[{"name": "heat"}])
    edge.report("devicestatus", KEY, report(twin("heat", "80", 1000)))
    assert values(world) == {"heat": "80"}


def test_a_clock_that_was_far_ahead_does_not_freeze_a_value_for_ever(world: World, edge: Edge) -> None:
    edge.report("devicestatus", KEY, report(twin("speed", "30", WALL0_MS * 2)))
    edge.cut()
    edge.connect()
    edge.report("devicestatus", KEY, report(twin("speed", "31", WALL0_MS)))
    assert values(world) == {"speed": "31"}


def test_what_a_node_without_a_clock_has_just_read_is_shown(world: World, edge: Edge) -> None:
    edge.report("devicestatus", KEY, report(twin("speed", "30", 1000)))
    edge.cut()
    edge.connect()
    edge.report("devicestatus", KEY, report(twin("speed", "31", 5, clock="untrusted")))
    assert values(world) == {"speed": "31"}


def test_a_refused_edit_stays_told_while_the_node_reports_on_what_it_has(world: World) -> None:
    edge = world.joined("n1")
    world.device("pump-1")
    edge.refuses[KEY] = ("Invalid", "metadata.annotations is wrong")
    world.device("pump-1", properties=[{"name": "speed", "desired": {"value": "7"}}])
    edge.report("devicestatus", KEY, report(twin("speed", "30", 5)))
    (condition,) = world.status_of("devices", "pump-1")["conditions"]
    assert (condition["status"], condition["message"]) == ("False", "metadata.annotations is wrong")


def test_a_refusal_is_over_when_a_link_shows_that_the_node_has_it(world: World) -> None:
    edge = world.joined("n1")
    edge.refuses[KEY] = ("StoreFull", "the store is full")
    world.device("pump-1")
    put = next(body for kind, key, body in edge.sent if key == KEY)
    edge.cut()
    edge.objects["device"][KEY] = (revision(put), put)  # the answer that said so was lost with the link
    edge.connect()
    assert world.status_of("devices", "pump-1")["conditions"] == []


def test_what_a_report_leaves_out_is_taken_away(world: World, edge: Edge) -> None:
    online = {"state": "online", "lastOnlineTime": "2026-01-01T00:00:00Z"}
    edge.report("devicestatus", KEY, report(**online))
    edge.report("devicestatus", KEY, report(state="unknown", reason="no mapper of protocol 'modbus' has registered"))
    for resource in ("devicestatuses", "devices"):
        status = world.status_of(resource, "pump-1")
        assert "lastOnlineTime" not in status
        assert (status["state"], status["reason"]) == ("unknown", "no mapper of protocol 'modbus' has registered")


def test_without_a_model_the_values_that_stood_there_stay(world: World, edge: Edge) -> None:
    edge.report("devicestatus", KEY, report(twin("speed", "30", 5), state="online"))
    edge.report("devicestatus", KEY, {"state": "unknown", "reason": "its model default/pump is not on this node"})
    assert values(world) == {"speed": "30"}
    assert world.status_of("devices", "pump-1")["state"] == "unknown"


# --- one line for people -------------------------------------------------------------------------------------


def test_a_summary_is_one_short_line() -> None:
    assert device_status.summary([twin("a", "1"), twin("b", None), twin("c", " x\n y ")]) == "a=1 c=x y"
    assert device_status.summary([twin("blob", "z" * 100)]) == f"blob={'z' * 23}…"
    many = device_status.summary([twin(f"property-{number}", "12345") for number in range(50)])
    assert len(many) <= 122
    assert many.endswith(" …")
