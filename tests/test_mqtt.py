"""The MQTT client, against a real mosquitto and against peers that are none."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import paho.mqtt.client
import pytest
import trio
import trio.testing

from tests.fakes.mosquitto import Mosquitto, Pki, mosquitto
from tests.fakes.ports import free_port
from tinyedge import limits, mqtt
from tinyedge.errors import BadInput, PeerError
from tinyedge.mqtt import Client, Message, Tls, Will, connect, settings

needs_mosquitto = pytest.mark.mosquitto
WAIT_S = 60  # a bound of what must not hang, never a pause


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    async with mosquitto(tmp_path) as found:
        yield found


async def _take(client: Client, count: int) -> list[Message]:
    found: list[Message] = []
    with trio.fail_after(WAIT_S):
        async for message in client.messages(by_hand=True):
            message.ack()
            found.append(message)
            if len(found) == count:
                break
    return found


@needs_mosquitto
@pytest.mark.parametrize("version", ["3.1.1", "5"])
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_what_is_published_arrives(broker: Mosquitto, version: str, qos: int) -> None:
    async with (
        connect(settings(broker.url, version=version)) as listener,
        connect(settings(broker.url, version=version)) as speaker,
    ):
        with trio.fail_after(WAIT_S):
            await listener.subscribe("a/+/c")
            await speaker.publish("a/b/c", b"\x00\xffpayload", qos)
            await speaker.publish("elsewhere", b"nothing", qos)
            await speaker.publish("a/é/c", b"", qos)
        assert [(one.topic, one.payload, one.qos) for one in await _take(listener, 2)] == [
            ("a/b/c", b"\x00\xffpayload", min(qos, 1)),
            ("a/é/c", b"", min(qos, 1)),
        ]


@needs_mosquitto
async def test_publish_returns_only_once_the_broker_has_it(broker: Mosquitto) -> None:
    async with connect(settings(broker.url)) as client:
        with trio.fail_after(WAIT_S):
            await client.publish("state", b"kept", retain=True)
    await broker.stop()  # it writes down what it keeps
    await broker.start()
    async with connect(settings(broker.url)) as client:
        with trio.fail_after(WAIT_S):
            await client.subscribe("state")
        message = (await _take(client, 1))[0]
    assert (message.payload, message.retained) == (b"kept", True)


@needs_mosquitto
async def test_many_are_in_flight_at_once_and_stay_in_order(broker: Mosquitto) -> None:
    numbers = list(range(3 * limits.MQTT_WAITING_MAX))
    async with connect(settings(broker.url)) as listener, connect(settings(broker.url)) as speaker:
        with trio.fail_after(WAIT_S):
            await listener.subscribe("n")
            async with trio.open_nursery() as nursery:
                for number in numbers:
                    await trio.lowlevel.checkpoint()
                    nursery.start_soon(speaker.publish, "n", str(number).encode())
        found = [int(one.payload) for one in await _take(listener, len(numbers))]
    assert sorted(found) == numbers


@needs_mosquitto
async def test_one_after_the_other_keeps_its_order_over_a_restart_of_the_broker(broker: Mosquitto) -> None:
    """The session is kept at both ends, so that nothing is missing; a repeat may come, never an older one as news."""
    kept = partial(settings, broker.url, clean_session=False)
    async with connect(kept(client_id="listener")) as listener, connect(kept(client_id="speaker")) as speaker:
        with trio.fail_after(WAIT_S):
            await listener.subscribe("n")
            for number in range(10):
                await speaker.publish("n", str(number).encode())
            await broker.stop()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_publish_in_turn, speaker, range(10, 20))
                await broker.start()
        seen: list[int] = []
        while not seen or seen[-1] != 19:
            seen.append(int((await _take(listener, 1))[0].payload))
    assert sorted(set(seen)) == list(range(20))
    assert speaker.status.connects == 2


async def _publish_in_turn(client: Client, numbers: range) -> None:
    for number in numbers:
        await client.publish("n", str(number).encode())


@needs_mosquitto
async def test_a_subscription_outlasts_a_broker_that_forgets_it(broker: Mosquitto, tmp_path: Path) -> None:
    async with connect(settings(broker.url)) as listener, connect(settings(broker.url)) as speaker:
        with trio.fail_after(WAIT_S):
            await listener.subscribe("n")
            await listener.subscribe("given-up")
            await listener.unsubscribe("given-up")
            await broker.kill()
            (tmp_path / "mosquitto.db").unlink(missing_ok=True)
            await broker.start()
            await _connects(listener, 2)
            await listener.subscribe("to-be-sure")  # answered after what came before it
            await speaker.publish("given-up", b"")
            await speaker.publish("n", b"again")
        assert [one.topic for one in await _take(listener, 1)] == ["n"]


async def _connects(client: Client, count: int) -> None:
    while client.status.connects < count:
        await client.connected()
        await trio.lowlevel.checkpoint()


@needs_mosquitto
async def test_what_is_not_acknowledged_comes_again_and_what_is_does_not(broker: Mosquitto) -> None:
    kept = partial(settings, broker.url, client_id="listener", clean_session=False)
    async with connect(settings(broker.url)) as speaker:
        with trio.fail_after(WAIT_S):
            async with connect(kept()) as listener:
                await listener.subscribe("n")
                for number in range(3):
                    await speaker.publish("n", str(number).encode())
                reader = listener.messages(by_hand=True)
                first, second = await anext(reader), await anext(reader)
                second.ack()  # in vain: the first one has not been
                assert (first.payload, second.payload) == (b"0", b"1")
            async with connect(kept()) as listener:
                assert [one.payload for one in await _take(listener, 3)] == [b"0", b"1", b"2"]
            await speaker.publish("n", b"last")
            async with connect(kept()) as listener:
                assert [one.payload for one in await _take(listener, 1)] == [b"last"]


@needs_mosquitto
async def test_asking_for_the_next_message_acknowledges_the_one_before(broker: Mosquitto) -> None:
    kept = partial(settings, broker.url, client_id="listener", clean_session=False)
    async with connect(settings(broker.url)) as speaker:
        with trio.fail_after(WAIT_S):
            async with connect(kept()) as listener:
                await listener.subscribe("n")
                await speaker.publish("n", b"one")
                await speaker.publish("n", b"two")
                async for message in listener.messages():
                    if message.payload == b"two":
                        break
            async with connect(kept()) as listener:
                assert [one.payload for one in await _take(listener, 1)] == [b"two"]


@needs_mosquitto
async def test_more_than_is_taken_is_left_to_the_broker_and_comes_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "MQTT_INBOX_MESSAGES_MAX", 5)
    async with mosquitto(tmp_path, "max_inflight_messages 50", "max_queued_messages 0") as broker:
        kept = partial(settings, broker.url, client_id="listener", clean_session=False)
        async with connect(kept()) as listener, connect(settings(broker.url)) as speaker:
            with trio.fail_after(WAIT_S):
                await listener.subscribe("n")
                for number in range(30):
                    await speaker.publish("n", str(number).encode())
                await listener.publish("elsewhere", b"")  # answers still come through
            found = await _take(listener, 30)
            assert listener.status.dropped == 0
    assert [int(one.payload) for one in found] == list(range(30))


@needs_mosquitto
async def test_a_message_without_a_promise_that_finds_no_room_is_counted(
    broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "MQTT_INBOX_MESSAGES_MAX", 2)
    async with connect(settings(broker.url)) as listener, connect(settings(broker.url)) as speaker:
        with trio.fail_after(WAIT_S):
            await listener.subscribe("n", 0)
            for number in range(5):
                await speaker.publish("n", str(number).encode(), 0)
            await speaker.publish("elsewhere", b"")
            await listener.publish("elsewhere", b"")  # once that is answered, all of the above has come
        assert [one.payload for one in await _take(listener, 2)] == [b"0", b"1"]
        assert listener.status.dropped == 3


@needs_mosquitto
async def test_a_message_that_is_too_large_is_dropped_and_does_not_come_again(
    broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = partial(settings, broker.url, client_id="listener", clean_session=False)
    async with connect(settings(broker.url)) as speaker:
        with trio.fail_after(WAIT_S):
            async with connect(kept()) as listener:
                await listener.subscribe("n")
            await speaker.publish("n", b"x" * 100_000)
            await speaker.publish("n", b"small")
            monkeypatch.setattr(mqtt, "MQTT_PACKET_BYTES_MAX", 64 * 1024)
            async with connect(kept()) as listener:
                assert [one.payload for one in await _take(listener, 1)] == [b"small"]
                assert listener.status.dropped == 1
            monkeypatch.undo()
            await speaker.publish("n", b"next")
            async with connect(kept()) as listener:
                assert [one.payload for one in await _take(listener, 1)] == [b"next"]


@needs_mosquitto
async def test_who_goes_without_a_word_has_its_will_published_and_who_says_bye_has_not(broker: Mosquitto) -> None:
    ours = settings(broker.url, will=Will("gone", b"suddenly", 1))
    async with connect(settings(broker.url)) as listener:
        with trio.fail_after(WAIT_S):
            await listener.subscribe("gone")
            async with connect(ours) as client:
                await client.connected()
            with trio.CancelScope() as scope:
                async with connect(ours, reach=_cut_off_by(scope)) as client:
                    await client.connected()
                    await client.publish("gone", b"not yet")
                    scope.cancel()
                    await trio.sleep_forever()
        assert [one.payload for one in await _take(listener, 2)] == [b"not yet", b"suddenly"]


def _cut_off_by(scope: trio.CancelScope) -> Callable[[str, int], Awaitable[Any]]:
    """A connection that ends when the scope is cancelled, before anything can be said."""

    class CutOff(trio.abc.Stream):
        def __init__(self, below: trio.SocketStream) -> None:
            self._below = below

        async def send_all(self, data: bytes | bytearray | memoryview) -> None:
            if scope.cancel_called:
                await trio.aclose_forcefully(self._below)
                raise trio.BrokenResourceError
            await self._below.send_all(data)

        async def wait_send_all_might_not_block(self) -> None:
            await self._below.wait_send_all_might_not_block()

        async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
            return await self._below.receive_some(max_bytes)

        async def aclose(self) -> None:
            await self._below.aclose()

    async def reach(host: str, port: int) -> CutOff:
        return CutOff(await trio.open_tcp_stream(host, port))

    return reach


# --- who we are, and who they are --------------------------------------------------------------------


@needs_mosquitto
@pytest.mark.parametrize("version", ["3.1.1", "5"])
async def test_a_password_from_a_file_lets_us_in_and_a_wrong_one_is_told_without_it(
    tmp_path: Path, version: str
) -> None:
    passwords = tmp_path / "passwords"
    passwords.touch(mode=0o600)
    await trio.run_process(["mosquitto_passwd", "-b", str(passwords), "gate", "let me in"])
    secret = tmp_path / "password"
    secret.write_text("let me out\n")
    lines: list[str] = []
    async with mosquitto(tmp_path, "allow_anonymous false", f"password_file {passwords}") as broker:
        ours = settings(broker.url, user="gate", password_file=str(secret), version=version)
        async with connect(ours, note=lambda *line: lines.append(str(line)), chance=lambda: 0.0) as client:
            with trio.fail_after(WAIT_S):
                while "refuses us" not in client.status.why:
                    await trio.lowlevel.checkpoint()
                secret.write_text("let me in\n")  # read again at each attempt
                await client.publish("n", b"")
        assert client.status.connects == 1
    assert "Not authorized" in lines[0] or "Bad user" in lines[0]
    assert "let me" not in "".join(lines) + repr(ours)


@needs_mosquitto
async def test_a_user_and_a_password_in_the_url_let_us_in(tmp_path: Path) -> None:
    passwords = tmp_path / "passwords"
    passwords.touch(mode=0o600)
    await trio.run_process(["mosquitto_passwd", "-b", str(passwords), "gate", "p@ss/word"])
    async with mosquitto(tmp_path, "allow_anonymous false", f"password_file {passwords}") as broker:
        url = f"mqtt://gate:p%40ss%2Fword@127.0.0.1:{broker.port}"
        async with connect(settings(url)) as client:
            with trio.fail_after(WAIT_S):
                await client.publish("n", b"")
    assert "p@ss" not in repr(settings(url))


@needs_mosquitto
async def test_what_the_broker_does_not_allow_is_an_error_and_the_connection_goes_on(tmp_path: Path) -> None:
    acl = tmp_path / "acl"
    acl.write_text("topic readwrite mine/#\n")
    acl.chmod(0o600)
    async with (
        mosquitto(tmp_path, f"acl_file {acl}") as broker,
        connect(settings(broker.url, version="5")) as client,
    ):
        with trio.fail_after(WAIT_S):
            await client.subscribe("mine/#")
            with pytest.raises(PeerError, match="refuses a message for theirs/n"):
                await client.publish("theirs/n", b"")
            await client.publish("mine/n", b"")
        assert client.status.connects == 1


@needs_mosquitto
async def test_tls_with_a_certificate_on_both_sides(tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    lines = (f"cafile {pki.ca}", f"certfile {pki.server[0]}", f"keyfile {pki.server[1]}", "require_certificate true")
    async with mosquitto(tmp_path, *lines) as broker:
        url = f"mqtts://127.0.0.1:{broker.port}"
        async with connect(settings(url, tls=Tls(pki.ca, *pki.client))) as client:
            with trio.fail_after(WAIT_S):
                await client.subscribe("n")
                await client.publish("n", b"x" * 200_000)
            assert [len(one.payload) for one in await _take(client, 1)] == [200_000]


@needs_mosquitto
@pytest.mark.parametrize(
    ("ca", "certificate", "url", "why"),
    [
        (False, True, "mqtts://127.0.0.1", "not to be trusted"),
        (True, False, "mqtts://127.0.0.1", "want a certificate of ours"),
        (True, True, "mqtt://127.0.0.1", "connection"),
    ],
)
async def test_tls_that_fails_says_why(tmp_path: Path, ca: bool, certificate: bool, url: str, why: str) -> None:
    pki = Pki(tmp_path)
    lines = (f"cafile {pki.ca}", f"certfile {pki.server[0]}", f"keyfile {pki.server[1]}", "require_certificate true")
    async with mosquitto(tmp_path, *lines) as broker:
        tls = Tls(pki.ca if ca else "", *(pki.client if certificate else ("", "")))
        async with connect(settings(f"{url}:{broker.port}", tls=tls), chance=lambda: 0.0) as client:
            assert why in (await _first_why(client)).lower()


async def _first_why(client: Client) -> str:
    with trio.fail_after(WAIT_S):
        while client.status.why == "not connected yet":
            await trio.lowlevel.checkpoint()
    return client.status.why


async def test_a_file_that_can_not_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "none.pem").write_text("no certificate")
    for tls in (Tls(str(tmp_path / "missing.pem")), Tls(str(tmp_path / "none.pem"))):
        async with connect(settings("mqtts://127.0.0.1:1", tls=tls)) as client:
            assert tls.ca_file in await _first_why(client)
    async with connect(settings("mqtt://127.0.0.1:1", user="me", password_file=str(tmp_path / "missing"))) as client:
        assert "missing" in await _first_why(client)


# --- peers that are no broker, and time --------------------------------------------------------------


def _to(answers: Callable[[trio.abc.Stream], Awaitable[None]], nursery: trio.Nursery) -> Any:
    async def reach(host: str, port: int) -> trio.abc.Stream:
        ours, theirs = trio.testing.memory_stream_pair()
        nursery.start_soon(answers, theirs)
        await trio.lowlevel.checkpoint()
        return ours

    return reach


CONNACK = bytes([0x20, 2, 0, 0])


@pytest.mark.parametrize(
    "garbage",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x20\xff\xff\xff\xff\xff",
        b"\x20\x01\x00",
        b"\x20\x00",
        CONNACK + b"\x30\x02\xff\xff",
        CONNACK + b"\x32\x03\x00\x01a",
        CONNACK + b"\x90\x00",
        CONNACK + b"\x40\x01\x00",
        CONNACK + b"\xf0\x00",
        CONNACK + b"\x20\x80\x80\x80\x7f",
    ],
)
async def test_a_peer_that_speaks_no_mqtt_costs_its_connection_and_nothing_else(
    garbage: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    connections = 0

    async def answer(stream: trio.abc.Stream) -> None:
        nonlocal connections
        connections += 1
        await stream.receive_some(1000)
        await stream.send_all(garbage)
        while await stream.receive_some(1000):
            pass

    async with trio.open_nursery() as nursery:
        async with connect(settings("broker"), reach=_to(answer, nursery), chance=lambda: 1.0) as client:
            while connections < 3:
                await trio.sleep(1)
            assert client.status.why
        nursery.cancel_scope.cancel()


async def test_attempts_back_off_with_full_jitter_up_to_a_minute(autojump_clock: trio.testing.MockClock) -> None:
    at: list[float] = []

    async def nowhere(host: str, port: int) -> trio.SocketStream:
        at.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        raise PeerError("can't reach it")

    async with connect(settings("broker"), reach=nowhere, chance=lambda: 0.5):
        while len(at) < 10:
            await trio.sleep(1)
    pauses = [round(later - earlier, 3) for earlier, later in pairwise(at)]
    assert pauses[:3] == [0.5, 1.0, 2.0]
    assert set(pauses[7:]) == {30.0}


async def test_a_peer_that_never_answers_is_left_after_its_time(autojump_clock: trio.testing.MockClock) -> None:
    async def silent(stream: trio.abc.Stream) -> None:
        while await stream.receive_some(1000):
            pass

    async with trio.open_nursery() as nursery:
        async with connect(settings("broker"), reach=_to(silent, nursery)) as client:
            began = trio.current_time()
            while client.status.why == "not connected yet":
                await trio.sleep(1)
            assert "does not answer" in client.status.why
            assert trio.current_time() - began <= mqtt.ANSWER_S + 1
        nursery.cancel_scope.cancel()


async def test_a_connection_that_has_died_without_a_word_is_noticed_by_its_keepalive(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paho.mqtt.client, "time_func", trio.current_time)
    ended = trio.Event()
    at: list[tuple[float, bytes]] = []

    async def dies(stream: trio.abc.Stream) -> None:
        await stream.receive_some(1000)
        await stream.send_all(CONNACK)
        while data := await stream.receive_some(1000):
            at.append((trio.current_time(), bytes(data)))
        at.append((trio.current_time(), b""))
        ended.set()

    async with trio.open_nursery() as nursery:
        async with connect(settings("broker", keepalive_s=20), reach=_to(dies, nursery)) as client:
            await client.connected()
            await ended.wait()
        nursery.cancel_scope.cancel()
    assert at == [(20.0, b"\xc0\x00"), (40.0, b"")]


async def test_an_error_of_who_uses_it_comes_out_as_it_is() -> None:
    with pytest.raises(KeyError):
        async with connect(settings(f"127.0.0.1:{free_port()}")):
            raise KeyError("mine")


@pytest.mark.parametrize("topic", ["", "a/+", "#", "a\0", "x" * 5000, "\ud800"])
async def test_a_topic_that_can_not_be_published_is_refused_at_once(topic: str) -> None:
    async with connect(settings("127.0.0.1:1")) as client:
        with pytest.raises(BadInput):
            await client.publish(topic, b"")


async def test_a_payload_that_no_peer_of_ours_would_take_is_refused_at_once() -> None:
    async with connect(settings("127.0.0.1:1")) as client:
        with pytest.raises(BadInput, match="payload"):
            await client.publish("n", bytes(limits.MQTT_PACKET_BYTES_MAX))


# --- addresses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "host", "port", "tls"),
    [
        ("mqtt://broker", "broker", 1883, False),
        ("mqtts://broker", "broker", 8883, True),
        ("tcp://127.0.0.1:1884", "127.0.0.1", 1884, False),
        ("ssl://broker:1", "broker", 1, True),
        ("127.0.0.1:1883", "127.0.0.1", 1883, False),
        ("mqtt://[::1]:99/", "::1", 99, False),
        ("mqtt://u:p@broker:7", "broker", 7, False),
    ],
)
def test_brokers_addresses_as_people_write_them(url: str, host: str, port: int, tls: bool) -> None:
    found = settings(url)
    assert (found.host, found.port, found.tls is not None) == (host, port, tls)


@pytest.mark.parametrize(
    "url", ["", "mqtt://", "http://broker", "mqtt://broker:x", "mqtt://u:secret@", "mqtt://b/topic"]
)
def test_a_wrong_address_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(BadInput) as caught:
        settings(url)
    assert "secret" not in str(caught.value)


def test_a_session_that_is_kept_needs_a_name() -> None:
    with pytest.raises(BadInput, match="client_id"):
        Client(settings("b", clean_session=False), reach=trio.open_tcp_stream, note=None, chance=lambda: 0.0)
