"""What controllers do in a cluster, as little of it as one machine needs: what each namespace begins with, emptying
namespaces and dropped resources, custom resources whose owner is gone, the taint of nodes that are ready, and binding
pods.

Each looks at the store as it is and does what is missing, woken by changes; so it does not matter what was missed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import trio

from cloud_gateway.sandbox import kinds, packaged, pods, scheduler
from cloud_gateway.sandbox.registry import Deletion, Done, Options, Place, Registry, set_condition
from cloud_gateway.sandbox.resources import Resource
from cloud_gateway.sandbox.status import Refused
from cloud_gateway.sandbox.store import ADDED, DELETED, Change, Entry
from tinyedge.errors import require

Json = dict[str, Any]

FIRST_NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
ROOT_CA = "kube-root-ca.crt"
_SCHEDULER = "default-scheduler"


class Controllers:
    """`ca_pem`: what pods trust the API by. `definitions`: of packaged.py, to be there from the first moment."""

    def __init__(
        self, registry: Registry, ca_pem: str, *, scheduling: bool = True, definitions: Sequence[Json] = ()
    ) -> None:
        self._registry = registry
        self._store = registry.store
        self._ca_pem = ca_pem
        self._scheduling = scheduling
        self._definitions = definitions
        self._wake = trio.Event()
        self._ending: set[str] = set()  # namespaces
        self._dropping: set[str] = set()  # definitions
        self._ownerless: set[str] = set()  # uids of custom resources that are gone
        self._nodes: set[str] = set()
        self._unbound: set[tuple[str, str]] = set()

    def _resource(self, storage: str) -> Resource:
        found = self._registry.catalogue.of_storage(storage)
        require(found, f"{storage} is served")
        return found  # type: ignore[return-value]

    # --- at the start ---

    async def begin(self) -> None:
        """What a cluster has from its first moment; and what was left undone when we last ended."""
        for entry in self._store.entries("customresourcedefinitions"):
            self._registry.catalogue.change(entry.key[2], entry.object())
        for name in FIRST_NAMESPACES:
            if self._store.latest(("namespaces", "", name)) is None:
                self._registry.create(self._resource("namespaces"), "", {"metadata": {"name": name}})
        for crd in self._definitions:
            self._define(crd)
        for storage in ("namespaces", "customresourcedefinitions", "nodes", "pods"):
            for entry in self._store.entries(storage):
                self._noticed(entry)
        for name in FIRST_NAMESPACES:
            self._furnish(name)
        await self._give_kubelets_their_ca().durable()  # and so all before it
        self._wake.set()

    def _define(self, crd: Json) -> None:
        """Made, or brought to this version; one that somebody else has made stays as it is."""
        resource, name = self._resource("customresourcedefinitions"), crd["metadata"]["name"]
        entry = self._store.latest(("customresourcedefinitions", "", name))
        if entry is None:
            self._registry.create(resource, "", crd)
            return
        thing = entry.object()
        digest = (thing["metadata"].get("annotations") or {}).get(packaged.DIGEST)
        wanted = crd["metadata"]["annotations"]
        if digest is not None and digest != wanted[packaged.DIGEST] and not thing["metadata"].get("deletionTimestamp"):
            thing["metadata"]["annotations"] |= wanted
            self._registry.replace(Place(resource, "", name), {**thing, "spec": crd["spec"]}, Options())

    def _furnish(self, namespace: str) -> None:
        """The account and the certificate that pods of every namespace find."""
        if self._store.latest(("serviceaccounts", namespace, "default")) is None:
            self._registry.create(self._resource("serviceaccounts"), namespace, {"metadata": {"name": "default"}})
        self._keep_config(namespace, ROOT_CA, {"ca.crt": self._ca_pem})

    def _give_kubelets_their_ca(self) -> Done:
        return self._keep_config("kube-system", "extension-apiserver-authentication", {"client-ca-file": self._ca_pem})

    def _keep_config(self, namespace: str, name: str, data: Json) -> Done:
        resource = self._resource("configmaps")
        entry = self._store.latest(("configmaps", namespace, name))
        if entry is None:
            return self._registry.create(resource, namespace, {"metadata": {"name": name}, "data": data})
        thing = entry.object()
        if thing.get("data") == data:
            return Done(thing)
        return self._registry.write(resource, namespace, {**thing, "data": data})

    # --- being told ---

    def changed(self, change: Change) -> None:
        """Quick: called for every change once it is durable."""
        storage, namespace, name = change.entry.key
        if storage == "customresourcedefinitions":
            gone = change.type == DELETED
            self._registry.catalogue.change(name, None if gone else change.entry.object())
        if change.type == DELETED:
            if namespace in self._ending or self._dropping or storage in ("pods", "nodes"):
                self._wake.set()
            if storage == "configmaps" and name == ROOT_CA:
                self._wake.set()
            if self._is_custom(storage):
                self._ownerless.add(change.entry.object()["metadata"]["uid"])
                self._wake.set()
            self._unbound.discard((namespace, name))
            return
        if storage == "namespaces" and change.type == ADDED:
            self._furnish_soon(name)
        if self._noticed(change.entry):
            self._wake.set()

    def _furnish_soon(self, namespace: str) -> None:
        entry = self._store.latest(("namespaces", "", namespace))
        if entry is not None and entry.fields.get("status.phase") != "Terminating":
            self._furnish(namespace)

    def _noticed(self, entry: Entry) -> bool:
        """Whether there is something to do."""
        storage, namespace, name = entry.key
        match storage:
            case "namespaces" if entry.fields.get("status.phase") == "Terminating":
                self._ending.add(name)
                return True
            case "customresourcedefinitions" if entry.object()["metadata"].get("deletionTimestamp"):
                self._dropping.add(name)
                return True
            case "nodes":
                self._nodes.add(name)
                return True
            case "pods":
                return self._noticed_pod(entry, namespace, name)
        return False

    def _noticed_pod(self, entry: Entry, namespace: str, name: str) -> bool:
        fields = entry.fields
        waits = not fields.get("spec.nodeName") and fields.get("spec.schedulerName", _SCHEDULER) == _SCHEDULER
        if not waits or fields.get("status.phase") != "Pending":
            self._unbound.discard((namespace, name))
            return False
        if (namespace, name) in self._unbound:
            return False
        self._unbound.add((namespace, name))
        return True

    # --- doing ---

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            began_s = trio.current_time()
            for act in (self._end_namespaces, self._drop_resources, self._collect, self._untaint, self._schedule):
                await self._tried(act)
            # Pods that fit nowhere are tried at every change of a node: in a large world, for a fifth of the time only.
            await trio.sleep((trio.current_time() - began_s) * 4)

    async def _tried(self, act: Callable[[], Iterable[Json]]) -> None:
        """What is refused now is tried again at the next change."""
        for _ in act():
            await trio.lowlevel.checkpoint()

    def _end_namespaces(self) -> Iterable[Json]:
        for name in sorted(self._ending):
            entry = self._store.latest(("namespaces", "", name))
            if entry is None:
                self._ending.discard(name)
                continue
            left = False
            for storage in self._store.storages():
                resource = self._registry.catalogue.of_storage(storage)
                for one in self._store.entries(storage, namespace=name) if resource and resource.namespaced else ():
                    left = True
                    yield self._delete(one)
            if not left and set(entry.object()["spec"].get("finalizers") or ()) <= {"kubernetes"}:
                self._registry.forget(self._resource("namespaces"), entry.object())
                self._ending.discard(name)

    def _delete(self, entry: Entry) -> Json:
        storage, namespace, name = entry.key
        latest = self._store.latest(entry.key)
        if latest is None or latest.object()["metadata"].get("deletionTimestamp"):
            return {}
        try:
            return self._registry.delete(self._resource(storage), namespace, name, Deletion()).thing
        except Refused:
            return {}

    def _drop_resources(self) -> Iterable[Json]:
        for name in sorted(self._dropping):
            entry = self._store.latest(("customresourcedefinitions", "", name))
            if entry is None:
                self._dropping.discard(name)
                continue
            crd = entry.object()
            storage = f"{crd['spec']['group']}/{crd['spec']['names']['plural']}"
            left = self._store.entries(storage)
            for one in left if self._registry.catalogue.of_storage(storage) else ():
                yield self._delete(one)
            if not left:
                kept = [one for one in crd["metadata"].get("finalizers") or () if one != kinds.CLEANUP]
                place = Place(self._resource("customresourcedefinitions"), "", name)
                wanted = [{"op": "replace", "path": "/metadata/finalizers", "value": kept}]
                yield self._registry.patch(place, "application/json-patch+json", wanted, Options()).thing
                self._dropping.discard(name)

    def _is_custom(self, storage: str) -> bool:
        resource = self._registry.catalogue.of_storage(storage)
        return resource is not None and resource.custom is not None

    def _collect(self) -> Iterable[Json]:
        """Custom resources that only belonged to what is gone."""
        gone, self._ownerless = self._ownerless, set()
        for storage in self._store.storages() if gone else ():
            for entry in self._store.entries(storage) if self._is_custom(storage) else ():
                owners = entry.object()["metadata"].get("ownerReferences") or ()
                if owners and all(one.get("uid") in gone for one in owners):
                    yield self._delete(entry)

    def _untaint(self) -> Iterable[Json]:
        """The condition Ready decides over the taint `not-ready`, as the node controller sees it."""
        while self._nodes:
            entry = self._store.latest(("nodes", "", self._nodes.pop()))
            if entry is None:
                continue
            node = entry.object()
            conditions = (node.get("status") or {}).get("conditions") or ()
            ready = next((one.get("status") for one in conditions if one.get("type") == "Ready"), "Unknown")
            taints = node.get("spec", {}).get("taints") or []
            kept = [one for one in taints if one.get("key") not in (pods.NOT_READY, pods.UNREACHABLE)]
            if ready != "True" and conditions:
                kept.append({"key": pods.NOT_READY if ready == "False" else pods.UNREACHABLE, "effect": "NoSchedule"})
            if (ready == "True" or conditions) and kept != taints:
                node["spec"]["taints"] = kept
                if not kept:
                    del node["spec"]["taints"]
                yield self._registry.write(self._resource("nodes"), "", node).thing

    def _schedule(self) -> Iterable[Json]:
        if not self._unbound or not self._scheduling:
            return
        nodes = [entry.object() for entry in self._store.entries("nodes")]
        everywhere = [entry.object() for entry in self._store.entries("pods")]
        for namespace, name in sorted(self._unbound):
            entry = self._store.latest(("pods", namespace, name))
            if entry is None or entry.fields.get("spec.nodeName"):
                self._unbound.discard((namespace, name))
                continue
            pod = entry.object()
            node, why = scheduler.choose(pod, nodes, everywhere)
            if node is None:
                yield self._unschedulable(pod, why)
                continue
            self._unbound.discard((namespace, name))
            place = Place(self._resource("pods"), namespace, name)
            try:
                bound = self._registry.bind(place, {"target": {"kind": "Node", "name": node}}, Options()).thing
            except Refused:
                continue  # it is being deleted
            everywhere.append(bound)
            yield bound
            yield self._scheduled(bound, node)

    def _scheduled(self, pod: Json, node: str) -> Json:
        """The Event that a scheduler leaves."""
        meta, now = pod["metadata"], self._registry.now()
        about = {"kind": "Pod", "apiVersion": "v1", **{key: meta[key] for key in ("namespace", "name", "uid")}}
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{meta['name']}.", "namespace": meta["namespace"]},
            "involvedObject": about,
            "type": "Normal",
            "reason": "Scheduled",
            "message": f"Successfully assigned {meta['namespace']}/{meta['name']} to {node}",
            "count": 1,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "source": {"component": "default-scheduler"},
        }
        return self._registry.create(self._resource("events"), meta["namespace"], event).thing

    def _unschedulable(self, pod: Json, why: str) -> Json:
        old: Json = next((one for one in pod["status"].get("conditions") or () if one["type"] == "PodScheduled"), {})
        if old.get("message") == why:
            return pod
        condition = {
            "type": "PodScheduled",
            "status": "False",
            "lastProbeTime": None,
            "lastTransitionTime": old.get("lastTransitionTime") or self._registry.now(),
            "reason": "Unschedulable",
            "message": why,
        }
        set_condition(pod, condition)
        return self._registry.write(self._resource("pods"), pod["metadata"]["namespace"], pod).thing
