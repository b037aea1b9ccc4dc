"""Devices on the command line: lists, pages, why, and what is asked of them."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest

from tests.cli.conftest import Cli
from tests.fakes import backend as fakes
from tests.fakes.backend import device, twin
from tinyedge.events import Answer, CallMethod, DeleteObject, ReadDevice, SetDesired


def lines(text: str) -> list[str]:
    return text.rstrip("\n").split("\n")


# --- get -------------------------------------------------------------------------------------------


def test_devices_are_listed_with_who_serves_them_and_since_when_they_are_silent(cli: Cli) -> None:
    cli.backend.device_list.append(device("cold", state="", mapper="", lastOnlineTime="", problem="no mapper"))
    assert lines(cli("get", "devices").out) == [
        "NAME     MODEL        PROTOCOL   MAPPER          STATE     LAST SEEN",
        "pump-1   pump-model   modbus     driver-modbus   online    60m",
        "cold     pump-model   modbus     <none>          unknown   <unknown>",
    ]
    wide = lines(cli("get", "dev", "-o", "wide").out)
    assert wide[0].endswith("LAST SEEN   PROBLEM")
    assert wide[2].endswith("<unknown>   no mapper")


def test_models_are_listed_with_their_properties(cli: Cli) -> None:
    assert lines(cli("get", "devicemodels").out) == [
        "NAME         PROTOCOL   PROPERTIES          AGE",
        "pump-model   modbus     temperature,speed   60m",
    ]


def test_devices_are_had_as_json_and_by_name(cli: Cli) -> None:
    assert json.loads(cli("get", "device", "pump-1", "-o", "json").out) == device()
    assert cli("get", "devices,devicemodels", "-o", "name").out == "device/pump-1\ndevicemodel/pump-model\n"
    ran = cli("get", "device", "none")
    assert (ran.code, lines(ran.err)[0]) == (1, 'error: devices "none" not found in namespace default')


def test_a_watch_shows_states_and_what_was_deleted(cli: Cli) -> None:
    def change() -> None:
        changed: list[Any] = [[device(state="offline")], [], None]
        for devices in changed:
            while not cli.backend.changes.watched("devices"):
                time.sleep(0.001)
            if devices is None:
                cli.server.stop()
            else:
                cli.server.call(lambda devices=devices: setattr(cli.backend, "device_list", devices))  # type: ignore[misc]
                cli.server.call(lambda: cli.backend.changes.touch("devices"))

    worker = threading.Thread(target=change)
    worker.start()
    shown = [line.split() for line in lines(cli("get", "devices", "--watch").out)]
    worker.join()
    assert [(line[0], line[4]) for line in shown[1:]] == [
        ("pump-1", "online"),
        ("pump-1", "offline"),
        ("pump-1", "Deleted"),
    ]


# --- describe and why ------------------------------------------------------------------------------


def test_a_device_is_described_with_its_twins_methods_and_events(cli: Cli) -> None:
    event = fakes.event("DeviceOffline", "its mapper reports it offline", "Warning")
    event["involvedObject"] = {"kind": "Device", "namespace": "default", "name": "pump-1"}
    cli.backend.event_list.append(event)
    cli.backend.device_list[0]["status"]["twins"][1]["observedDesired"]["value"] = "70"
    out = lines(cli("describe", "device", "pump-1").out)
    assert out[:1] == ["Name:         pump-1"]
    assert "Last Seen:    2026-11-23T10:00:00Z (60m ago)" in out
    start = out.index("Properties:")
    assert out[start + 1 : start + 7] == [
        "  PROPERTY      TYPE     ACCESS   DESIRED              REPORTED   AGE   QUALITY   SET BY",
        "  temperature   FLOAT    ro       <none>               21.5       5s    good",
        "  speed         INT      rw       80 (not yet taken)   30         60s   good      uid 1000",
        "  label         STRING   rw       <none>               <none>           none",
        "Methods:",
        "  METHOD   PROPERTIES   DESCRIPTION",
    ]
    assert out[-1] == "  Warning   DeviceOffline   60m   its mapper reports it offline"
    assert not [line for line in out if "Started container" in line]
    assert "Problems:" not in out


def test_why_a_device_is_offline_stands_beside_its_state(cli: Cli) -> None:
    why = {"reason": "can't reach 10.0.0.7:502: Connection refused", "reasonTime": "2026-11-23T10:57:00Z"}
    cli.backend.device_list[0]["status"] |= {"state": "offline", **why}
    out = lines(cli("describe", "device", "pump-1").out)
    assert out[out.index("State:        offline") + 1] == f"Reason:       {why['reason']} (for 3m)"
    del cli.backend.device_list[0]["status"]["reasonTime"]  # the clock was not set
    assert f"Reason:       {why['reason']}" in lines(cli("describe", "device", "pump-1").out)


def test_a_value_that_is_long_or_refused_keeps_its_row(cli: Cli) -> None:
    refused = {"value": "", "metadata": {"refused": "the property is ReadOnly"}}
    cli.backend.device_list[0]["status"]["twins"] = [
        twin("speed", "INT", "30", desired="1", observedDesired=refused),
        twin("label", "STRING", "a\nb" + "x" * 100),
        twin("note", "STRING", " "),
    ]
    out = lines(cli("describe", "device/pump-1").out)
    rows = [line.split() for line in out]
    assert ["speed", "INT", "rw", "(refused)", "30", "60m", "good"] in rows
    assert ["label", "STRING", "rw", "<none>", "a", "b" + "x" * 36 + "…", "60m", "good"] in rows
    assert any(line.startswith("  note       STRING   rw       <none>      ' '") for line in out)


def test_what_is_wrong_with_a_device_stands_on_its_page_with_what_would_help(cli: Cli) -> None:
    reason = {"container": "", "what": "no mapper has registered", "why": "", "since": "", "remedy": "start one"}
    cli.backend.device_explanation = {"state": "unknown", "summary": "s", "reasons": [reason], "source": "file:/m/a"}
    out = lines(cli("describe", "devices").out)
    assert "Source:       file:/m/a" in out
    start = out.index("Problems:")
    assert out[start + 1 : start + 3] == ["• no mapper has registered", "  → start one"]


def test_why_finds_a_device_where_no_pod_has_that_name(cli: Cli) -> None:
    assert cli("why", "pump-1").out == "pump-1 is as it should be.\n"
    cli.backend.device_list.append(device("web"))
    assert cli("why", "web").out == "web runs and is ready.\n"
    assert cli("why", "device/web").out == "pump-1 is as it should be.\n"
    assert cli("why", "pod/pump-1").code == 1
    assert json.loads(cli("why", "pump-1", "-o", "json").out)["state"] == "online"


def test_why_of_a_name_that_nothing_has_says_so(cli: Cli) -> None:
    ran = cli("why", "nope", "-n", "plant")
    assert (ran.code, lines(ran.err)) == (
        1,
        [
            'error: there is no pod, device or local rule "nope" in namespace plant',
            "  → tinyedge get pods,devices,localrules -A lists them",
        ],
    )
    assert cli("why", "secret/x").code == 2


def test_a_broken_manifest_hides_no_device(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = {"state": "NotFound", "summary": "There is no pod, but some manifests could not be used.", "reasons": []}
    monkeypatch.setattr(cli.backend, "why", lambda *_: absent)
    assert cli("why", "pump-1").out == "pump-1 is as it should be.\n"
    assert cli("why", "nope").out == "There is no pod, but some manifests could not be used.\n"


# --- rules -----------------------------------------------------------------------------------------


def test_rules_are_listed_with_what_they_do(cli: Cli) -> None:
    cli.backend.localrule_list.append(fakes.localrule("idle", active=False, fired=0, result="false"))
    cli.backend.localrule_list.append(fakes.localrule("soon", active=False, holdingSeconds=2.5, problem="too far"))
    assert lines(cli("get", "localrules").out) == [
        "NAME      STATE      SINCE   FIRED   CONDITION",
        "too-hot   active     60m     3       true",
        "idle      inactive   60m     0       false",
        "soon      holding    60m     3       true",
    ]
    assert lines(cli("get", "localrules", "-o", "wide").out)[3].endswith("true        temperature > 80   too far")
    assert lines(cli("get", "rules,ruleendpoints").out)[1:2] == ["rule/alarms   edge     web      60m"]
    assert json.loads(cli("get", "rule", "alarms", "-o", "json").out) == fakes.rule()


def test_a_rule_is_explained_and_deleted(cli: Cli) -> None:
    assert cli("why", "too-hot").out == cli("why", "localrule/too-hot").out == "too-hot is active.\n"
    assert cli("delete", "localrule", "too-hot").code == 0
    assert cli("delete", "re/edge").code == 0
    assert asked(cli) == [
        DeleteObject("LocalRule", "default", "too-hot"),
        DeleteObject("RuleEndpoint", "default", "edge"),
    ]


# --- device ----------------------------------------------------------------------------------------


def asked(cli: Cli) -> list[Any]:
    return [what for _, what in cli.backend.requests]


def test_a_device_is_read(cli: Cli) -> None:
    cli.backend.answer = Answer(0, data=b'{"speed":"30"}')
    assert cli("device", "read", "pump-1", "speed").out == "PROPERTY   VALUE\nspeed      30\n"
    assert json.loads(cli("device", "read", "device/pump-1", "-o", "json").out) == {"values": {"speed": "30"}}
    assert asked(cli) == [ReadDevice("default", "pump-1", "speed"), ReadDevice("default", "pump-1")]
    cli.backend.answer = Answer(0, data=b"{}")
    assert cli("device", "read", "pump-1").out == "The device has told no value.\n"


def test_properties_are_written_one_after_the_other(cli: Cli) -> None:
    cli.backend.answer = Answer(0, message="it is set")
    assert cli("device", "write", "pump-1", "speed=80", "label=a=b").out == "it is set\nit is set\n"
    assert asked(cli) == [
        SetDesired("default", "pump-1", "speed", "80"),
        SetDesired("default", "pump-1", "label", "a=b"),
    ]
    told = json.loads(cli("device", "write", "pump-1", "speed=80", "-o", "json").out)
    assert told == {"written": [{"property": "speed", "value": "80", "message": "it is set"}]}


def test_what_one_property_is_refused_keeps_none_of_the_others(cli: Cli) -> None:
    ran = cli("device", "write", "pump-1", "colour=red", "speed=80")
    assert ran.code == 1
    assert lines(ran.err) == [
        'error: device "pump-1" has no property "colour"',
        "  → it has: temperature, speed, label",
    ]
    assert asked(cli) == [SetDesired("default", "pump-1", "speed", "80")]


def test_a_refused_write_says_where_to_look(cli: Cli) -> None:
    cli.backend.answer = Answer(0, "speed of default/pump-1 can't be set: '101' is not at most 100")
    assert lines(cli("device", "write", "pump-1", "speed=101").err) == [
        "error: speed of default/pump-1 can't be set: '101' is not at most 100",
        "  → see what it takes and has: tinyedge describe device -n default pump-1",
    ]


def test_what_was_set_on_site_is_taken_back(cli: Cli) -> None:
    cli.backend.answer = Answer(0, message="it is as the manifest wants it")
    assert cli("device", "write", "pump-1", "speed", "label", "--clear").out == (
        "it is as the manifest wants it\nit is as the manifest wants it\n"
    )
    assert asked(cli) == [
        SetDesired("default", "pump-1", "speed", None),
        SetDesired("default", "pump-1", "label", None),
    ]
    assert cli("device", "write", "pump-1", "colour", "--clear").code == 1
    assert cli("device", "write", "pump-1", "speed=1", "--clear").code == 2
    assert cli("device", "write", "pump-1", "--clear").code == 2
    assert cli("device", "read", "pump-1", "--clear").code == 2


def test_a_method_is_called(cli: Cli) -> None:
    cli.backend.answer = Answer(0, message="done")
    assert cli("device", "call", "pump-1", "reset").out == "reset of pump-1: done\n"
    cli.backend.answer = Answer(0, message="speed = 0", data=b'{"speed":"0"}')
    assert cli("device", "call", "pump-1", "reset", "speed=0").out == "PROPERTY   VALUE\nspeed      0\n"
    assert asked(cli) == [
        CallMethod("default", "pump-1", "reset", {}),
        CallMethod("default", "pump-1", "reset", {"speed": "0"}),
    ]
    told = json.loads(cli("device", "call", "pump-1", "reset", "-o", "json").out)
    assert told == {"message": "speed = 0", "values": {"speed": "0"}}


def test_the_values_that_wait_here_are_shown_with_their_times(cli: Cli) -> None:
    assert lines(cli("device", "history", "pump-1").out) == [
        "TIME                       PROPERTY      VALUE",
        "2026-11-23T10:00:00.000Z   temperature   21.5",
        "2026-11-23T10:00:05.000Z   speed         30",
    ]
    cli.backend.values[0]["clock"] = "untrusted"
    assert lines(cli("device", "history", "pump-1", "temperature").out)[1] == (
        "2026-11-23T10:00:00.000Z (clock not set)   temperature   21.5"
    )
    found = json.loads(cli("device", "history", "pump-1", "--tail", "1", "-o", "json").out)
    assert (found["items"], found["complete"]) == (cli.backend.values[1:], False)


def test_without_values_it_is_told_which_are_kept(cli: Cli) -> None:
    ran = cli("device", "history", "pump-1", "label")
    assert (ran.code, ran.out) == (0, "")
    assert "tinyedge.io/history" in ran.err


@pytest.mark.parametrize(
    "words",
    [
        ("read",),
        ("frob", "pump-1"),
        ("write", "pump-1"),
        ("write", "pump-1", "speed"),
        ("write", "pump-1", "=80"),
        ("write", "pump-1", "a/b=80"),
        ("call", "pump-1"),
        ("call", "pump-1", "speed=0"),
        ("call", "pump-1", "reset", "speed"),
        ("read", "pod/web"),
        ("read", "pump-1", "--tail", "5"),
        ("history", "pump-1", "--tail", "soon"),
        ("history", "pump-1", "speed", "label"),
    ],
)
def test_wrong_use_of_device_is_wrong_usage(cli: Cli, words: tuple[str, ...]) -> None:
    assert cli("device", *words).code == 2
    assert cli.backend.requests == []


# --- apply and delete ------------------------------------------------------------------------------


def test_a_device_is_deleted_by_name(cli: Cli) -> None:
    assert cli("delete", "device", "pump-1").out == 'device "pump-1" deleted\n'
    assert cli("delete", "devicemodel/pump-model").code == 0
    assert asked(cli) == [
        DeleteObject("Device", "default", "pump-1"),
        DeleteObject("DeviceModel", "default", "pump-model"),
    ]
