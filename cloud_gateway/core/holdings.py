"""What each node is to hold, kind by kind, and what the API holds of what a node reports: made anew from what is known,
whenever it is asked for."""

from __future__ import annotations

from cloud_gateway.core.custom_kinds import BY_NAME
from cloud_gateway.core.customs import Customs
from cloud_gateway.core.node import Node, Tender
from cloud_gateway.core.references import References


class Holdings:
    def __init__(self, tender: Tender, customs: Customs, references: References) -> None:
        self._tender = tender
        self._customs = customs
        self._references = references

    def outline(self, node: Node, kind: str) -> dict[str, bytes]:
        """What the node is to hold."""
        if kind == "pod":
            return {pod.key: pod.revision for pod in node.pods.values() if pod.body}
        if kind in BY_NAME:
            return self._customs.outline(node.name, kind)
        return self._references.outline(node.name, node.refs, kind)

    def held(self, node: Node, kind: str) -> dict[str, bytes]:
        """What the API holds of what the node reports."""
        if kind == "podstatus":
            return {pod.key: pod.status for pod in node.pods.values() if not pod.held}
        if kind == "mirror":
            return {pod.key: pod.mirror for pod in node.pods.values() if pod.mirror}
        return {"self": self._tender.api_report(node)} if node.made else {}

    def body(self, node: Node, kind: str, key: str) -> bytes:
        if kind == "pod":
            return node.pods[key].body
        if kind in BY_NAME:
            return self._customs.body((kind, key))
        return self._references.body((kind, key))

    def is_over(self, node: Node, kind: str, key: str) -> bool:
        """A pod that has ended and that the node knows nothing of: it must not run again."""
        return kind == "pod" and node.pods[key].ended and not node.pods[key].deleting

    def is_wanted(self, node: Node, kind: str, key: str) -> bool:
        """Whether only what is to be sent of an object is not known (yet)."""
        if kind == "pod":
            return key in node.pods and not node.pods[key].held
        if kind in BY_NAME:
            return False
        return (kind, key) in node.refs and not self._references.is_known((kind, key))
