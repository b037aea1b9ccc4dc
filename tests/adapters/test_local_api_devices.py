"""Devices over the local API: lists, watches, and what is asked of them and may take long."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.adapters.test_local_api import Client, Rig, served
from tests.fakes import backend as fakes
from tests.fakes.backend import MARKER
from tinyedge import limits
from tinyedge.events import Answer, Apply, CallMethod, DeleteObject, ReadDevice, SetDesired

PUMP = "/v1/namespaces/default/devices/pump-1"


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with served(tmp_path) as rig:
        yield rig


# --- looking ---------------------------------------------------------------------------------------


async def test_devices_and_models_are_listed_in_the_shape_of_kubernetes(rig: Rig) -> None:
    rig.backend.device_list.append(fakes.device("cold", "plant"))
    everywhere = await rig.get("/v1/devices")
    assert (everywhere["apiVersion"], everywhere["kind"]) == (fakes.DEVICES_API, "DeviceList")
    assert everywhere["items"] == rig.backend.device_list
    assert (await rig.get("/v1/namespaces/plant/devices"))["items"] == rig.backend.device_list[1:]
    assert (await rig.get("/v1/namespaces/elsewhere/devices"))["items"] == []
    assert await rig.get(PUMP) == rig.backend.device_list[0]
    models = await rig.get("/v1/namespaces/default/devicemodels")
    assert (models["apiVersion"], models["kind"], models["items"]) == (
        fakes.DEVICES_API,
        "DeviceModelList",
        [fakes.devicemodel()],
    )
    assert await rig.get("/v1/namespaces/default/devicemodels/pump-model") == fakes.devicemodel()


async def test_rules_are_listed_explained_and_deleted(rig: Rig) -> None:
    for kind, item in (
        ("localrules", fakes.localrule()),
        ("rules", fakes.rule()),
        ("ruleendpoints", fakes.ruleendpoint()),
    ):
        found = await rig.get(f"/v1/{kind}")
        assert (found["apiVersion"], found["items"]) == (item["apiVersion"], [item])
        name = item["metadata"]["name"]
        assert await rig.get(f"/v1/namespaces/default/{kind}/{name}") == item
        assert (await rig.ask("DELETE", f"/v1/namespaces/default/{kind}/{name}"))[0] == 200
    assert (await rig.get("/v1/namespaces/default/localrules/too-hot/why"))["state"] == "Active"
    assert (await rig.ask("GET", "/v1/namespaces/default/localrules/none/why"))[0] == 404
    body = json.dumps({"items": [fakes.localrule("new")]}).encode()
    status, answer, _ = await rig.ask("POST", "/v1/apply", body)
    assert (status, answer["objects"][0]["kind"]) == (200, "localrules")


async def test_a_node_without_devices_has_an_empty_list(rig: Rig) -> None:
    rig.backend.device_list = []
    assert (await rig.get("/v1/devices"))["items"] == []


async def test_a_long_list_is_made_while_it_is_sent(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def devices() -> Iterator[dict[str, Any]]:
        for n in range(1000):
            made.append(f"pump-{n}")
            yield fakes.device(f"pump-{n}")

    monkeypatch.setattr(rig.backend, "devices", devices)
    stream = await trio.open_unix_socket(rig.path)
    async with stream:
        client = Client(stream)
        await client.send("GET", "/v1/devices")
        await client.head()
        await trio.testing.wait_all_tasks_blocked()
        assert 0 < len(made) < 1000  # as many as the socket takes
        body, _ = await client.body()
    assert [one["metadata"]["name"] for one in json.loads(body)["items"]] == made


async def test_a_secret_in_a_device_is_taken_out_of_a_list_for_others(rig: Rig) -> None:
    rig.backend.device_list[0]["spec"]["protocol"]["configData"]["password"] = MARKER
    assert MARKER in json.dumps(await rig.get("/v1/devices"))
    found = await rig.get("/v1/devices?redact=1")
    assert found["items"][0]["spec"]["protocol"]["configData"]["password"] == "<redacted>"


async def test_a_watch_of_devices_sends_what_changes(rig: Rig) -> None:
    stream = await trio.open_unix_socket(rig.path)
    async with stream:
        client = Client(stream)
        await client.send("GET", "/v1/namespaces/default/devices?watch=1")
        await client.head()
        first = json.loads((await client.event()).data)
        assert (first["type"], first["object"]) == ("ADDED", fakes.device())
        rig.backend.device_list = [fakes.device(state="offline")]
        rig.backend.changes.touch("devices")
        changed = json.loads((await client.event()).data)
        assert (changed["type"], changed["object"]["status"]["state"]) == ("MODIFIED", "offline")


async def test_why_and_history_of_a_device_are_told(rig: Rig) -> None:
    assert (await rig.get(f"{PUMP}/why"))["state"] == "online"
    found = await rig.get(f"{PUMP}/history?property=speed&limit=5")
    assert ([one["value"] for one in found["items"]], found["complete"]) == (["30"], True)
    assert (await rig.get(f"{PUMP}/history?limit=1"))["complete"] is False


@pytest.mark.parametrize(
    ("method", "target", "status", "what"),
    [
        ("GET", "/v1/namespaces/default/devices/none", 404, 'devices "none" not found in namespace default'),
        ("GET", "/v1/namespaces/default/devices/none/why", 404, 'devices "none" not found'),
        ("GET", "/v1/namespaces/plant/devices/pump-1", 404, 'devices "pump-1" not found in namespace plant'),
        ("GET", f"{PUMP}/history?property=colour", 404, 'device "pump-1" has no property "colour"'),
        ("POST", f"{PUMP}/read?property=colour", 404, 'device "pump-1" has no property "colour"'),
        ("POST", f"{PUMP}/properties/colour", 404, 'device "pump-1" has no property "colour"'),
        ("POST", "/v1/namespaces/default/devices/none/methods/reset", 404, 'devices "none" not found'),
        ("DELETE", "/v1/namespaces/default/devices/none", 404, 'devices "none" not found'),
        ("GET", f"{PUMP}/read", 405, f"GET {PUMP}/read is not possible"),
    ],
)
async def test_what_is_not_there_is_named(rig: Rig, method: str, target: str, status: int, what: str) -> None:
    got, body, _ = await rig.ask(method, target, b'{"value": "1"}')
    assert got == status
    assert body["what"].startswith(what)
    assert rig.backend.requests == []


# --- changing --------------------------------------------------------------------------------------


async def test_a_device_and_its_model_are_applied_and_deleted(rig: Rig) -> None:
    device = fakes.device("new")
    body = json.dumps({"items": [fakes.devicemodel(), device]}).encode()
    status, answer, _ = await rig.ask("POST", "/v1/apply", body)
    assert status == 200, answer
    assert [(one["kind"], one["name"], one["created"]) for one in answer["objects"]] == [
        ("devicemodels", "pump-model", False),
        ("devices", "new", True),
    ]
    assert isinstance(rig.backend.requests[0][1], Apply)
    assert (await rig.ask("DELETE", PUMP))[0] == 200
    assert (await rig.ask("DELETE", "/v1/namespaces/default/devicemodels/pump-model"))[0] == 200
    assert [what for _, what in rig.backend.requests[1:]] == [
        DeleteObject("Device", "default", "pump-1"),
        DeleteObject("DeviceModel", "default", "pump-model"),
    ]


@pytest.mark.parametrize(("value", "text"), [("80", "80"), (80, "80"), (1.5, "1.5"), (True, "true"), ("", "")])
async def test_a_property_is_written_in_the_callers_name(rig: Rig, value: object, text: str) -> None:
    rig.backend.answer = Answer(0, message="speed is set")
    status, answer, _ = await rig.ask("POST", f"{PUMP}/properties/speed", json.dumps({"value": value}).encode())
    assert (status, answer) == (200, {"message": "speed is set"})
    assert rig.backend.requests == [(os.getuid(), SetDesired("default", "pump-1", "speed", text))]


async def test_a_device_is_read_whole_or_by_one_property(rig: Rig) -> None:
    rig.backend.answer = Answer(0, message="speed = 30", data=b'{"speed":"30"}')
    status, answer, _ = await rig.ask("POST", f"{PUMP}/read?property=speed")
    assert (status, answer) == (200, {"message": "speed = 30", "values": {"speed": "30"}})
    assert (await rig.ask("POST", f"{PUMP}/read"))[0] == 200
    assert [what for _, what in rig.backend.requests] == [
        ReadDevice("default", "pump-1", "speed"),
        ReadDevice("default", "pump-1"),
    ]


async def test_a_method_is_called_with_and_without_arguments(rig: Rig) -> None:
    rig.backend.answer = Answer(0, message="done")
    status, answer, _ = await rig.ask("POST", f"{PUMP}/methods/reset", b'{"arguments": {"speed": 0}}')
    assert (status, answer) == (200, {"message": "done", "values": {}})
    assert (await rig.ask("POST", f"{PUMP}/methods/reset"))[0] == 200
    assert [what for _, what in rig.backend.requests] == [
        CallMethod("default", "pump-1", "reset", {"speed": "0"}),
        CallMethod("default", "pump-1", "reset", {}),
    ]


@pytest.mark.parametrize(
    ("target", "body"),
    [
        ("properties/speed", b""),
        ("properties/speed", b"80"),
        ("properties/speed", b'{"value": [1]}'),
        ("properties/speed", b'{"value": null}'),
        ("properties/speed", b'{"value": 1, "more": 2}'),
        ("properties/speed", b"[" * 100_000),
        ("methods/reset", b'{"arguments": ["speed"]}'),
        ("methods/reset", b'{"arguments": {"speed": {}}}'),
        ("methods/reset", b'{"speed": 1}'),
    ],
)
async def test_a_body_that_does_not_decode_asks_nothing_of_a_device(rig: Rig, target: str, body: bytes) -> None:
    assert (await rig.ask("POST", f"{PUMP}/{target}", body))[0] == 400
    assert rig.backend.requests == []


async def test_a_refusal_says_why_and_where_to_look(rig: Rig) -> None:
    rig.backend.answer = Answer(0, "speed of default/pump-1 can't be set: '101' is not at most 100")
    status, body, _ = await rig.ask("POST", f"{PUMP}/properties/speed", b'{"value": "101"}')
    assert (status, body["what"]) == (409, "speed of default/pump-1 can't be set: '101' is not at most 100")
    assert body["remedy"] == "see what it takes and has: tinyedge describe device -n default pump-1"


async def test_what_was_set_on_the_node_is_taken_back_by_a_delete(rig: Rig) -> None:
    rig.backend.answer = Answer(0, message="speed is 30")
    status, answer, _ = await rig.ask("DELETE", f"{PUMP}/properties/speed")
    assert (status, answer) == (200, {"message": "speed is 30"})
    assert rig.backend.requests == [(os.getuid(), SetDesired("default", "pump-1", "speed", None))]
    assert (await rig.ask("DELETE", f"{PUMP}/properties/colour"))[0] == 404


async def test_a_device_that_hangs_keeps_nobody_and_says_that_it_goes_on(
    rig: Rig, autojump_clock: trio.testing.MockClock
) -> None:
    rig.backend.device_answers = False
    before = trio.current_time()
    status, body, _ = await rig.ask("POST", f"{PUMP}/read")
    assert trio.current_time() - before == pytest.approx(limits.API_DEVICE_S)
    assert (status, body["reason"]) == (504, "Timeout")
    assert body["what"] == "device pump-1 has not answered within 30 s"
    assert "goes on" in body["why"]
    assert rig.notes[-1][2]["outcome"].startswith("device pump-1 has not answered")


@pytest.mark.parametrize(
    ("target", "body", "key", "shown"),
    [
        ("properties/speed", b'{"value": "80"}', "api.device.write", {"property": "speed", "value": "80"}),
        ("read?property=speed", b"", "api.device.read", {"property": "speed"}),
        ("methods/reset", b"", "api.device.call", {"method": "reset"}),
    ],
)
async def test_what_is_asked_of_a_device_is_logged_with_who_asks(
    rig: Rig, target: str, body: bytes, key: str, shown: dict[str, str]
) -> None:
    assert (await rig.ask("POST", f"{PUMP}/{target}", body))[0] == 200
    [(level, got, fields)] = rig.notes
    assert (level, got) == ("info", key)
    who = {"target": "devices/default/pump-1", "uid": os.getuid(), "pid": os.getpid(), "outcome": "ok"}
    assert fields == who | shown
