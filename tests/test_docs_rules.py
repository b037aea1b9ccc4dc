"""docs/mqtt.md and docs/rules.md tell the truth: objects, messages, settings, expressions and brokers are taken."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import yaml

from cloud_gateway.adapters.rest_api import _STATUS
from cloud_gateway.sandbox import schema
from tests import docs
from tests.cloud_gateway.test_crds import problems, schema_of
from tests.core.test_bus import site, told
from tests.fakes.mosquitto import PROGRAM, Pki
from tests.fakes.ports import free_port
from tinyedge import limits, mqtt
from tinyedge.adapters.mqtt import broker_settings
from tinyedge.config import Config
from tinyedge.core import bus
from tinyedge.events import Published
from tinyedge.model import decode, expression
from tinyedge.model.expression import Input, parse
from tinyedge.model.rule import RuleAction

Json = dict[str, Any]
MQTT = (docs.ROOT / "docs" / "mqtt.md").read_text()
RULES = (docs.ROOT / "docs" / "rules.md").read_text()
BOTH = MQTT + RULES


def blocks(language: str, text: str = BOTH) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def table(heading: str, text: str) -> list[list[str]]:
    """Cells of the first table after these words."""
    rows = text[text.index(heading) :].partition("\n| --- |")[2].partition("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def objects() -> list[Json]:
    return [one for block in blocks("yaml") for one in yaml.safe_load_all(block)]


@pytest.mark.parametrize("one", objects(), ids=lambda one: f"{one['kind']} {one['metadata']['name']}")
def test_objects_can_be_applied_to_a_node_and_to_a_cluster(one: Json) -> None:
    if one["kind"] == "Role":  # the cluster's own
        return
    decode.decode_object(one)
    assert problems(one) == []
    assert schema.unknown(schema_of(one["kind"]), one) == []


def test_what_is_shown_goes_all_four_ways_and_uses_every_action() -> None:
    assert [one["kind"] for one in objects()].count("Rule") == 4
    (rule,) = (one for one in objects() if one["kind"] == "LocalRule")
    assert {name for action in rule["spec"]["actions"] for name in action} == set(RuleAction.__struct_fields__)


def test_settings_are_those_of_the_configuration() -> None:
    found = blocks("toml")
    assert len(found) > 1
    for block in found:
        config = msgspec.convert(tomllib.loads(block), Config)
        assert config.mqtt.url.startswith("mqtt")
    named = set(re.findall(r"`(mqtt\.[a-z_]+)`", BOTH)) - set(re.findall(r"`(mqtt\.[a-z_]+)`[ ;]", _log_names()))
    keys = {f"mqtt.{name}" for name in Config().mqtt.__struct_fields__}
    assert {name for name in named if name not in keys} == set()


def _log_names() -> str:
    return MQTT[MQTT.index("The log says") :].partition("\n\n")[0]


def test_names_in_the_log_are_there() -> None:
    named = re.findall(r"`((?:mqtt|push)\.[a-z_]+)`", _log_names())
    assert len(named) > 4
    sources = [path.read_text() for path in (docs.ROOT / "tinyedge").rglob("*.py")]
    assert [name for name in named if not any(f'"{name}"' in text for text in sources)] == []


# --- topics and messages -----------------------------------------------------------------------------


def test_every_topic_that_the_node_follows_is_described() -> None:
    named = [cells[0] for cells in table("## KubeEdge's topics", MQTT)]
    for topic_filter in bus.FIXED:
        words = (
            topic_filter.replace("+/+", "DEVICE").replace("device/+", "device/DEVICE").replace("node/+", "node/NODE")
        )
        words = words.replace("twin/+", "twin/update")
        assert any(f"`{words}`" in one for one in named), topic_filter


def test_a_message_and_its_result_look_as_they_are_shown() -> None:
    update, shown, push = (json.loads(block) for block in blocks("json", MQTT))
    found = site()
    found.rig.wall = update["twin"]["temperature"]["actual"]["metadata"]["timestamp"]  # else it is of the future
    found.rig.step(Published(f"{bus.DEVICE}default/pump-1/twin/update", json.dumps(_speed(update)).encode(), 1))
    _, result = told(found)[0]
    assert _shape(result) == _shape(_speed(shown))
    assert result["twin"]["temperature"]["actual"] == shown["twin"]["temperature"]["actual"]
    assert set(push) == {"namespace", "device", "property", "value", "type", "timestamp"}


def _speed(message: Json) -> Json:
    """The rig's pump has a speed where that of the document is running."""
    text = json.dumps(message).replace('"running"', '"speed"').replace('"value": "true"', '"value": "30"')
    return json.loads(text.replace('"boolean"', '"int"'))  # type: ignore[no-any-return]


def _shape(value: Any) -> Any:
    return {key: _shape(one) for key, one in value.items()} if isinstance(value, dict) else type(value).__name__


# --- expressions and bounds ----------------------------------------------------------------------------


def test_expressions_are_expressions() -> None:
    given = {
        "temperature": Input(90.0, 61.0, changed=True),
        "running": Input(True, 1.0),
        "state": Input("off", 0.0, changed=True),
        "target": Input(20.0, 1.0),
        "width": Input(3.0, 1.0),
    }
    rows = table("| expression | is |", "\n" + RULES)
    assert len(rows) > 5
    for cells in rows:
        text = cells[0].strip("`")
        value = parse(text, given).evaluate(given)
        assert value is (None if cells[1].startswith("unknown") else True), text
        assert parse(text, given).evaluate({}) is None


def test_every_operator_and_function_is_described() -> None:
    text = RULES[RULES.index("### Expressions") :].partition("\n## ")[0]
    for word in (*expression._FUNCTIONS, *expression._WORDS):
        assert re.search(rf"`{word}[`(]", text), word
    for sign in expression._COMPARES:
        assert f"`{sign}`" in text


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (limits.EXPRESSION_CHARS_MAX, "{:,} characters"),
        (limits.EXPRESSION_DEPTH_MAX, "is {} deep"),
        (limits.RULE_INPUTS_MAX, "{} inputs"),
        (limits.RULE_ACTIONS_MAX, "{} actions"),
        (limits.PUSH_TARGETS_MAX, "pushes to {} places"),
        (limits.BUS_TWINS_MAX, "message holds {}"),
    ],
)
def test_bounds_are_as_told(number: int, words: str) -> None:
    assert words.format(number) in BOTH.replace("\n", " ")


def test_every_status_of_rest_is_described() -> None:
    rows = " ".join(cells[0] for cells in table("| status | meaning |", "\n" + RULES))
    told_of = {int(word) for word in re.findall(r"\d+", rows)}
    assert {200, 401, 403, 404, 408, 413, 502, 503} | (set(_STATUS.values()) - {400, 429}) == told_of


# --- brokers -------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With what the brokers and nodes of the document need."""
    (tmp_path / "passwd").write_text("gate-7:secret-of-a-test\n")
    subprocess.run(["mosquitto_passwd", "-U", str(tmp_path / "passwd")], check=True)
    (tmp_path / "mqtt-password").write_text("secret-of-a-test\n")
    pki = Pki(tmp_path)
    (tmp_path / "mqtt-ca.pem").write_bytes(Path(pki.ca).read_bytes())
    return tmp_path


@contextmanager
def broker(folder: Path, conf: str) -> Iterator[int]:
    """Its port."""
    port = free_port()
    conf = re.sub(r"listener \d+", f"listener {port}", conf).replace("/etc/mosquitto", str(folder))
    (folder / "conf").write_text(f"{conf}\nuser root\npersistence_location {folder}/\n")
    process = subprocess.Popen([PROGRAM, "-c", str(folder / "conf")], stderr=subprocess.DEVNULL)
    try:
        _listens(port)
        yield port
    finally:
        process.terminate()
        process.wait()


@pytest.mark.mosquitto
@pytest.mark.parametrize("number", [0, 1], ids=["for the node alone", "with TLS and users"])
def test_a_broker_as_it_is_shown_takes_the_node_as_it_is_shown(folder: Path, number: int) -> None:
    with broker(folder, blocks("conf", MQTT)[number]) as port:
        toml = blocks("toml", MQTT)[number].replace("broker.plant", "localhost").replace("/etc/tinyedge", str(folder))
        toml = re.sub(r":\d+\"", f':{port}"', toml)
        settings = broker_settings(msgspec.convert(tomllib.loads(toml), Config).mqtt, "gate-7")
        assert settings is not None

        async def publish() -> None:
            with trio.fail_after(20):
                async with mqtt.connect(settings) as client:
                    await client.publish("plant/a", b"x")

        trio.run(publish)


def _listens(port: int) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise AssertionError("the broker does not listen")
