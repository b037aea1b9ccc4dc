"""exec, attach and port-forward against a streaming server that is acted out."""

from __future__ import annotations

import json
import os
import pty
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator

import pytest

from tests.cli.conftest import Cli
from tests.fakes.streaming import Peer, StreamingServer
from tinyedge.cli import forward
from tinyedge.cli.client import Client
from tinyedge.cli.errors import CliError
from tinyedge.cli.streams import Streams, outcome

SUCCESS = json.dumps({"status": "Success"}).encode()


def ended(code: int) -> bytes:
    causes = [{"reason": "ExitCode", "message": str(code)}]
    return json.dumps({"status": "Failure", "reason": "NonZeroExitCode", "details": {"causes": causes}}).encode()


class Acted:
    """Makes streaming servers, and closes them at the end of the test."""

    def __init__(self, cli: Cli) -> None:
        self._cli = cli
        self._servers: list[StreamingServer] = []

    def __call__(self, act: object, **more: object) -> StreamingServer:
        server = StreamingServer(act, **more)  # type: ignore[arg-type]
        self._servers.append(server)
        self._cli.backend.url = server.url
        return server

    def close(self) -> None:
        for server in self._servers:
            server.close()


@pytest.fixture
def acted(cli: Cli) -> Iterator[Acted]:
    made = Acted(cli)
    yield made
    made.close()


def run(cli: Cli, *words: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """As a program of its own: it reads the real standard input."""
    return subprocess.run(
        [sys.executable, "-m", "tinyedge", "--socket", cli.socket, *words],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        timeout=60,
        check=False,
    )


def test_output_and_exit_code_of_a_command_are_its_own(cli: Cli, acted: Acted) -> None:
    def act(peer: Peer) -> None:
        peer.send(1, b"out\n")
        peer.send(2, b"err\n")
        peer.send(3, ended(7))

    server = acted(act)
    ran = cli("exec", "web", "-c", "web", "--", "ls", "-l", "--color")
    assert (ran.code, ran.out, ran.err) == (7, "out\n", "err\n")
    assert cli.backend.urls_asked == [
        ("exec", "default", "web", "web", "ls", "-l", "--color", "stdin=False", "tty=False")
    ]
    assert server.targets == ["/exec/token?x=1"]


def test_a_message_in_one_packet_with_the_handshake_is_not_lost(cli: Cli, acted: Acted) -> None:
    acted(lambda peer: (peer.send(1, b"quick\n"), peer.send(3, SUCCESS)))
    ran = cli("exec", "web", "--", "true")
    assert (ran.code, ran.out) == (0, "quick\n")


def test_standard_input_is_passed_on_and_its_end_is_told_to_version_5(cli: Cli, acted: Acted) -> None:
    got: list[tuple[int, bytes]] = []

    def act(peer: Peer) -> None:
        while (message := peer.receive() or (0, b"")) != (255, b"\x00"):
            got.append(message)
        peer.send(1, b"".join(data for _, data in got))
        peer.send(3, SUCCESS)

    acted(act, version="v5.channel.k8s.io")
    text = b"line\n" * 20_000
    done = run(cli, "exec", "-i", "web", "--", "cat", stdin=text)
    assert (done.returncode, done.stdout == text, done.stderr) == (0, True, b"")
    assert {channel for channel, _ in got} == {0}


def test_a_command_that_answers_while_it_is_written_to_does_not_jam(cli: Cli, acted: Acted) -> None:
    def echo(peer: Peer) -> None:
        while (message := peer.receive()) != (255, b"\x00"):
            peer.send(1, (message or (0, b""))[1])
        peer.send(3, SUCCESS)

    acted(echo, version="v5.channel.k8s.io")
    data = os.urandom(8 * 2**20)
    done = run(cli, "exec", "-i", "web", "--", "cat", stdin=data)
    assert (done.returncode, done.stdout == data) == (0, True)


def test_a_terminal_is_raw_resized_and_given_back(cli: Cli, acted: Acted) -> None:
    seen: dict[int, bytes] = {}

    def act(peer: Peer) -> None:
        while 4 not in seen or not seen.get(0, b"").endswith(b"q"):
            channel, data = peer.receive() or (0, b"q")
            seen[channel] = seen.get(channel, b"") + data
        peer.send(1, b"bye")
        peer.send(3, ended(3))

    acted(act)
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    program = subprocess.Popen(
        [sys.executable, "-m", "tinyedge", "--socket", cli.socket, "exec", "-it", "web", "--", "sh"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    while termios.tcgetattr(theirs)[3] & termios.ICANON:  # until it is raw, Ctrl-C would be ours
        assert program.poll() is None
    os.write(ours, b"\x03q")
    out, err = program.communicate(timeout=60)
    assert (program.returncode, out, err) == (3, b"bye", b"")
    assert seen[0] == b"\x03q"
    assert set(json.loads(seen[4])) == {"Width", "Height"}
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


def test_attach_ends_with_its_process(cli: Cli, acted: Acted) -> None:
    acted(lambda peer: (peer.send(1, b"tick\n"), peer.send(3, SUCCESS)))
    assert cli("attach", "web").out == "tick\n"
    assert cli.backend.urls_asked[-1] == ("attach", "default", "web", "web", "stdin=False", "tty=False")


def test_a_server_that_refuses_or_goes_away_is_explained(cli: Cli, acted: Acted) -> None:
    acted(lambda peer: None, refusal="404 page not found")
    assert "404 page not found" in cli("exec", "web", "--", "ls").err
    acted(lambda peer: peer.send(1, b"half"))
    ran = cli("exec", "web", "--", "ls")
    assert (ran.code, ran.out) == (1, "half")
    assert "before the outcome was told" in ran.err
    cli.backend.url = "http://127.0.0.1:1/exec/x"
    assert "can't reach the runtime's streaming server" in cli("exec", "web", "--", "ls").err


@pytest.mark.parametrize("words", [("web",), ("web", "ls"), ("-t", "web", "--", "sh")])
def test_wrong_usage_of_exec_is_told_before_anything_is_asked(cli: Cli, words: tuple[str, ...]) -> None:
    assert cli("exec", *words).code == 2
    assert cli.backend.urls_asked == []


def test_an_outcome_without_an_exit_code_has_words() -> None:
    assert outcome(b'{"status":"Failure","message":"container not running"}') == (1, "container not running")
    assert outcome(b"no json") == (1, "no json")
    assert outcome(SUCCESS) == (0, "")


# --- port-forward ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "ports"), [("8080:80", (8080, 80)), ("80", (80, 80)), (":80", (0, 80))])
def test_ports_are_read(text: str, ports: tuple[int, int]) -> None:
    assert forward.parse(text) == ports


@pytest.mark.parametrize("wrong", ["", "x", "80:", "0", "80:0", "1:65536", "a:80", "1:2:3"])
def test_what_is_no_port_is_refused(wrong: str) -> None:
    with pytest.raises(CliError, match="no pair of ports"):
        forward.parse(wrong)


def test_a_connection_is_carried_both_ways(cli: Cli, acted: Acted) -> None:
    def act(peer: Peer) -> None:
        peer.send(0, (80).to_bytes(2, "little"))
        peer.send(1, (80).to_bytes(2, "little"))
        got = b""
        while not got.endswith(b"\r\n\r\n"):
            got += (peer.receive() or (0, b""))[1]
        peer.send(0, b"answer to " + got[:3])

    acted(act)
    near, far = socket.socketpair()
    worker = threading.Thread(
        target=forward._serve, args=(Client(cli.socket), "/v1/namespaces/default/pods/web", far, 80)
    )
    worker.start()
    with near:
        near.sendall(b"GET / HTTP/1.1\r\n\r\n")
        answer = b""
        while data := near.recv(100):
            answer += data
    worker.join(60)
    assert answer == b"answer to GET"
    assert cli.backend.urls_asked == [("port-forward", "default", "web", "80")]


def test_an_error_of_the_pods_side_is_told(cli: Cli, acted: Acted, capsys: pytest.CaptureFixture[str]) -> None:
    acted(lambda peer: (peer.send(1, b"\x50\x00"), peer.send(1, b"connection refused"), peer.receive()))
    near, far = socket.socketpair()
    with near:
        forward._serve(Client(cli.socket), "/v1/namespaces/default/pods/web", far, 80)
    assert "port 80: the pod refused the connection: connection refused" in capsys.readouterr().err


def test_pings_are_answered(cli: Cli, acted: Acted) -> None:
    server = acted(lambda peer: (peer._send(__import__("wsproto").events.Ping(payload=b"x")), peer.send(3, SUCCESS)))
    streams = Streams(server.url)
    messages: list[tuple[int, bytes]] = []
    while not messages:
        messages += streams.wait([])[1]
    streams.close()
    assert messages == [(3, SUCCESS)]
