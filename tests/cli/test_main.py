"""From argv to a command: usage, errors that help, exit codes, start-up."""

from __future__ import annotations

import grp
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import Cli
from tinyedge.cli import client as client_module
from tinyedge.cli import run as run_module
from tinyedge.cli.client import Client, socket_path
from tinyedge.cli.commands import BY_NAME, COMMANDS
from tinyedge.cli.errors import CliError
from tinyedge.cli.main import main, overview
from tinyedge.config import Config
from tinyedge.errors import StoreLocked

ROOT = Path(__file__).resolve().parent.parent.parent


def program(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tinyedge", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **environ},
    )


def test_without_a_command_all_commands_are_listed(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert capsys.readouterr().out == overview() + "\n"
    assert main(["--help"]) == 0
    assert all(f"  {command.name} " in overview() for command in COMMANDS)
    assert max(len(line) for line in overview().split("\n")) <= 120


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_has_help(cli: Cli, command: object) -> None:
    name = command.name  # type: ignore[attr-defined]
    ran = cli(name, "--help")
    assert ran.code == 0
    assert ran.out.startswith(f"usage: tinyedge {name}")
    assert cli("help", name).out == ran.out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("get",), "error: get: something is missing of: KIND\n  → tinyedge get [options] KIND [NAMES ...]"),
        (("port-forward", "web"), "something is missing of: POD PORTS"),
        (("get", "pods", "-o", "frob"), "error: get: --output: invalid choice: 'frob'"),
        (("completion", "ksh"), "error: completion: SHELL: invalid choice: 'ksh'"),
    ],
)
def test_wrong_usage_is_told_like_other_errors(cli: Cli, words: tuple[str, ...], says: str) -> None:
    ran = cli(*words)
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.err
    assert f"tinyedge {words[0]} --help tells more" in ran.err


def test_a_mistyped_command_or_option_is_helped(cli: Cli) -> None:
    ran = cli("gett", "pods")
    assert (ran.code, ran.err) == (2, "error: there is no command 'gett'\n  → did you mean get?\n")
    ran = cli("get", "pods", "--wotch")
    assert (ran.code, ran.err) == (2, "error: get does not know --wotch\n  → tinyedge get --help\n")
    assert cli("get", "gizmos").code == 2
    assert cli("get").code == 2


def test_options_may_stand_before_and_behind_the_command(cli: Cli) -> None:
    assert cli("get", "-n", "default", "pods", "web").out == cli("-n", "default", "get", "pods", "web").out != ""
    assert cli("get", "pods", "-n", "default", "web").code == 0
    assert main([f"--socket={cli.socket}", "get", "pods"]) == 0
    assert main(["get", "pods", "--socket", cli.socket]) == 0


# --- the daemon can't be reached -------------------------------------------------------------------


def test_a_daemon_that_does_not_run_is_told_with_how_to_start_it(tmp_path: Path) -> None:
    ran = program("--socket", str(tmp_path / "none.sock"), "get", "pods")
    assert ran.returncode == 3
    assert ran.stderr.split("\n")[:2] == [
        f"error: can't reach the daemon at {tmp_path}/none.sock: "
        "there is no such socket, so tinyedge is not running here",
        "  → start it (systemctl start tinyedge, or: tinyedge run), or name its socket with --socket",
    ]


def test_a_daemon_that_has_died_is_told(tmp_path: Path) -> None:
    path = str(tmp_path / "dead.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with pytest.raises(CliError, match="the daemon has ended") as caught:
        Client(path).get("/v1/status")
    assert caught.value.code == 3


def test_who_may_not_open_the_socket_is_told_the_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "api.sock"
    path.touch()
    os.chmod(path, 0o660)
    os.chown(path, -1, grp.getgrnam("adm").gr_gid) if not os.geteuid() else None
    name = grp.getgrgid(path.stat().st_gid).gr_name
    told = client_module._unreachable(str(path), PermissionError(13, "Permission denied"))
    assert told.code == 4
    if path.stat().st_gid:
        assert f"join the group {name} (sudo usermod -aG {name} $USER)" in told.remedy
    os.chmod(path, 0o600)
    assert "use sudo, or set api.group" in client_module._unreachable(str(path), PermissionError(13, "")).remedy


def test_a_daemon_that_is_silent_is_told_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "ANSWER_S", 0.05)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        with pytest.raises(CliError, match="does not answer"):
            Client(str(tmp_path / "s")).get("/v1/status")


def test_a_daemon_that_dies_while_it_answers_is_told(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()

        def half() -> None:
            accepted, _ = listener.accept()
            with accepted:
                accepted.recv(65536)
                accepted.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")

        worker = threading.Thread(target=half)
        worker.start()
        with pytest.raises(CliError, match="the daemon ended the connection: its answer is not whole"):
            Client(str(tmp_path / "s")).get("/v1/status")
        worker.join()


def test_errors_are_json_when_json_was_asked_for(cli: Cli) -> None:
    told = json.loads(cli("get", "pod", "nope", "-o", "json").err)
    assert told["error"]["what"] == 'pods "nope" not found in namespace default'


def test_what_a_pod_writes_does_not_steer_the_terminal(cli: Cli) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\x9b31m"
    cli.backend.event_list[0]["message"] = evil
    cli.backend.status_object["runtime"]["message"] = evil
    cli.backend.explanation = {"state": "x", "summary": evil, "reasons": []}
    shown = "\\u001b]0;owned\\u0007\\u001b[2J\\u009b31m"
    assert shown in cli("get", "events").out
    assert shown in cli("describe", "pod", "web").out
    assert cli("why", "web").out == shown + "\n"
    out = cli("get", "events", "-o", "json").out
    assert not set(out) & {"\x1b", "\x9b"}
    assert json.loads(out)["items"][0]["message"] == evil
    assert yaml.safe_load(cli("get", "events", "-o", "yaml").out)["items"][0]["message"] == evil


def test_a_mistake_of_ours_is_told_without_a_traceback(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    cli.backend.pod_list = [{"metadata": {}}]
    ran = cli("get", "pods", "-A")
    assert (ran.code, ran.err.startswith("error: a mistake of tinyedge's own: KeyError")) == (1, True)
    monkeypatch.setenv("TINYEDGE_TRACEBACK", "1")
    with pytest.raises(KeyError):
        cli("get", "pods", "-A")


# --- where the socket is ---------------------------------------------------------------------------


def test_the_socket_is_looked_for_in_option_environment_configuration_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "c.toml"
    config.write_text('[api]\nsocket = "/srv/a.sock"\n')
    monkeypatch.delenv("TINYEDGE_SOCKET", raising=False)
    monkeypatch.setattr(client_module, "DEFAULT_CONFIG", str(tmp_path / "none.toml"))
    assert socket_path(None, None) == client_module.DEFAULT_SOCKET == Config().api.socket
    assert socket_path(None, str(config)) == "/srv/a.sock"
    monkeypatch.setattr(client_module, "DEFAULT_CONFIG", str(config))
    assert socket_path(None, None) == "/srv/a.sock"
    monkeypatch.setenv("TINYEDGE_SOCKET", "/env.sock")
    assert socket_path(None, None) == "/env.sock"
    assert socket_path("/opt.sock", None) == "/opt.sock"


def test_a_broken_configuration_keeps_nobody_from_looking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "c.toml"
    config.write_text("[api\n")
    monkeypatch.delenv("TINYEDGE_SOCKET", raising=False)
    monkeypatch.setattr(client_module, "DEFAULT_CONFIG", str(config))
    assert socket_path(None, None) == client_module.DEFAULT_SOCKET
    with pytest.raises(CliError, match="can't read"):
        socket_path(None, str(config))


# --- run, config, version --------------------------------------------------------------------------


def test_run_reads_its_options_without_a_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[tuple[object, ...]] = []

    def start(config: str | None, overrides: list[str], sock: str | None, *, stop_pods: bool) -> int:
        started.append((config, list(overrides), sock, stop_pods))
        return 0

    monkeypatch.setattr(run_module, "start", start)
    assert run_module.quick(["--config", "a", "--set=node.name=b", "--set", "c.d=e", "--stop-pods"]) == 0
    assert run_module.quick([]) == 0
    assert started == [("a", ["node.name=b", "c.d=e"], None, True), (None, [], None, False)]
    for other in (["--help"], ["x"], ["--config"], ["--stop-pods=yes"]):
        assert run_module.quick(other) is None
    assert len(started) == 2


def test_a_daemon_that_can_not_start_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(*_: object, **__: object) -> int:
        raise StoreLocked("/var/lib/tinyedge/store", 77)

    monkeypatch.setattr(run_module, "start", start)
    assert run_module.quick([]) == 1
    assert "process 77 has it open\n  → stop that daemon first" in capsys.readouterr().err


def test_the_daemons_process_loads_no_command_line_library() -> None:
    code = (
        "import sys; sys.argv = ['tinyedge', 'run', '--set', 'log.level=loud']\n"
        "from tinyedge.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: print(*sorted({'argparse', 'yaml', 'tinyedge.cli.main'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert "log.level" in done.stderr, done.stderr
    assert done.stdout.strip() == ""


def test_the_configuration_in_force_is_printed_as_the_file_would_say_it(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[node]\nname = "gate-7"\n')
    out = cli("config", "--config", str(tmp_path / "c.toml"), "--set", "manifests.paths=/a,/b").out
    assert 'name = "gate-7"' in out
    (tmp_path / "again.toml").write_text(out)
    assert cli("config", "--config", str(tmp_path / "again.toml")).out == out
    assert json.loads(cli("config", "-o", "json", "--set", "node.name=x").out)["node"]["name"] == "x"


def test_version_tells_both_versions(cli: Cli) -> None:
    assert cli("version").out.split("\n")[1] == "daemon: 0.1.0"
    cli.server.stop()
    assert json.loads(cli("version", "-o", "json").out)["daemon"] == "not running"


def test_a_short_command_starts_quickly(cli: Cli) -> None:
    """Imports are most of it: there are few, and none that is known to be slow."""
    code = (
        "import sys; sys.argv = ['tinyedge', 'get', 'pods']\n"
        "from tinyedge.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TINYEDGE_SOCKET": cli.socket},
    )
    table, modules = done.stdout.splitlines()[0], set(done.stdout.splitlines()[-1].split())
    assert table.startswith("NAME")
    assert len(modules) < 150
    assert not {"trio", "asyncio", "ssl", "yaml", "msgspec", "lmdb", "psutil", "wsproto", "google.protobuf"} & modules


def test_the_table_of_commands_names_modules_that_exist() -> None:
    for command in BY_NAME.values():
        assert (ROOT / "tinyedge" / "cli" / f"{command.module}.py").exists(), command.module
