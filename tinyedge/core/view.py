"""What the local API shows: read-only, in Kubernetes' shapes, made when asked for.

Every method returns plain dicts and lists that encode as JSON. None shows a secret's value but `secret_values`, which
is there so that others can take them out of what they show.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import msgspec

from tinyedge import wire
from tinyedge.core import device_view, ending, hold, status, why
from tinyedge.core import node as of_node
from tinyedge.core.cloud import Cloud
from tinyedge.core.desk import Desk
from tinyedge.core.devices import Devices
from tinyedge.core.jobs import Jobs
from tinyedge.core.outbox import Outbox
from tinyedge.core.pressure import DISK, MEMORY, PIDS, Pressure
from tinyedge.core.reactions import Reactions
from tinyedge.core.ring import Occurrence
from tinyedge.core.run import PodRun, containers_of
from tinyedge.core.sources import Sources
from tinyedge.core.status import rfc3339
from tinyedge.core.tokens import Tokens
from tinyedge.core.track import host_ip
from tinyedge.core.volumes import volume_path
from tinyedge.events import StopContainer
from tinyedge.model.device import API_VERSION
from tinyedge.model.image import normal_reference
from tinyedge.model.objects import API_VERSIONS
from tinyedge.model.runtime import ContainerState, PodSeen
from tinyedge.protocol.revision import DOWN, UP
from tinyedge.wire import NodeRow, RuleEndpointRow, RuleRow

Json = dict[str, Any]


class View:
    def __init__(
        self,
        desk: Desk,
        runs: dict[str, PodRun],
        sources: Sources,
        pressure: Pressure,
        others: tuple[Cloud, Outbox, Tokens, Devices, Reactions, Jobs],
    ) -> None:
        self._desk = desk
        self._runs = runs
        self._sources = sources
        self._pressure = pressure
        self._cloud, self._outbox, self._tokens, self._devices, reactions, self._jobs = others
        self._rules, self._routes = reactions.rules, reactions.routes

    # --- pods ------------------------------------------------------------------------------------

    def pod_objects(self) -> list[Json]:
        """core/v1 Pods with status, sorted by namespace and name."""
        wanted = [run for run in self._runs.values() if run.row]
        return [self._pod(run) for run in sorted(wanted, key=lambda run: (run.namespace, run.name))]

    def pod_object(self, namespace: str, name: str) -> Json | None:
        run = self._find(namespace, name)
        return self._pod(run) if run else None

    def seen(self, uid: str) -> PodSeen:
        """What the runtime was last seen to have of a pod; nothing if there is no such pod."""
        run = self._runs.get(uid)
        return run.seen if run and run.seen else PodSeen(uid, "", "")

    def live_logs(self) -> list[tuple[str, str, str]]:
        """(uid, container id, path of the log) of every container that runs."""
        return [
            (run.uid, seen.id, seen.log_path)
            for run in self._runs.values()
            if run.seen
            for seen in run.seen.containers
            if seen.state is ContainerState.RUNNING and seen.log_path
        ]

    def bounded_volumes(self) -> list[tuple[str, str, str]]:
        """(uid, name, path) of every emptyDir on disk; who has a limit, and who is evicted first, hangs on its size."""
        return [
            (run.uid, volume.name, volume_path(run.pod, volume, self._desk.node))
            for run in self._runs.values()
            if run.pod
            for volume in run.pod.spec.volumes
            if volume.empty_dir is not None
        ]

    def stops(self) -> list[StopContainer]:
        """What stops every container of ours as its pod says; nobody waits for its OpDone."""
        return [stop for run in self._runs.values() for stop in ending.stops(run, self._desk)]

    def summary(self) -> str:
        """One line for the init system."""
        runs = [run for run in self._runs.values() if run.row]
        ready = sum(status.was(run, "Ready") for run in runs)
        runtime = "" if self._desk.runtime else f"; the runtime does not answer: {self._desk.runtime_why}"
        return f"{ready} of {len(runs)} pods ready{runtime}"

    def runtime_answers(self) -> bool:
        return self._desk.runtime is not None

    def pods_up(self) -> tuple[int, int, int]:
        """How many pods should run; how many of these do, with all their containers; and how many of those have not
        fallen over lately."""
        wanted = self._wanted()
        up = [run for run in wanted if status.is_up(run)]
        return len(wanted), len(up), sum(status.is_steady(run, self._desk.now) for run in up)

    def pods_steady(self) -> list[str]:
        """UIDs of those that run with all their containers and have not fallen over lately."""
        up = [run for run in self._wanted() if status.is_up(run)]
        return [run.uid for run in up if status.is_steady(run, self._desk.now)]

    def pods_missing(self, uids: Collection[str]) -> list[str]:
        """namespace/name of those of these pods that should run, and do not."""
        down = [run for run in self._wanted() if run.uid in uids and not status.is_up(run)]
        return [f"{run.namespace}/{run.name}" for run in down]

    def _wanted(self) -> list[PodRun]:
        """One that has ended well need not run, nor one that is being deleted or is not let in."""
        wanted = [run for run in self._runs.values() if run.row and not run.row.deletion and not run.row.waiting]
        return [run for run in wanted if status.phase(run) != "Succeeded"]

    def why(self, namespace: str, name: str) -> Json | None:
        """In plain words: `{"state", "summary", "reasons": [{"container", "what", "why", "since", "remedy"}]}`.
        None when nothing is known of such a pod."""
        run = self._find(namespace, name)
        if run is not None:
            return why.explain(run, self._desk)
        return self._absent("Pod", f"{namespace}/{name}")

    def _absent(self, kind: str, key: str) -> Json | None:
        return why.explain_absent(kind, key, self._sources, self._cloud.refusals(), self._desk)

    def _find(self, namespace: str, name: str) -> PodRun | None:
        row = self._desk.tables.pods.get(f"{namespace}/{name}")
        return self._runs.get(row.uid) if row else None

    def _pod(self, run: PodRun) -> Json:
        row = run.row
        if row is None:
            return {}
        found: Json = msgspec.to_builtins(row.pod)
        found["metadata"].setdefault("namespace", run.namespace)
        found["metadata"]["generation"] = row.generation
        if row.deletion:
            due = row.deletion.since_ms + row.deletion.grace_s * 1000
            found["metadata"]["deletionTimestamp"] = rfc3339(due)
            found["metadata"]["deletionGracePeriodSeconds"] = row.deletion.grace_s
        found["metadata"].setdefault("annotations", {})["tinyedge.io/source"] = row.source
        spec = row.pod.spec
        found["spec"]["nodeName"] = self._desk.node.name
        found["spec"]["restartPolicy"] = spec.restart_policy
        found["spec"]["terminationGracePeriodSeconds"] = spec.termination_grace_period_seconds
        return {"apiVersion": "v1", "kind": "Pod", **found, "status": status.pod_status(run, self._desk)}

    # --- the cloud -------------------------------------------------------------------------------

    def outlines(self) -> dict[str, dict[str, bytes]]:
        """For the link's Hello: of each kind, down and up, key → revision as it is here now. Of the kinds up it is what
        was last reported: between two links the sender may drop a waiting `Report` whose revision the API server has,
        as `Welcome.have` tells, or, for a kind that it does not name, as these outlines said."""
        down = {kind: self._cloud.outline(kind) for kind in DOWN}
        return down | {kind: self._outbox.outline(kind) for kind in UP}

    def cloud(self) -> Json:
        """`gateway` and `node` (empty: it belongs to none), `linked`, `synced`, `objects` (known, by kind), `refused`
        (by this node), `reports` (`pending`, and those `refused` by the cloud), `gone` (deleted pods that wait for the
        cloud's word), `tokens_waiting`."""
        cloud = self._cloud
        return {
            "gateway": cloud.gateway,
            "node": cloud.node,
            "linked": cloud.session > 0,
            "synced": cloud.synced,
            "objects": {kind: len(cloud.outline(kind)) for kind in DOWN},
            "refused": cloud.refusals(),
            "reports": {"pending": self._outbox.pending(), "refused": self._outbox.refusals()},
            "gone": len(self._desk.tables.gone),
            "tokens_waiting": self._tokens.waiting(),
        }

    def jobs(self) -> list[Json]:
        """Of the fleet, as this node is at them: `{"job", "phase", "progress", "reason"}`."""
        return self._jobs.status()

    # --- devices ---------------------------------------------------------------------------------

    def device_objects(self) -> list[Json]:
        """Devices with status, sorted by namespace and name; those that are set aside among them."""
        found = (self.device_object(*name) for name in self.device_keys())
        return [one for one in found if one is not None]

    def device_object(self, namespace: str, name: str) -> Json | None:
        key = f"{namespace}/{name}"
        twin = self._devices.twins.get(key)
        if twin is not None and twin.device is not None:
            return device_view.device(twin, self._devices)
        return device_view.aside(key, self._desk)

    def models(self) -> list[Json]:
        rows = sorted(self._desk.tables.models.items())
        return [{"apiVersion": API_VERSION, "kind": "DeviceModel", **_object(row.object)} for _, row in rows]

    def device_keys(self) -> list[tuple[str, str]]:
        """(namespace, name) of every device, sorted: who shows a thousand of them need not hold all at once."""
        here = [twin.key for twin in self._devices.twins.values() if twin.device]
        return sorted(map(_names, [*here, *device_view.all_aside(self._desk)]))

    def why_device(self, namespace: str, name: str) -> Json | None:
        """As `why`, of a device."""
        twin = self._devices.twins.get(f"{namespace}/{name}")
        if twin is not None and twin.device is not None:
            return device_view.why(twin, self._devices, self._desk)
        return self._absent("Device", f"{namespace}/{name}")

    # --- rules -----------------------------------------------------------------------------------

    def local_rules(self) -> list[Json]:
        """LocalRules, sorted by namespace and name, with what the node says of each as `status`."""
        return self._rules.objects()

    def rules(self) -> list[Json]:
        """KubeEdge's Rules, with what the node itself knows of each as `status`: `problem` (why it passes nothing on
        for it), `failed` (messages that it could not take), `lastError` and `lastErrorTime`."""
        told = [msgspec.to_builtins(self._routes.report(key)) for key in sorted(self._desk.tables.rules)]
        return [one | {"status": status} for one, status in zip(_plain(self._desk.tables.rules), told, strict=True)]

    def rule_endpoints(self) -> list[Json]:
        return _plain(self._desk.tables.rule_endpoints)

    def why_rule(self, namespace: str, name: str) -> Json | None:
        """As `why`, of a LocalRule."""
        found = self._rules.explain(f"{namespace}/{name}")
        if found is None:
            return why.explain_absent(
                "LocalRule", f"{namespace}/{name}", self._sources, self._cloud.refusals(), self._desk
            )
        return found

    # --- other objects ---------------------------------------------------------------------------

    def configmaps(self) -> list[Json]:
        rows = sorted(self._desk.tables.configmaps.items())
        return [{"apiVersion": "v1", "kind": "ConfigMap", **_object(row.object)} for _, row in rows]

    def secrets(self) -> list[Json]:
        """`keys` maps each key to the size of its value; there is no `data`."""
        found = []
        for _, row in sorted(self._desk.tables.secrets.items()):
            secret = row.object
            found.append(
                {
                    "apiVersion": "v1",
                    "kind": "Secret",
                    "metadata": _object(secret)["metadata"],
                    "type": secret.type,
                    "keys": {key: len(value) for key, value in sorted(secret.data.items())},
                }
            )
        return found

    def unreadable(self) -> list[tuple[str, str, str]]:
        """(table, key, why) of the stored rows that can't be read."""
        return list(self._desk.tables.unreadable)

    def secret_values(self) -> Iterator[bytes]:
        for row in self._desk.tables.secrets.values():
            yield from row.object.data.values()
        for token in self._desk.tables.tokens.values():
            yield token.token.encode()

    def events(self) -> list[Json]:
        """core/v1 Events, the one that happened last standing last."""
        return [_event(one, self._desk.node.name) for one in self._desk.ring.occurrences()]

    def image_references(self) -> tuple[str, ...]:
        """The images that wanted pods name, sorted."""
        pods = [run.pod for run in self._runs.values() if run.row and run.pod]
        return tuple(sorted({one.image for pod in pods for one in containers_of(pod)}))

    def images(self) -> list[Json]:
        """`{"id", "names", "bytes", "pinned", "used"}`"""
        pods = [run.pod for run in self._runs.values() if run.pod]
        used = {normal_reference(one.image) for pod in pods for one in containers_of(pod)}
        return [
            {
                "id": image.id,
                "names": [*image.tags, *image.digests],
                "bytes": image.bytes,
                "pinned": image.pinned,
                "used": image.id in used
                or any(normal_reference(name) in used for name in (*image.tags, *image.digests)),
            }
            for image in self._desk.images or ()
        ]

    # --- the node --------------------------------------------------------------------------------

    def node_object(self) -> Json:
        """core/v1 Node with conditions, capacity and nodeInfo; the same of it that a cluster is told."""
        node = self._desk.node
        addresses = [{"type": "InternalIP", "address": one} for one in node.addresses]
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": node.name,
                "uid": node.name,
                "creationTimestamp": rfc3339(self._desk.tables.nodes.get("self", NodeRow()).created_ms),
                "labels": {
                    "kubernetes.io/hostname": node.name,
                    "kubernetes.io/arch": node.architecture,
                    "kubernetes.io/os": "linux",
                },
            },
            "spec": {},
            "status": {
                "capacity": of_node.capacity(self._desk),
                "allocatable": of_node.allocatable(self._desk),
                "addresses": [*addresses, {"type": "Hostname", "address": node.name}],
                "conditions": self._conditions(),
                "nodeInfo": of_node.info(self._desk),
            },
        }

    def _conditions(self) -> list[Json]:
        row = self._desk.tables.nodes.get("self", NodeRow())
        words = {
            "Ready": (("RuntimeReady", "the runtime answers"), ("RuntimeDown", self._desk.runtime_why)),
            MEMORY: (("TooLittleMemory", "the node is short of memory"), ("EnoughMemory", "")),
            DISK: (("TooLittleDisk", "the node is short of disk"), ("EnoughDisk", "")),
            PIDS: (("TooFewPIDs", "the node is short of process ids"), ("EnoughPIDs", "")),
        }
        found = []
        for kind, (true, false) in words.items():
            kept = row.conditions.get(kind)
            reason, message = true if kept and kept.status == "True" else false
            found.append(
                {
                    "type": kind,
                    "status": kept.status if kept else "Unknown",
                    "reason": reason,
                    "message": message,
                    "lastTransitionTime": rfc3339(kept.since_ms) if kept else None,
                }
            )
        return found

    def status(self) -> Json:
        """At a glance: `node`, `runtime`, `pressure`, `pods`, `jobs`, `devices`, `mappers`, `rules` and `manifests`,
        each with what is wrong in it."""
        desk = self._desk
        runtime = desk.runtime
        up = runtime is not None
        return {
            "node": {
                "name": desk.node.name,
                "ready": up,
                "message": "" if up else "the container runtime does not answer",
                "address": host_ip(desk),
            },
            "runtime": {
                "state": "up" if up else "down",
                "kind": runtime.kind if runtime else desk.runtime_kind,
                "name": runtime.name if runtime else "",
                "version": runtime.version if runtime else "",
                "message": desk.runtime_why,
                "notes": list(runtime.notes) if runtime else [],
                "since": rfc3339(desk.runtime_since) or "",
            },
            "pressure": {
                "memory": MEMORY in self._pressure.active,
                "disk": DISK in self._pressure.active,
                "pids": PIDS in self._pressure.active,
            },
            "pods": self._pods_at_a_glance(),
            "jobs": self.jobs(),
            "devices": device_view.at_a_glance(self._devices, self._desk),
            "mappers": device_view.mappers(self._devices),
            "rules": self._rules_at_a_glance(),
            "manifests": self._manifests(),
        }

    def _pods_at_a_glance(self) -> Json:
        wanted = [run for run in self._runs.values() if run.row]
        problems = []
        held = []
        for run in wanted:
            if run.row and hold.is_waiting(run.row):
                held.append({"pod": run.key, "what": hold.in_words(run.row), "remedy": hold.remedy(run)})
            if run.row and run.row.waiting and not run.row.deletion:
                continue
            told = why.explain(run, self._desk)
            problems += [{"pod": run.key, **reason} for reason in told["reasons"]]
        ready = sum(status.was(run, "Ready") for run in wanted)
        running = sum(status.phase(run) == "Running" for run in wanted)
        return {"wanted": len(wanted), "running": running, "ready": ready, "held": held, "problems": problems}

    def _rules_at_a_glance(self) -> Json:
        """Of LocalRules `{"total", "active", "problems": [{"rule", "what", "why"}]}`."""
        found = self.local_rules()
        problems = [
            {"rule": f"{one['metadata']['namespace']}/{one['metadata']['name']}", "what": "it fails", "why": why}
            for one in found
            if (why := one["status"].get("problem"))
        ]
        return {"total": len(found), "active": sum(one["status"]["active"] for one in found), "problems": problems}

    def _manifests(self) -> list[Json]:
        files = self._sources.files()
        found = []
        for folder in sorted(files.keys() | self._sources.problems.keys()):
            rows = files.get(folder, {})
            problems = [
                {"file": path, "line": one.line, "field": one.field, "message": one.message}
                for path, row in sorted(rows.items())
                for one in row.problems
            ]
            problem = self._sources.problems.get(folder, "")
            found.append({"folder": folder, "files": len(rows), "problem": problem, "problems": problems})
        return found

    def manifest_digests(self, folder: str) -> dict[str, str]:
        """File → digest that the core keeps; what differs or is missing here wants its objects told."""
        return self._sources.digests(folder)

    def table_sizes(self) -> dict[str, int]:
        """Rows in each table of the state."""
        return {table: len(rows) for table, rows in self._desk.tables.rows.items() if table in wire.ROWS}


def _names(key: str) -> tuple[str, str]:
    namespace, _, name = key.partition("/")
    return namespace, name


def _plain(rows: Mapping[str, RuleRow | RuleEndpointRow]) -> list[Json]:
    found = [row.object for _, row in sorted(rows.items())]
    return [{"apiVersion": API_VERSIONS[one.kind], "kind": one.kind, **_object(one)} for one in found]


def _object(obj: msgspec.Struct) -> Json:
    found: Json = msgspec.to_builtins(obj)
    found["metadata"].setdefault("namespace", "default")
    return found


def _event(one: Occurrence, node: str) -> Json:
    about = {"kind": one.kind, "namespace": one.namespace, "name": one.name, "uid": one.uid}
    about["apiVersion"] = API_VERSIONS.get(one.kind, "v1")
    if one.field:
        about["fieldPath"] = one.field
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{one.name}.{one.number:x}",
            "namespace": one.namespace,
            "creationTimestamp": rfc3339(one.first_ms),
        },
        "involvedObject": about,
        "type": one.type,
        "reason": one.reason,
        "message": one.message,
        "count": one.count,
        "firstTimestamp": rfc3339(one.first_ms),
        "lastTimestamp": rfc3339(one.last_ms),
        "source": {"component": "tinyedge", "host": node},
    }
