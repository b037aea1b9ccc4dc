"""The volumes behind a pod's claims: bound to a local or hostPath volume, a claim is a folder of the node."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cloud_gateway.core import translate
from cloud_gateway.core.desk import Desk
from cloud_gateway.core.facts import Done
from cloud_gateway.core.pods import Pod
from tinyedge.protocol.revision import revision

Json = dict[str, Any]
AGAIN_MS, REFUSED_MS = 15_000, 300_000
REFUSED = "UnsupportedVolume"


class Claims:
    """`send` tells the node of a pod that has a body now; `refuse` and `tell` speak of a pod in the API."""

    def __init__(
        self,
        desk: Desk,
        pods: Mapping[str, Pod],
        *,
        send: Callable[[Pod], None],
        refuse: Callable[[Pod, str, str], None],
        tell: Callable[[Pod, str, str, str, str], None],
    ) -> None:
        self._desk = desk
        self._pods = pods
        self._send = send
        self._refuse = refuse
        self._tell = tell
        self._resolving: set[str] = set()  # uids

    def resolve(self, pod: Pod, old: Pod | None) -> None:
        """A pod has been seen that has claims. It has a body at once when they were looked for before."""
        if old is not None and old.volumes is not None and old.claims == pod.claims:
            self._resolved(pod, old.volumes)
        elif pod.uid not in self._resolving:
            self._resolving.add(pod.uid)
            self._next(pod.uid, pod.claims, {})

    def _resolved(self, pod: Pod, volumes: Json) -> None:
        pod.body = translate.pod_body(pod.raw or {}, volumes)
        pod.revision, pod.raw, pod.volumes = revision(pod.body), None, volumes

    def _wanting(self, uid: str) -> Pod | None:
        """The pod as it was seen last, if it is there and still lacks its volumes."""
        pod = self._pods.get(uid)
        if pod is None or pod.raw is None:
            self._resolving.discard(uid)
            return None
        return pod

    def _next(self, uid: str, left: tuple[str, ...], volumes: Json) -> None:
        """One claim after the other, then the pod."""
        pod = self._wanting(uid)
        if pod is None:
            return
        if not left:
            self._done(pod, volumes)
            return
        name = left[0]

        def claim(done: Done) -> None:
            volume = ((done.object or {}).get("spec") or {}).get("volumeName")
            if done.ok and volume:
                self._desk.call("get", "persistentvolumes", "", volume, bound)
            else:
                self._wait(uid, f"PersistentVolumeClaim {name} is not bound to a volume")

        def bound(done: Done) -> None:
            found = translate.claim_volume(done.object) if done.ok and done.object else ""
            if not found:
                self._wait(uid, f"the volume of PersistentVolumeClaim {name} can't be read")
            elif isinstance(found, str):
                self._wait(uid, found, refused=True)
            else:
                self._next(uid, left[1:], volumes | {name: found})

        self._desk.call("get", "persistentvolumeclaims", pod.namespace, name, claim)

    def _done(self, pod: Pod, volumes: Json) -> None:
        self._resolving.discard(pod.uid)
        self._resolved(pod, volumes)
        self._send(pod)

    def _wait(self, uid: str, why: str, *, refused: bool = False) -> None:
        pod = self._wanting(uid)
        if pod is None:
            return
        pod.waits = True
        if pod.deleting:
            self._done(pod, {})  # what stands for its claims does not matter any more
            return
        if refused:
            self._refuse(pod, REFUSED, why)
        else:
            self._tell(pod, "Warning", "WaitForVolume", why, f"claim {why}")
        self._desk.later(REFUSED_MS if refused else AGAIN_MS, lambda: self._again(uid))

    def _again(self, uid: str) -> None:
        pod = self._wanting(uid)
        if pod is not None:
            self._next(uid, pod.claims, {})
