"""What a pod of an edge node is owed in the API, beside its status: tolerations without end, and its own end where
nobody else confirms it."""

from __future__ import annotations

from collections.abc import Callable

from cloud_gateway.core import claims, translate
from cloud_gateway.core.desk import Desk, again_ms
from cloud_gateway.core.facts import Done
from cloud_gateway.core.node import Node, Tender
from cloud_gateway.core.pods import Pod
from cloud_gateway.core.reports import Reports

# What no later moment makes right: a pod that was refused so runs nowhere, and nobody will confirm its end.
LASTING = frozenset({"Unsupported", "Invalid", "WrongNode", "TooLarge", "MirrorPod", "UnknownKind", claims.REFUSED})


class Upkeep:
    """`pods` are all that are known, by uid. `hasten` has a node looked at not later than at a moment."""

    def __init__(
        self, desk: Desk, tender: Tender, reports: Reports, pods: dict[str, Pod], hasten: Callable[[str, int], None]
    ) -> None:
        self._desk = desk
        self._tender = tender
        self._reports = reports
        self._pods = pods
        self._hasten = hasten

    def look_after(self, node: Node, new: Pod, old: Pod | None) -> None:
        if new.endless is not None and (old is None or old.resource_version != new.resource_version):
            self._make_endless(node, new)
        if new.held and (old is None or not old.held):
            words = "this pod stays at the gateway: an edge node has no use for it"
            self._reports.tell(new, "Normal", "Held", words, "held")
        if new.debuggers:
            self._refuse_debuggers(new)
        if new.opted_out:
            self._tender.dirty[node.name] = None
        if new.deleting and (new.held or new.refused in LASTING):
            self.end(new)

    def end(self, pod: Pod) -> None:
        """It runs nowhere, so nobody else will confirm its end."""
        self._desk.insist("delete", "pods", pod.namespace, pod.name, uid=pod.uid, grace_s=0)

    def _make_endless(self, node: Node, pod: Pod, tries: int = 0) -> None:
        """So that no outage of the gateway itself costs a pod. If it has changed meanwhile, it is seen anew."""
        if self._tender.window_s(node) == 0 or self._pods.get(pod.uid) is not pod:
            return

        def then(done: Done) -> None:
            if not (done.ok or done.refused or done.status == 409):
                self._desk.later(again_ms(tries), lambda: self._make_endless(node, pod, tries + 1))

        meta = {"metadata": {"uid": pod.uid, "resourceVersion": pod.resource_version}}
        self._desk.call(
            "patch", "pods", pod.namespace, pod.name, then, body=meta | {"spec": {"tolerations": pod.endless}}
        )

    def make_all_endless(self, node: Node) -> None:
        if self._tender.tends(node):
            for pod in node.pods.values():
                if pod.endless is not None:
                    self._make_endless(node, pod)

    def _refuse_debuggers(self, pod: Pod) -> None:
        names = ", ".join(pod.debuggers)
        words = f"an edge node runs no ephemeral containers ({names}): use kubectl exec"
        patch = translate.ephemerals_patch(pod.uid, pod.debuggers, words, self._desk.wall)
        where = ("pods", pod.namespace, pod.name)
        self._desk.insist("patch", *where, subresource="status", patch="strategic", body=patch)
        self._reports.tell(pod, "Warning", "Unsupported", words, f"ephemeral {names}")

    def end_opted_out(self, node: Node) -> None:
        """The kept Lease hides the outage from the taint manager: who does not want to wait is ended here."""
        away_s = self._tender.away_s(node)
        if not away_s or not self._tender.tends(node) or self._tender.window_s(node) == 0:
            return
        for pod in node.pods.values():
            if not pod.opted_out or pod.deleting or pod.stays_s is None:
                continue
            if away_s >= pod.stays_s:
                words = f"its node has been away for {away_s} s, and it does not want to wait longer"
                self._reports.tell(pod, "Warning", "NodeAway", words, "away")
                self._desk.call("delete", "pods", pod.namespace, pod.name, uid=pod.uid)
            else:
                self._hasten(node.name, self._desk.now + (pod.stays_s - away_s) * 1000)
