"""A simple scheduler: which node a pod goes to. Pure.

Counted: unschedulable nodes, nodeSelector, required node affinity, taints, requests against what is allocatable (also the
number of pods), host ports. Of the nodes that are left the one with the fewest pods is taken. Not counted: preferences,
affinity between pods, topology spread, volumes, preemption.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Json = dict[str, Any]


def choose(pod: Json, nodes: Sequence[Json], pods: Iterable[Json]) -> tuple[str | None, str]:
    """(name of the node, "") or (None, why not), in kube-scheduler's words:

        0/2 nodes are available: 1 Insufficient memory, 1 node(s) had untolerated taint {dedicated: edge}.

    `pods` are all pods of the cluster; those that have ended take nothing."""
    raise NotImplementedError
