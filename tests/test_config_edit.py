"""Values of a configuration file changed from afar: what else stands in it stays, and nothing wrong is written."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyedge import config
from tinyedge.config_edit import PROTECTED, changed, read
from tinyedge.errors import BadInput, TinyEdgeError

PACKAGED = (Path(__file__).resolve().parent.parent / "packaging" / "tinyedge.toml").read_bytes()
FILE = b"""\
# our gateways
[log]
level = "info"   # as loud as it needs
format = "human"

[cloud]
heartbeat_s = 30
"""


def change(fields: dict[str, str], text: bytes = FILE, overrides: tuple[str, ...] = ()) -> str:
    return changed(text, fields, "f", overrides).decode()


def test_one_line_changes_and_the_rest_stays() -> None:
    assert change({"log.level": "debug"}) == FILE.decode().replace(
        'level = "info"   # as loud as it needs', 'level = "debug"'
    )


def test_a_new_key_goes_into_its_section_and_a_new_section_to_the_end() -> None:
    found = change({"cloud.telemetry_kb_s": "64", "images.pull_parallel": "1", "mqtt.twin_events": "false"})
    assert "[cloud]\ntelemetry_kb_s = 64\nheartbeat_s = 30\n" in found
    assert found.endswith("\n[images]\npull_parallel = 1\n\n[mqtt]\ntwin_events = false\n")
    assert found.startswith("# our gateways\n")


def test_a_list_is_written_as_one() -> None:
    assert 'cluster_dns = ["1.1.1.1", "9.9.9.9"]' in change({"node.cluster_dns": "1.1.1.1,9.9.9.9"})


def test_what_is_so_already_changes_nothing() -> None:
    assert change({"log.level": "info"}) == FILE.decode()
    assert change({"mqtt.user": ""}) == FILE.decode(), "a default need not stand there"


@pytest.mark.parametrize("key", sorted(PROTECTED))
def test_who_and_where_a_node_is_and_who_has_power_over_it_can_not_be_changed_from_afar(key: str) -> None:
    with pytest.raises(BadInput, match=f"^{re.escape(key)}.*changed on site"):
        change({key: "/x"})


def test_no_job_opens_a_socket_a_folder_or_a_device_to_whoever_is_on_site() -> None:
    """Whoever adds a key like these decides whether a job may change it."""
    known = [key for key, _, _ in config.described()]
    opening = re.compile(r"^(api|dmi)\.|^watchdog\.device$|(_dir|_dirs|\.path|_path|\.paths|join_files|group|socket)$")
    assert [key for key in known if opening.search(key) and key not in PROTECTED] == []
    assert set(known) > PROTECTED


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"modules.edgeStream.enable": "true"}, "section"),
        ({"log.colour": "red"}, r"log\.colour"),
        ({"log.level": "loud"}, r"log\.level"),
        ({"cloud.heartbeat_s": "1"}, r"cloud\.heartbeat_s"),
        ({"cloud.heartbeat_s": "many"}, r"cloud\.heartbeat_s"),
        ({"mqtt.twin_events": "maybe"}, r"mqtt\.twin_events"),
        ({"nothing": "x"}, "section.key=value"),
        ({"": "x"}, "section.key=value"),
        ({"images.gc_low_percent": "99"}, "gc_high_percent"),
        ({"outbound.allow": "not an address!"}, "outbound"),
        ({"log.level": 'debug"\n[node]\nname = "evil'}, r"log\.level"),
    ],
)
def test_what_is_not_right_is_refused_by_name(fields: dict[str, str], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        change(fields)


def test_what_the_command_line_sets_can_not_be_changed_in_the_file() -> None:
    with pytest.raises(BadInput, match="--set"):
        change({"log.level": "debug"}, overrides=("log.level=error",))


def test_keys_of_a_newer_version_are_in_nobodys_way_and_stay() -> None:
    found = change({"log.level": "debug"}, FILE + b"[later]\nx = 1\n")
    assert tomllib.loads(found)["later"] == {"x": 1}
    assert tomllib.loads(found)["log"]["level"] == "debug"
    with pytest.raises(BadInput, match=r"later\.x|section"):
        change({"later.x": "2"}, FILE + b"[later]\nx = 1\n")


def test_a_file_that_is_broken_already_is_left_alone() -> None:
    with pytest.raises(TinyEdgeError, match="not valid TOML"):
        change({"log.level": "debug"}, b"[log\n")


@pytest.mark.parametrize(
    "text",
    [
        b'log = {level = "info"}\n',
        b'log.level = "info"\n',
        b'[log]\nlevel = """\ninfo"""\n'.replace(b'"""\ninfo"""', b'"info"'),
        b'[node]\ncluster_dns = [\n  "/a",\n  "/b",\n]\n[log]\nlevel = "info"\n',
        b"",
        b"# nothing\n",
        b'[log]\n"level" = "info"',
    ],
)
def test_however_a_file_is_written_it_reads_as_wanted(text: bytes) -> None:
    found = change({"log.level": "debug", "node.cluster_dns": "/c"}, text)
    assert tomllib.loads(found)["log"]["level"] == "debug"
    assert tomllib.loads(found)["node"]["cluster_dns"] == ["/c"]


SAMPLES = {bool: ("true", "false"), int: ("1", "7", "60", "4096"), tuple: ("", "/a", "/a,/b")}
TEXTS = ("", "/x", "name", "wss://h:1", "http://h:1", "debug", "json", "5", "mqtt://h", "*")


@pytest.mark.parametrize(("key", "default"), [(key, default) for key, default, _ in config.described()])
def test_each_key_is_changed_as_the_command_line_would_or_not_at_all(key: str, default: object) -> None:
    section, _, name = key.partition(".")
    samples = next((found for kind, found in SAMPLES.items() if isinstance(default, kind)), TEXTS)
    for value in samples:
        try:
            wanted = config.build(config.with_values(tomllib.loads(PACKAGED.decode()), [f"{key}={value}"]))
        except BadInput:
            with pytest.raises(BadInput):
                change({key: value}, PACKAGED)
            continue
        if key in PROTECTED:
            continue
        found = read(change({key: value}, PACKAGED).encode(), "f")
        assert getattr(getattr(found, section), name) == getattr(getattr(wanted, section), name)
        assert found == wanted


@given(st.text(max_size=60))
def test_no_text_escapes_its_quotes(value: str) -> None:
    try:
        found = change({"mqtt.user": value, "node.cluster_dns": value})
    except BadInput:
        return
    table = tomllib.loads(found)
    assert table["log"] == {"level": "info", "format": "human"}
    if value:
        assert table["mqtt"]["user"] == value
    assert set(table) <= {"log", "cloud", "mqtt", "node"}
