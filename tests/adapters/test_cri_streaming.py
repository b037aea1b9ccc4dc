"""The URLs of containerd's own streaming server speak `v4.channel.k8s.io` over WebSocket."""

from __future__ import annotations

import re
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.adapters.cri_pods import PATIENCE_S, container, rig, runtime_of, sandbox
from tests.fakes.containerd_rig import ContainerdRig

__all__ = ["rig"]

pytestmark = pytest.mark.containerd

STDIN, STDOUT, STDERR, STATUS = range(4)


class _WebSocket:
    """As little of RFC 6455 as containerd's server needs: short binary messages, one frame each."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.buffer = b""

    @classmethod
    async def connect(cls, url: str) -> _WebSocket:
        host, port, path = re.fullmatch(r"http://([^:]+):(\d+)(/.*)", url).groups()  # type: ignore[union-attr]
        socket = cls(await trio.open_tcp_stream(host, int(port)))
        await socket.stream.send_all(
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n".encode()
        )
        while b"\r\n\r\n" not in socket.buffer:
            socket.buffer += await socket.stream.receive_some()
        head, _, socket.buffer = socket.buffer.partition(b"\r\n\r\n")
        assert b" 101 " in head
        assert b"v4.channel.k8s.io" in head
        return socket

    async def send(self, channel: int, data: bytes) -> None:
        payload = bytes([channel]) + data
        await self.stream.send_all(bytes([0x82, 0x80 | len(payload), 0, 0, 0, 0]) + payload)

    async def _take(self, size: int) -> bytes:
        while len(self.buffer) < size:
            data = await self.stream.receive_some()
            assert data, "the server went away in the middle of a frame"
            self.buffer += data
        taken, self.buffer = self.buffer[:size], self.buffer[size:]
        return taken

    async def messages(self) -> AsyncIterator[tuple[int, bytes]]:
        """(channel, data), empty ones left out, until the server closes."""
        while True:
            kind, length = await self._take(2)
            size = int.from_bytes(await self._take(2)) if length == 126 else length
            payload = await self._take(size)
            if kind == 0x88:
                return
            if len(payload) > 1:
                yield payload[0], payload[1:]


async def _talk(url: str, *said: bytes) -> dict[int, bytes]:
    """What came on each channel, to the end."""
    socket = await _WebSocket.connect(url)
    heard: dict[int, bytes] = {}
    async with socket.stream:
        for words in said:
            await socket.send(STDIN, words)
        async for channel, data in socket.messages():
            heard[channel] = heard.get(channel, b"") + data
    return heard


async def test_exec_carries_output_errors_and_the_exit_code(rig: ContainerdRig, tmp_path: Path) -> None:
    async with runtime_of(rig) as runtime:
        spec = sandbox(tmp_path)
        container_id = await runtime.start_container(await runtime.run_sandbox(spec), spec, container())
        argv = ["sh", "-c", "echo out; echo err >&2; exit 3"]
        heard = await _talk(await runtime.exec_url(container_id, argv, stdin=False, tty=False))
        assert (heard[STDOUT], heard[STDERR]) == (b"out\n", b"err\n")
        assert b'"message":"3"' in heard[STATUS].replace(b" ", b"")


async def _talk_spdy(url: str, *kinds: str) -> dict[str, bytes]:
    """What came on each stream, once there is an outcome. `kinds` are opened, and no others."""
    host, port, path = re.fullmatch(r"http://([^:]+):(\d+)(/.*)", url).groups()  # type: ignore[union-attr]
    packer, heard, buffer = zlib.compressobj(), dict.fromkeys(kinds, b""), b""
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        await stream.send_all(
            f"POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
            "X-Stream-Protocol-Version: v4.channel.k8s.io\r\nContent-Length: 0\r\n\r\n".encode()
        )
        while b"\r\n\r\n" not in buffer:
            buffer += await stream.receive_some()
        head, _, buffer = buffer.partition(b"\r\n\r\n")
        assert b" 101 " in head
        for number, kind in enumerate(kinds):
            pair = b"".join(len(word).to_bytes(4) + word for word in (b"streamtype", kind.encode()))
            block = packer.compress((1).to_bytes(4) + pair) + packer.flush(zlib.Z_SYNC_FLUSH)
            body = (2 * number + 1).to_bytes(4) + bytes(6) + block
            await stream.send_all(b"\x80\x03\x00\x01\x00" + len(body).to_bytes(3) + body)
        while not heard["error"]:
            while len(buffer) < 8 or len(buffer) < 8 + int.from_bytes(buffer[5:8]):
                data = await stream.receive_some()
                assert data, "the server went away"
                buffer += data
            size, number = int.from_bytes(buffer[5:8]), int.from_bytes(buffer[:4])
            if number < 1 << 31:
                heard[kinds[number // 2]] += buffer[8 : 8 + size]
            buffer = buffer[8 + size :]
    return heard


@pytest.mark.parametrize("kinds", [("error", "stdout"), ("error", "stderr"), ("error", "stdout", "stderr")])
async def test_exec_by_spdy_begins_once_the_streams_that_were_asked_for_are_there(
    rig: ContainerdRig, tmp_path: Path, kinds: tuple[str, ...]
) -> None:
    """The server waits half a minute for each of them, and then gives up."""
    async with runtime_of(rig) as runtime:
        spec = sandbox(tmp_path)
        container_id = await runtime.start_container(await runtime.run_sandbox(spec), spec, container())
        argv = ["sh", "-c", "echo out; echo err >&2"]
        wanted = {name: name in kinds for name in ("stdout", "stderr")}
        url = await runtime.exec_url(container_id, argv, stdin=False, **wanted, tty=False)
        with trio.fail_after(60):
            heard = await _talk_spdy(url, *kinds)
        assert b"Success" in heard.pop("error")
        words = {"stdout": b"out\n", "stderr": b"err\n"}
        assert heard == {name: words[name] for name in kinds[1:]}


async def test_exec_with_a_terminal_takes_input(rig: ContainerdRig, tmp_path: Path) -> None:
    async with runtime_of(rig) as runtime:
        spec = sandbox(tmp_path)
        container_id = await runtime.start_container(await runtime.run_sandbox(spec), spec, container())
        argv = ["sh", "-c", "read line; echo got $line"]
        heard = await _talk(await runtime.exec_url(container_id, argv, stdin=True, tty=True), b"hello\n")
        assert b"got hello" in heard[STDOUT]
        assert b"Success" in heard[STATUS]


async def test_attach_reaches_the_containers_own_input_and_output(rig: ContainerdRig, tmp_path: Path) -> None:
    async with runtime_of(rig) as runtime:
        spec = sandbox(tmp_path)
        reader = container("sh", "-c", "read line; echo got $line", stdin=True)
        container_id = await runtime.start_container(await runtime.run_sandbox(spec), spec, reader)
        heard = await _talk(await runtime.attach_url(container_id, stdin=True, tty=False), b"hello\n")
        assert heard[STDOUT] == b"got hello\n"


async def test_port_forward_reaches_a_port_of_the_pod(rig: ContainerdRig, tmp_path: Path) -> None:
    """Each direction begins with the port in two bytes, little end first."""
    async with runtime_of(rig) as runtime:
        spec = sandbox(tmp_path)
        sandbox_id = await runtime.run_sandbox(spec)
        server = container("sh", "-c", "echo hello > /tmp/index.html; httpd -f -p 8080 -h /tmp")
        container_id = await runtime.start_container(sandbox_id, spec, server)
        listening = "until nc 127.0.0.1 8080 </dev/null; do :; done"
        await runtime.exec_sync(container_id, ["sh", "-c", listening], PATIENCE_S)
        url = await runtime.port_forward_url(sandbox_id, [8080])
        heard = await _talk(url, b"GET / HTTP/1.0\r\n\r\n")
        assert heard[0].startswith((8080).to_bytes(2, "little"))
        assert heard[0].endswith(b"hello\n")
