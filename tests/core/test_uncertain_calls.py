"""Calls of a mapper of which nobody knows what became: it may have the device, and leaves it as it is when that is
registered again."""

from __future__ import annotations

from tests.core.device_rig import Site, device, model
from tinyedge import events as ev


def registering() -> Site:
    """A pump that is just being registered."""
    site = Site(model())
    site.register()
    site.rig.apply(device(desired={"speed": "10"}))
    call = site.call()
    site.rig.calls.clear()
    site.rig.step(ev.MapperCalled(call.op))  # the model
    assert site.call().what == "RegisterDevice"
    return site


def unheard(site: Site) -> None:
    call = site.call()
    site.rig.calls.clear()
    site.rig.step(ev.MapperCalled(call.op, "no answer within 10 s", late=True))


def test_a_device_that_may_be_there_is_updated_to_what_it_is_to_be() -> None:
    site = registering()
    unheard(site)
    site.rig.apply(device())
    site.rig.advance(60)
    assert site.take() == ["RegisterDevice default/pump-1", "UpdateDevice default/pump-1"]


def test_that_is_known_over_a_power_cut() -> None:
    site = registering()
    site.rig.power_cut()
    site.rig.apply(device())
    assert site.take()[-2:] == ["RegisterDevice default/pump-1", "UpdateDevice default/pump-1"]


def test_a_device_that_may_be_there_is_removed_when_nobody_wants_it() -> None:
    site = registering()
    unheard(site)
    site.rig.delete("pump-1", "Device")
    site.rig.advance(60)
    assert site.take()[0] == "RemoveDevice default/pump-1"


def test_a_device_that_its_mapper_has_refused_is_registered_and_no_more() -> None:
    site = registering()
    call = site.call()
    site.rig.calls.clear()
    site.rig.step(ev.MapperCalled(call.op, "no such port"))
    site.rig.advance(60)
    assert site.take() == ["RegisterDevice default/pump-1"]


def test_a_device_that_is_removed_while_it_is_registered_in_vain_leaves_nothing() -> None:
    site = registering()
    call = site.call()
    site.rig.delete("pump-1", "Device")
    site.rig.calls.clear()
    site.rig.step(ev.MapperCalled(call.op, "no such port"))
    site.rig.advance(60)
    assert site.take() == []
    assert not site.rig.tables["twin"]


def test_while_nothing_can_be_kept_no_mapper_is_told_of_a_device_that_it_may_not_have() -> None:
    site = registering()
    call = site.call()
    site.rig.calls.clear()
    site.rig.step(ev.MapperCalled(call.op, "no such port"))
    site.rig.step(ev.StoreFault("EROFS", "the disk takes no writes", True))
    site.rig.advance(60)
    assert site.take() == []
    site.rig.step(ev.StoreFault("", "", False))
    site.rig.boot("store")
    assert "RegisterDevice default/pump-1" in site.take()
