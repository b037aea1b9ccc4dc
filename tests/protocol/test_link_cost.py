"""What the link costs in bytes, WebSocket frames included; TLS adds 22 to each record.

Run with -s to see the numbers.
"""

from __future__ import annotations

import os

import msgspec

from tests.protocol.link_rig import Joined
from tinyedge.protocol.revision import DOWN, UP, digest, encode, revision
from tinyedge.protocol.websocket import WebSocket

TLS_BYTES = 22
PODS, CONFIGMAPS = 20, 5


def _uid(n: int) -> str:
    return f"3c1b45cc-9965-4367-9bd4-5d53910280{n:02x}"


POD = {
    "metadata": {"name": "web-5d8f7c9b6-abcde", "namespace": "default", "uid": _uid(1), "labels": {"app": "web"}},
    "spec": {
        "containers": [
            {
                "name": "web",
                "image": "registry.example.com/team/web:1.4.2",
                "env": [{"name": f"SETTING_{n}", "value": f"value {n}"} for n in range(10)],
                "resources": {"limits": {"memory": "64Mi", "cpu": "100m"}},
                "volumeMounts": [{"name": "config", "mountPath": "/etc/web"}],
            }
        ],
        "volumes": [{"name": "config", "configMap": {"name": "web"}}],
    },
}


def _outlines() -> dict[str, dict[str, bytes]]:
    pods = {_uid(n): os.urandom(8) for n in range(PODS)}
    return {
        **{kind: {} for kind in (*DOWN, *UP)},
        "pod": pods,
        "configmap": {f"default/config-{n}": os.urandom(8) for n in range(CONFIGMAPS)},
        "podstatus": dict.fromkeys(pods, os.urandom(8)),
        "node": {"self": os.urandom(8)},
    }


def _bytes(messages: list[bytes], *, client: bool) -> int:
    """On the wire, one record each."""
    ours, theirs = WebSocket(client=True), WebSocket(client=False)
    ours.receive(theirs.accept(ours.request("g", "/")))
    return sum(len((ours if client else theirs).send(message)) + TLS_BYTES for message in messages)


def _tell(what: str, joined: Joined) -> tuple[int, int]:
    up, down = _bytes(joined.up, client=True), _bytes(joined.down, client=False)
    print(f"{what}: {up} bytes up in {len(joined.up)}, {down} down in {len(joined.down)}")
    return up, down


def _greet(joined: Joined, outlines: dict[str, dict[str, bytes]], want: list[str]) -> None:
    joined.edge.hello(
        software="tinyedge/0.4.0",
        boot_id="0f6b1f0e-6e8f-4a5e-9d3c-2b1a09876543",
        machine="b3f1c8e0d4a59b27",
        clock_ms=1_795_428_000_000,
        digests={kind: digest(outline) for kind, outline in outlines.items()},
        series={"events": 0},
    )
    joined.carry_up()
    joined.gateway.welcome(software="tinyedge-gateway/0.4.0", time_ms=1_795_428_000_000, backoff_cap_s=10, want=want)
    joined.carry_down()


def test_a_reconnect_with_nothing_changed_is_one_small_message_each_way() -> None:
    joined = Joined()
    _greet(joined, _outlines(), [])
    joined.settle()
    assert (len(joined.up), len(joined.down)) == (1, 1)
    up, down = _tell("nothing changed", joined)
    assert up < 400
    assert down < 200


def test_a_reconnect_with_one_pod_changed_costs_less_than_two_kilobytes_each_way() -> None:
    joined, outlines = Joined(), _outlines()
    _greet(joined, outlines, ["pod"])
    joined.edge.outline("pod", outlines["pod"])
    joined.carry_up()
    body = encode(POD)
    joined.gateway.put("pod", _uid(1), revision(body), body)
    joined.gateway.synced()
    joined.carry_down()
    joined.edge.ack(1)
    status = msgspec.msgpack.encode({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}] * 5})
    joined.edge.state("podstatus", _uid(1), revision(status), status)
    joined.carry_up()
    joined.gateway.state_taken(1)
    joined.settle()
    up, down = _tell("one pod changed", joined)
    assert up < 2000
    assert down < 2000


def test_an_idle_day_costs_less_than_a_megabyte() -> None:
    joined = Joined().greeted()
    end_ms = joined.now_ms + 3_600_000
    while joined.now_ms < end_ms:
        wake_ms = min(joined.edge.tick(joined.now_ms), joined.gateway.tick(joined.now_ms))
        joined.settle()
        joined.now_ms = wake_ms
    up, down = _tell("an idle hour", joined)
    assert len(joined.up) >= 100, "it would be noticed if it broke"
    assert (up + down) * 24 < 1_000_000
