"""The sandbox's certificates, held to OpenSSL's own view of them by real handshakes."""

from __future__ import annotations

import ssl
import stat
import time
from pathlib import Path

import pytest
import trio
import trio.testing
import yaml
from cryptography import x509

from cloud_gateway.sandbox.certs import Certs, kubeconfig, open_certs, write_private
from tinyedge.errors import WorldError

DAY_S = 86400
LEAVES = {"server.pem", "kubelet-client.pem"}


@pytest.fixture
def now_s() -> float:
    return time.time()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


async def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> bytes | None:
    """The client's certificate, as the server sees it."""
    below = trio.testing.memory_stream_pair()
    one = trio.SSLStream(below[0], client, server_hostname=name)
    other = trio.SSLStream(below[1], server, server_side=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.do_handshake)
        nursery.start_soon(other.do_handshake)
    found: bytes | None = other.getpeercert(binary_form=True)
    return found


def trusting(certs: Certs) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=certs.ca_pem)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1", "sandbox.example", "10.1.2.3"])
async def test_who_trusts_the_ca_gets_through_by_every_name(tmp_path: Path, now_s: float, name: str) -> None:
    certs = open_certs(tmp_path, ["sandbox.example", "10.1.2.3"], now_s)
    await handshake(certs.server_context(), trusting(certs), name)


async def test_who_trusts_another_ca_or_calls_it_another_name_does_not(tmp_path: Path, now_s: float) -> None:
    certs, other = open_certs(tmp_path / "a", [], now_s), open_certs(tmp_path / "b", [], now_s)
    for client, name in ((trusting(other), "localhost"), (trusting(certs), "elsewhere.example")):
        with pytest.RaisesGroup(
            pytest.RaisesExc(trio.BrokenResourceError), allow_unwrapped=True, flatten_subgroups=True
        ):
            await handshake(certs.server_context(), client, name)


async def test_to_kubelets_it_is_the_api_server_of_the_masters_group(tmp_path: Path, now_s: float) -> None:
    certs, kubelet = open_certs(tmp_path / "a", [], now_s), open_certs(tmp_path / "kubelet", [], now_s)
    demanding = kubelet.server_context()
    demanding.verify_mode = ssl.CERT_REQUIRED
    demanding.load_verify_locations(cadata=certs.ca_pem)
    shown = await handshake(demanding, certs.kubelet_context(), "whatever")
    assert shown is not None
    subject = x509.load_der_x509_certificate(shown).subject
    assert subject.rfc4514_string() == "CN=kube-apiserver-kubelet-client,O=system:masters"


def test_a_restart_finds_the_same(tmp_path: Path, now_s: float) -> None:
    open_certs(tmp_path, ["h"], now_s)
    before = contents(tmp_path)
    assert open_certs(tmp_path, ["h"], now_s + 100).ca_pem.encode() == before["ca.crt"]
    assert contents(tmp_path) == before
    assert set(before) == {"ca.pem", "ca.crt", "server.pem", "kubelet-client.pem"}


def test_nobody_else_may_read_them(tmp_path: Path, now_s: float) -> None:
    folder = tmp_path / "sandbox"
    open_certs(folder, [], now_s)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    (folder / "ca.pem").chmod(0o644)
    open_certs(folder, [], now_s)
    assert stat.S_IMODE((folder / "ca.pem").stat().st_mode) == 0o600


def test_a_new_name_makes_a_new_server_certificate_only(tmp_path: Path, now_s: float) -> None:
    open_certs(tmp_path, [], now_s)
    before = contents(tmp_path)
    open_certs(tmp_path, ["new.example"], now_s)
    assert {name for name, data in contents(tmp_path).items() if data != before[name]} == {"server.pem"}


@pytest.mark.parametrize(
    ("after_days", "changed"),
    [(240, set()), (260, LEAVES), (2500, {"ca.pem", "ca.crt", *LEAVES})],
)
def test_what_is_near_its_end_is_made_anew(tmp_path: Path, now_s: float, after_days: int, changed: set[str]) -> None:
    open_certs(tmp_path, [], now_s)
    before = contents(tmp_path)
    open_certs(tmp_path, [], now_s + after_days * DAY_S)
    assert {name for name, data in contents(tmp_path).items() if data != before[name]} == changed


@pytest.mark.parametrize("name", ["ca.pem", "server.pem", "kubelet-client.pem"])
def test_what_a_power_cut_has_halved_is_made_anew_and_all_fits_again(tmp_path: Path, now_s: float, name: str) -> None:
    open_certs(tmp_path, [], now_s)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:300])
    certs = open_certs(tmp_path, [], now_s)
    ca = x509.load_pem_x509_certificate(certs.ca_pem.encode())
    for leaf in ("server.pem", "kubelet-client.pem"):
        x509.load_pem_x509_certificate((tmp_path / leaf).read_bytes()).verify_directly_issued_by(ca)


def test_a_folder_that_can_not_be_written_is_said_to_be_so(tmp_path: Path, now_s: float) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorldError, match="certificates"):
        open_certs(tmp_path / "file", [], now_s)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("mine")
    (tmp_path / "secret").symlink_to(tmp_path / "target")
    write_private(tmp_path / "secret", b"key")
    assert (tmp_path / "target").read_text() == "mine"
    assert not (tmp_path / "secret").is_symlink()


def test_the_kubeconfig_holds_together(tmp_path: Path, now_s: float) -> None:
    certs = open_certs(tmp_path, [], now_s)
    found = yaml.safe_load(kubeconfig("https://127.0.0.1:6443", certs.ca_pem, "t0ken"))
    context = found["contexts"][0]
    assert found["current-context"] == context["name"]
    assert context["context"] == {"cluster": found["clusters"][0]["name"], "user": found["users"][0]["name"]}
    assert found["clusters"][0]["cluster"]["server"] == "https://127.0.0.1:6443"
    assert found["users"][0]["user"] == {"token": "t0ken"}
