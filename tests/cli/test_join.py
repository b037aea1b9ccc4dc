"""`tinyedge join` and `leave`: through a daemon, and without one against a gateway on loopback."""

from __future__ import annotations

import io
import json
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from cloud_gateway.core import authority
from tests.cli.conftest import Cli
from tests.fakes.tls_gateway import TlsGateway, serving
from tinyedge.adapters.local_api import JoinBody
from tinyedge.cli.main import main
from tinyedge.errors import PeerError
from tinyedge.protocol.joining import Taint
from tinyedge.store.node_identity import PEM, TOML, IdentityFiles


class Served:
    """A gateway in a thread of its own, until `stop`."""

    def __init__(self) -> None:
        self.gateway = TlsGateway(time.time)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._main,))
        self._thread.start()
        assert self._ready.wait(60)

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        with trio.CancelScope() as self._scope:
            async with serving(self.gateway):
                self._ready.set()
                await trio.sleep_forever()

    def stop(self) -> None:
        self._token.run_sync_soon(self._scope.cancel)
        self._thread.join(60)
        assert not self._thread.is_alive()

    def token(self, node: str = "gate-7") -> str:
        return self.gateway.joining.make_token(node=node, ttl_s=3600)

    def bound(self) -> list[str]:
        return list(self.gateway.store.state.bindings)


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served()
    try:
        yield made
    finally:
        made.stop()


class Alone:
    """Commands on a machine where no daemon runs."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.files = IdentityFiles(str(folder))
        self._capsys = capsys

    def __call__(self, *words: str, settings: tuple[str, ...] = ()) -> tuple[int, str, str]:
        store = f"store.path={self.folder}/store"
        sets = [word for setting in (store, *settings) for word in ("--set", setting)]
        code = main(["--socket", str(self.folder / "none.sock"), *words, *sets])
        out, err = self._capsys.readouterr()
        return code, out, err


@pytest.fixture
def alone(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Alone:
    monkeypatch.setattr("tinyedge.cli.join.socket.gethostname", lambda: "Gate-Host")
    return Alone(tmp_path / "var", capsys)


# --- through the daemon ------------------------------------------------------------------------------


@pytest.fixture
def token() -> str:
    return authority.make_token(b"key", node="gate-7", ttl_s=60, now_s=int(time.time()), ca=bytes(32), random=bytes(12))


def test_the_daemon_is_asked_with_everything_that_was_said(cli: Cli, token: str) -> None:
    ran = cli(
        "join",
        "wss://gate:1",
        *("--token", token, "--name", "gate-7", "--label", "site=north", "--label", "rack="),
        *("--taint", "site=north:NoSchedule", "--taint", "new:NoExecute"),
    )
    assert (ran.code, ran.out) == (0, "gate-7 has joined wss://gate:1\n")
    assert cli.backend.joined == [
        JoinBody(
            "wss://gate:1",
            token,
            "gate-7",
            {"site": "north", "rack": ""},
            [Taint("site", "NoSchedule", "north"), Taint("new", "NoExecute")],
        )
    ]


def test_the_token_may_come_on_standard_input(cli: Cli, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(token + "\n"))
    assert cli("join", "wss://gate:1", "--token", "-", "-o", "json").code == 0
    [asked] = cli.backend.joined
    assert isinstance(asked, JoinBody)
    assert asked.token == token


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "a token is needed"),
        (("--token", "nonsense"), "the whole text that begins with te1."),
        (("--label", "site"), "--label site is not KEY=VALUE"),
        (("--label", "=north"), "is not KEY=VALUE"),
        (("--taint", "site=north"), "is not KEY=VALUE:EFFECT"),
        (("--taint", "site=north:Sometimes"), "NoSchedule, PreferNoSchedule, NoExecute"),
        (("--taint", ":NoExecute"), "is not KEY=VALUE:EFFECT"),
    ],
)
def test_what_is_wrong_is_told_before_anybody_is_asked(cli: Cli, token: str, words: tuple[str, ...], told: str) -> None:
    given = words if not words or "--token" in words else ("--token", token, *words)
    ran = cli("join", "wss://gate:1", *given)
    assert ran.code != 0
    assert told in ran.err
    assert cli.backend.joined == []


def test_an_address_that_is_none_is_told(cli: Cli, token: str) -> None:
    ran = cli("join", "gate", "--token", token)
    assert "wss://HOST:PORT" in ran.err
    assert cli.backend.joined == []


def test_what_the_gateway_says_comes_through(cli: Cli, token: str) -> None:
    cli.backend.image_error = PeerError("the token has been used", "by gate-7", "make a new one")
    ran = cli("join", "wss://gate:1", "--token", token)
    assert ran.code == 1
    assert "the token has been used" in ran.err
    assert "make a new one" in ran.err
    assert token not in ran.err


def test_the_daemon_leaves(cli: Cli) -> None:
    assert cli("leave").out == "gate-7 has left\n"
    assert json.loads(cli("leave", "--local", "-o", "json").out) == {"message": "gate-7 has left"}
    assert cli.backend.joined == [False, True]


# --- without a daemon --------------------------------------------------------------------------------


def test_a_join_without_a_daemon_writes_the_identity(alone: Alone, served: Served) -> None:
    code, out, err = alone("join", served.gateway.url, "--token", served.token())
    assert (code, err) == (0, "")
    assert out.startswith(f"gate-7 has joined {served.gateway.url}; it connects once the daemon runs")
    found = alone.files.load()
    assert found is not None
    assert (found.node, found.gateway) == ("gate-7", served.gateway.url)
    assert sorted(os.listdir(alone.folder)) == [PEM, TOML]
    assert stat.S_IMODE((alone.folder / PEM).stat().st_mode) == 0o600
    assert served.bound() == ["gate-7"]


def test_a_refused_join_leaves_the_identity_that_was_there(alone: Alone, served: Served) -> None:
    alone("join", served.gateway.url, "--token", served.token())
    before = alone.files.load()
    code, _, err = alone("join", served.gateway.url, "--token", served.token("gate-8"), "--name", "gate-9")
    assert code == 1
    assert "it is for gate-8" in err
    assert alone.files.load() == before


def test_a_node_that_leaves_without_a_daemon_tells_the_gateway_and_forgets(alone: Alone, served: Served) -> None:
    alone("join", served.gateway.url, "--token", served.token())
    code, out, _ = alone("leave")
    assert (code, out) == (0, f"gate-7 has left {served.gateway.url}\n")
    assert served.bound() == []
    assert os.listdir(alone.folder) == []
    code, _, err = alone("leave")
    assert code == 1
    assert "has not joined" in err


def test_a_gateway_that_is_away_does_not_keep_a_node_for_ever(alone: Alone, served: Served) -> None:
    alone("join", served.gateway.url, "--token", served.token())
    nowhere = ("cloud.url=wss://127.0.0.1:1",)
    code, _, err = alone("leave", settings=nowhere)
    assert code == 1
    assert "tinyedge leave --local" in err
    assert alone.files.load() is not None
    code, out, _ = alone("leave", "--local", settings=nowhere)
    assert code == 0
    assert out.startswith("this machine is no longer gate-7")
    assert alone.files.load() is None
    assert served.bound() == ["gate-7"], "nobody told it"


def test_a_copied_card_can_not_end_its_original_and_can_be_freed(
    alone: Alone, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone("join", served.gateway.url, "--token", served.token())
    monkeypatch.setattr("tinyedge.adapters.identity.machine_digest", lambda: "cc" * 16)
    code, _, err = alone("leave")
    assert code == 1
    assert "not the machine that joined" in err
    assert served.bound() == ["gate-7"]
    assert alone("leave", "--local")[0] == 0
    assert alone("join", served.gateway.url, "--token", served.token("gate-8"))[0] == 0
    assert served.bound() == ["gate-7", "gate-8"]


def test_a_damaged_identity_can_be_forgotten(alone: Alone, served: Served) -> None:
    alone("join", served.gateway.url, "--token", served.token())
    (alone.folder / PEM).write_text("x")
    code, _, err = alone("leave")
    assert code == 1
    assert "tinyedge leave --local" in err
    assert alone("leave", "--local")[0] == 0
    assert alone.files.load() is None


def test_the_configuration_names_the_node_and_the_address(alone: Alone, served: Served) -> None:
    code, _, err = alone("join", served.gateway.url, "--token", served.token(), settings=("node.name=other",))
    assert code == 1
    assert "node.name" in err
    assert served.gateway.requests == []
    elsewhere = (f"cloud.url={served.gateway.url}",)
    assert alone("join", "wss://127.0.0.1:1", "--token", served.token(), settings=elsewhere)[0] == 0


def test_a_pattern_takes_the_host_name_in_lower_case(alone: Alone, served: Served) -> None:
    token = served.gateway.joining.make_token(pattern="gate-*", ttl_s=60)
    assert alone("join", served.gateway.url, "--token", token)[0] == 0
    assert served.bound() == ["gate-host"]


def test_who_may_not_write_there_is_told_before_the_token_is_used(
    alone: Alone, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinyedge.cli.join.os.access", lambda *args: False)
    code, _, err = alone("join", served.gateway.url, "--token", served.token())
    assert code == 4
    assert "use sudo" in err
    assert served.gateway.requests == []
