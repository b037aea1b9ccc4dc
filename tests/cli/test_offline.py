"""inspect, doctor and blackbox on a real store; the support bundle; and that no secret is in any output."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.fakes.backend import MARKER
from tinyedge.cli.commands import COMMANDS
from tinyedge.events import Append, Put
from tinyedge.store.blackbox import BlackBox
from tinyedge.store.disk import Disk
from tinyedge.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A store with a pod, a secret and a series, cleanly closed; and a black box."""
    path = str(tmp_path / "store")
    opened = Store.open(path)
    opened.commit(
        [
            Put("pod", "default/web", b"\x01\x81\xa4name\xa3web"),
            Put("secret", "default/login", b"\x81\xa8password\xc4" + bytes([len(MARKER)]) + MARKER.encode()),
            Append("events", b"x"),
        ],
        wall_ms=0,
    )
    opened.close()
    box = BlackBox.open(f"{path}/blackbox")
    box.record("boot", {"reason": "power"}, 1_795_428_000_000, "b-1")
    box.record("pod.exit", {"pod": "default/web", "code": 137}, 0, "b-1")
    box.close()
    return path


def test_inspect_shows_what_is_in_a_store(cli: Cli, store: str) -> None:
    out = cli("inspect", store).out
    assert f"Store:             {store}" in out
    assert "Last end:          clean" in out
    assert [line.split() for line in out.split("\n") if line.startswith(("pod ", "secret ", "events "))] == [
        ["pod", "1", "11", "B"],
        ["secret", "1", "35", "B"],
        ["events", "1", "1", "0", "0"],
    ]
    assert json.loads(cli("inspect", store, "-o", "json").out)["sequence"] >= 1


def test_inspect_goes_into_a_table_a_value_and_a_segment(cli: Cli, store: str) -> None:
    assert "default/web   11 B" in cli("inspect", store, "--table", "pod").out
    assert json.loads(cli("inspect", store, "--value", "pod/default/web").out) == {
        "version": 1,
        "row": {"name": "web"},
    }
    segment = json.loads(cli("inspect", store, "-o", "json").out)["segments"][0]["number"]
    assert cli("inspect", store, "--records", str(segment)).code == 0
    assert "there are: pod, secret" in cli("inspect", store, "--table", "x").err


@pytest.mark.parametrize("key", ["secret/default/login", "token/5d1e 0a"])
def test_a_value_of_a_secret_is_refused(cli: Cli, store: str, key: str) -> None:
    ran = cli("inspect", store, "--value", key)
    assert (ran.code, ran.out) == (1, "")
    assert "values of secrets are not shown" in ran.err


def test_a_folder_without_a_store_is_told(cli: Cli, tmp_path: Path) -> None:
    ran = cli("inspect", str(tmp_path))
    assert (ran.code, "there is no store in" in ran.err) == (1, True)


def test_doctor_says_what_is_wrong_and_what_to_do(cli: Cli, store: str) -> None:
    assert cli("doctor", store).out == f"{store}: nothing is wrong with it; 2 objects, last commit 1.\n"
    (Path(store) / "reserve").unlink()
    ran = cli("doctor", store)
    assert ran.code == 1
    assert "• the reserve is not there: on a full disk there is no room to delete\n  → free space\n" in ran.out
    told = json.loads(cli("doctor", store, "-o", "json").out)
    assert (told["healthy"], told["problems"][0]["kind"]) == (False, "no-reserve")


def test_the_black_box_is_read_from_the_daemon_or_from_its_file(cli: Cli, store: str) -> None:
    assert "pod.exit   pod=default/web container=web exitCode=137" in cli("blackbox").out
    out = cli("blackbox", store).out
    assert "boot       reason=power" in out
    assert "(clock not set)" in out
    assert [e["kind"] for e in json.loads(cli("blackbox", store, "--tail", "1", "-o", "json").out)["items"]] == [
        "pod.exit"
    ]
    cli.server.stop()
    assert cli("blackbox", "--set", f"store.path={store}").out == out
    ran = cli("blackbox", "--set", "store.path=/nowhere")
    assert (ran.code, "there is no black box" in ran.err) == (1, True)


# --- the support bundle ----------------------------------------------------------------------------


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        files = {m.name.partition("/")[2]: archive.extractfile(m) for m in archive.getmembers()}
        return {name: file.read() for name, file in files.items() if file}


def plant(cli: Cli) -> None:
    """The secret's value everywhere that an application or a person might put it."""
    backend = cli.backend
    pod = backend.pod_list[0]
    pod["spec"]["containers"][0]["env"].append({"name": "COPY", "value": f"x{MARKER}y"})
    pod["spec"]["containers"][0]["env"].append({"name": "API_KEY", "value": "literal-key-in-a-manifest"})
    pod["metadata"]["annotations"] = {"kubectl.kubernetes.io/last-applied-configuration": f'{{"data": "{MARKER}"}}'}
    backend.configmap_list[0]["data"] = {"config": f"password={MARKER}", "other": "mostly harmless"}
    backend.event_list[0]["message"] = f"probe said {MARKER}"
    backend.device_list[0]["spec"]["protocol"]["configData"] |= {"user": MARKER, "password": "literal-of-a-device"}
    call = {"url": "http://collector", "headers": {"Authorization": "literal-of-a-rule"}}
    backend.localrule_list[0]["spec"]["actions"] = [{"http": call}]
    backend.device_list[0]["status"]["problem"] = f"its mapper does not take it: {MARKER}"
    backend.status_object["runtime"]["message"] = f"said {MARKER}"


def test_a_bundle_holds_what_support_needs(cli: Cli, store: str, tmp_path: Path) -> None:
    file = tmp_path / "bundle.tar.gz"
    ran = cli("collect", str(file), "--set", f"store.path={store}")
    assert ran.code == 0
    assert ran.out.startswith(f"{file}: ")
    assert file.stat().st_mode & 0o777 == 0o600
    found = members(file)
    assert {
        "README.txt",
        "status.json",
        "pods.json",
        "events.json",
        "secrets.json",
        "configmaps.json",
        "metrics.txt",
        "why/default_web.json",
        "logs/default_web/web.log",
        "config.toml",
        "check.txt",
        "store/look.json",
        "machine/meminfo",
    } <= set(found)
    assert b"listening on 8080" in found["logs/default_web/web.log"]
    assert f'path = "{store}"' in found["config.toml"].decode()


def test_a_bundle_never_holds_a_secrets_value(cli: Cli, store: str, tmp_path: Path) -> None:
    plant(cli)
    file = tmp_path / "bundle.tar.gz"
    assert cli("collect", str(file), "--set", f"store.path={store}").code == 0
    found = members(file)
    assert [name for name, data in found.items() if MARKER.encode() in data] == []
    assert [name for name, data in found.items() if b"literal-key-in-a-manifest" in data] == []
    assert [name for name, data in found.items() if b"mostly harmless" in data] == []
    assert [name for name, data in found.items() if b"literal-of-a-" in data] == []
    assert json.loads(found["rules.json"])["items"][0]["metadata"]["name"] == "alarms"
    assert json.loads(found["devices.json"])[0]["spec"]["protocol"]["configData"]["port"] == 502
    assert "why/device_default_pump-1.json" in found
    assert json.loads(found["configmaps.json"])[0]["keys"]["other"] == len("mostly harmless")
    assert b"<redacted>" in found["logs/default_web/web.log"]


def test_a_bundle_is_made_while_the_daemon_is_down_and_says_what_is_missing(
    cli: Cli, store: str, tmp_path: Path
) -> None:
    cli.server.stop()
    file = tmp_path / "bundle.tar.gz"
    assert cli("collect", str(file), "--set", f"store.path={store}", "--set", "node.name=gate-7").code == 0
    found = members(file)
    assert {"README.txt", "missing.txt", "config.toml", "store/look.json", "blackbox.json"} <= set(found)
    assert not any(name.startswith("logs/") for name in found)
    assert b"everything that the daemon tells" in found["missing.txt"]
    assert [name for name, data in found.items() if MARKER.encode() in data] == []


# --- secrets, once more ----------------------------------------------------------------------------

SHOWN = (
    ("get", "pods,nodes,configmaps,secrets,images,events,devices,devicemodels", "-o", "json"),
    ("get", "localrules,rules,ruleendpoints", "-o", "json"),
    ("get", "secrets", "-o", "yaml"),
    ("get", "secret", "login", "-o", "wide"),
    ("get", "secret/login"),
    ("describe", "pod", "web"),
    ("describe", "pod", "web", "-o", "yaml"),
    ("describe", "node"),
    ("top", "pods"),
    ("why", "web"),
    ("why", "pump-1"),
    ("describe", "device", "pump-1"),
    ("device", "read", "pump-1"),
    ("device", "write", "pump-1", "speed=80"),
    ("device", "call", "pump-1", "reset"),
    ("device", "history", "pump-1"),
    ("status",),
    ("status", "-o", "json"),
    ("image", "ls"),
    ("config",),
    ("version",),
    ("blackbox",),
    ("check",),
    ("apply", "-f", "SECRET"),
    ("delete", "-f", "SECRET"),
    ("inspect", "STORE"),
    ("inspect", "STORE", "-o", "json"),
    ("inspect", "STORE", "--table", "secret"),
    ("inspect", "STORE", "--value", "secret/default/login"),
    ("inspect", "STORE", "--records", "1"),
    ("doctor", "STORE"),
    ("doctor", "STORE", "-o", "json"),
)


@pytest.mark.parametrize("words", SHOWN, ids=" ".join)
def test_no_command_shows_a_secrets_value(cli: Cli, store: str, tmp_path: Path, words: tuple[str, ...]) -> None:
    manifest = tmp_path / "secret.yaml"
    manifest.write_text(f"kind: Secret\nmetadata: {{name: login}}\nstringData: {{password: {MARKER}}}\n")
    places = {"STORE": store, "SECRET": str(manifest)}
    ran = cli(*(places.get(word, word) for word in words))
    assert ran.out or ran.err
    assert MARKER not in ran.out + ran.err
    assert MARKER not in json.dumps(cli.notes)


def test_every_command_is_looked_at_for_secrets_or_has_a_reason_not_to() -> None:
    elsewhere = {
        "logs": "shows what a container wrote, whatever that is",
        "exec": "shows what a command wrote",
        "attach": "shows what a process wrote",
        "port-forward": "carries bytes",
        "run": "is the daemon",
        "demo": "has no secret",
        "collect": "above",
        "completion": "is text",
        "restart": "shows a name",
        "release": "shows names",
        "join": "sends a token, and shows names",
        "leave": "shows a name",
        "upgrade": "shows versions",
        "confirm": "shows a version",
    }
    assert {command.name for command in COMMANDS} == {words[0] for words in SHOWN} | set(elsewhere)


def test_a_bad_secret_manifest_is_explained_without_its_content(cli: Cli, tmp_path: Path) -> None:
    manifest = tmp_path / "secret.yaml"
    manifest.write_text(f"kind: Secret\nmetadata: {{name: login}}\ndata: {{password: {MARKER}: x}}\n")
    ran = cli("apply", "-f", str(manifest))
    assert ran.code == 1
    assert MARKER not in ran.out + ran.err


def test_output_that_nobody_reads_to_the_end_is_no_error(cli: Cli) -> None:
    cli.backend.log_lines["web"] = [b"x" * 1000 + b"\n"] * 1000
    program = subprocess.Popen(
        [sys.executable, "-m", "tinyedge", "--socket", cli.socket, "logs", "web"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert program.stdout
    assert program.stdout.readline() == b"x" * 1000 + b"\n"
    program.stdout.close()
    assert program.stderr
    assert (program.stderr.read(), program.wait(60)) == (b"", 141)
    program.stderr.close()


@pytest.mark.parametrize("words", [("doctor",), ("inspect",), ("inspect", "--value", "pod/default/web")])
def test_a_disk_that_can_not_be_read_is_told_with_a_remedy(
    cli: Cli, store: str, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    def fail(self: Disk, path: str, *, write: bool = True, create: bool = False) -> int:
        raise OSError(errno.EIO, "Input/output error", path)

    monkeypatch.setattr(Disk, "open", fail)
    done = cli(words[0], store, *words[1:])
    assert done.code == 1
    assert done.err == (
        f"error: can't read the store {store}: Input/output error\n"
        "  → check the storage device: dmesg tells what the kernel says of it\n"
    )
