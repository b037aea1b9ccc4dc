"""What the core remembers of one pod in this life of the daemon, beside what is stored and what is seen.

None of it survives a restart, and none has to: back-off starts afresh, probes run again, volumes are brought up to
date again. All times here are monotonic ms.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from msgspec import Struct, field

from tinyedge.core import specs
from tinyedge.core.digest import digest
from tinyedge.core.refs import Unready
from tinyedge.model.pod import Container, Pod, Probe
from tinyedge.model.runtime import Check, ContainerSeen, ContainerState, PodSeen, SandboxSeen, SandboxState
from tinyedge.wire import PodRow, StateRow

NEVER = 1 << 62
ALIVE = (ContainerState.RUNNING, ContainerState.UNKNOWN)
BY_ID = ("dead:", "log:", "oldlog:")  # targets of operations that name a container or sandbox, not a role in the pod

CRASH_FIRST_MS, CRASH_CAP_MS = 10_000, 300_000
CRASH_RESET_MS = 600_000  # of running
RETRY_FIRST_MS, RETRY_CAP_MS = 1_000, 60_000


class Backoff(Struct):
    """Waits longer each time, up to a cap."""

    delay_ms: int = 0
    until_ms: int = 0

    def grow(self, first_ms: int, cap_ms: int) -> None:
        self.delay_ms = min(max(first_ms, self.delay_ms * 2), cap_ms)

    def hold(self, now: int) -> None:
        self.until_ms = now + self.delay_ms

    def reset(self) -> None:
        self.delay_ms = self.until_ms = 0


class Role(StrEnum):
    INIT = "init"
    SIDECAR = "sidecar"
    MAIN = "main"


class ProbeRun(Struct):
    """One probe of one running container. `ok` is its verdict by the thresholds; None while there is none."""

    kind: str
    probe: Probe
    check: Check
    due_ms: int
    ok: bool | None
    successes: int = 0
    failures: int = 0
    message: str = ""


class Doom(Struct, frozen=True):
    """Why a running container must be stopped and started again by its restartPolicy."""

    message: str
    grace_s: int | None = None


class ContainerRun(Struct):
    """`hooked` is the id of the container whose postStart has run (or had not to); `seen_attempt` the highest attempt
    that was seen running or ended in this life; `lost` that the promised one was gone when this life began;
    `replaced` the id of the one that was stopped to make room for the next; `ended` that the last one has ended
    otherwise, which counts for back-off."""

    name: str
    crash: Backoff = field(default_factory=Backoff)
    ended: bool = False
    replaced: str = ""
    seen_attempt: int = -1
    lost: bool = False
    running_id: str = ""
    running_since_ms: int = 0
    ended_id: str = ""
    hooked: str = ""
    doom: Doom | None = None
    trouble: Unready | None = None
    image_attempt: int = -1  # the attempt for which the image is ready
    image_backoff: Backoff = field(default_factory=Backoff)
    probes: dict[str, ProbeRun] = field(default_factory=dict)

    def forgive(self) -> None:
        """What was tried before says nothing any more: the container's spec has changed, or a person asked."""
        self.crash.reset()
        self.image_backoff.reset()
        self.trouble = None


class VolumesRun(Struct):
    """`done` is the digest of what is mounted, `asked` of what is being mounted; `ready` that containers may start on
    it; `stale` asks to compare again with what is wanted."""

    done: str = ""
    asked: str = ""
    ready: bool = False
    stale: bool = True
    trouble: Unready | None = None


class PodRun(Struct):
    """A pod: wanted (`row`), stored (`state`), seen, and what goes on with it. `row` is None for what runs under our
    label but is not wanted. `settled` means that the runtime has told of it in this connection."""

    uid: str
    namespace: str
    name: str
    row: PodRow | None = None
    state: StateRow = StateRow()
    seen: PodSeen | None = None
    settled: bool = False
    adopted: bool = False  # has been seen at all in this life
    hashes: dict[str, str] = field(default_factory=dict)
    sandbox_hash: str = ""
    roles: dict[str, Role] = field(default_factory=dict)
    containers: dict[str, ContainerRun] = field(default_factory=dict)
    newest: dict[str, ContainerSeen] = field(default_factory=dict)
    previous: dict[str, ContainerSeen] = field(default_factory=dict)
    busy: dict[str, int] = field(default_factory=dict)  # target → op
    retry: dict[str, Backoff] = field(default_factory=dict)
    volumes: VolumesRun = field(default_factory=VolumesRun)
    pulling: set[str] = field(default_factory=set)  # images whose pull has been told of
    sandbox_trouble: Unready | None = None
    sandboxes_stopped: set[str] = field(default_factory=set)
    cleaned: set[str] = field(default_factory=set)  # `volumes`, `logs`
    warned: bool = False
    stop_since_ms: int = -1
    hurry: bool = False  # a shorter grace was asked for while containers were being stopped
    base_ms: int = -1  # when this life began to count the pod's time
    elapsed_ms: int = -1  # how long it had been active before that; -1 while unknown
    ended_ms: int = -1
    held: str = ""  # why it is not let in
    since_ms: int = 0  # wall clock: since when it is as it is, for people
    wake_ms: int = NEVER
    probe_ms: int = NEVER
    status: dict[str, Any] | None = None

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def pod(self) -> Pod | None:
        return self.row.pod if self.row else None

    @property
    def about(self) -> tuple[str, str, str, str]:
        return ("Pod", self.namespace, self.name, self.uid)

    @property
    def sandbox(self) -> SandboxSeen | None:
        """The sandbox to run containers in; None when another one is needed."""
        box = self.seen.sandboxes[0] if self.seen and self.seen.sandboxes else None
        right = box and box.state is SandboxState.READY and (not self.row or box.spec_hash == self.sandbox_hash)
        return box if right else None

    def wake_at(self, when: int) -> None:
        self.wake_ms = min(self.wake_ms, when)

    def of(self, name: str) -> ContainerRun:
        found = self.containers.get(name)
        if found is None:
            found = self.containers[name] = ContainerRun(name)
        return found

    def alive(self) -> list[ContainerSeen]:
        return [seen for seen in self.seen.containers if seen.state in ALIVE] if self.seen else []

    def set_row(self, row: PodRow) -> None:
        """Take a new or changed manifest: what has changed gets a fresh chance."""
        pod = row.pod
        if self.row and self.row.pod is pod:
            self.row = row
            return
        if self.row and self.row.pod.spec.volumes != pod.spec.volumes:
            self.volumes.ready = False
        self.row = row
        self.status = None
        self.volumes.stale = True
        self.warned = False
        hashes = {one.name: specs.container_hash(pod, one) for one in containers_of(pod)}
        for name, value in hashes.items():
            if self.hashes.get(name) not in (None, value):
                self.of(name).forgive()
        self.hashes = hashes
        self.roles = {one.name: role_of(pod, one) for one in containers_of(pod)}
        self.sandbox_hash = sandbox_hash(pod, hashes)


def containers_of(pod: Pod) -> list[Container]:
    return [*pod.spec.init_containers, *pod.spec.containers]


def role_of(pod: Pod, container: Container) -> Role:
    if container not in pod.spec.init_containers:
        return Role.MAIN
    return Role.SIDECAR if container.restart_policy == "Always" else Role.INIT


def sandbox_hash(pod: Pod, hashes: dict[str, str] | None = None) -> str:
    """Init containers have done their work for the containers of this sandbox: when one of them changes, all start
    over in a new one."""
    inits = [one for one in pod.spec.init_containers if one.restart_policy != "Always"]
    own = specs.sandbox_hash(pod)
    if not inits:
        return own
    return digest(
        own, *(f"{one.name}={(hashes or {}).get(one.name) or specs.container_hash(pod, one)}" for one in inits)
    )


class Stand(StrEnum):
    """Where a container stands, as wanted and seen together tell."""

    ABSENT = "absent"  # to be started when its turn comes
    LOST = "lost"  # was started, and nobody knows what became of it
    DEBRIS = "debris"  # created, but never ran: to be removed
    RUNNING = "running"
    OUTDATED = "outdated"  # runs, but not as it is wanted: other spec, older attempt, older sandbox
    ENDED = "ended"


class Look(Struct, frozen=True):
    """`attempt` is the number that its next start gets; `seen` the instance that `stand` speaks of."""

    stand: Stand
    seen: ContainerSeen | None
    attempt: int


def look(run: PodRun, name: str) -> Look:
    """Where container `name` stands. Level-triggered: nothing is remembered of what was ordered."""
    seen = run.newest.get(name)
    promised = run.state.attempts.get(name, -1)
    if seen is None or (seen.attempt < promised and seen.state not in ALIVE):
        return _unseen(run.of(name), seen, promised)
    box = run.sandbox
    here = box is not None and seen.sandbox_id == box.id
    right = seen.spec_hash == run.hashes.get(name)
    following = max(promised, seen.attempt + 1)
    if seen.state is ContainerState.CREATED:
        return Look(Stand.DEBRIS, seen, max(promised, seen.attempt))
    if seen.state in ALIVE:
        current = here and right and seen.attempt >= promised and seen.state is ContainerState.RUNNING
        return Look(Stand.RUNNING if current else Stand.OUTDATED, seen, following)
    redo = not right or (run.roles.get(name) is Role.INIT and not here)
    return Look(Stand.ABSENT if redo else Stand.ENDED, seen, following)


def _unseen(container: ContainerRun, older: ContainerSeen | None, promised: int) -> Look:
    if promised < 0:
        return Look(Stand.ABSENT, None, 0)
    if container.lost or container.seen_attempt >= promised:
        return Look(Stand.LOST, None, promised + 1)
    return Look(Stand.ABSENT, older, promised)
