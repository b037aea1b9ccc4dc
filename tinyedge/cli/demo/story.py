"""What the demo shows, step by step."""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import Any

from tinyedge.cli.demo import pump as pumps
from tinyedge.cli.demo.cluster import Cluster
from tinyedge.cli.demo.node import NAME, Node
from tinyedge.cli.demo.processes import tinyedge, until
from tinyedge.cli.demo.pump import Pump
from tinyedge.cli.demo.words import Steps, quote, rows, say
from tinyedge.cli.podtext import pod_line

Json = dict[str, Any]

GREETING = "Hello from a pod that survives a pulled plug."


def manifest(port: int) -> Json:
    """A ConfigMap, and a web server that serves it. Its image is `host`: the process runtime runs what is installed."""
    site = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "site"},
        "data": {"index.html": f"{GREETING}\n"},
    }
    server = {
        "name": "server",
        "image": "host",
        "command": [*tinyedge(), "demo-server"],
        "args": ["--port", str(port), "--folder", "."],
        "workingDir": "/www",
        "readinessProbe": {"httpGet": {"path": "/", "port": port}, "periodSeconds": 1},
        "volumeMounts": [{"name": "site", "mountPath": "/www"}],
    }
    spec = {
        "nodeSelector": {"node-role.kubernetes.io/edge": ""},
        "terminationGracePeriodSeconds": 1,
        "containers": [server],
        "volumes": [{"name": "site", "configMap": {"name": "site"}}],
    }
    web = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}, "spec": spec}
    return {"apiVersion": "v1", "kind": "List", "items": [site, web]}


def tell(cluster: Cluster, node: Node, pump: Pump) -> None:
    step = Steps()
    _begin(step, cluster, node)
    _run_a_pod(step, cluster, node)
    _run_a_pump(step, cluster, node, pump)
    _lose_the_cloud(step, cluster, node, pump)
    _lose_the_power(step, cluster, node, pump)
    _come_back(step, cluster, node, pump)


def _begin(step: Steps, cluster: Cluster, node: Node) -> None:
    step("A cluster of one process: tinyedge-gateway run --sandbox …")
    say(f"   API, scheduler and gateway answer after {cluster.start():.1f} s.")
    step(f"A node joins it: token create --node {NAME}, then tinyedge join {cluster.url} --token …")
    token = cluster.token(NAME)
    node.start()
    quote(node.run("join", cluster.url, "--token", token))
    took_s = until(lambda: cluster.is_connected(NAME), "the node in the cluster", node.log)
    say(f"   Kubernetes has the node {took_s:.1f} s later:")
    _nodes(cluster)


def _run_a_pod(step: Steps, cluster: Cluster, node: Node) -> None:
    how = "kubectl apply -f web.json" if cluster.has_kubectl else "POST to its API (kubectl is not installed here)"
    step(f"A pod for it: {how}")
    path = cluster.folder.parent / "web.json"
    path.write_text(json.dumps(manifest(node.port)))
    quote(cluster.apply(path))
    took_s = until(lambda: cluster.is_running("web"), "the pod was not ready", node.log)
    say(f"   Ready in Kubernetes after {took_s:.1f} s:")
    _pods(cluster, node)
    say(f"   GET http://127.0.0.1:{node.port}/ → {node.fetch()}")
    step("Its log, through the gateway and the node's one outbound connection: kubectl logs web --tail=1")
    quote(cluster.logs("web"))


def _run_a_pump(step: Steps, cluster: Cluster, node: Node, pump: Pump) -> None:
    step("A pump, read by Modbus from a server that pymodbus is: its DeviceModel, its Device, a rule for the node")
    if not pump.start():
        say("   Left out: pymodbus is not installed here (pip install pymodbus, or run `make demo` of the sources).")
        return
    path = cluster.folder.parent / "pump.json"
    path.write_text(json.dumps(pumps.manifest(pump.port, NAME)))
    quote(cluster.apply(path))
    until(lambda: node.device(pumps.DEVICE).get("running") == "1", "the pump was not switched on", node.log)
    took_s = until(lambda: _is_shown(cluster), "the pump's values in Kubernetes", node.log)
    say(f"   The node has switched it on; Kubernetes shows its values {took_s:.1f} s later:")
    _device(cluster)


def _lose_the_cloud(step: Steps, cluster: Cluster, node: Node, pump: Pump) -> None:
    step("The cloud is gone: SIGKILL to the gateway")
    cluster.kill()
    say(f"   GET http://127.0.0.1:{node.port}/ → {node.fetch()}")
    if not pump.pid:
        return
    step(f"The pump's cooling fails. The rule on the node: above {pumps.LIMIT} °C for a second, switch it off")
    pump.block()
    until(lambda: bool(node.events("Overheated")), "the rule did not act", node.log)
    until(lambda: node.device(pumps.DEVICE).get("running") == "0", "the pump was not switched off", node.log)
    say(f"   Event of the node: {node.events('Overheated')[-1]}")
    now = node.device(pumps.DEVICE)
    say(f"   The pump itself: running = {now['running']}, temperature = {now['temperature']} °C, and nobody was asked.")


def _lose_the_power(step: Steps, cluster: Cluster, node: Node, pump: Pump) -> None:
    step("And the power: SIGKILL to the daemon and to everything it runs")
    say(f"   {node.pull_the_plug(cluster.pid, pump.pid)} processes are gone; nothing could say goodbye.")
    say(f"   GET http://127.0.0.1:{node.port}/ → {_unreachable(node)}")
    step("Power is back, the cloud is not: the daemon has its disk, and nothing else")
    began = time.monotonic()
    node.start()
    until(node.is_ready, "the pod was not ready again", node.log)
    say(f"   Everything is back {time.monotonic() - began:.1f} s after the daemon was started; the restart is counted.")
    say(f"   GET http://127.0.0.1:{node.port}/ → {node.fetch()}")


def _come_back(step: Steps, cluster: Cluster, node: Node, pump: Pump) -> None:
    step("The cloud returns")
    before_return = time.time()
    before = _identities(node.pods())
    cluster.start()
    until(lambda: node.is_in_sync() and cluster.is_connected(NAME), "the link was not up again", node.log)
    link = node.link()
    sync = link.get("sync", {})
    say(
        f"   In sync {sync.get('ms', 0)} ms after the node's call was answered: {sync.get('sentBytes', 0)} bytes up,"
        f" {sync.get('receivedBytes', 0)} bytes down."
    )
    touched = sum(before.get(name) != now for name, now in _identities(node.pods()).items())
    say(f"   Containers that this has restarted: {touched}.")
    until(lambda: _restarts([cluster.pod("web")]) == _restarts(node.pods()), "the pod's status", node.log)
    _pods(cluster, node)
    if pump.pid:
        _history(step, cluster, node, pump, before_return)
    step("What the node remembers of it: tinyedge blackbox")
    for entry in node.blackbox():
        fields = " ".join(f"{name}={value}" for name, value in entry.items() if name not in ("time", "kind"))
        say(f"   {entry['time'] or '(clock not set)':<20}  {entry['kind']:<5} {fields}")


def _history(step: Steps, cluster: Cluster, node: Node, pump: Pump, returned_s: float) -> None:
    """What was measured while nobody listened, as the gateway's sink has it."""
    step("And what was measured while nobody listened: the gateway's sink, a file of JSON lines")
    until(lambda: _is_told(pump, returned_s), "the readings", node.log)
    found = pumps.readings(pump.readings)
    away = [one for one in found if _at_s(one) < returned_s]
    numbers = [int(str(one["id"]).split("-")[-1]) for one in found]
    heat = [float(one["values"]["temperature"]) for one in found if "temperature" in one.get("values", {})]
    missing = numbers[-1] - numbers[0] + 1 - len(set(numbers))
    say(f"   {len(found)} reports, {len(away)} of them from before the return, in the order in which they were made:")
    say(f"   numbers {numbers[0]} to {numbers[-1]}, missing {missing}; at the most {max(heat)} °C.")
    until(lambda: _is_shown(cluster, running="0"), "the pump's values in Kubernetes", node.log)
    _device(cluster)


def _is_told(pump: Pump, returned_s: float) -> bool:
    found = pumps.readings(pump.readings)
    return bool(found) and _at_s(found[-1]) > returned_s


def _at_s(reading: Json) -> float:
    if reading.get("time"):
        return datetime.fromisoformat(reading["time"]).timestamp()
    return float(reading.get("at_ms", 0)) / 1000


def _is_shown(cluster: Cluster, running: str = "1") -> bool:
    twins = cluster.device(pumps.DEVICE).get("status", {}).get("twins", ())
    return any(one["propertyName"] == "running" and one.get("reported", {}).get("value") == running for one in twins)


def _device(cluster: Cluster) -> None:
    if cluster.has_kubectl:
        quote(cluster.kubectl("get", "device", pumps.DEVICE))
        return
    twins = cluster.device(pumps.DEVICE)["status"]["twins"]
    lines: list[tuple[str, ...]] = [(one["propertyName"], one.get("reported", {}).get("value", "")) for one in twins]
    rows(("PROPERTY", "REPORTED"), lines)


def _identities(pods: list[Json]) -> dict[str, tuple[str, int]]:
    return {
        f"{pod['metadata']['name']}/{one['name']}": (one.get("containerID", ""), one["restartCount"])
        for pod in pods
        for one in pod["status"].get("containerStatuses", ())
    }


def _restarts(pods: list[Json]) -> list[tuple[int, bool]]:
    return [(one["restartCount"], one["ready"]) for pod in pods for one in pod["status"].get("containerStatuses", ())]


def _unreachable(node: Node) -> str:
    try:
        return node.fetch()
    except OSError as error:
        return (error.strerror or str(error)).lower()


def _nodes(cluster: Cluster) -> None:
    if cluster.has_kubectl:
        quote(cluster.kubectl("get", "nodes"))
        return
    ready = [one["status"] for one in cluster.node(NAME)["status"]["conditions"] if one["type"] == "Ready"]
    rows(("NAME", "READY"), [(NAME, ready[0] if ready else "Unknown")])


def _pods(cluster: Cluster, node: Node) -> None:
    if cluster.has_kubectl:
        quote(cluster.kubectl("get", "pods", "-o", "wide"))
        return
    line = pod_line(cluster.pod("web"), time.time())
    rows(("NAME", "READY", "STATUS", "RESTARTS", "AGE"), [tuple(line[:5])])
