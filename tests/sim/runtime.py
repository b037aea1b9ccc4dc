"""A container runtime for the simulator: no threads, no awaits, virtual time, and every kind of bad day.

It fails, answers late, does the work but reports an error (a timeout), forgets everything, and loses all running
containers with the power. Images tell what a container does: `run` runs for ever, `done` ends with 0, `crash` with 1.
"""

from __future__ import annotations

from random import Random

import msgspec

from tinyedge.model.runtime import (
    ContainerSeen,
    ContainerSpec,
    ContainerState,
    PodSeen,
    SandboxSeen,
    SandboxSpec,
    SandboxState,
)


class _Sandbox(msgspec.Struct):
    seen: SandboxSeen
    spec: SandboxSpec


class SimRuntime:
    """What runs on the machine. Outlives the daemon, not the power."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.up = True
        self.images: set[str] = set()
        self.sandboxes: dict[str, _Sandbox] = {}
        self.containers: dict[str, tuple[str, ContainerSeen]] = {}  # id → (uid, seen)
        self.starts: list[tuple[str, str, str]] = []  # uid, container, spec hash, as started
        self._ids = 0

    def snapshot(self, uid: str) -> PodSeen:
        boxes = [box for box in self.sandboxes.values() if box.spec.uid == uid]
        containers = [seen for owner, seen in self.containers.values() if owner == uid]
        namespace, name = (boxes[0].spec.namespace, boxes[0].spec.name) if boxes else ("", "")
        return PodSeen(
            uid,
            namespace,
            name,
            tuple(sorted((box.seen for box in boxes), key=lambda seen: -seen.attempt)),
            tuple(sorted(containers, key=lambda seen: (-seen.attempt, seen.name))),
        )

    def uids(self) -> set[str]:
        return {box.spec.uid for box in self.sandboxes.values()}

    def run_sandbox(self, spec: SandboxSpec, wall_ms: int) -> str:
        for sandbox_id, box in self.sandboxes.items():
            if (box.spec.uid, box.spec.attempt) == (spec.uid, spec.attempt):
                return sandbox_id
        sandbox_id = self._id("s")
        ip = "" if spec.host_network else f"10.88.0.{self._ids % 250 + 1}"
        seen = SandboxSeen(sandbox_id, spec.attempt, SandboxState.READY, wall_ms, spec.spec_hash, (ip,) if ip else ())
        self.sandboxes[sandbox_id] = _Sandbox(seen, spec)
        return sandbox_id

    def stop_sandbox(self, sandbox_id: str, wall_ms: int) -> None:
        box = self.sandboxes.get(sandbox_id)
        if box:
            box.seen = msgspec.structs.replace(box.seen, state=SandboxState.NOT_READY, ips=())
            for container_id, (_, seen) in list(self.containers.items()):
                if seen.sandbox_id == sandbox_id:
                    self.exit(container_id, 137, wall_ms)

    def remove_sandbox(self, sandbox_id: str, wall_ms: int) -> None:
        self.stop_sandbox(sandbox_id, wall_ms)
        self.sandboxes.pop(sandbox_id, None)
        self.containers = {k: v for k, v in self.containers.items() if v[1].sandbox_id != sandbox_id}

    def start_container(self, sandbox_id: str, spec: ContainerSpec, wall_ms: int) -> str:
        box = self.sandboxes[sandbox_id]
        for known_id, (_, known) in self.containers.items():
            if (known.sandbox_id, known.name, known.attempt) == (sandbox_id, spec.name, spec.attempt):
                return known_id  # its name is taken: whoever asked before has been answered, or has died meanwhile
        container_id = self._id("c")
        seen = ContainerSeen(
            id=container_id,
            sandbox_id=sandbox_id,
            name=spec.name,
            attempt=spec.attempt,
            state=ContainerState.RUNNING,
            created_ms=wall_ms,
            started_ms=wall_ms,
            image=spec.image,
            image_id=f"sha256:{spec.image}",
            spec_hash=spec.spec_hash,
        )
        self.containers[container_id] = (box.spec.uid, seen)
        self.starts.append((box.spec.uid, spec.name, spec.spec_hash))
        return container_id

    def exit(self, container_id: str, code: int, wall_ms: int) -> bool:
        """The container ends; False when it did not run."""
        found = self.containers.get(container_id)
        if not found or found[1].state is not ContainerState.RUNNING:
            return False
        uid, seen = found
        self.containers[container_id] = (
            uid,
            msgspec.structs.replace(
                seen,
                state=ContainerState.EXITED,
                finished_ms=wall_ms,
                exit_code=code,
                reason="Completed" if code == 0 else "Error",
            ),
        )
        return True

    def remove_container(self, container_id: str) -> None:
        self.containers.pop(container_id, None)

    def power_cut(self, wall_ms: int) -> None:
        """All processes are gone; what the runtime remembers of them may be a little late."""
        for container_id in list(self.containers):
            self.exit(container_id, 255, wall_ms)
            if self.rng.random() < 0.1:
                del self.containers[container_id]
        for box in self.sandboxes.values():
            box.seen = msgspec.structs.replace(box.seen, state=SandboxState.NOT_READY, ips=())

    def forget(self) -> None:
        """Someone wiped the runtime's state, with all that ran."""
        self.sandboxes.clear()
        self.containers.clear()

    def running(self, uid: str) -> dict[str, list[ContainerSeen]]:
        found: dict[str, list[ContainerSeen]] = {}
        for owner, seen in self.containers.values():
            if owner == uid and seen.state is ContainerState.RUNNING:
                found.setdefault(seen.name, []).append(seen)
        return found

    def _id(self, kind: str) -> str:
        self._ids += 1
        return f"{kind}{self._ids}"
