"""Where Kubernetes is and who we are to it: kubeconfigs, service accounts, programs that get credentials, TLS."""

from __future__ import annotations

import base64
import json
import os
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import h11
import pytest
import trio
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from trio.testing import MockClock

from cloud_gateway import limits
from cloud_gateway.adapters import ca
from cloud_gateway.adapters.kube import Kube
from cloud_gateway.adapters.kube_config import from_kubeconfig, from_url, in_cluster
from cloud_gateway.adapters.kube_credentials import ExecPlugin, TokenFile
from cloud_gateway.adapters.kube_types import PODS, KubeError
from tests.fakes.api_server import ApiServer, Request, Wire, answers, api_server, status
from tinyedge.errors import BadInput, PeerError, TinyEdgeError, WorldError

Json = dict[str, Any]
NOW = int(time.time())
CA, CA_KEY = ca.make_ca(NOW)
SIGNER = ca.Ca.load(CA, CA_KEY)
SERVER = SIGNER.server(NOW)  # for the name tinyedge-gateway


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """A kubeconfig with one context, of these parts."""

    def written(cluster: Json | None = None, user: Json | None = None, name: str = "config", **more: Any) -> Path:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u", "namespace": "mine"}}],
            "clusters": [{"name": "k", "cluster": {"server": "https://10.0.0.1:6443/", **(cluster or {})}}],
            "users": [{"name": "u", "user": user or {}}],
            **more,
        }
        path = tmp_path / name
        path.write_text(yaml.safe_dump(config))
        return path

    return written


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


# --- kubeconfigs -------------------------------------------------------------------------------------


async def test_the_current_context_is_used_unless_another_is_named(write: Callable[..., Path]) -> None:
    path = write(
        user={"token": "t"},
        clusters=[
            {"name": "k", "cluster": {"server": "https://one/"}},
            {"name": "l", "cluster": {"server": "https://two"}},
        ],
        contexts=[
            {"name": "c", "context": {"cluster": "k", "user": "u", "namespace": "mine"}},
            {"name": "d", "context": {"cluster": "l"}},
        ],
    )
    one, two = from_kubeconfig(path), from_kubeconfig(path, "d")
    assert (one.urls, one.namespace) == (("https://one",), "mine")
    assert await one.identity.headers() == [("Authorization", "Bearer t")]
    assert (two.urls, two.namespace) == (("https://two",), "default")
    assert await two.identity.headers() == []
    assert from_kubeconfig(path, servers=["https://a", "https://b"]).urls == ("https://a", "https://b")


def test_certificates_come_from_data_or_from_files_beside_the_kubeconfig(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "ca.crt").write_text(CA)
    (tmp_path / "me.crt").write_text(SERVER.chain)
    (tmp_path / "me.key").write_text(SERVER.key)
    by_file = from_kubeconfig(
        write({"certificate-authority": "ca.crt"}, {"client-certificate": "me.crt", "client-key": "me.key"})
    )
    by_data = from_kubeconfig(
        write(
            {"certificate-authority-data": b64(CA), "certificate-authority": "nowhere"},
            {"client-certificate-data": b64(SERVER.chain), "client-key-data": b64(SERVER.key)},
        )
    )
    for found in (by_file, by_data):
        assert found.ca_pem == CA
        assert found.identity.certificate() == (SERVER.chain, SERVER.key)
        assert found.tls().verify_mode is ssl.CERT_REQUIRED


async def test_the_other_ways_to_say_who_one_is(write: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-file\n")
    named = {"username": "a", "password": "b"}
    acts = {"token": "t", "as": "jane", "as-groups": ["x", "y"]}
    assert await from_kubeconfig(write(user={"tokenFile": "token"})).identity.headers() == [
        ("Authorization", "Bearer from-file")
    ]
    assert await from_kubeconfig(write(user=named)).identity.headers() == [("Authorization", "Basic " + b64("a:b"))]
    assert await from_kubeconfig(write(user=acts)).identity.headers() == [
        ("Authorization", "Bearer t"),
        ("Impersonate-User", "jane"),
        ("Impersonate-Group", "x"),
        ("Impersonate-Group", "y"),
    ]


def test_only_an_explicit_word_turns_verification_off(write: Callable[..., Path]) -> None:
    assert from_kubeconfig(write({"insecure-skip-tls-verify": True})).tls().verify_mode is ssl.CERT_NONE
    for value in (False, "true", None):
        checked = from_kubeconfig(write({"insecure-skip-tls-verify": value})).tls()
        assert checked.verify_mode is ssl.CERT_REQUIRED
        assert checked.check_hostname


def test_of_several_kubeconfigs_the_first_that_says_something_wins(write: Callable[..., Path]) -> None:
    first = write({"server": "https://first"}, name="a", **{"current-context": ""})
    second = write({"server": "https://second"}, name="b")
    assert from_kubeconfig(f"{first}:{second}").urls == ("https://first",)


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ({"current-context": ""}, "current-context"),
        ({"contexts": []}, "the context of the kubeconfig"),
        ({"clusters": [{"name": "other", "cluster": {}}]}, "other"),
        ({"users": []}, "the user of the kubeconfig"),
        ({"clusters": "nonsense"}, "the cluster of the kubeconfig"),
        ({"cluster": {"server": "10.0.0.1:6443"}}, "the address of the API server"),
        ({"cluster": {"server": ""}}, "the address of the API server"),
        ({"cluster": {"proxy-url": "socks5://x"}}, "proxy-url"),
        ({"cluster": {"certificate-authority-data": "%%"}}, "certificate-authority-data"),
        ({"cluster": {"certificate-authority": "nowhere"}}, "nowhere"),
        ({"user": {"client-certificate-data": b64("x")}}, "client-certificate"),
        ({"user": {"auth-provider": {"name": "gcp"}}}, "auth-provider"),
        ({"user": {"exec": {"command": "x", "apiVersion": "v0"}}}, "exec.apiVersion"),
        ({"user": {"exec": {"apiVersion": "client.authentication.k8s.io/v1"}}}, "exec.command"),
    ],
)
def test_what_can_not_be_used_is_named(write: Callable[..., Path], parts: Json, named: str) -> None:
    with pytest.raises(TinyEdgeError, match=named):
        from_kubeconfig(write(**parts))


@pytest.mark.parametrize("text", ["[1, 2", "just words", "- a\n- b", "!!python/object:os.system {}", ""])
def test_a_file_that_is_no_kubeconfig_is_refused_and_not_quoted(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config"
    path.write_text(text + "\n# s3cret")
    with pytest.raises(BadInput) as caught:
        from_kubeconfig(path)
    assert "s3cret" not in str(caught.value)


def test_a_file_that_is_missing_too_large_or_no_text_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WorldError, match="No such file"):
        from_kubeconfig(tmp_path / "nothing")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(WorldError, match="not text"):
        from_kubeconfig(tmp_path / "binary")
    (tmp_path / "large").write_text("#" * (limits.KUBE_CONFIG_BYTES_MAX + 1))
    with pytest.raises(WorldError, match="too large"):
        from_kubeconfig(tmp_path / "large")


# --- in a cluster ------------------------------------------------------------------------------------


@pytest.fixture
def account(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("one")
    (tmp_path / "ca.crt").write_text(CA)
    (tmp_path / "namespace").write_text("tinyedge")
    return tmp_path


async def test_in_a_cluster_the_service_account_is_used(account: Path) -> None:
    found = in_cluster({"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}, account)
    assert (found.urls, found.ca_pem, found.namespace) == (("https://10.96.0.1:443",), CA, "tinyedge")
    assert await found.identity.headers() == [("Authorization", "Bearer one")]
    assert in_cluster({"KUBERNETES_SERVICE_HOST": "fd00::1"}, account).urls == ("https://[fd00::1]:443",)


def test_outside_of_a_cluster_it_says_so(account: Path) -> None:
    with pytest.raises(WorldError, match="not a pod"):
        in_cluster({}, account)


async def test_a_renewed_token_is_read_again(autojump_clock: MockClock, account: Path) -> None:
    identity = TokenFile(str(account / "token"))
    assert await identity.headers() == [("Authorization", "Bearer one")]
    (account / "new").write_text("two")
    (account / "new").rename(account / "token")
    assert await identity.headers() == [("Authorization", "Bearer one")]  # not looked at for each request
    await trio.sleep(11)
    assert await identity.headers() == [("Authorization", "Bearer two")]
    (account / "token").unlink()
    await trio.sleep(11)
    assert await identity.headers() == [("Authorization", "Bearer two")]  # away for a moment while it is replaced


async def test_a_token_that_is_refused_is_read_again_at_once(account: Path) -> None:
    async def only_two(request: Request, wire: Wire) -> None:
        good = request.headers["authorization"] == "Bearer two"
        await wire.answer(200 if good else 401, {} if good else status(401, "Unauthorized"))

    async with api_server() as server:
        server.otherwise = only_two
        endpoint = from_url(server.url)
        endpoint.identity = TokenFile(str(account / "token"))
        async with Kube(endpoint) as client:
            with pytest.raises(KubeError) as caught:
                await client.get(PODS, "web", "default")
            assert caught.value.unauthorized
            (account / "token").write_text("two")
            assert await client.get(PODS, "web", "default") == {}


async def test_a_token_file_that_is_not_there_is_an_error_of_each_request(server: ApiServer, tmp_path: Path) -> None:
    endpoint = from_url(server.url)
    endpoint.identity = TokenFile(str(tmp_path / "token"))
    async with Kube(endpoint) as client:
        with pytest.raises(KubeError, match="can't be read") as caught:
            await client.get(PODS, "web", "default")
        assert caught.value.reason == "Credentials"


# --- programs that get credentials -------------------------------------------------------------------


@pytest.fixture
async def server() -> AsyncIterator[ApiServer]:
    async with api_server() as made:
        yield made


def plugin(tmp_path: Path, script: str, **more: Any) -> ExecPlugin:
    program = tmp_path / "get-credentials"
    program.write_text(f"#!{sys.executable}\nimport json, os, sys, time\n{script}\n")
    program.chmod(0o755)
    version = "client.authentication.k8s.io/v1"
    section = {"apiVersion": version, "command": str(program), **more}
    return ExecPlugin.of(section, [], {"server": "https://x"})


def give(words: str) -> str:
    return f"print(json.dumps({{'kind': 'ExecCredential', 'status': {words}}}))"


async def test_a_plugin_is_run_by_its_words_and_told_what_it_needs(tmp_path: Path) -> None:
    script = give("{'token': '|'.join([*sys.argv[1:], os.environ['A'], os.environ['KUBERNETES_EXEC_INFO']])}")
    made = plugin(tmp_path, script, args=["$(x)", "; y"], env=[{"name": "A", "value": "b"}], provideClusterInfo=True)
    ((name, value),) = await made.headers()
    word, other, env, info = value.removeprefix("Bearer ").split("|")
    assert (name, word, other, env) == ("Authorization", "$(x)", "; y", "b")
    assert json.loads(info)["spec"] == {"interactive": False, "cluster": {"server": "https://x"}}


async def test_a_plugin_is_run_once_until_what_it_gave_ends_or_is_refused(tmp_path: Path) -> None:
    count = tmp_path / "count"
    script = f"open({str(count)!r}, 'a').write('x')\n" + give("{'token': 'EXPIRES', 'expirationTimestamp': WHEN}")
    lasting = plugin(tmp_path, script.replace("WHEN", "'2999-01-01T00:00:00Z'"))
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(lasting.headers)
    assert count.read_text() == "x"
    await lasting.headers(anew=True)
    assert count.read_text() == "xx"
    ended = plugin(tmp_path, script.replace("WHEN", "'2001-01-01T00:00:00Z'"))
    await ended.headers()
    await ended.headers()
    assert count.read_text() == "xxxx"


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("sys.exit(3)", "ended with 3"),
        ("print('no JSON')", "no ExecCredential"),
        ("print('{}')", "neither a token nor"),
        (give("{}"), "neither a token nor"),
        (f"sys.stdout.write('x' * {limits.KUBE_PLUGIN_BYTES_MAX + 1})", "printed more than"),
    ],
)
async def test_a_plugin_that_fails_is_told(tmp_path: Path, script: str, why: str) -> None:
    with pytest.raises(PeerError, match=why) as caught:
        await plugin(tmp_path, script, installHint="install it").headers()
    assert caught.value.remedy == "install it"


async def test_a_plugin_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "KUBE_PLUGIN_S_MAX", 0.5)
    file = tmp_path / "pid"
    made = plugin(tmp_path, f"open({str(file)!r}, 'w').write(str(os.getpid()))\ntime.sleep(1000)")
    with pytest.raises(PeerError, match="took more than"):
        await made.headers()
    if file.exists() and file.read_text():
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.read_text()), 0)


async def test_a_plugin_that_is_not_there_is_told(tmp_path: Path) -> None:
    section = {"apiVersion": "client.authentication.k8s.io/v1", "command": str(tmp_path / "nothing")}
    with pytest.raises(PeerError, match="No such file"):
        await ExecPlugin.of(section, [], {}).headers()


# --- TLS ---------------------------------------------------------------------------------------------


@asynccontextmanager
async def tls_server() -> AsyncIterator[tuple[str, list[Any]]]:
    """Its URL, and the client certificates that were shown. Its certificate is for the name tinyedge-gateway only."""
    shown: list[Any] = []
    context = ca.server_context(SIGNER, NOW)

    async def serve(raw: trio.SocketStream) -> None:
        stream = trio.SSLStream(raw, context, server_side=True)
        try:
            await stream.do_handshake()
            shown.append(stream.getpeercert())
            machine = h11.Connection(h11.SERVER)
            while machine.next_event() is h11.NEED_DATA:
                machine.receive_data(bytes(await stream.receive_some()))
            await stream.send_all(machine.send(h11.Response(status_code=200, headers=[("Content-Length", "2")])) or b"")
            await stream.send_all(b"{}")
        except (trio.BrokenResourceError, h11.ProtocolError):
            pass
        finally:
            await trio.aclose_forcefully(raw)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        port = listeners[0].socket.getsockname()[1]
        yield f"https://127.0.0.1:{port}", shown
        nursery.cancel_scope.cancel()


async def test_the_ca_and_the_name_are_checked(write: Callable[..., Path]) -> None:
    other, _ = ca.make_ca(NOW)
    good = {"certificate-authority-data": b64(CA), "tls-server-name": "tinyedge-gateway"}
    async with tls_server() as (url, _):
        tried: list[tuple[Json, bool]] = [
            (good, True),
            ({**good, "tls-server-name": "other"}, False),
            ({**good, "tls-server-name": ""}, False),  # the address is not in it
            ({**good, "certificate-authority-data": b64(other)}, False),
            ({"tls-server-name": "tinyedge-gateway"}, False),  # the system's CAs
            ({"insecure-skip-tls-verify": True}, True),
        ]
        for cluster, works in tried:
            async with Kube(from_kubeconfig(write({"server": url, **cluster}))) as client:
                if works:
                    assert await client.get(PODS, "web", "default") == {}
                else:
                    with pytest.raises(KubeError, match=r"(?i)certificate") as caught:
                        await client.get(PODS, "web", "default")
                    assert caught.value.unreachable


def client_certificate(name: str) -> tuple[str, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return SIGNER.sign_node(key.public_key(), name, "01" * 8, NOW, 3600), pem.decode()


CHECKED = {"certificate-authority-data": b64(CA), "tls-server-name": "tinyedge-gateway"}


async def test_our_certificate_is_shown(write: Callable[..., Path]) -> None:
    chain, key = client_certificate("gate-7")
    user = {"client-certificate-data": b64(chain), "client-key-data": b64(key)}
    async with tls_server() as (url, shown):
        async with Kube(from_kubeconfig(write({"server": url, **CHECKED}, user))) as client:
            await client.get(PODS, "web", "default")
        assert (("commonName", "gate-7"),) in shown[0]["subject"]


async def test_a_certificate_of_a_plugin_is_shown_and_so_is_its_next_one(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    given = tmp_path / "given"
    async with tls_server() as (url, shown):
        endpoint = from_kubeconfig(write({"server": url, **CHECKED}))
        endpoint.identity = plugin(tmp_path, f"print(open({str(given)!r}).read())")
        async with Kube(endpoint) as client:
            for name in ("one", "two"):
                chain, key = client_certificate(name)
                ended = "2001-01-01T00:00:00Z"  # so that it is run for each request
                words = {"clientCertificateData": chain, "clientKeyData": key, "expirationTimestamp": ended}
                given.write_text(json.dumps({"status": words}))
                await client.get(PODS, "web", "default")
        assert [dict(part[0] for part in one["subject"])["commonName"] for one in shown] == ["one", "two"]


async def test_a_certificate_that_can_not_be_used_is_an_error_not_a_crash(write: Callable[..., Path]) -> None:
    user = {"client-certificate-data": b64("nonsense"), "client-key-data": b64("nonsense")}
    async with Kube(from_kubeconfig(write({"server": "https://127.0.0.1:1"}, user))) as client:
        with pytest.raises(KubeError) as caught:
            await client.get(PODS, "web", "default")
        assert caught.value.reason == "Credentials"


# --- a proxy -----------------------------------------------------------------------------------------


async def test_a_proxy_is_asked_when_it_is_named(server: ApiServer, write: Callable[..., Path]) -> None:
    server.otherwise = answers(200, {"kind": "Pod"})
    path = write({"server": "http://kubernetes.invalid:8080", "proxy-url": server.url})
    async with Kube(from_kubeconfig(path)) as client:
        assert await client.get(PODS, "web", "default") == {"kind": "Pod"}
    assert server.requests[0].headers["host"] == "kubernetes.invalid:8080"


async def test_variables_of_the_environment_name_no_proxy(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with Kube(from_url(server.url)) as client:
        assert await client.list(PODS) == []
