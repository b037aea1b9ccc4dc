"""A node for the local API and the command line, held in plain values: what tests change, the API shows."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Any

import trio

from tinyedge.adapters.local_api import JoinBody, LogOptions
from tinyedge.adapters.watch import Changes
from tinyedge.errors import BadInput, PeerError, TinyEdgeError
from tinyedge.events import Answer, Request
from tinyedge.model import decode
from tinyedge.model.objects import Object
from tinyedge.model.pod import ConfigMap, Container, ObjectMeta, Pod, PodSpec, Secret

Json = dict[str, Any]

MARKER = "hunter2-never-show-this"  # the value of a secret; no output may hold it
START = "2026-11-23T10:00:00Z"
START_MS = 1_795_428_000_000


def container_status(name: str = "web", restarts: int = 0, **more: Any) -> Json:
    """Running and ready unless `more` says otherwise."""
    return {
        "name": name,
        "image": "busybox:1.36",
        "imageID": "sha256:0a1b2c",
        "containerID": f"containerd://{name}0123456789abcdef",
        "restartCount": restarts,
        "ready": True,
        "started": True,
        "state": {"running": {"startedAt": START}},
        "lastState": {},
        **more,
    }


def pod(name: str = "web", namespace: str = "default", **status: Any) -> Json:
    """A Kubernetes Pod with one container, running, with an environment that refers to a secret."""
    container = {
        "name": "web",
        "image": "busybox:1.36",
        "command": ["httpd", "-f", "-p", "8080"],
        "ports": [{"containerPort": 8080, "protocol": "TCP", "name": "http"}],
        "env": [
            {"name": "MODE", "value": "field"},
            {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "login", "key": "password"}}},
        ],
        "resources": {"requests": {"cpu": "50m", "memory": "16Mi"}, "limits": {"memory": "32Mi"}},
        "readinessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 5},
        "volumeMounts": [{"name": "site", "mountPath": "/www", "readOnly": True}],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": f"11111111-2222-5333-8444-{abs(hash((namespace, name))) % 10**12:012d}",
            "creationTimestamp": START,
            "labels": {"app": name},
        },
        "spec": {
            "containers": [container],
            "volumes": [{"name": "site", "configMap": {"name": "site"}}],
            "restartPolicy": "Always",
            "nodeName": "gate-7",
            "terminationGracePeriodSeconds": 30,
        },
        "status": {
            "phase": "Running",
            "podIP": "10.88.0.5",
            "hostIP": "192.168.1.7",
            "qosClass": "Burstable",
            "startTime": START,
            "conditions": [
                {"type": "Initialized", "status": "True", "lastTransitionTime": START},
                {"type": "Ready", "status": "True", "lastTransitionTime": START},
            ],
            "containerStatuses": [container_status()],
            **status,
        },
    }


def node() -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "gate-7", "uid": "gate-7", "creationTimestamp": START, "labels": {"site": "north"}},
        "spec": {},
        "status": {
            "capacity": {"cpu": "2", "memory": "1024000Ki", "pods": "250"},
            "allocatable": {"cpu": "1900m", "memory": "921600Ki", "pods": "250"},
            "addresses": [
                {"type": "InternalIP", "address": "192.168.1.7"},
                {"type": "Hostname", "address": "gate-7"},
            ],
            "conditions": [
                {
                    "type": "Ready",
                    "status": "True",
                    "reason": "RuntimeReady",
                    "message": "the runtime answers",
                    "lastTransitionTime": START,
                },
                {"type": "MemoryPressure", "status": "False", "reason": "Enough", "lastTransitionTime": START},
            ],
            "nodeInfo": {
                "osImage": "Debian GNU/Linux 12",
                "kernelVersion": "6.1.0",
                "architecture": "arm64",
                "containerRuntimeVersion": "containerd://1.6.20",
                "kubeletVersion": "v1.32.0+tinyedge.0.1.0",
                "bootID": "b-1",
                "machineID": "m-1",
            },
        },
    }


DEVICES_API = "devices.kubeedge.io/v1beta1"


def twin(name: str, kind: str, value: str = "", *, desired: str = "", ago_s: int = 3600, **more: Any) -> Json:
    """A property as a device's status shows it, taken `ago_s` seconds before an hour after START."""
    found: Json = {
        "propertyName": name,
        "observedDesired": {"value": desired, "metadata": {}},
        "type": kind,
        "accessMode": "ReadWrite",
        "quality": "good" if value else "none",
    }
    if value:
        metadata = {"timestamp": str(START_MS + (3600 - ago_s) * 1000), "type": kind.lower()}
        found["reported"] = {"value": value, "metadata": metadata}
    if desired:
        found["desired"] = desired
    return found | more


def device(name: str = "pump-1", namespace: str = "default", **status: Any) -> Json:
    """A KubeEdge Device that is online: two properties that were reported, one that was set on site, one method."""
    visitors = {"configData": {"register": 4}}
    return {
        "apiVersion": DEVICES_API,
        "kind": "Device",
        "metadata": {"name": name, "namespace": namespace, "uid": f"d-{name}", "creationTimestamp": START},
        "spec": {
            "deviceModelRef": {"name": "pump-model"},
            "protocol": {"protocolName": "modbus", "configData": {"port": 502}},
            "properties": [
                {"name": "temperature", "visitors": visitors, "reportToCloud": True},
                {"name": "speed", "visitors": visitors},
                {"name": "label", "visitors": visitors},
            ],
            "methods": [{"name": "reset", "description": "to factory settings", "propertyNames": ["speed"]}],
        },
        "status": {
            "twins": [
                twin("temperature", "FLOAT", "21.5", ago_s=5, accessMode="ReadOnly"),
                twin("speed", "INT", "30", desired="80", ago_s=60, desiredBy="uid 1000"),
                twin("label", "STRING"),
            ],
            "state": "online",
            "protocol": "modbus",
            "mapper": "driver-modbus",
            "lastOnlineTime": START,
            **status,
        },
    }


def devicemodel(name: str = "pump-model") -> Json:
    properties = [{"name": "temperature", "type": "FLOAT"}, {"name": "speed", "type": "INT"}]
    return {
        "apiVersion": DEVICES_API,
        "kind": "DeviceModel",
        "metadata": {"name": name, "namespace": "default", "uid": f"m-{name}", "creationTimestamp": START},
        "spec": {"protocol": "modbus", "properties": properties},
    }


def localrule(name: str = "too-hot", **status: Any) -> Json:
    return {
        "apiVersion": "rules.tinyedge.io/v1alpha1",
        "kind": "LocalRule",
        "metadata": {"name": name, "namespace": "default", "uid": f"r-{name}", "creationTimestamp": START},
        "spec": {
            "when": "temperature > 80",
            "inputs": {"temperature": {"device": "pump-1", "property": "temperature"}},
            "actions": [{"set": {"device": "pump-1", "property": "speed", "value": "0"}}],
        },
        "status": {
            "active": True,
            "fired": 3,
            "result": "true",
            "lastTransitionTime": START,
            "inputs": {"temperature": {"value": "85", "ageSeconds": 2}},
            **status,
        },
    }


def rule() -> Json:
    return {
        "apiVersion": "rules.kubeedge.io/v1",
        "kind": "Rule",
        "metadata": {"name": "alarms", "namespace": "default", "uid": "r-1", "creationTimestamp": START},
        "spec": {
            "source": "edge",
            "sourceResource": {"topic": "alarms", "node_name": "gate-7"},
            "target": "web",
            "targetResource": {"resource": "http://collector/alarms"},
        },
    }


def ruleendpoint() -> Json:
    return {
        "apiVersion": "rules.kubeedge.io/v1",
        "kind": "RuleEndpoint",
        "metadata": {"name": "edge", "namespace": "default", "uid": "r-2", "creationTimestamp": START},
        "spec": {"ruleEndpointType": "eventbus"},
    }


def event(reason: str = "Started", message: str = "Started container web", kind: str = "Normal", n: int = 1) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"web.{n}", "namespace": "default", "uid": f"e-{n}", "creationTimestamp": START},
        "involvedObject": {"kind": "Pod", "namespace": "default", "name": "web"},
        "reason": reason,
        "message": message,
        "type": kind,
        "count": n,
        "firstTimestamp": START,
        "lastTimestamp": START,
        "source": {"component": "tinyedge", "host": "gate-7"},
    }


def status() -> Json:
    return {
        "node": {
            "name": "gate-7",
            "ready": True,
            "message": "",
            "version": "0.1.0",
            "uptimeSeconds": 7200,
            "lastBoot": {"reason": "power", "time": START},
            "clockTrusted": False,
        },
        "link": {"state": "none", "message": "no gateway is configured; this node works alone"},
        "store": {
            "state": "ok",
            "message": "",
            "path": "/var/lib/tinyedge/store",
            "stateBytes": 20480,
            "stateBytesMax": 16777216,
            "journalBytes": 8388608,
            "seriesBytes": 100,
        },
        "runtime": {"state": "up", "kind": "containerd", "name": "containerd", "version": "1.6.20", "message": ""},
        "pressure": {"memory": False, "disk": False, "pids": False},
        "machine": {
            "memoryAvailableBytes": 400 * 2**20,
            "memoryTotalBytes": 1000 * 2**20,
            "diskFreeBytes": 5 * 2**30,
            "diskTotalBytes": 10 * 2**30,
        },
        "pods": {"wanted": 1, "running": 1, "ready": 1, "held": [], "problems": []},
        "jobs": [],
        "devices": {
            "total": 1,
            "states": {"offline": 0, "online": 1, "unhealthy": 0, "unknown": 0},
            "withProblems": 0,
            "problems": [],
        },
        "mappers": [
            {
                "name": "driver-modbus",
                "protocol": "modbus",
                "socket": "",
                "state": "up",
                "message": "",
                "since": START,
                "devices": 1,
                "reports": {"OK": 7, "Invalid": 1},
            }
        ],
        "rules": {"total": 1, "active": 1, "problems": []},
        "series": {"readings": {"waiting": 120, "dropped": 3}, "push": {"waiting": 2, "dropped": 0}},
        "pushes": [{"place": "http collector:80", "sent": 7, "dropped": 0, "message": ""}],
        "manifests": [{"folder": "/etc/tinyedge/manifests", "files": 1, "problem": "", "problems": []}],
    }


class FakeBackend:
    """Implements `Backend`. `log_lines` of a container are what it has said; `follow` waits for `say`."""

    def __init__(self) -> None:
        self.changes = Changes()
        self.pod_list: list[Json] = [pod()]
        self.node_object = node()
        self.configmap_list: list[Json] = [
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "site", "namespace": "default", "uid": "c-1", "creationTimestamp": START},
                "data": {"index.html": "<h1>north</h1>"},
            }
        ]
        self.secret_list: list[Json] = [
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": "login", "namespace": "default", "uid": "s-1", "creationTimestamp": START},
                "type": "Opaque",
                "keys": {"password": len(MARKER)},
            }
        ]
        self.device_list: list[Json] = [device()]
        self.model_list: list[Json] = [devicemodel()]
        self.localrule_list: list[Json] = [localrule()]
        self.rule_list: list[Json] = [rule()]
        self.endpoint_list: list[Json] = [ruleendpoint()]
        self.values: list[Json] = [
            {"timestamp": START_MS, "clock": "node", "property": "temperature", "value": "21.5"},
            {"timestamp": START_MS + 5000, "clock": "mapper", "property": "speed", "value": "30"},
        ]
        self.device_answers = True  # False: what is asked of it is not answered
        self.image_list: list[Json] = [
            {
                "id": "sha256:0a1b2c3d4e5f60718293a4b5c6d7e8f9",
                "names": ["docker.io/library/busybox:1.36", "docker.io/library/busybox@sha256:ffee"],
                "bytes": 2_220_000,
                "pinned": False,
                "used": True,
            }
        ]
        self.event_list: list[Json] = [event()]
        self.status_object = status()
        self.explanation: Json = {"state": "Running", "summary": "web runs and is ready.", "reasons": []}
        self.rule_explanation: Json = {"state": "Active", "summary": "too-hot is active.", "reasons": []}
        self.device_explanation: Json = {"state": "online", "summary": "pump-1 is as it should be.", "reasons": []}
        self.answer = Answer(0, message="")
        self.requests: list[tuple[int, Request]] = []
        self.log_lines: dict[str, list[bytes]] = {"web": [b"listening on 8080\n", f"login {MARKER}\n".encode()]}
        self.log_options: list[LogOptions] = []
        self.said = trio.Event()
        self.follow_ends = False
        self.url = "ws://127.0.0.1:1/exec/token"
        self.urls_asked: list[tuple[str, ...]] = []
        self.progress: list[Json] = [{"done": 1, "total": 2}, {"done": 2, "total": 2}]
        self.image_error: TinyEdgeError | None = None
        self.store_error: Exception | None = None
        self.is_ready = True
        self.joined: list[JoinBody | bool] = []
        self.upgrades: list[str] = []
        self.closed_streams = 0

    def say(self, container: str, line: bytes) -> None:
        self.log_lines[container].append(line)
        said, self.said = self.said, trio.Event()
        said.set()

    # views

    def pods(self) -> Sequence[Json]:
        return self.pod_list

    def pod(self, namespace: str, name: str) -> Json | None:
        return next(
            (p for p in self.pod_list if (p["metadata"]["namespace"], p["metadata"]["name"]) == (namespace, name)),
            None,
        )

    def node(self) -> Json:
        return self.node_object

    def configmaps(self) -> Sequence[Json]:
        return self.configmap_list

    def secrets(self) -> Sequence[Json]:
        return self.secret_list

    def devices(self) -> Iterable[Json]:
        return iter(self.device_list)

    def device(self, namespace: str, name: str) -> Json | None:
        wanted = (namespace, name)
        return next(
            (d for d in self.device_list if (d["metadata"]["namespace"], d["metadata"]["name"]) == wanted), None
        )

    def devicemodels(self) -> Sequence[Json]:
        return self.model_list

    def localrules(self) -> Sequence[Json]:
        return self.localrule_list

    def rules(self) -> Sequence[Json]:
        return self.rule_list

    def ruleendpoints(self) -> Sequence[Json]:
        return self.endpoint_list

    def images(self) -> Sequence[Json]:
        return self.image_list

    def events(self) -> Sequence[Json]:
        return self.event_list

    def status(self) -> Json:
        return self.status_object

    def usage(self) -> Json:
        return {
            "node": {"metadata": {"name": "gate-7"}, "usage": {"cpu": "150m", "memory": "614400Ki"}},
            "pods": [
                {
                    "metadata": {"namespace": "default", "name": "web"},
                    "containers": [{"name": "web", "usage": {"cpu": "12345678n", "memory": "4096Ki"}}],
                }
            ],
        }

    def why(self, namespace: str, name: str) -> Json | None:
        return self.explanation if self.pod(namespace, name) else None

    def why_device(self, namespace: str, name: str) -> Json | None:
        return self.device_explanation if self.device(namespace, name) else None

    def why_rule(self, namespace: str, name: str) -> Json | None:
        known = [one["metadata"] for one in self.localrule_list]
        there = any((meta["namespace"], meta["name"]) == (namespace, name) for meta in known)
        return self.rule_explanation if there else None

    async def history(self, namespace: str, name: str, property_name: str, limit: int) -> Json:
        await trio.lowlevel.checkpoint()
        found = [one for one in self.values if property_name in ("", one["property"])]
        return {"items": found[-limit:], "complete": len(found) <= limit}

    def decode(self, documents: Sequence[object]) -> tuple[Object, ...]:
        return tuple(_decoded(document, n) for n, document in enumerate(documents))

    async def request(self, uid: int, what: Request) -> Answer:
        await trio.lowlevel.checkpoint()
        self.requests.append((uid, what))
        if not self.device_answers:
            await trio.sleep_forever()
        return self.answer

    async def upgrade(self, name: str) -> str:
        await trio.lowlevel.checkpoint()
        if self.image_error:
            raise self.image_error
        self.upgrades.append(name)
        return f"{name} is started on trial"

    def watch(self, kind: str) -> AsyncGenerator[Json, None]:
        if kind == "devices":
            return self.changes.watch_many(kind, self.devices, 0)
        lists = {"pods": self.pods, "nodes": lambda: [self.node()], "events": self.events}
        return self.changes.watch(kind, lists[kind])

    async def logs(self, namespace: str, name: str, container: str, options: LogOptions) -> AsyncGenerator[bytes, None]:
        self.log_options.append(options)
        try:
            if container not in self.log_lines:
                raise PeerError(f"no log of {namespace}/{name}/{container}", "it has not started yet")
            sent = 0
            while True:
                said = self.said
                for line in self.log_lines[container][sent:]:
                    sent += 1
                    yield (b"2026-11-23T10:00:00Z " if options.timestamps else b"") + line
                if not options.follow or self.follow_ends:
                    return
                await said.wait()
        finally:
            self.closed_streams += 1

    async def exec_url(
        self,
        namespace: str,
        name: str,
        container: str,
        argv: Sequence[str],
        *,
        stdin: bool,
        stdout: bool = True,
        stderr: bool = True,
        tty: bool,
    ) -> str:
        declined = _declined(stdout=stdout, stderr=stderr)
        self.urls_asked.append(("exec", namespace, name, container, *argv, f"stdin={stdin}", f"tty={tty}", *declined))
        return self.url

    async def attach_url(
        self,
        namespace: str,
        name: str,
        container: str,
        *,
        stdin: bool,
        stdout: bool = True,
        stderr: bool = True,
        tty: bool,
    ) -> str:
        declined = _declined(stdout=stdout, stderr=stderr)
        self.urls_asked.append(("attach", namespace, name, container, f"stdin={stdin}", f"tty={tty}", *declined))
        return self.url

    async def port_forward_url(self, namespace: str, name: str, ports: Sequence[int]) -> str:
        self.urls_asked.append(("port-forward", namespace, name, *map(str, ports)))
        return self.url

    async def join(self, asked: JoinBody) -> str:
        if self.image_error:
            raise self.image_error
        self.joined.append(asked)
        return f"gate-7 has joined {asked.url}"

    async def leave(self, *, local: bool) -> str:
        self.joined.append(local)
        return "gate-7 has left"

    async def import_image(self, path: str) -> AsyncGenerator[Json, None]:
        for line in self._image_lines():
            yield line
        yield {"names": ["docker.io/library/site:1"]}

    async def pull_image(self, image: str) -> AsyncGenerator[Json, None]:
        for line in self._image_lines():
            yield line
        yield {"id": "sha256:feed"}

    def _image_lines(self) -> Iterable[Json]:
        if self.image_error:
            yield self.progress[0]
            raise self.image_error
        yield from self.progress

    async def remove_image(self, image: str) -> None:
        if image not in self.image_list[0]["names"]:
            raise PeerError(f"can't remove {image}", "no such image")
        self.image_list.clear()

    def blackbox(self) -> Sequence[Json]:
        return [
            {"time": START, "kind": "boot", "reason": "power"},
            {"time": START, "kind": "pod.exit", "pod": "default/web", "container": "web", "exitCode": 137},
        ]

    async def store_report(self) -> Json:
        if self.store_error:
            raise self.store_error
        return {"path": "/var/lib/tinyedge/store", "state": "ok", "tables": {"pod": 1, "secret": 1}}

    def config(self) -> Json:
        return {"node": {"name": "gate-7"}}

    def metrics(self) -> str:
        return "# TYPE tinyedge_up gauge\ntinyedge_up 1\n"

    def health(self) -> Json:
        return {"ready": self.is_ready, "checks": {"runtime": "ok" if self.is_ready else "does not answer"}}

    def secret_values(self) -> Iterable[bytes]:
        return [MARKER.encode()]


def _decoded(document: object, n: int) -> Object:
    """Enough of decoding for these tests: kind, names, and one field that must be there."""
    if isinstance(document, dict) and str(document.get("kind")).startswith(("Device", "LocalRule", "Rule")):
        return decode.decode_object(document, f"items[{n}]")
    if not isinstance(document, dict) or document.get("kind") not in ("Pod", "ConfigMap", "Secret"):
        raise BadInput(f"items[{n}].kind", document, "Pod, ConfigMap or Secret")
    meta = document.get("metadata") or {}
    metadata = ObjectMeta(meta["name"], meta.get("namespace", "default"))
    if document["kind"] == "ConfigMap":
        return ConfigMap(metadata, document.get("data") or {})
    if document["kind"] == "Secret":
        return Secret(metadata)
    containers = (document.get("spec") or {}).get("containers")
    if not containers:
        raise BadInput("spec.containers", containers, "at least one container")
    return Pod(metadata, PodSpec([Container(c["name"], c["image"]) for c in containers]))


def _declined(**streams: bool) -> list[str]:
    return [f"no {name}" for name, wanted in streams.items() if not wanted]
