"""Rules, messages and pushes of the wired daemon, with a real broker and its own clients, over power cuts."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.mosquitto import PROGRAM
from tests.fakes.ports import free_port
from tests.test_daemon import Node, until
from tests.test_daemon_devices import SIMULATED, reported

pytestmark = pytest.mark.mosquitto
TOPIC = "$hw/events/device/default/pump-1"
RULE = """\
apiVersion: rules.tinyedge.io/v1alpha1
kind: LocalRule
metadata: {name: warm}
spec:
  inputs:
    temperature: {device: pump-1, property: temperature}
  when: temperature > 21
  actions:
  - set: {device: pump-1, property: running, value: "true"}
  - publish: {topic: plant/alarm, payload: '{"t": {temperature}}', retain: true}
  - http: {url: "http://127.0.0.1:%d/hook", body: '{"t": {temperature}}'}
  - event: {reason: Warm, message: "{temperature} degrees"}
"""


class Broker:
    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._config = folder / "mosquitto.conf"
        self._config.write_text(
            f"listener {self.port} 127.0.0.1\nuser root\nallow_anonymous true\npersistence true\n"
            f"persistence_location {folder}/\n"
        )
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen([PROGRAM, "-c", str(self._config)], stderr=subprocess.DEVNULL)
        until(lambda: self.publish("probe", "x") == 0)

    def stop(self) -> None:
        """It forgets what it is told while it begins: it is told again."""
        while self._process is not None and self._process.poll() is None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(1)

    def publish(self, topic: str, payload: str) -> int:
        program = shutil.which("mosquitto_pub") or "mosquitto_pub"
        at = ["-h", "127.0.0.1", "-p", str(self.port), "-q", "1"]
        return subprocess.run([program, *at, "-t", topic, "-m", payload], check=False, capture_output=True).returncode

    def listen(self, topic: str, count: int = 1, *, wait_s: int = 20) -> subprocess.Popen[str]:
        """What `heard` returns the messages of."""
        program = shutil.which("mosquitto_sub") or "mosquitto_sub"
        at = ["-h", "127.0.0.1", "-p", str(self.port), "-q", "1", "-d"]
        listener = subprocess.Popen(
            ["stdbuf", "-oL", program, *at, "-t", topic, "-C", str(count), "-W", str(wait_s), "-F", "MESSAGE %p"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert listener.stdout is not None
        for line in listener.stdout:
            if "SUBACK" in line:
                return listener
        raise AssertionError("mosquitto_sub was not heard")


def heard(listener: subprocess.Popen[str]) -> list[Any]:
    """All of them; it ends by itself, when it has them or after its time."""
    assert listener.stdout is not None
    with listener.stdout:
        lines = list(listener.stdout)
    listener.wait()
    return [json.loads(line.removeprefix("MESSAGE ")) for line in lines if line.startswith("MESSAGE ")]


class Collector:
    def __init__(self) -> None:
        self.posts: list[tuple[str, str, bytes]] = []
        posts = self.posts

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                posts.append((self.path, self.headers["Idempotency-Key"], body))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port: int = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    (tmp_path / "broker").mkdir()
    made = Broker(tmp_path / "broker")
    yield made
    made.stop()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.server.shutdown()
    made.server.server_close()


class NodeWithBroker(Node):
    broker = 0

    def start(self, *more: str, module: str = "tinyedge", **environ: str) -> None:
        ours = ("--set", f"mqtt.url=mqtt://127.0.0.1:{self.broker}", "--set", "outbound.allow=127.0.0.1")
        super().start(*ours, *more, module=module, **environ)


@pytest.fixture
def node(tmp_path: Path, broker: Broker) -> Iterator[Node]:
    made = NodeWithBroker(tmp_path)
    made.broker = broker.port
    yield made
    made.close()


def test_a_rule_acts_once_in_all_its_ways_and_not_again_after_a_power_cut(
    node: Node, broker: Broker, collector: Collector
) -> None:
    (node.manifests / "pump.yaml").write_text(SIMULATED)
    (node.manifests / "rule.yaml").write_text(RULE % collector.port)
    node.start()
    until(lambda: reported(node, "running") == "true")
    until(lambda: collector.posts)
    path, key, body = collector.posts[0]
    assert (path, json.loads(body)) == ("/hook", {"t": 21.5})
    assert "-push-" in key
    (pushed,) = until(lambda: node.status()["pushes"])
    assert pushed == {"place": f"http://127.0.0.1:{collector.port}", "sent": 1, "dropped": 0, "message": ""}
    assert heard(broker.listen("plant/alarm")) == [{"t": 21.5}]
    events = node.client.get("/v1/events")["items"]
    assert [one["message"] for one in events if one["reason"] == "Warm"] == ["21.5 degrees"]
    node.stop(signal.SIGKILL)
    node.start()
    until(lambda: reported(node, "temperature") == "21.5")
    rule = node.client.get("/v1/localrules")["items"][0]
    assert (rule["status"]["active"], rule["status"]["fired"]) == (True, 1)
    assert len(collector.posts) == 1


def test_devices_are_read_reported_and_set_by_kubeedges_topics(node: Node, broker: Broker) -> None:
    (node.manifests / "pump.yaml").write_text(SIMULATED)
    node.start()
    until(lambda: reported(node, "temperature") == "21.5")
    answers = broker.listen(f"{TOPIC}/twin/get/result")
    # The node may not have subscribed yet: it is asked until it answers.
    until(lambda: broker.publish(f"{TOPIC}/twin/get", '{"event_id": "1"}') == 0 and answers.poll() is not None)
    (result,) = heard(answers)
    assert (result["event_id"], result["twin"]["temperature"]["actual"]["value"]) == ("1", "21.5")
    deltas = broker.listen(f"{TOPIC}/twin/update/document")
    update = {"event_id": "2", "twin": {"running": {"expected": {"value": "true"}}}}
    assert broker.publish(f"{TOPIC}/twin/update", json.dumps(update)) == 0
    (document,) = heard(deltas)
    assert document["twin"]["running"]["current"]["expected"]["value"] == "true"
    until(lambda: reported(node, "running") == "true")


def test_what_was_published_while_the_daemon_or_the_broker_was_away_arrives(node: Node, broker: Broker) -> None:
    (node.manifests / "pump.yaml").write_text(SIMULATED.replace("protocol: simulated", "protocol: none"))
    node.start()
    until(lambda: node.client.get("/v1/devices")["items"])
    update = {"twin": {"temperature": {"actual": {"value": "1"}}}}
    until(
        lambda: broker.publish(f"{TOPIC}/twin/update", json.dumps(update)) == 0 and reported(node, "temperature") == "1"
    )
    node.stop(signal.SIGKILL)
    update["twin"]["temperature"]["actual"]["value"] = "2"
    assert broker.publish(f"{TOPIC}/twin/update", json.dumps(update)) == 0
    node.start()
    until(lambda: reported(node, "temperature") == "2")
    assert node.status()["broker"] == {
        "state": "up",
        "address": f"mqtt://127.0.0.1:{broker.port}",
        "message": "",
        "refusedTopics": [],
    }
    broker.stop()
    until(lambda: node.status()["broker"]["state"] == "down")
    set_to = node.client.ask("POST", "/v1/namespaces/default/devices/pump-1/properties/running", body={"value": "true"})
    assert set_to["message"].startswith("running of default/pump-1 is to be true")
    node.stop(signal.SIGKILL)
    broker.start()
    deltas = broker.listen(f"{TOPIC}/twin/update/delta")
    node.start()
    assert heard(deltas)[0]["delta"] == {"running": "true"}
