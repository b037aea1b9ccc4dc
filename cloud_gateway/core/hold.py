"""Which pods stay at the gateway: they are bound to an edge node and have no business there."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from cloud_gateway.core import translate

Json = dict[str, Any]


class Hold(Struct, frozen=True):
    """`daemonsets_of`: namespaces whose DaemonSet pods are held if they tolerate everything, as kube-proxy and the
    agents of cluster networks do. `labels`: pods with one of these (key, value) are held too; an empty value is any."""

    daemonsets_of: tuple[str, ...] = ("kube-system",)
    labels: tuple[tuple[str, str], ...] = ()

    def holds(self, pod: Json) -> bool:
        labels = pod["metadata"].get("labels") or {}
        if any(key in labels and value in ("", labels[key]) for key, value in self.labels):
            return True
        if pod["metadata"]["namespace"] not in self.daemonsets_of:
            return False
        return translate.is_of_daemonset(pod) and translate.tolerates_everything(pod)
