"""What may be asked of a kubelet endpoint: each rule, and attempts to get around it."""

from __future__ import annotations

import contextlib
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from cloud_gateway.core.kubelet_requests import (
    COMMAND_WORDS_MAX,
    HEADERS_MAX,
    PORTS_MAX,
    TARGET_BYTES_MAX,
    Asked,
    BadRequest,
    parse,
)
from tinyedge.protocol import link_messages as link

SPDY = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", "v4.channel.k8s.io")]
GET_PROXY, CREATE_PROXY = (("get", "proxy"),), (("create", "proxy"),)


def refused(method: str, target: str, headers: Any = SPDY) -> tuple[int, str]:
    with pytest.raises(BadRequest) as caught:
        parse(method, target, headers)
    return caught.value.status, str(caught.value)


# --- what is meant ---


@pytest.mark.parametrize(
    ("target", "params"),
    [
        ("", {}),
        ("?follow=true&previous=1&timestamps=false", {"follow": True, "previous": True}),
        ("?tailLines=0&sinceSeconds=10&limitBytes=5", {"tailLines": 0, "sinceSeconds": 10, "limitBytes": 5}),
        ("?sinceTime=2026-11-23T13%3A33%3A49Z", {"sinceTime": "2026-11-23T13:33:49Z"}),
        ("?follow=true&made=up&container=other&pod=other&namespace=other&uid=other", {"follow": True}),
    ],
)
def test_a_log_is_asked_for_with_its_flags_and_what_is_unknown_changes_nothing(
    target: str, params: dict[str, Any]
) -> None:
    assert parse("GET", f"/containerLogs/default/web/c{target}") == Asked(
        "logs", GET_PROXY, "default", "web", "", {"container": "c", **params}
    )


@pytest.mark.parametrize("what", ["exec", "attach"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_to_enter_a_pod_is_to_create_whatever_the_method_is(what: str, method: str) -> None:
    asked = parse(method, f"/{what}/default/web/c?command=ls&output=1&error=1", SPDY)
    assert (asked.what, asked.access, asked.uid) == (what, CREATE_PROXY, "")
    assert asked.params["method"] == method
    assert asked.params["headers"] == [list(pair) for pair in SPDY]
    assert (asked.params["stdin"], asked.params["stdout"], asked.params["stderr"]) == (False, True, True)
    assert asked.params.get("command") == (["ls"] if what == "exec" else None)


def test_words_of_a_command_stay_in_order_also_empty_ones() -> None:
    asked = parse("POST", "/exec/default/web/c?command=sh&command=-c&command=&command=a%20%26%20b&output=1", SPDY)
    assert asked.params["command"] == ["sh", "-c", "", "a & b"]


def test_the_flags_may_be_named_as_the_api_names_them() -> None:
    asked = parse("POST", "/attach/default/web/c?stdin=true&stdout=true", SPDY)
    assert (asked.params["stdin"], asked.params["stdout"], asked.params["stderr"]) == (True, True, False)


def test_a_terminal_has_one_output() -> None:
    asked = parse("POST", "/exec/default/web/c?command=sh&input=1&output=1&error=1&tty=1", SPDY)
    assert (asked.params["tty"], asked.params["stdout"], asked.params["stderr"]) == (True, True, False)


def test_ports_are_forwarded_to_a_pod_as_a_whole() -> None:
    asked = parse("POST", "/portForward/default/web?port=80,81&port=82", SPDY)
    assert (asked.what, asked.access, asked.params["ports"]) == ("portforward", CREATE_PROXY, ["80", "81", "82"])
    assert "container" not in asked.params


def test_a_uid_may_say_which_pod_is_meant() -> None:
    assert parse("POST", "/exec/default/web/uid-1/c?command=ls&output=1", SPDY).uid == "uid-1"
    assert parse("POST", "/portForward/default/web/uid-1", SPDY).uid == "uid-1"


@pytest.mark.parametrize(
    ("path", "what"),
    [("/stats/summary", "stats"), ("/metrics/resource", "metrics"), ("/pods", "pods"), ("/healthz", "healthz")],
)
def test_figures_need_their_own_subresource_or_all_of_the_proxy(path: str, what: str) -> None:
    assert parse("GET", f"{path}?only_cpu_and_memory=true") == Asked(what, (("get", what), ("get", "proxy")))


def test_credentials_and_other_headers_go_no_further() -> None:
    secret = [("authorization", "Bearer s3cret"), ("cookie", "c"), ("host", "gateway"), ("x-remote-user", "admin")]
    asked = parse("POST", "/attach/default/web/c?output=1", [*secret, *SPDY, ("sec-websocket-key", "k")])
    assert asked.params["headers"] == [*map(list, SPDY), ["sec-websocket-key", "k"]]


# --- what is refused ---


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/"),
        ("GET", "/run/default/web/c"),
        ("GET", "/runningpods"),
        ("GET", "/configz"),
        ("GET", "/logs/syslog"),
        ("GET", "/metrics/cadvisor"),
        ("GET", "/debug/pprof/profile"),
        ("GET", "/containerLogs/default/web"),
        ("GET", "/containerLogs/default/web/c/d"),
        ("GET", "/stats/summary/"),
        ("GET", "//pods"),
        ("GET", "/PODS"),
        ("GET", "pods"),
        ("POST", "/containerLogs/default/web/c"),
        ("DELETE", "/exec/default/web/c?command=ls&output=1"),
        ("PUT", "/portForward/default/web"),
        ("CONNECT", "/exec/default/web/c"),
        ("GET", "/exec/default/web/uid/c/more"),
        ("GET", "http://elsewhere/containerLogs/default/web/c"),
    ],
)
def test_nothing_else_is_here(method: str, target: str) -> None:
    assert refused(method, target) == (404, "404 page not found")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "get"])
def test_figures_are_only_read(method: str) -> None:
    assert refused(method, "/stats/summary")[0] == 405


@pytest.mark.parametrize(
    "path",
    [
        "/containerLogs/../web/c",
        "/containerLogs/default/../c",
        "/containerLogs/default/..%2f..%2fother/c",
        "/containerLogs/default/web/..",
        "/containerLogs/default%00/web/c",
        "/containerLogs/default/web%0d%0aX/c",
        "/containerLogs//web/c",
        "/containerLogs/default//c",
        "/containerLogs/default/%20/c",
        "/containerLogs/Default/web/c",
        "/containerLogs/default/web/c%2e",
        "/containerLogs/default/web/%ff",
        "/containerLogs/default/" + "a" * 300 + "/c",
        "/exec/default/web/..%2f/c?command=ls&output=1",
        "/exec/default/web/u%0a/c?command=ls&output=1",
    ],
)
def test_no_name_leads_out_of_its_place(path: str) -> None:
    status, words = refused("GET", path)
    assert status == 400
    assert words.startswith("that is no")


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("tailLines=-1", "tailLines is '-1'"),
        ("tailLines=many", "expected a whole number"),
        ("tailLines=", "expected a whole number"),
        ("limitBytes=٣", "expected a whole number"),
        ("limitBytes=1e3", "expected a whole number"),
        ("sinceSeconds=" + "9" * 16, "expected a whole number"),
        ("follow=perhaps", "follow is 'perhaps'"),
        ("sinceTime=yesterday", "sinceTime is 'yesterday'"),
        ("sinceTime=2026-11-23T13:33:49Z%0a", "sinceTime is"),
        ("a=%ff", "the query can't be read"),
        ("&".join(["a=b"] * 1200), "the query can't be read"),
        ("a=" + "b" * TARGET_BYTES_MAX, "the request is too long"),
    ],
)
def test_a_query_that_makes_no_sense_is_refused(query: str, words: str) -> None:
    status, said = refused("GET", f"/containerLogs/default/web/c?{query}")
    assert status == 400
    assert words in said
    assert len(said) < 200  # whatever is asked, little is said


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("/exec/default/web/c?output=1", "at least 1 command"),
        ("/exec/default/web/c?command=ls", "at least 1 of stdin, stdout, stderr"),
        ("/attach/default/web/c?tty=1", "at least 1 of stdin, stdout, stderr"),
        ("/portForward/default/web?port=0", "expected 1 to 65535"),
        ("/portForward/default/web?port=65536", "expected 1 to 65535"),
        ("/portForward/default/web?port=8x", "expected 1 to 65535"),
        ("/portForward/default/web?port=" + "9" * 5000, "expected 1 to 65535"),
    ],
)
def test_a_conversation_that_makes_no_sense_is_refused(target: str, words: str) -> None:
    status, said = refused("POST", target)
    assert (status, words in said) == (400, True)


def test_a_conversation_begins_with_an_upgrade() -> None:
    for target in (
        "/exec/default/web/c?command=ls&output=1",
        "/attach/default/web/c?output=1",
        "/portForward/default/web",
    ):
        assert refused("POST", target, [("connection", "Upgrade")]) == (400, "Upgrade request required")


def test_nothing_is_asked_that_would_end_the_session_of_the_node() -> None:
    """The node takes lists of a certain length only, and ends the session over a longer one."""
    words = "&".join(["command=a"] * (COMMAND_WORDS_MAX + 1))
    assert "words" in refused("POST", f"/exec/default/web/c?output=1&{words}")[1]
    ports = ",".join(["80"] * (PORTS_MAX + 1))
    assert "ports" in refused("POST", f"/portForward/default/web?port={ports}")[1]
    headers = [*SPDY, *[("x-stream-protocol-version", "v9")] * HEADERS_MAX]
    assert "headers" in refused("POST", "/attach/default/web/c?output=1", headers)[1]


def test_the_longest_command_fits_into_the_link() -> None:
    words = "&".join(["command=a"] * COMMAND_WORDS_MAX)
    asked = parse("POST", f"/exec/default/web/c?output=1&{words}", SPDY)
    fits_the_link(asked)


def fits_the_link(asked: Asked) -> None:
    packed = link.pack(link.Open(1, asked.what, asked.params), link.VERSION)
    assert link.unpack(packed) == link.Open(1, asked.what, asked.params)


PARTS = st.sampled_from(
    [
        "containerLogs",
        "exec",
        "attach",
        "portForward",
        "default",
        "web",
        "c",
        "..",
        "%2e",
        "",
        "pods",
        "stats",
        "a" * 70,
    ]
)
QUERIES = st.sampled_from(
    ["command=ls", "output=1", "error=1", "tty=1", "port=80", "follow=true", "tailLines=5", "x=%zz", "&&", "=", "a=%ff"]
)


@hypothesis.given(
    st.sampled_from(["GET", "POST", "HEAD"]),
    st.lists(PARTS, max_size=6),
    st.lists(QUERIES, max_size=4),
    st.text(max_size=5),
)
def test_whatever_is_asked_it_is_refused_or_stands_within_its_bounds(
    method: str, parts: list[str], queries: list[str], noise: str
) -> None:
    with contextlib.suppress(BadRequest):
        asked = parse(method, f"/{'/'.join(parts)}{noise}?{'&'.join(queries)}", SPDY)
        assert (asked.pod != "") == (asked.access in (GET_PROXY, CREATE_PROXY))
        fits_the_link(asked)
