"""Devices as they were written for older releases of KubeEdge: they work as they are, or what does not is named."""

from __future__ import annotations

from typing import Any

from tinyedge.errors import BadInput
from tinyedge.model.decode import decode_object, problems
from tinyedge.model.device import Device, StateReport

Json = dict[str, Any]


def manifest(status: Json | None = None, version: str = "v1beta1", **spec: Any) -> Json:
    properties = [{"name": "speed", "desired": {"value": "3"}}]
    return {
        "apiVersion": f"devices.kubeedge.io/{version}",
        "kind": "Device",
        "metadata": {"name": "pump-1"},
        "spec": {"deviceModelRef": {"name": "pump"}, "properties": properties, **spec},
        "status": status or {},
    }


def state_report(raw: Json) -> StateReport:
    found = decode_object(raw)
    assert isinstance(found, Device)
    return found.spec.state_report


def told(raw: Json) -> dict[str, str]:
    return {one.field: str(one) for one in problems(raw)}


def test_the_report_of_a_state_in_an_older_status_is_taken_and_one_in_the_spec_goes_before_it() -> None:
    older = {"reportToCloud": True, "reportCycle": 5000}
    assert state_report(manifest(older)) == StateReport(report_to_cloud=True, report_cycle=5000)
    assert state_report(manifest(older, stateReport={"reportToCloud": False})) == StateReport()
    assert state_report(manifest({"reportToCloud": "yes", "reportCycle": True})) == StateReport()


def test_what_a_node_has_reported_into_a_status_asks_for_nothing() -> None:
    twin = {"propertyName": "speed", "observedDesired": {"value": "3"}, "reported": {"value": "2"}, "desired": "3"}
    assert not told(manifest({"twins": [twin, {"desired": {"value": ""}}, 7], "state": "online"}))


def test_a_desired_value_in_a_status_is_named_with_its_value_and_where_it_belongs() -> None:
    found = told(manifest({"twins": [{"propertyName": "speed", "desired": {"value": "30"}}]}))
    assert found.keys() == {"status.twins[0].desired"}
    assert "'30'" in found["status.twins[0].desired"]
    assert "spec.properties[].desired" in found["status.twins[0].desired"]


def test_fields_that_have_moved_are_named_with_where_they_went() -> None:
    found = told(manifest(propertyVisitors=[], nodeSelector={"nodeSelectorTerms": []}))
    assert found.keys() == {"spec.propertyVisitors", "spec.nodeSelector"}
    assert "spec.properties[].visitors" in found["spec.propertyVisitors"]


def test_an_older_version_is_refused_with_what_to_change() -> None:
    [error] = problems(manifest(version="v1alpha2"))
    assert isinstance(error, BadInput)
    assert "propertyVisitors is spec.properties[].visitors" in str(error)
    assert "v1alpha2" not in str(problems(manifest(version="v1"))[0])
