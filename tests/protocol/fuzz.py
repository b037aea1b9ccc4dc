"""Fuzzing of the link: whatever bytes come, a session and a WebSocket return or say that the link is broken, and stay
within their memory.

    python -m tests.protocol.fuzz --seconds 60 [--seed 1]

Uses atheris where it is installed, which follows the branches of our Python; else a mutator with a seed, which begins
with valid messages and flips, cuts, joins and bloats them.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import random
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress

import msgspec

from tests.protocol.link_rig import Joined
from tinyedge.protocol import link, link_messages
from tinyedge.protocol.link import LinkBroken, Session, pack
from tinyedge.protocol.websocket import WebSocket, WebSocketBroken

REV = b"12345678"
MEMORY_BYTES_MAX = 48 * 1024 * 1024  # of one input of at most 256 KiB, and of what it makes of it
INPUT_BYTES_MAX = 256 * 1024

SEEDS: list[bytes] = [
    pack(message, version)
    for version in (1, 2)
    for message in (
        link.Hello((1, 2), "s", "b", "m", 1, link.our_limits(), {"pod": REV}, {"events": 1}),
        link.Welcome(2, "g", 1, 30, 4, link.our_limits(), ["pod"], {"podstatus": {"u": REV}}),
        link.Outline("pod", {f"u-{n}": REV for n in range(60)}),
        link.Put(1, "pod", "u-1", REV, b"body " * 300),
        link.Delete(2, "pod", "u-1"),
        link.Synced(),
        link_messages.Ack([1, 2, 3]),
        link_messages.Refuse(1, "Invalid", "why"),
        link.State(1, "node", "self", REV, b"body"),
        link_messages.StateAck([1]),
        link_messages.StateRefuse(1, "Invalid", "why"),
        link.Series("events", 1, 1, [b"x", b"y"], 3),
        link_messages.SeriesAck("events", 1, 2),
        link.Ask(1, "token", b"body"),
        link.Reply(1, "", b"body"),
        link.Open(1, "exec", {"command": ["sh"], "tty": True, "headers": [["a", "b"]], "n": None, "lines": 3}),
        link.Data(1, b"data"),
        link_messages.Credit(1, 100),
        link.Close(1, "why", "NotFound"),
        link_messages.Ping(),
        link_messages.Pong(),
        link.Bye("Stopping", "", 3),
    )
]
_BOMBS = [
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x00",
    b"\x91" * 2000,
    b"\x81\xa1k" * 2000,
    b"\xcf" + b"\xff" * 8,
    b"\xd3\x80" + bytes(7),
    b"\xcb\x7f\xf8" + bytes(6),
]


def mutated(chance: random.Random, seeds: list[bytes]) -> bytes:
    """One of the seeds, or several in one another, and changed a few times."""
    data = bytearray(chance.choice(seeds))
    if data[:1] == b"\1" and chance.random() < 0.7:  # change what is inside
        data = bytearray(b"\0" + zlib.decompress(bytes(data[1:]), -15))
    for _ in range(chance.randrange(6)):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(8):
            case 0 | 1:
                data[at : at + 1] = bytes([chance.randrange(256)])
            case 2:
                del data[at:]
            case 3:
                del data[at : at + chance.randrange(1, 20)]
            case 4:
                data[at:at] = chance.choice(_BOMBS)
            case 5:
                other = chance.choice(seeds)
                data[at:] = other[chance.randrange(len(other)) :]
            case 6:
                data[at:at] = data[at : at + 50] * chance.randrange(1, 200)
            case 7:
                data[at : at + 1] = bytes([data[at] ^ (1 << chance.randrange(8))]) if at < len(data) else b"\xc0"
    if chance.random() < 0.2:
        data = bytearray(b"\1" + zlib.compress(bytes(data[1:]) * chance.choice((1, 1, 1000)), 1, -15))
    return bytes(data[:INPUT_BYTES_MAX])


def sessions() -> list[Session]:
    """An edge and a gateway before and after their first words, with something under way."""
    fresh = Joined()
    fresh.hello()
    fresh.edge.next(fresh.now_ms)
    used = Joined().greeted()
    for n in range(3):
        used.gateway.put("pod", f"u-{n}", REV, b"x")
        used.edge.state("podstatus", f"u-{n}", REV, b"x")
    used.edge.ask("token", b"")
    used.gateway.open("exec", {})
    used.settle()
    return [fresh.edge, fresh.gateway, used.edge, used.gateway]


def try_sessions(messages: list[bytes]) -> None:
    """Raises whatever a session should not have raised."""
    for session in sessions():
        for message in messages:
            try:
                session.receive(message, 1_000_000)
            except LinkBroken:
                break
        for _ in range(1000):
            if session.next(1_000_000) is None:
                break


def try_socket(data: bytes) -> None:
    for is_client in (True, False):
        client, server = WebSocket(client=True), WebSocket(client=False)
        client.receive(server.accept(client.request("g", "/")))
        with suppress(WebSocketBroken):
            (client if is_client else server).receive(data)
    client = WebSocket(client=True)
    client.request("g", "/")
    with suppress(WebSocketBroken):
        client.receive(data)
        client.receive(b"")
    with suppress(WebSocketBroken):
        WebSocket(client=False).accept(data)


def _frames() -> list[bytes]:
    client, server = WebSocket(client=True), WebSocket(client=False)
    head = client.request("g", "/v1/link")
    answer = server.accept(head)
    client.receive(answer)
    sent = [one.send(bytes(size)) for one in (client, server) for size in (0, 5, 300)]
    refusal = b"HTTP/1.1 403 No\r\nContent-Length: 3\r\n\r\nwhy"
    return [head, answer, refusal, *sent, b"\x88\x02\x03\xe8", b"\x89\x03abc", b"\x81\x02{}"]


def peak(work: Callable[[], None]) -> int:
    """Bytes that Python had at most while it worked, beyond what it had before."""
    started = tracemalloc.is_tracing()
    if not started:
        tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        work()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        if not started:
            tracemalloc.stop()


def run(chance: random.Random, more: Callable[[], bool]) -> tuple[int, int]:
    """(inputs tried, bytes of memory of the worst). Raises whatever should not have been raised."""
    tried, worst = 0, 0
    frames = _frames()
    tracemalloc.start()
    try:
        while more():
            messages = [mutated(chance, SEEDS) for _ in range(chance.randrange(1, 4))]
            frame = mutated(chance, frames)
            for work in (lambda m=messages: try_sessions(m), lambda f=frame: try_socket(f)):
                worst = max(worst, peak(work))
            if worst > MEMORY_BYTES_MAX:
                raise MemoryError(f"{worst} bytes for {messages[0][:200]!r}… or {frame[:200]!r}…")
            tried += 1
    finally:
        tracemalloc.stop()
    return tried, worst


def _by_atheris(seconds: int) -> None:
    atheris = importlib.import_module("atheris")
    atheris.instrument_all()

    def one(data: bytes) -> None:
        try_sessions([data])
        try_sessions([b"\0" + msgspec.msgpack.encode([data[:1], data[1:]])])
        try_socket(data)

    atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", f"-max_len={INPUT_BYTES_MAX}"], one)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzz the link at both ends.")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=None)
    args = parser.parse_args()
    if args.seed is None and importlib.util.find_spec("atheris") is not None:
        _by_atheris(args.seconds)
        return
    seed = args.seed if args.seed is not None else random.randrange(2**32)
    end = time.monotonic() + args.seconds
    print(f"seed {seed}")
    tried, worst = run(random.Random(seed), lambda: time.monotonic() < end)
    print(f"{tried} inputs, at most {worst / 1e6:.1f} MB for one")


if __name__ == "__main__":
    main()
