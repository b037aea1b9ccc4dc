"""Following a resource through gaps, expired histories, half lines and dead connections."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from cloud_gateway import limits
from cloud_gateway.adapters import kube_watch
from cloud_gateway.adapters.kube import Kube
from cloud_gateway.adapters.kube_config import from_url
from cloud_gateway.adapters.kube_types import PODS, Change, Gone, KubeError, Listed, ListEnd, ListStart, Seen
from tests.fakes.api_server import (
    ApiServer,
    Request,
    Wire,
    answers,
    api_server,
    bookmark,
    event,
    expired,
    page,
    pod,
    refuses,
    status,
    watches,
)


@pytest.fixture
def autojump_clock() -> MockClock:
    """Waits cost nothing, once nothing but waiting is left; a little real time is left to loopback."""
    return MockClock(autojump_threshold=0.02)


class Follow:
    """What a follower has been told, in words; `wants` waits until it is this."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.objects: list[Any] = []
        self.troubles: list[KubeError] = []
        self._news = trio.Event()

    async def send(self, change: Change) -> None:
        await trio.lowlevel.checkpoint()
        match change:
            case ListStart():
                self._add("[")
            case Listed(objects):
                self._add("page " + ",".join(one["metadata"]["name"] for one in objects))
                self.objects += objects
            case ListEnd():
                self._add("]")
            case Seen(one):
                self._add(f"{one['metadata']['name']} {one['metadata'].get('resourceVersion')}")
                self.objects.append(one)
            case Gone(one):
                self._add(f"-{one['metadata']['name']}")

    def _add(self, words: str) -> None:
        self.told.append(words)
        self._news.set()

    async def wants(self, *words: str) -> None:
        with trio.fail_after(1000):
            while len(self.told) < len(words):
                self._news = trio.Event()
                await self._news.wait()
        assert self.told == list(words)


@asynccontextmanager
async def following(server: ApiServer, chance: Callable[[], float] = lambda: 0.5, **more: Any) -> AsyncIterator[Any]:
    follow = Follow()
    async with Kube(from_url(server.url), chance=chance) as client, trio.open_nursery() as nursery:
        follow.client = client  # type: ignore[attr-defined]

        async def run() -> None:
            await client.follow(PODS, send=follow.send, on_trouble=follow.troubles.append, **more)

        nursery.start_soon(run)
        yield follow
        nursery.cancel_scope.cancel()


@pytest.fixture
async def server() -> AsyncIterator[ApiServer]:
    async with api_server() as made:
        yield made


def watched(server: ApiServer) -> list[str]:
    """Where each watch began; 'list' for a list's first page."""
    return [
        r.params["resourceVersion"] if r.is_watch else "list" for r in server.requests if "continue" not in r.params
    ]


async def test_a_list_page_by_page_and_then_what_happens(autojump_clock: MockClock, server: ApiServer) -> None:
    server.script = [
        answers(200, page(pod("a", 1), pod("b", 2), version=7, following="c1")),
        answers(200, page(pod("c", 3), version=7)),
        watches(
            event("ADDED", pod("d", 8)),
            event("MODIFIED", pod("a", 9)),
            event("DELETED", pod("b", 10)),
        ),
    ]
    async with following(server) as follow:
        await follow.wants("[", "page a,b", "page c", "]", "d 8", "a 9", "-b")
    assert watched(server) == ["list", "7"]
    assert follow.troubles == []


async def test_the_selectors_and_bookmarks_are_asked_for(autojump_clock: MockClock, server: ApiServer) -> None:
    server.script = [answers(200, page(version=7)), watches(event("ADDED", pod("a", 8)))]
    async with following(server, labels="edge", fields="spec.nodeName=g", namespace="default") as follow:
        await follow.wants("[", "page ", "]", "a 8")
    both = {"labelSelector": "edge", "fieldSelector": "spec.nodeName=g"}
    assert server.requests[0].params == both | {"limit": str(limits.KUBE_LIST_ITEMS)}
    assert server.requests[1].params == both | {
        "watch": "1",
        "allowWatchBookmarks": "true",
        "resourceVersion": "7",
        "timeoutSeconds": str(int(1.5 * kube_watch.WATCH_S)),
    }
    assert {r.path for r in server.requests} == {"/api/v1/namespaces/default/pods"}


async def test_a_watch_that_breaks_is_resumed_where_it_broke(autojump_clock: MockClock, server: ApiServer) -> None:
    server.script = [
        answers(200, page(version=7)),
        watches(event("ADDED", pod("a", 8)), then="cut"),
        watches(event("ADDED", pod("b", 9)), bookmark(20), then="cut"),
        watches(event("ADDED", pod("c", 21)), then="end"),
        watches(event("ADDED", pod("d", 22))),
    ]
    async with following(server) as follow:
        await follow.wants("[", "page ", "]", "a 8", "b 9", "c 21", "d 22")
        assert follow.client.counters.watch_breaks == {"pods": 2}  # one ended as it may
    assert watched(server) == ["list", "7", "8", "20", "21"]


async def test_half_a_line_is_no_line(autojump_clock: MockClock, server: ApiServer) -> None:
    async def halves(_: Request, wire: Wire) -> None:
        whole = json.dumps(event("ADDED", pod("a", 8))).encode() + b"\n"
        await wire.begin()
        for part in (whole[:10], whole[10:] + b"\n" + whole[:20]):
            await wire.text(part)
        await wire.cut()

    server.script = [answers(200, page(version=7)), halves, watches(event("ADDED", pod("b", 9)))]
    async with following(server) as follow:
        await follow.wants("[", "page ", "]", "a 8", "b 9")
    assert watched(server) == ["list", "7", "8"]


async def test_a_line_may_come_in_pieces_and_many_lines_in_one(autojump_clock: MockClock, server: ApiServer) -> None:
    lines = b"".join(json.dumps(event("ADDED", pod(f"p{n}", n))).encode() + b"\n" for n in range(10, 20))

    async def byte_by_byte(_: Request, wire: Wire) -> None:
        await wire.begin()
        for n in range(len(lines)):
            await wire.text(lines[n : n + 1])
        await wire.text(lines)
        await trio.sleep_forever()

    server.script = [answers(200, page(version=7)), byte_by_byte]
    names = [f"p{n} {n}" for n in range(10, 20)]
    async with following(server) as follow:
        await follow.wants("[", "page ", "]", *names, *names)


async def test_a_history_that_is_too_old_means_a_new_list(autojump_clock: MockClock, server: ApiServer) -> None:
    server.script = [
        answers(200, page(pod("a", 1), version=7)),
        watches(expired(), then="end"),
        answers(200, page(pod("b", 8), version=9)),
        refuses(410, "Expired"),  # also as the status of the answer
        answers(200, page(pod("c", 10), version=11)),
        watches(event("ADDED", pod("d", 12))),
    ]
    async with following(server) as follow:
        await follow.wants("[", "page a", "]", "[", "page b", "]", "[", "page c", "]", "d 12")
        assert [error.expired for error in follow.troubles] == [True, True]
    assert watched(server) == ["list", "7", "list", "9", "list", "11"]


async def test_a_list_that_expires_in_its_middle_is_begun_again_for_the_receiver_too(
    autojump_clock: MockClock, server: ApiServer
) -> None:
    server.script = [
        answers(200, page(pod("old", 1), version=7, following="c1")),
        refuses(410, "Expired"),
        answers(200, page(pod("a", 8), version=9)),
        watches(event("ADDED", pod("b", 10))),
    ]
    async with following(server) as follow:
        await follow.wants("[", "page old", "[", "page a", "]", "b 10")


async def test_a_list_that_fails_is_tried_again(autojump_clock: MockClock, server: ApiServer) -> None:
    server.script = [
        refuses(403, "Forbidden"),
        refuses(500, "InternalError"),
        answers(200, page(version=7)),
        watches(event("ADDED", pod("a", 8))),
    ]
    async with following(server) as follow:
        await follow.wants("[", "page ", "]", "a 8")
        assert [error.status for error in follow.troubles] == [403, 500]


async def test_a_watch_that_is_refused_is_tried_again_without_a_new_list_at_first(
    autojump_clock: MockClock, server: ApiServer
) -> None:
    server.script = [
        answers(200, page(version=7)),
        refuses(500, "InternalError"),
        refuses(429, "TooManyRequests", headers={"Retry-After": "20"}),
        watches(event("ADDED", pod("a", 8))),
    ]
    began = trio.current_time()
    async with following(server, chance=lambda: 0.0) as follow:
        await follow.wants("[", "page ", "]", "a 8")
        assert trio.current_time() - began >= 20
    assert watched(server) == ["list", "7", "7", "7"]


async def test_a_revision_at_which_no_watch_works_is_left_for_a_new_list(
    autojump_clock: MockClock, server: ApiServer
) -> None:
    """Such as one of the future, after the cluster was restored from a backup."""
    server.script = [
        answers(200, page(version=900)),
        *[refuses(504, "Timeout", "Too large resource version: 900, current: 100")] * kube_watch.BREAKS_MAX,
        answers(200, page(pod("a", 50), version=100)),
        watches(event("ADDED", pod("b", 101))),
    ]
    async with following(server) as follow:
        await follow.wants("[", "page ", "]", "[", "page a", "]", "b 101")


async def test_an_outage_of_any_length_costs_no_list(autojump_clock: MockClock, server: ApiServer) -> None:
    async def cut(_: Request, wire: Wire) -> None:
        await wire.cut()

    server.script = [answers(200, page(version=7)), *[cut] * 25, watches(event("ADDED", pod("a", 8)))]
    async with following(server, chance=lambda: 1.0) as follow:
        await follow.wants("[", "page ", "]", "a 8")
    assert watched(server).count("list") == 1


async def test_the_pauses_grow_to_a_cap_and_are_never_the_same(autojump_clock: MockClock, server: ApiServer) -> None:
    times = []

    async def refused(_: Request, wire: Wire) -> None:
        times.append(trio.current_time())
        await wire.answer(500, status(500, "InternalError"))

    async def last(_: Request, wire: Wire) -> None:
        await wire.answer(200, page(pod("a", 1)))

    server.script = [*[refused] * 12, last]
    async with following(server, chance=lambda: 1.0) as follow:
        await follow.wants("[", "page a", "]")
    pauses = [after - before for before, after in pairwise(times)]
    assert pauses[0] == pytest.approx(1, abs=0.2)
    assert pauses[2] == pytest.approx(4, abs=0.2)
    assert max(pauses) == pytest.approx(kube_watch.LAST_PAUSE_S, abs=0.2)


async def test_a_watch_that_ends_at_once_again_and_again_is_not_a_busy_loop(
    autojump_clock: MockClock, server: ApiServer
) -> None:
    async def others(request: Request, wire: Wire) -> None:
        await (watches(then="end") if request.is_watch else answers(200, page(version=7)))(request, wire)

    server.otherwise = others
    async with following(server, chance=lambda: 1.0) as follow:
        await follow.wants("[", "page ", "]")
        began = trio.current_time()
        await trio.sleep(200)
        assert trio.current_time() - began >= 200
        assert len(server.requests) < 30


async def test_a_watch_that_is_silent_beyond_its_end_is_dead(autojump_clock: MockClock, server: ApiServer) -> None:
    server.script = [
        answers(200, page(version=7)),
        watches(then="wait"),
        watches(event("ADDED", pod("a", 8))),
    ]
    began = trio.current_time()
    async with following(server, chance=lambda: 0.0) as follow:
        await follow.wants("[", "page ", "]", "a 8")
        silence = kube_watch.WATCH_S + kube_watch.SILENCE_MARGIN_S
        assert silence - 1 <= trio.current_time() - began <= silence + 2
    assert watched(server) == ["list", "7", "7"]


async def test_bookmarks_keep_a_quiet_watch_alive_and_its_place_fresh(
    autojump_clock: MockClock, server: ApiServer
) -> None:
    async def quiet(_: Request, wire: Wire) -> None:
        await wire.begin()
        for n in range(6):
            await trio.sleep(60)
            await wire.lines(bookmark(100 + n))
        await wire.end()

    server.script = [answers(200, page(version=7)), quiet, watches(event("ADDED", pod("a", 200)))]
    async with following(server, chance=lambda: 0.0) as follow:
        await follow.wants("[", "page ", "]", "a 200")
        assert follow.troubles == []
    assert watched(server) == ["list", "7", "105"]


@pytest.mark.parametrize(
    "line",
    [b"{", b"[]", b'{"type":"ADDED"}', b'{"type":"ADDED","object":{}}', b'{"type":"ADDED","object":[1]}', b"\xff"],
)
async def test_a_line_that_can_not_be_read_breaks_the_watch_only(
    autojump_clock: MockClock, server: ApiServer, line: bytes
) -> None:
    async def broken(_: Request, wire: Wire) -> None:
        await wire.begin()
        await wire.lines(event("ADDED", pod("a", 8)))
        await wire.text(line + b"\n")
        await trio.sleep_forever()

    server.script = [answers(200, page(version=7)), broken, watches(event("ADDED", pod("b", 9)))]
    async with following(server) as follow:
        await follow.wants("[", "page ", "]", "a 8", "b 9")
        assert [error.reason for error in follow.troubles] == ["BadAnswer"]


async def test_a_line_without_end_is_not_collected(
    autojump_clock: MockClock, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "KUBE_WATCH_LINE_BYTES_MAX", 256 * 1024)
    sent = 0

    async def endless(_: Request, wire: Wire) -> None:
        nonlocal sent
        await wire.begin()
        while True:
            await wire.text(b"x" * 65536)
            sent += 65536

    server.script = [answers(200, page(version=7)), endless, watches(event("ADDED", pod("b", 9)))]
    async with following(server) as follow:
        await follow.wants("[", "page ", "]", "b 9")
        assert [error.reason for error in follow.troubles] == ["TooLarge"]
    assert sent < 16 * 2**20  # what the kernel's buffers take


async def test_what_is_trimmed_is_trimmed_before_it_is_passed_on(autojump_clock: MockClock, server: ApiServer) -> None:
    def trim(obj: dict[str, Any]) -> dict[str, Any]:
        return {"metadata": {"name": obj["metadata"]["name"]}}

    server.script = [answers(200, page(pod("a", 1), version=7)), watches(event("ADDED", pod("b", 8)), then="cut")]
    async with following(server, trim=trim) as follow:
        await follow.wants("[", "page a", "]", "b None")
        assert follow.objects == [{"metadata": {"name": "a"}}, {"metadata": {"name": "b"}}]
        while len(server.requests) < 3:
            await trio.sleep(1)
    assert watched(server)[2] == "8"  # the place was read before


async def test_metadata_only_is_asked_for_in_the_list_and_in_the_watch(
    autojump_clock: MockClock, server: ApiServer
) -> None:
    server.script = [answers(200, page(version=7)), watches(event("ADDED", pod("a", 8)))]
    async with following(server, metadata_only=True) as follow:
        await follow.wants("[", "page ", "]", "a 8")
    accepts = [r.headers["accept"] for r in server.requests]
    assert accepts[0].startswith("application/json;as=PartialObjectMetadataList;")
    assert accepts[1].startswith("application/json;as=PartialObjectMetadata;")


async def test_a_slow_receiver_slows_the_watch(autojump_clock: MockClock, server: ApiServer) -> None:
    taken = 0
    go = trio.Event()

    async def send(change: Change) -> None:
        nonlocal taken
        if isinstance(change, Seen):
            taken += 1
            await go.wait()

    big = pod("a", 8) | {"spec": {"x": "y" * 100_000}}
    sent = 0

    async def many(_: Request, wire: Wire) -> None:
        nonlocal sent
        await wire.begin()
        while True:
            await wire.lines(event("MODIFIED", big))
            sent += 1

    server.script = [answers(200, page(version=7)), many]
    async with Kube(from_url(server.url)) as client, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: client.follow(PODS, send=send))
        while not taken:
            await trio.sleep(0.01)
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert taken == 1
        assert sent < 200  # kernel buffers, and no more
        nursery.cancel_scope.cancel()


async def test_a_receiver_that_fails_ends_the_following(autojump_clock: MockClock, server: ApiServer) -> None:
    async def send(change: Change) -> None:
        await trio.lowlevel.checkpoint()
        if isinstance(change, Seen):
            raise ValueError("planted")

    server.script = [answers(200, page(version=7)), watches(event("ADDED", pod("a", 8)))]
    async with Kube(from_url(server.url)) as client:
        with pytest.raises(ValueError, match="planted"):
            await client.follow(PODS, send=send)


async def test_cancelling_in_the_middle_of_a_line_leaves_nothing_behind(
    autojump_clock: MockClock, server: ApiServer
) -> None:
    async def half(_: Request, wire: Wire) -> None:
        await wire.begin()
        await wire.text(b'{"type":"ADD')
        await trio.sleep_forever()

    server.script = [answers(200, page(version=7)), half]
    async with following(server) as follow:
        await follow.wants("[", "page ", "]")
        await trio.testing.wait_all_tasks_blocked(0.02)
    assert follow.told == ["[", "page ", "]"]
