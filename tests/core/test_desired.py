"""Desired values: what a mapper refuses for good, and what is taken back."""

from __future__ import annotations

import pytest

from tests.core.device_rig import ACME, OWN, Site, device, model
from tinyedge import events as ev

KEY = "default/pump-1"
LOCKED = "mapper sdk-mapper refuses it: the valve is locked"


def answer(site: Site, **refused: str) -> list[str]:
    """Every call is answered, a desired value being refused in each: what was called."""
    calls: list[str] = []
    while site.rig.calls:
        call = site.rig.calls.pop(0)
        calls.append(f"{call.what} {call.key}")
        site.rig.step(ev.MapperCalled(call.op, refused=refused if call.device else {}))
        assert len(calls) < 20
    return calls


def refusing(**desired: str) -> Site:
    """A pump of whose speed the mapper takes nothing."""
    site = Site(model(), device(desired={"speed": "30"} | desired))
    site.register(OWN)
    answer(site, speed="the valve is locked")
    return site


def test_what_a_mapper_refuses_is_shown_with_its_reason_until_another_value_is_wanted() -> None:
    site = refusing(label="a")
    speed = site.twin("speed")
    assert speed["observedDesired"] == {"value": "", "metadata": {"refused": LOCKED}}
    assert site.twin("label")["observedDesired"] == {"value": "a", "metadata": {}}
    assert site.why() == ["speed can't be set"]
    assert site.status()["problem"] == f"speed can't be set: {LOCKED}"
    site.rig.advance(3600)
    assert not [one for one in site.rig.calls if one.what == "UpdateDevice"]  # nor is it told it again and again
    assert site.why() == ["speed can't be set"]
    site.rig.apply(device(desired={"speed": "31", "label": "a"}))
    assert site.why() == []
    answer(site)
    assert site.twin("speed")["observedDesired"] == {"value": "31", "metadata": {}}


def test_what_a_mapper_refuses_is_an_event_once() -> None:
    site = refusing()
    site.rig.boot("clean")
    site.register(OWN)
    answer(site, speed="the valve is locked")
    answer(site, speed="the valve is locked")
    told = [one["message"] for one in site.rig.edge.view.events() if one["reason"] == "DesiredRefused"]
    assert told == [f"speed: {LOCKED}"]


def test_a_refusal_is_known_again_after_a_restart_once_the_mapper_has_been_told() -> None:
    site = refusing()
    site.rig.boot("clean")
    assert answer(site, speed="the valve is locked") == [
        "CreateDeviceModel default/pump-model",
        f"RegisterDevice {KEY}",
    ]
    assert site.why() == ["speed can't be set"]


def test_who_writes_a_value_that_the_mapper_refuses_hears_of_it() -> None:
    site = Site(model(), device())
    site.register(OWN)
    answer(site)
    request = site.ask(ev.SetDesired("default", "pump-1", "speed", "99"))
    answer(site, speed="the valve is locked")
    found = site.answer(request)
    assert found is not None
    assert found.error == f"speed of {KEY} can't be 99: {LOCKED}"


def test_a_mapper_of_ours_that_registers_is_asked_what_it_refuses_and_one_of_kubeedges_is_not() -> None:
    for mapper, calls in ((OWN, [f"RegisterDevice {KEY}"]), (ACME, [])):
        site = Site(model(), device(desired={"speed": "30"}))
        site.register(mapper)
        assert answer(site) == calls
        assert site.twin("speed")["observedDesired"]["value"] == "30"


def test_the_cluster_is_told_what_a_mapper_refuses() -> None:
    properties = [{"name": "speed", "reportToCloud": True, "desired": {"value": "30"}}]
    site = Site(model(), device(properties=properties))
    site.register(OWN)
    answer(site, speed="the valve is locked\n" * 100)
    site.rig.link()
    site.rig.advance(60)
    [twin] = site.reported()[KEY]["twins"]
    assert twin["observedDesired"]["value"] == ""
    assert twin["observedDesired"]["metadata"]["refused"].startswith(f"{LOCKED} the valve")
    assert len(twin["observedDesired"]["metadata"]["refused"]) < 400


@pytest.mark.parametrize(
    ("mapper", "words"), [(OWN, f"raw of {KEY} can't be set: '%%%' is not bytes in base64"), (ACME, "")]
)
def test_bytes_for_mappers_of_ours_are_base64_and_others_have_their_own_ways(mapper: ev.MapperInfo, words: str) -> None:
    known = model(properties=[{"name": "raw", "type": "BYTES", "accessMode": "ReadWrite"}])
    site = Site(known, device(properties=[{"name": "raw"}], methods=[]))
    site.register(mapper)
    site.take()
    request = site.ask(ev.SetDesired("default", "pump-1", "raw", "%%%"))
    site.take()
    found = site.answer(request)
    assert found is not None
    assert found.error == words


# --- taken back -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("desired", "told", "words"),
    [
        ({"speed": "30"}, "30", f"speed of {KEY} is set to 30"),
        ({}, "", f"nothing is wanted of speed of {KEY} any more"),
    ],
)
def test_what_was_set_on_site_is_taken_back(desired: dict[str, str], told: str, words: str) -> None:
    site = Site(model(), device(desired=desired))
    site.register()
    site.ask(ev.SetDesired("default", "pump-1", "speed", "99"))
    site.take()
    assert site.twin("speed")["desired"] == "99"
    request = site.ask(ev.SetDesired("default", "pump-1", "speed", None))
    sent = site.call().device
    assert sent is not None
    assert [one.desired.value for one in sent.spec.properties if one.name == "speed" and one.desired] == [told]
    site.take()
    found = site.answer(request)
    assert found is not None
    assert found.message.startswith(words)
    assert site.twin("speed").get("desired", "") == told
    assert "desiredBy" not in site.twin("speed")
    site.rig.boot("clean")
    assert site.twin("speed").get("desired", "") == told
    assert any(one.key == "device.desired" and one.fields.get("cleared") for one in site.rig.notes)


def test_only_what_there_is_can_be_taken_back() -> None:
    site = Site(model(), device())
    for name, words in (("pump-1", f"Device {KEY} has no property colour"), ("none", "Device default/none not found")):
        found = site.answer(site.ask(ev.SetDesired("default", name, "colour", None)))
        assert found is not None
        assert found.error == words


def test_a_method_sets_nothing_that_is_read_only() -> None:
    site = Site(model(), device(methods=[{"name": "warm", "propertyNames": ["temperature"]}]))
    site.register(OWN)
    answer(site)
    found = site.answer(site.ask(ev.CallMethod("default", "pump-1", "warm", {"temperature": "20"})))
    assert found is not None
    assert found.error == (
        f"warm of {KEY} can't be called: temperature is ReadOnly in the device's model, and warm would set it"
    )
    assert not site.rig.calls
