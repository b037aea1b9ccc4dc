"""How Devices were written for KubeEdge up to 1.22, and before that as v1alpha2: what of it still says the same goes
where it stands today, and what does not is named. Nothing is dropped in silence.

    status.reportToCloud, status.reportCycle    are spec.stateReport since 1.23, and taken as that where it is not given
    status.twins[].desired                      is spec.properties[].desired since v1beta1
    spec.propertyVisitors, nodeSelector, …      stand elsewhere since v1beta1: MOVED

What nodes report into a status (`twins` with `observedDesired` and `reported`, `state`) asks for nothing.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]
MOVED = {  # fields of a v1alpha2 spec → where that stands in v1beta1
    "propertyVisitors": "spec.properties[].visitors, with reportCycle and collectCycle beside it",
    "nodeSelector": "spec.nodeName: the name of one node",
    "data": "spec.properties[].pushMethod of the properties whose values go there",
    "dataTransferSpec": "spec.properties[].pushMethod of the properties whose values go there",
}
DESIRED = "spec.properties[].desired"
_STATE_REPORT = {"reportToCloud": bool, "reportCycle": int}


def state_report(spec: Json, status: object) -> Json:
    """`spec` with the stateReport that an older manifest has in its status."""
    if not isinstance(status, dict) or spec.get("stateReport") is not None:
        return spec
    found = {name: status[name] for name, kind in _STATE_REPORT.items() if type(status.get(name)) is kind}
    return {**spec, "stateReport": found} if found else spec


def desired_in_status(status: object) -> list[tuple[str, str]]:
    """Values that a status asks for: (field, value), each as a path from the object's top."""
    twins = status.get("twins") if isinstance(status, dict) else None
    found = []
    for index, twin in enumerate(twins if isinstance(twins, list) else ()):
        desired = twin.get("desired") if isinstance(twin, dict) else None
        value = desired.get("value") if isinstance(desired, dict) else None
        if value not in (None, ""):
            found.append((f"status.twins[{index}].desired", str(value)))
    return found


def moved(spec: object) -> list[tuple[str, str]]:
    """Fields of an older spec: (field, where it stands now)."""
    names = spec if isinstance(spec, dict) else {}
    return [(f"spec.{name}", MOVED[name]) for name in names if name in MOVED]
