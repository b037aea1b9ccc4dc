"""The configuration is read once, checked once, and says which key is wrong and what would be right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tinyedge import config
from tinyedge.errors import BadInput, TinyEdgeError


def test_an_empty_file_and_no_file_give_defaults_that_work(tmp_path: Path) -> None:
    (tmp_path / "empty.toml").touch()
    assert config.load(str(tmp_path / "empty.toml")) == config.Config()
    assert config.Config().runtime.kind == "containerd"


def test_a_key_of_the_command_line_goes_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "tinyedge.toml"
    path.write_text('[node]\nname = "from-file"\n[logs]\ncontainer_files = 4\n')
    loaded = config.load(str(path), ["node.name=from-line", "manifests.paths=/a,/b"])
    assert loaded.node.name == "from-line"
    assert loaded.logs.container_files == 4
    assert loaded.manifests.paths == ("/a", "/b")


def test_the_process_runtime_does_not_take_the_place_of_containerds_socket() -> None:
    assert config.build({}, ["runtime.kind=process"]).runtime.endpoint == config.PROCESSES
    given = config.build({}, ["runtime.kind=process", "runtime.endpoint=/srv/state"])
    assert given.runtime.endpoint == "/srv/state"


@pytest.mark.parametrize(
    ("override", "field", "expected"),
    [
        ("node.nam=x", "node.nam", "name, "),
        ("nod.name=x", "section", "node, "),
        ("series.bytes_max=many", "series.bytes_max", "`int`"),
        ("series.bytes_max=1", "series.bytes_max", ">= 8388608"),
        ("runtime.kind=docker", "runtime.kind", "'containerd' or 'process'"),
        ("node.name=A_b", "node.name", "lower-case"),
        ("manifests.paths=a", "manifests.paths[0]", "an absolute path"),
        ("images.gc_low_percent=99", "images.gc_low_percent", "at most images.gc_high_percent"),
        ("node.name", "--set", "section.key=value"),
        ("cloud.url=https://gate", "cloud.url", "wss://HOST:PORT"),
        ("cloud.proxy=socks5://me:word@proxy:1", "cloud.proxy", "http://HOST:PORT or"),
        ("cloud.heartbeat_s=1", "cloud.heartbeat_s", ">= 2"),
        ("upgrade.hold_s=501", "upgrade.window_s", "at most 1100 together with upgrade.hold_s (501)"),
        ("upgrade.window_s=1041", "upgrade.window_s", "at most 1100 together with upgrade.hold_s (60)"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_what_would_be_right(override: str, field: str, expected: str) -> None:
    with pytest.raises(BadInput) as caught:
        config.load(None, [override])
    assert caught.value.field == field
    assert expected in caught.value.expected


NEWER = """
[log]
level = "debug"
colour = "red"
[nodes]
name = "x"
[node]
nam = "y"
name = "gate"
"""


def test_a_daemon_passes_over_keys_of_a_newer_version_and_names_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "tinyedge.toml"
    path.write_text(NEWER)
    unknown: list[str] = []
    loaded = config.load(str(path), ["mqtt.flavour=x"], unknown)
    assert (loaded.log.level, loaded.node.name) == ("debug", "gate")
    assert [words.partition(" (the nearest is ") for words in unknown] == [
        ("section nodes", " (the nearest is ", "node)"),
        ("log.colour", " (the nearest is ", "log.format)"),
        ("node.nam", " (the nearest is ", "node.name)"),
        ("mqtt.flavour", " (the nearest is ", "mqtt.url)"),
    ]
    with pytest.raises(BadInput, match=r"log\.colour"):
        config.load(str(path))


@pytest.mark.parametrize("wrong", ['[log]\nlevel = "loud"\ncolour = "red"', "log = 5", "[node"])
def test_a_wrong_value_is_an_error_for_a_daemon_as_well(tmp_path: Path, wrong: str) -> None:
    path = tmp_path / "tinyedge.toml"
    path.write_text(wrong)
    with pytest.raises(TinyEdgeError):
        config.load(str(path), [], [])


def test_a_trial_is_decided_before_the_launcher_ends_its_start() -> None:
    launcher = (Path(__file__).resolve().parent.parent / "packaging" / "launcher").read_text()
    [ends_s] = re.findall(r"^TRIAL_S=\$\{TINYEDGE_TRIAL_S:-([0-9]+)\}$", launcher, re.M)
    assert int(ends_s) > config.TRIAL_S_MAX + 60  # with the time that a start takes on the slowest board


def test_a_file_that_is_named_and_not_there_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(TinyEdgeError, match="it is not there") as caught:
        config.load(str(tmp_path / "none.toml"))
    assert caught.value.remedy


def test_broken_toml_is_an_error_that_names_the_file_and_the_line(tmp_path: Path) -> None:
    path = tmp_path / "tinyedge.toml"
    path.write_text("[node]\nname = \n")
    with pytest.raises(TinyEdgeError, match=r"tinyedge\.toml.*line 2"):
        config.load(str(path))


def test_a_proxys_password_is_kept_from_what_people_are_shown() -> None:
    loaded = config.load(None, ["cloud.proxy=http://me:pass%2Fword@proxy:3128"])
    assert config.shown(loaded)["cloud"]["proxy"] == "http://…@proxy:3128"
    assert config.proxy_password(loaded) == "pass%2Fword"
    assert config.shown(config.Config())["cloud"]["proxy"] == config.proxy_password(config.Config()) == ""


def test_a_proxy_that_is_wrong_is_refused_without_its_password() -> None:
    with pytest.raises(BadInput) as caught:
        config.load(None, ["cloud.proxy=socks5://me:word@proxy:1"])
    assert "word" not in str(caught.value)
