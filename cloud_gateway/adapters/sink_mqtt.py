"""Readings to an MQTT broker: `mqtt[s]://[USER@]HOST[:PORT][/TOPIC][#password-file=…&ca=…&cert=…&key=…&version=5]`.

Each report is a message of QoS 1 on a topic of its own: in TOPIC `{node}`, `{namespace}` and `{device}` stand for where
it comes from. That reports were lost is told with `-` for both of the device. The messages of a batch leave in order,
many at a time, and are acknowledged by the broker one by one.
"""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit, urlunsplit

import trio

from cloud_gateway.adapters.sinks import Batch, Line, Note, SinkFailed, SinkRefuses, options
from tinyedge.errors import BadInput, PeerError
from tinyedge.limits import MQTT_PACKET_BYTES_MAX, MQTT_TOPIC_BYTES_MAX
from tinyedge.mqtt import Client, Posted, Settings, Tls, connect, settings
from tinyedge.protocol.mqtt_topics import check_topic

TOPIC = "tinyedge/{node}/{namespace}/{device}"
_PLACE = re.compile(r"\{([^{}]*)\}")
_PLACES = ("node", "namespace", "device")


def sink(url: str, note: Note) -> MqttSink:
    base, given = options(url, "password-file", "ca", "cert", "key", "version")
    parts = urlsplit(base)
    if not parts.netloc:
        raise BadInput("--sink", url, "mqtt(s)://HOST[:PORT]/TOPIC")
    topic = unquote(parts.path.lstrip("/")) or TOPIC
    if unknown := [name for name in _PLACE.findall(topic) if name not in _PLACES]:
        raise BadInput("--sink", f"{{{unknown[0]}}}", "{node}, {namespace} or {device} in the topic")
    check_topic(_PLACE.sub("x", topic))
    version = given.get("version", "3.1.1")
    if version not in ("3.1.1", "5"):
        raise BadInput("--sink", f"#version={version}", "3.1.1 or 5")
    tls = Tls(given.get("ca", ""), given.get("cert", ""), given.get("key", ""))
    broker = settings(
        urlunsplit((parts.scheme, parts.netloc, "", "", "")),
        field="--sink",
        password_file=given.get("password-file", ""),
        tls=tls,
        version=version,
    )
    return MqttSink(f"{parts.scheme}://{broker.host}:{broker.port}", broker, topic, note)


class MqttSink:
    """`topic` is a template."""

    def __init__(self, name: str, broker: Settings, topic: str, note: Note) -> None:
        self.name = name
        self._broker = broker
        self._topic = topic
        self._note = note
        self._client: Client | None = None
        self._ready = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with connect(self._broker, note=self._note) as self._client:
            self._ready.set()
            task_status.started()
            await trio.sleep_forever()

    async def put(self, batch: Batch) -> None:
        await self._ready.wait()
        topics = [self._topic_of(batch.node, line) for line in batch.lines]
        client, posted = self._client, list[Posted]()
        if client is None:
            raise SinkFailed(f"{self.name} is not open")
        try:
            for topic, line in zip(topics, batch.lines, strict=True):
                posted.append(await client.post(topic, line.data))
            for one in posted:
                await one.taken()
        except PeerError as error:
            raise SinkFailed(error.what, error.why, error.remedy) from None

    def _topic_of(self, node: str, line: Line) -> str:
        """Of a report; SinkRefuses when MQTT can't carry it."""
        namespace, _, device = (line.device or "-/-").partition("/")
        parts = {"node": node, "namespace": namespace, "device": device}
        topic = _PLACE.sub(lambda found: parts[found[1]], self._topic)
        try:
            check_topic(topic)
        except BadInput as error:
            raise SinkRefuses("no MQTT topic for this report", str(error)) from None
        if len(line.data) > MQTT_PACKET_BYTES_MAX - MQTT_TOPIC_BYTES_MAX:
            raise SinkRefuses("a report is too large for a message", f"{len(line.data)} bytes")
        return topic
