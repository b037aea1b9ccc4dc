"""What may be dialled because an object of the cluster says so."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyedge import config
from tinyedge.errors import BadInput
from tinyedge.outbound import allowed

API_SERVER = [("10.96.0.1", 443), ("fd00::1", 6443), ("127.0.0.1", 6443)]


def _may(entries: list[str], host: str, address: str, port: int) -> bool:
    return allowed(entries).refusal(host, address, port, API_SERVER) == ""


@pytest.mark.parametrize(
    ("entry", "host", "address", "port"),
    [
        ("*", "collector.example", "192.0.2.7", 443),
        ("*:443", "collector.example", "192.0.2.7", 443),
        ("collector.example", "Collector.Example.", "192.0.2.7", 443),
        ("collector.example:443", "collector.example", "192.0.2.7", 443),
        ("192.0.2.7", "collector.example", "192.0.2.7", 443),
        ("192.0.2.0/24:443", "192.0.2.7", "192.0.2.7", 443),
        ("2001:db8::/32", "v6.example", "2001:db8::7", 443),
        ("[2001:db8::7]:443", "v6.example", "2001:db8::7", 443),
        ("[2001:db8::]/32:443", "v6.example", "2001:db8::7", 443),
        ("192.0.2.7", "mapped.example", "::ffff:192.0.2.7", 443),
        ("::ffff:192.0.2.0/120", "collector.example", "192.0.2.7", 443),
        ("127.0.0.1:8086", "localhost", "127.0.0.1", 8086),
        ("127.0.0.0/8", "localhost", "127.0.0.1", 8086),
        ("localhost", "localhost", "::1", 8086),
        ("169.254.10.0/24", "sensor.local", "169.254.10.2", 80),
        ("fe80::/10", "fe80::5%eth0", "fe80::5%eth0", 80),
        ("10.96.0.1:443", "kubernetes.default.svc", "10.96.0.1", 443),
    ],
)
def test_an_entry_opens_what_it_covers(entry: str, host: str, address: str, port: int) -> None:
    assert _may([entry], host, address, port)


@pytest.mark.parametrize(
    ("entry", "host", "address", "port"),
    [
        ("*:80", "collector.example", "192.0.2.7", 443),
        ("collector.example:80", "collector.example", "192.0.2.7", 443),
        ("collector.example", "other.example", "192.0.2.7", 443),
        ("collector.example", "192.0.2.7", "192.0.2.7", 443),
        ("192.0.2.0/28", "collector.example", "192.0.2.77", 443),
        ("192.0.2.7", "v6.example", "2001:db8::7", 443),
    ],
)
def test_what_no_entry_covers_is_refused(entry: str, host: str, address: str, port: int) -> None:
    assert "covered by no entry of outbound.allow" in allowed([entry]).refusal(host, address, port)


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("127.0.0.1", "this machine itself"),
        ("127.8.9.10", "this machine itself"),
        ("::1", "this machine itself"),
        ("0.0.0.0", "this machine itself"),  # noqa: S104
        ("::", "this machine itself"),
        ("::ffff:127.0.0.1", "this machine itself"),
        ("169.254.169.254", "link-local"),
        ("::ffff:169.254.169.254", "link-local"),
        ("fe80::5%eth0", "link-local"),
        ("fd00:ec2::254", "metadata"),
        ("100.100.100.200", "metadata"),
        ("10.96.0.1", "API server"),
        ("fd00::1", "API server"),
    ],
)
@pytest.mark.parametrize("entry", ["*", "0.0.0.0/0", "::/0", "rebound.example", "10.0.0.0/8", "*:443", "fc00::/7"])
def test_guarded_addresses_are_opened_by_no_entry_that_means_more(entry: str, address: str, what: str) -> None:
    port = 6443 if address == "fd00::1" else 443
    assert what in allowed([entry]).refusal("rebound.example", address, port, API_SERVER)


def test_a_network_of_loopback_does_not_open_the_api_server_on_it() -> None:
    assert not _may(["127.0.0.0/8", "localhost"], "localhost", "127.0.0.1", 6443)
    assert _may(["127.0.0.1"], "localhost", "127.0.0.1", 6443)


def test_a_name_that_leads_to_this_machine_opens_nothing_on_it() -> None:
    assert not _may(["rebound.example"], "rebound.example", "127.0.0.1", 8086)
    assert not _may(["localhost"], "rebound.example", "127.0.0.1", 8086)
    assert not _may(["localhost"], "localhost", "169.254.169.254", 80)


def test_an_empty_list_opens_nothing_and_the_default_every_ordinary_address() -> None:
    assert not _may([], "collector.example", "192.0.2.7", 443)
    default = list(config.Config().outbound.allow)
    assert _may(default, "collector.example", "192.0.2.7", 443)
    assert not _may(default, "localhost", "127.0.0.1", 80)


@pytest.mark.parametrize(
    "entry",
    [
        "",
        ":443",
        "host:",
        "host:0",
        "host:65536",
        "host:http",
        "10.0.0.1/8",
        "10.0.0.0/33",
        "1.2.3",
        "[::1",
        "a b",
        "http://host",
    ],
)
def test_a_wrong_entry_is_named_with_what_would_be_right(entry: str) -> None:
    with pytest.raises(BadInput) as caught:
        allowed(["*", entry])
    assert caught.value.field == "outbound.allow[1]"
    assert "HOST, ADDRESS or NETWORK/BITS" in caught.value.expected


def test_the_daemon_does_not_start_with_a_wrong_entry() -> None:
    with pytest.raises(BadInput, match=r"outbound\.allow\[0\]"):
        config.load(None, ["outbound.allow=host:http"])


def test_what_is_no_address_is_refused() -> None:
    assert "no address" in allowed(["*"]).refusal("x", "collector.example", 80)


@given(st.ip_addresses(), st.integers(1, 65535))
def test_everything_is_either_opened_by_any_or_by_its_own_address(address: object, port: int) -> None:
    anything = allowed(["*"]).refusal("host", str(address), port)
    own = f"[{address}]:{port}" if ":" in str(address) else f"{address}:{port}"
    assert allowed([own]).refusal("host", str(address), port) == ""
    if anything:
        assert "only an address or a network within" in anything


@given(st.text(max_size=40))
def test_no_text_breaks_the_list(text: str) -> None:
    with suppress(BadInput):
        allowed([text])
