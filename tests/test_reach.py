"""TCP connections to where objects of the cluster lead."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from functools import partial

import pytest
import trio
import trio.testing

from tinyedge.errors import PeerError
from tinyedge.outbound import allowed
from tinyedge.reach import NotAllowed, open_tcp


class Names(trio.abc.HostnameResolver):
    """Names of a test: what they are looked up to is asked anew each time, as an attacker's server would answer."""

    def __init__(self, answers: dict[str, list[list[str]]]) -> None:
        self._answers = answers

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):  # type: ignore[no-untyped-def]  # noqa: A002, PLR0917
        await trio.lowlevel.checkpoint()
        name = host.decode() if isinstance(host, bytes) else host
        if name not in self._answers:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        answers = self._answers[name]
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    async def getnameinfo(self, sockaddr, flags):  # type: ignore[no-untyped-def]
        raise NotImplementedError


@pytest.fixture
async def port(nursery: trio.Nursery) -> AsyncIterator[int]:
    async def hold(stream: trio.SocketStream) -> None:
        await stream.receive_some(1)

    listeners = await nursery.start(partial(trio.serve_tcp, hold, 0, host="127.0.0.1"))
    yield listeners[0].socket.getsockname()[1]
    nursery.cancel_scope.cancel()


async def test_a_name_is_looked_up_and_its_address_is_dialled(port: int) -> None:
    trio.socket.set_custom_hostname_resolver(Names({"collector.example": [["127.0.0.1"]]}))
    async with await open_tcp("collector.example", port) as stream:
        assert stream.socket.getpeername()[0] == "127.0.0.1"


async def test_what_is_checked_is_what_is_dialled_and_no_second_answer_of_the_name(port: int) -> None:
    trio.socket.set_custom_hostname_resolver(Names({"rebound.example": [["192.0.2.1"], ["127.0.0.1"]]}))
    asked: list[str] = []

    def refusal(host: str, address: str, at: int) -> str:
        asked.append(address)
        return "only to see what is asked"

    with pytest.raises(NotAllowed):
        await open_tcp("rebound.example", port, refusal=refusal)
    assert asked == ["192.0.2.1"]


async def test_of_several_addresses_those_that_are_allowed_are_dialled(port: int) -> None:
    trio.socket.set_custom_hostname_resolver(Names({"both.example": [["127.0.0.2", "127.0.0.1"]]}))
    refusal = allowed([f"127.0.0.1:{port}"]).refusal
    async with await open_tcp("both.example", port, refusal=refusal) as stream:
        assert stream.socket.getpeername()[0] == "127.0.0.1"


async def test_an_address_that_is_not_allowed_is_not_dialled_and_is_said_to_be_so(port: int) -> None:
    trio.socket.set_custom_hostname_resolver(Names({"rebound.example": [["127.0.0.1"]]}))
    with pytest.raises(NotAllowed, match="this machine itself") as caught:
        await open_tcp("rebound.example", port, refusal=allowed(["*"]).refusal)
    assert "outbound.allow" in caught.value.remedy
    assert not caught.value.retryable


async def test_numbers_that_only_look_like_names_are_checked_as_what_they_are(port: int) -> None:
    for host in ("127.1", "0x7f000001", "2130706433", "localhost", "::ffff:127.0.0.1"):
        with pytest.raises(NotAllowed):
            await open_tcp(host, port, refusal=allowed(["*"]).refusal)


async def test_the_second_address_is_tried_when_the_first_does_not_answer(port: int) -> None:
    trio.socket.set_custom_hostname_resolver(Names({"both.example": [["127.0.0.3", "127.0.0.1"]]}))
    async with await open_tcp("both.example", port) as stream:
        assert stream.socket.getpeername()[0] == "127.0.0.1"


async def test_nobody_there_and_no_such_name_say_so() -> None:
    trio.socket.set_custom_hostname_resolver(Names({"here.example": [["127.0.0.1"]]}))
    with pytest.raises(PeerError, match="Connection refused"):
        await open_tcp("here.example", 1)
    with pytest.raises(PeerError, match="can't find"):
        await open_tcp("none.example", 1)


async def test_one_that_never_answers_takes_no_longer_than_allowed(autojump_clock: trio.testing.MockClock) -> None:
    class Deaf(trio.abc.SocketFactory):
        def socket(self, family: int = 0, type: int = 0, proto: int = 0) -> trio.socket.SocketType:  # noqa: A002
            return _Deaf(family, type)  # type: ignore[return-value]

    trio.socket.set_custom_hostname_resolver(Names({"deaf.example": [["192.0.2.1", "192.0.2.2"]]}))
    trio.socket.set_custom_socket_factory(Deaf())
    began = trio.current_time()
    with pytest.raises(PeerError, match=r"does not answer|no answer"):
        await open_tcp("deaf.example", 80, timeout_s=10)
    assert trio.current_time() - began == 10


class _Deaf:
    def __init__(self, family: int, kind: int) -> None:
        self.family, self.type = family, kind

    def setsockopt(self, *args: object) -> None: ...

    async def connect(self, address: object) -> None:
        await trio.sleep_forever()

    def close(self) -> None: ...
