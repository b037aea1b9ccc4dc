"""What the local API shows: read-only, in Kubernetes' shapes, made when asked for.

Every method returns plain dicts and lists that encode as JSON. No method shows a secret's value.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


class View:
    def pod_objects(self) -> list[Json]:
        """core/v1 Pods with status, sorted by namespace and name."""
        raise NotImplementedError

    def pod_object(self, namespace: str, name: str) -> Json | None: ...

    def node_object(self) -> Json:
        """core/v1 Node with conditions, capacity and nodeInfo."""
        raise NotImplementedError

    def configmaps(self) -> list[Json]:
        raise NotImplementedError

    def secrets(self) -> list[Json]:
        """Names, types and keys: `{"metadata": ..., "type": ..., "keys": [...]}`; never a value."""
        raise NotImplementedError

    def events(self) -> list[Json]:
        """core/v1 Events, oldest first."""
        raise NotImplementedError

    def images(self) -> list[Json]:
        """`{"id", "tags", "digests", "bytes", "pinned", "used_by": [ns/name]}`"""
        raise NotImplementedError

    def status(self) -> Json:
        """At a glance: `node`, `runtime`, `store`, `pressure`, `pods` (counts by phase), `folders` with problems."""
        raise NotImplementedError

    def why(self, namespace: str, name: str) -> Json:
        """`{"pod", "found", "phase", "summary", "reasons": [{"what", "since", "fix"}]}` in plain words."""
        raise NotImplementedError

    def manifest_digests(self, folder: str) -> dict[str, str]:
        """File path → digest that the core keeps; what differs or is missing here wants its objects read."""
        raise NotImplementedError
