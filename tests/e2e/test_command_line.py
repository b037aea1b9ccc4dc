"""The command line against the real daemon and real containerd: what streams, and what only a runtime can answer."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import tarfile
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.rig import SLEEP, Node, configmap, pod, secret, sh
from tests.fakes.image_archives import BUSYBOX

pytestmark = [pytest.mark.containerd, pytest.mark.root]

MARKER = "hunter2-never-show-this"
TALKS = 'trap "exit 0" TERM; n=0; while true; do n=$((n+1)); echo tick $n; sleep 0.2; done'


def start(node: Node, *words: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tinyedge", *words],
        env={**os.environ, "TINYEDGE_SOCKET": node.client.path},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(program: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = program.communicate(timeout=30)
    finally:
        program.kill()
    return program.returncode, out, err


@contextmanager
def going(program: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """A program that only ends when it is told to."""
    try:
        yield program
    finally:
        program.send_signal(signal.SIGINT)
        program.communicate(timeout=30)


def line(program: subprocess.Popen[str]) -> str:
    assert program.stdout
    return program.stdout.readline()


def test_exec_gives_both_outputs_and_the_exit_code(node: Node) -> None:
    node.run(pod("runs", sh(SLEEP)))
    program = start(node, "exec", "runs", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert ended(program) == (7, "out\n", "err\n")
    assert ended(start(node, "exec", "runs", "--", "no-such-program"))[0] != 0


def test_exec_with_a_terminal_is_a_shell(node: Node) -> None:
    node.run(pod("shell", sh(SLEEP)))
    ours, theirs = pty.openpty()
    program = start(node, "exec", "-it", "shell", "--", "sh", stdin=theirs)
    node.wait(lambda: not termios.tcgetattr(theirs)[3] & termios.ICANON)
    os.write(ours, b"[ -t 0 ] && echo is a $(echo terminal) && exit 5\r")
    code, out, _ = ended(program)
    os.close(ours)
    os.close(theirs)
    assert (code, "is a terminal" in out) == (5, True)


def test_exec_passes_input_on(node: Node) -> None:
    node.run(pod("reads", sh(SLEEP)))
    program = start(node, "exec", "-i", "reads", "--", "head", "-n", "1", stdin=subprocess.PIPE)
    out, _ = program.communicate(input="one\ntwo\n", timeout=30)
    assert (program.returncode, out) == (0, "one\n")


def test_attach_joins_what_runs(node: Node) -> None:
    node.run(pod("talks", sh(TALKS)))
    with going(start(node, "attach", "talks")) as program:
        assert line(program).startswith("tick ")


def test_a_log_is_followed(node: Node) -> None:
    node.run(pod("writes", sh(TALKS)))
    with going(start(node, "logs", "-f", "--tail", "1", "writes")) as program:
        first, second = (int(line(program).split()[1]) for _ in range(2))
    assert second == first + 1


def test_a_port_is_forwarded(node: Node) -> None:
    serves = sh("mkdir /www; echo hello from inside > /www/index.html; exec httpd -f -p 80 -h /www")
    probe = {"readinessProbe": {"tcpSocket": {"port": 80}, "periodSeconds": 1}}
    node.run(pod("serves", {**serves, **probe}))
    with going(start(node, "port-forward", "serves", ":80")) as program:
        port = int(line(program).partition("127.0.0.1:")[2].split()[0])
        for _ in range(2):
            with socket.create_connection(("127.0.0.1", port), 10) as sock:
                sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
                answer = b""
                while data := sock.recv(1000):
                    answer += data
            assert b"hello from inside" in answer


def test_top_measures_what_runs(node: Node) -> None:
    node.run(pod("busy", sh("while true; do :; done")))

    def cpu() -> str:
        rows = [row.split() for row in node.cli("top", "pods").splitlines()]
        return next((row[1] for row in rows if row[0] == "busy" and row[1] != "0m"), "")

    assert node.wait(cpu).endswith("m")


def test_apply_restart_and_delete(node: Node, tmp_path: Path) -> None:
    manifest = tmp_path / "given.json"
    manifest.write_text(json.dumps(pod("given", sh(SLEEP))))
    assert node.cli("apply", "-f", str(manifest)) == "pod/given created\n"
    node.wait_pod("given")
    node.cli("restart", "given")
    node.wait_pod("given", lambda found: found["status"]["containerStatuses"][0]["restartCount"] == 1)
    assert "1 (" in node.cli("get", "pod", "given")
    assert node.cli("delete", "pod", "given") == 'pod "given" deleted\n'
    node.wait_gone("given")


def test_images_are_listed(node: Node) -> None:
    rows = [row.split() for row in node.cli("image", "ls").splitlines()]
    name, _, tag = BUSYBOX.rpartition(":")
    assert any(row[0] == name and row[1] == tag for row in rows), rows


def test_check_finds_this_node_fit(node: Node) -> None:
    told = json.loads(node.cli("check", "--config", str(node.config), "-o", "json"))
    assert told["errors"] == 0
    assert "containerd" in next(f["what"] for f in told["findings"] if f["check"] == "runtime")


def test_a_bundle_of_a_real_node_never_holds_a_secrets_value(node: Node, tmp_path: Path) -> None:
    env = [{"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "login", "key": "password"}}}]
    chatty = sh('echo "my password is $PASSWORD"; exec sleep 100000', env=env)
    node.run(secret("login", password=MARKER), configmap("careless", line=f"password={MARKER}"), pod("chatty", chatty))
    node.wait(lambda: MARKER in node.logs("chatty"))
    file = tmp_path / "bundle.tar.gz"
    node.cli("collect", str(file), "--config", str(node.config))
    with tarfile.open(file) as archive:
        parts = {m.name.partition("/")[2]: archive.extractfile(m) for m in archive.getmembers()}
        found = {name: part.read() for name, part in parts.items() if part}
    assert b"my password is <redacted>" in found["logs/default_chatty/main.log"]
    assert [name for name, data in found.items() if MARKER.encode() in data] == []
    assert MARKER not in node.log.read_text()
