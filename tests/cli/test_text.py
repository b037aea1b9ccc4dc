"""How things are written: ages, durations, sizes, tables, selectors, and the columns of a pod."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.backend import container_status, pod
from tinyedge.cli import text
from tinyedge.cli.errors import CliError
from tinyedge.cli.kinds import Selector, split_image
from tinyedge.cli.podtext import pod_line

NOW = text.seconds_of("2026-11-23T12:00:00Z") or 0.0


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (-5, "<invalid>"),
        (-1, "0s"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (312, "5m12s"),
        (600, "10m"),
        (10799, "179m"),
        (3 * 3600, "3h"),
        (3 * 3600 + 120, "3h2m"),
        (8 * 3600, "8h"),
        (47 * 3600, "47h"),
        (48 * 3600, "2d"),
        (50 * 3600, "2d2h"),
        (8 * 86400, "8d"),
        (729 * 86400, "729d"),
        (730 * 86400, "2y"),
        (800 * 86400, "2y70d"),
        (9 * 365 * 86400, "9y"),
    ],
)
def test_a_duration_has_two_units_at_most(seconds: int, written: str) -> None:
    assert text.duration(seconds) == written


def test_an_age_told_by_a_clock_that_was_not_set_is_unknown() -> None:
    assert text.age("1970-01-01T00:04:00Z", NOW) == "<unknown>"
    assert text.age("", NOW) == "<unknown>"
    assert text.age("2026-11-23T11:59:00.123456Z", NOW) == "60s"


@given(st.integers(0, 4_102_444_800))
def test_a_timestamp_is_read_as_the_calendar_says(seconds: int) -> None:
    assert text.seconds_of(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))) == seconds


@pytest.mark.parametrize(("written", "seconds"), [("90s", 90), ("5m", 300), ("1h30m", 5400), ("2d", 172800)])
def test_a_duration_is_read(written: str, seconds: int) -> None:
    assert text.parse_duration(written) == seconds


@pytest.mark.parametrize("wrong", ["", "5", "m", "5x", "-5m", "5m3"])
def test_what_is_no_duration_is_refused(wrong: str) -> None:
    with pytest.raises(CliError, match="is not a duration"):
        text.parse_duration(wrong)


def test_sizes_are_for_people() -> None:
    assert [text.size(n) for n in (0, 1023, 1024, 4_718_592, 3 * 2**30)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "4.5 MiB",
        "3.0 GiB",
    ]


def test_amounts_of_kubernetes_are_read() -> None:
    assert [text.quantity(q) for q in ("150m", "12345678n", "2", "64Mi", "1e3", "junk", None)] == pytest.approx(
        [0.15, 0.012345678, 2, 64 * 2**20, 1000, 0, 0]
    )


def test_columns_are_aligned_and_nothing_stands_behind_the_last() -> None:
    assert text.table(("A", "NAME", "X"), [("1", "long-name", ""), ("22", "b", "y")]) == (
        "A     NAME        X\n1     long-name\n22    b           y"
    )


# --- selectors -------------------------------------------------------------------------------------

LABELS = {"metadata": {"labels": {"app": "web", "tier": "front"}}}


@pytest.mark.parametrize(
    ("selector", "matches"),
    [
        ("", True),
        ("app=web", True),
        ("app==web,tier=front", True),
        ("app=db", False),
        ("app!=db", True),
        ("app", True),
        ("!app", False),
        ("!site", True),
        ("app in (db, web)", True),
        ("app in (db,cache),tier", False),
        ("site notin (north)", True),
        ("app notin (web)", False),
        ("app=", False),
    ],
)
def test_a_selector_picks_by_label(selector: str, matches: bool) -> None:
    assert Selector(selector).matches(LABELS) is matches


@pytest.mark.parametrize("wrong", ["a b", "=x", "a in b", "a in (b"])
def test_a_selector_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(CliError, match="no label selector"):
        Selector(wrong)


def test_an_image_is_split_into_name_and_tag() -> None:
    assert split_image("docker.io/library/busybox:1.36") == ("docker.io/library/busybox", "1.36")
    assert split_image("localhost:5000/site") == ("localhost:5000/site", "<none>")
    assert split_image("a/b@sha256:0123456789abcdef") == ("a/b", "0123456789abc")


# --- the columns of a pod --------------------------------------------------------------------------


def waiting(reason: str, **more: Any) -> dict[str, Any]:
    return container_status(ready=False, started=False, state={"waiting": {"reason": reason}}, **more)


def ended(code: int, reason: str = "", **more: Any) -> dict[str, Any]:
    terminated = {"exitCode": code, "finishedAt": "2026-11-23T11:58:00Z", **({"reason": reason} if reason else {})}
    return container_status(ready=False, state={"terminated": terminated}, **more)


def status_of(made: dict[str, Any]) -> tuple[str, str, str]:
    line = pod_line(made, NOW)
    return line.ready, line.status, line.restarts


def with_init(*statuses: dict[str, Any], sidecar: bool = False, **status: Any) -> dict[str, Any]:
    made = pod(initContainerStatuses=list(statuses), **{"phase": "Pending", "conditions": [], **status})
    policy = {"restartPolicy": "Always"} if sidecar else {}
    made["spec"]["initContainers"] = [{"name": s["name"], "image": "i", **policy} for s in statuses]
    return made


CRASHED = {"terminated": {"exitCode": 1, "finishedAt": "2026-11-23T11:58:00Z"}}


@pytest.mark.parametrize(
    ("made", "shown"),
    [
        (pod(), ("1/1", "Running", "0")),
        (pod(containerStatuses=[waiting("ContainerCreating")], phase="Pending"), ("0/1", "ContainerCreating", "0")),
        (
            pod(containerStatuses=[waiting("CrashLoopBackOff", restarts=3, lastState=CRASHED)]),
            ("0/1", "CrashLoopBackOff", "3 (2m ago)"),
        ),
        (pod(containerStatuses=[ended(0, "Completed")], phase="Succeeded"), ("0/1", "Completed", "0")),
        (pod(containerStatuses=[ended(137, "OOMKilled")], phase="Failed"), ("0/1", "OOMKilled", "0")),
        (pod(containerStatuses=[ended(3)], phase="Failed"), ("0/1", "ExitCode:3", "0")),
        (pod(containerStatuses=[], phase="Pending", conditions=[]), ("0/1", "Pending", "0")),
        (pod(phase="Failed", reason="Evicted", containerStatuses=[]), ("0/1", "Evicted", "0")),
        (pod(containerStatuses=[ended(0, "Completed"), container_status("b")]), ("1/1", "Running", "0")),
        (
            pod(containerStatuses=[ended(0, "Completed"), container_status("b")], conditions=[]),
            ("1/1", "NotReady", "0"),
        ),
        (with_init(waiting("PodInitializing")), ("0/1", "Init:0/1", "0")),
        (with_init(ended(0, name="a"), waiting("PodInitializing", name="b")), ("0/1", "Init:1/2", "0")),
        (with_init(ended(2, "Error")), ("0/1", "Init:Error", "0")),
        (with_init(ended(2)), ("0/1", "Init:ExitCode:2", "0")),
        (with_init(waiting("ImagePullBackOff")), ("0/1", "Init:ImagePullBackOff", "0")),
        (
            with_init(
                waiting("CrashLoopBackOff", restarts=2, lastState=CRASHED),
                containerStatuses=[waiting("PodInitializing")],
            ),
            ("0/1", "Init:CrashLoopBackOff", "2 (2m ago)"),
        ),
        (with_init(container_status("s", restarts=1), sidecar=True, phase="Running"), ("2/2", "Running", "1")),
    ],
)
def test_status_ready_and_restarts_read_like_kubectl(made: dict[str, Any], shown: tuple[str, str, str]) -> None:
    assert status_of(made) == shown


def test_a_pod_that_is_being_deleted_is_terminating_unless_it_has_ended() -> None:
    made = pod()
    made["metadata"]["deletionTimestamp"] = "2026-11-23T12:00:00Z"
    assert status_of(made)[1] == "Terminating"
    made["status"]["phase"] = "Succeeded"
    assert status_of(made)[1] == "Succeeded"
