"""Updates that somebody on site lets go: pods of the cloud with the annotation `edge.kubeedge.io/hold-upgrade: "true"`.

A pod that comes with it waits, Pending, and nothing of it is started. A changed spec of a pod that is here waits beside
it, and the pod goes on as it was. Either goes on once it is released on site, or when the cloud takes the annotation
away; what was let in stays so, over restarts and reboots. Deleting a pod is no update, and waits for nobody.

Stored in the pod's row (`wire.PodRow`: `waiting`, `held`).
"""

from __future__ import annotations

from collections.abc import Mapping

from tinyedge.core.desk import Desk
from tinyedge.core.run import PodRun
from tinyedge.model.pod import Pod
from tinyedge.wire import CLOUD, PodRow, StateRow

HOLD = "edge.kubeedge.io/hold-upgrade"
CONDITION, REASON = "HeldUpgrade", "HoldUpgrade"
_REMEDY = "tinyedge release"


def waits_anew(pod: Pod, source: str) -> bool:
    """Whether a pod that was not here waits to be let in. What is declared on site is let in by that."""
    return source == CLOUD and pod.metadata.annotations.get(HOLD) == "true"


def is_held(row: PodRow, pod: Pod, states: Mapping[str, StateRow]) -> bool:
    """Whether `pod` is a change of the one of `row` that waits beside it. Of what has ended, or has not been let in,
    nothing goes on that a change could disturb."""
    if row.waiting or row.deletion or row.pod.spec == pod.spec or not waits_anew(pod, row.source):
        return False
    state = states.get(row.uid)
    return state is None or state.terminal is None


def is_waiting(row: PodRow | None) -> bool:
    """Whether somebody on site is waited for."""
    return row is not None and row.deletion is None and (row.waiting or row.held is not None)


def in_words(row: PodRow) -> str:
    what = "it" if row.waiting else "a change of it"
    return f"{what} waits to be released on the node, as its annotation {HOLD} says"


def remedy(run: PodRun) -> str:
    return f"{_REMEDY} -n {run.namespace} {run.name}, or take the annotation away in the cluster"


def tell(run: PodRun, before: PodRow | None, desk: Desk) -> None:
    """An event, and a line of the log, when a pod begins or ceases to wait."""
    row = run.row
    if row is None or row.deletion:
        return
    began = (row.waiting and before is None) or (row.held is not None and (before is None or before.held != row.held))
    if began:
        desk.event(run, "Normal", REASON, in_words(row)[0].upper() + in_words(row)[1:])
        desk.note("info", "pod.held", pod=run.key, change=row.held is not None)
    elif is_waiting(before) and not is_waiting(row):
        desk.event(run, "Normal", "Released", "What was held of it goes on")
        desk.note("info", "pod.released", pod=run.key)
