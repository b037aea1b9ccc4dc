"""The CA, its Secrets under races, and joins as a whole; certificates are looked at with another library's eyes."""

from __future__ import annotations

import base64
import datetime
import ssl
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from msgspec.structs import replace as changed

from cloud_gateway import limits
from cloud_gateway.adapters import ca
from cloud_gateway.adapters.ca import CA_SECRET, STATE_SECRET, Ca, IdentityStore
from cloud_gateway.adapters.joining import Joined, Joining
from cloud_gateway.core import authority
from cloud_gateway.core.authority import DAY_S, CertFacts, Policy, Refused, State
from tests.fakes.secrets import FakeSecrets, KubeError
from tinyedge.errors import BadInput, PeerError, TinyEdgeError, WorldError
from tinyedge.protocol import der, joining
from tinyedge.protocol.joining import JoinRequest, LeaveRequest, RenewRequest, Taint

NOW = 1_790_000_000
LINE = "a1" * 8
HERE, THERE = "aa" * 16, "bb" * 16
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


def csr(key: Key | None = None, name: str = "") -> str:
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, digest)
    return request.public_bytes(serialization.Encoding.PEM).decode()


def new_ca(now_s: int = NOW) -> Ca:
    return Ca.load(*ca.make_ca(now_s))


def leaf(chain: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(joining.certificates(chain)[0].encode())


def signed_by(certificate: x509.Certificate, authority_pem: str) -> None:
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority_pem.encode()))


# --- certificates ------------------------------------------------------------------------------------


def test_a_new_ca_signs_and_lives_twenty_years() -> None:
    made = leaf(ca.make_ca(NOW)[0])
    assert made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert made.not_valid_after_utc.timestamp() == NOW + 20 * 365 * DAY_S
    assert isinstance(made.public_key(), ec.EllipticCurvePublicKey)


def test_a_nodes_certificate_says_what_we_say_and_nothing_of_what_was_asked() -> None:
    made = new_ca()
    key = ec.generate_private_key(ec.SECP256R1())
    asked = csr(key, name="system:masters")
    certificate = leaf(made.sign_node(ca.read_csr(asked), "gate-7", LINE, NOW, 90 * DAY_S))
    signed_by(certificate, made.trusted)
    assert certificate.subject.rfc4514_string() == "CN=gate-7,O=tinyedge:nodes"
    alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert alternatives.get_values_for_type(x509.UniformResourceIdentifier) == ["tinyedge://node/gate-7"]
    assert list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH
    ]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert certificate.public_key() == key.public_key()
    assert certificate.not_valid_after_utc.timestamp() == NOW + 90 * DAY_S


def test_what_was_signed_is_read_back_at_both_ends() -> None:
    chain = new_ca().sign_node(ca.read_csr(csr()), "gate-7", LINE, NOW, 90 * DAY_S)
    facts = ca.read_certificate(joining.der(chain))
    assert (facts.name, facts.serial[:16], facts.not_after_s) == ("gate-7", LINE, NOW + 90 * DAY_S)
    edge = der.read(joining.der(chain))
    assert (edge.name, edge.serial) == ("gate-7", "01" + facts.serial)
    assert (edge.not_before_s, edge.not_after_s) == (facts.not_before_s, facts.not_after_s)


def test_a_line_that_begins_with_zeros_is_kept() -> None:
    line = "00" * 7 + "01"
    chain = new_ca().sign_node(ca.read_csr(csr()), "gate-7", line, NOW, DAY_S)
    assert ca.read_certificate(joining.der(chain)).serial.startswith(line)


def test_two_certificates_of_a_line_have_different_numbers() -> None:
    made, key = new_ca(), ca.read_csr(csr())
    chains = [made.sign_node(key, "gate-7", LINE, NOW, DAY_S) for _ in range(2)]
    assert leaf(chains[0]).serial_number != leaf(chains[1]).serial_number


def test_no_certificate_outlives_its_ca() -> None:
    made = new_ca(NOW - ca.CA_LIFE_S + DAY_S)
    chain = made.sign_node(ca.read_csr(csr()), "gate-7", LINE, NOW, 90 * DAY_S)
    assert leaf(chain).not_valid_after_utc.timestamp() == NOW + DAY_S
    with pytest.raises(WorldError, match="has ended"):
        made.sign_node(ca.read_csr(csr()), "gate-7", LINE, NOW + DAY_S, 90 * DAY_S)


def test_the_servers_certificate_is_no_nodes_and_a_nodes_is_no_servers() -> None:
    made = new_ca()
    server = made.server(NOW)
    signed_by(leaf(server.chain), made.trusted)
    names = leaf(server.chain).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["tinyedge-gateway"]
    with pytest.raises(BadInput):
        ca.read_certificate(joining.der(server.chain))


def foreign_certificate(made: Ca, **changes: Any) -> bytes:
    """A client's certificate by the same CA, which an operator's own CA may well have signed for something else."""
    own: dict[str, Any] = {
        "organisation": ca.ORGANISATION,
        "name": "gate-7",
        "uri": "tinyedge://node/gate-7",
        "serial": 2**128 + 1,
    }
    said = own | changes
    subject = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, said["organisation"])] if said["organisation"] else []
    subject.append(x509.NameAttribute(NameOID.COMMON_NAME, said["name"]))
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(subject))
        .issuer_name(leaf(made.trusted).subject)
        .public_key(key.public_key())
        .serial_number(said["serial"])
        .not_valid_before(datetime.datetime.fromtimestamp(NOW, datetime.UTC))
        .not_valid_after(datetime.datetime.fromtimestamp(NOW + DAY_S, datetime.UTC))
        .add_extension(x509.ExtendedKeyUsage([said.get("usage", x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH)]), False)
    )
    if said["uri"]:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(said["uri"])]), False
        )
    return builder.sign(made._key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize(
    "changes",
    [
        {"organisation": ""},
        {"organisation": "system:nodes"},
        {"name": "gate-8"},
        {"uri": ""},
        {"uri": "https://node/gate-7"},
        {"serial": 77},
        {"usage": x509.oid.ExtendedKeyUsageOID.SERVER_AUTH},
    ],
    ids=str,
)
def test_another_certificate_by_the_same_ca_is_no_nodes(changes: dict[str, Any]) -> None:
    made = new_ca()
    assert ca.read_certificate(foreign_certificate(made)).name == "gate-7"
    with pytest.raises(BadInput):
        ca.read_certificate(foreign_certificate(made, **changes))


@pytest.mark.parametrize("data", [b"", b"\x30\x80", b"\x30\x03\x02\x01\x01", bytes(1000)])
def test_what_is_no_certificate_is_refused(data: bytes) -> None:
    with pytest.raises(BadInput):
        ca.read_certificate(data)
    with pytest.raises(BadInput):
        der.read(data)


# --- requests ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2048, 3072])
def test_rsa_keys_are_taken(bits: int) -> None:
    assert ca.read_csr(csr(rsa.generate_private_key(65537, bits)))


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(lambda: ec.generate_private_key(ec.SECP384R1()), id="another curve"),
        pytest.param(lambda: rsa.generate_private_key(65537, 1024), id="a short RSA key"),  # noqa: S505 - that is the test
        pytest.param(ed25519.Ed25519PrivateKey.generate, id="another kind"),
    ],
)
def test_other_keys_are_refused(key: Callable[[], Key]) -> None:
    with pytest.raises(BadInput):
        ca.read_csr(csr(key()))


def test_a_request_whose_signature_is_not_by_its_key_is_refused() -> None:
    mine, yours = (x509.load_pem_x509_csr(csr().encode()) for _ in range(2))
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    swapped = mine.public_bytes(serialization.Encoding.DER).replace(
        mine.public_key().public_bytes(serialization.Encoding.DER, info),
        yours.public_key().public_bytes(serialization.Encoding.DER, info),
    )
    forged = x509.load_der_x509_csr(swapped)
    assert forged.public_key() == yours.public_key()
    with pytest.raises(BadInput, match="signature"):
        ca.read_csr(forged.public_bytes(serialization.Encoding.PEM).decode())


@pytest.mark.parametrize(
    "text", ["", "x", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", "\ud800"]
)
def test_what_is_no_request_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        ca.read_csr(text)


def test_a_huge_request_is_refused_unread() -> None:
    with pytest.raises(BadInput, match="at most"):
        ca.read_csr(csr() + "\n" * limits.CSR_BYTES_MAX)


# --- a CA of the operator's own ----------------------------------------------------------------------


def own_ca(*, intermediate: bool) -> tuple[str, str, str]:
    """tls.crt, tls.key and ca.crt, by RSA, from elsewhere."""
    root_key = rsa.generate_private_key(65537, 2048)
    key = rsa.generate_private_key(65537, 2048)
    root = _ca_certificate("root", root_key, "root", root_key)
    if not intermediate:
        return _pem(root), _key_pem(root_key), ""
    return _pem(_ca_certificate("gateways", key, "root", root_key)), _key_pem(key), _pem(root)


def _ca_certificate(name: str, key: Any, issuer: str, issuer_key: Any, *, is_ca: bool = True) -> x509.Certificate:
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime.fromtimestamp(NOW - DAY_S, datetime.UTC))
        .not_valid_after(datetime.datetime.fromtimestamp(NOW + 1000 * DAY_S, datetime.UTC))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .sign(issuer_key, hashes.SHA256())
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: Any) -> str:
    private = serialization.PrivateFormat.TraditionalOpenSSL
    return str(key.private_bytes(serialization.Encoding.PEM, private, serialization.NoEncryption()).decode())


@pytest.mark.parametrize("intermediate", [False, True])
def test_an_operators_own_ca_is_taken_as_it_is(intermediate: bool) -> None:
    certificate, key, others = own_ca(intermediate=intermediate)
    made = Ca.load(certificate, key, others)
    assert joining.certificates(made.trusted) == joining.certificates(certificate + others)
    signed_by(leaf(made.sign_node(ca.read_csr(csr()), "gate-7", LINE, NOW, DAY_S)), certificate)


def test_an_intermediate_ca_is_sent_along_with_what_it_signs() -> None:
    certificate, key, root = own_ca(intermediate=True)
    made = Ca.load(certificate + root, key)
    assert len(joining.certificates(made.server(NOW).chain)) == 2
    assert len(joining.certificates(made.trusted)) == 1


def test_an_old_ca_is_trusted_beside_the_new_one() -> None:
    old, (certificate, key) = new_ca(), ca.make_ca(NOW)
    assert Ca.load(certificate, key, old.trusted).trusted == certificate + old.trusted


def test_what_is_no_ca_is_refused_with_the_reason() -> None:
    certificate, key = ca.make_ca(NOW)
    other_key = ca.make_ca(NOW)[1]
    plain_key = ec.generate_private_key(ec.SECP256R1())
    plain = _pem(_ca_certificate("x", plain_key, "x", plain_key, is_ca=False))
    dsa_like = ed25519.Ed25519PrivateKey.generate()
    for wrong, why in (
        ((certificate, other_key), "not the key"),
        ((plain, _key_pem(plain_key)), "not the certificate of a CA"),
        (("", key), "no certificate"),
        ((certificate, "x"), "PEM"),
        ((certificate, _pkcs8(dsa_like)), "neither EC nor RSA"),
        ((certificate, key, "x" * limits.CA_BYTES_MAX), "larger"),
    ):
        with pytest.raises(WorldError, match=why):
            Ca.load(*wrong)


def _pkcs8(key: ed25519.Ed25519PrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


# --- TLS ---------------------------------------------------------------------------------------------


def test_the_listener_speaks_tls_1_3_without_tickets_and_checks_no_times() -> None:
    context = ca.server_context(new_ca(), NOW)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_3
    assert context.num_tickets == 0
    assert context.verify_mode == ssl.CERT_OPTIONAL
    assert context.verify_flags & 0x200000


# --- the Secrets -------------------------------------------------------------------------------------


async def no_pause(attempt: int) -> None:
    await trio.lowlevel.checkpoint()


def store_over(client: FakeSecrets) -> IdentityStore:
    return IdentityStore(client, "tinyedge", wall_s=lambda: NOW, pause=no_pause)


async def opened(client: FakeSecrets | None = None) -> IdentityStore:
    store = store_over(client or FakeSecrets())
    await store.open()
    return store


async def test_the_ca_is_made_once_and_found_again() -> None:
    client = FakeSecrets()
    first, second = await opened(client), await opened(client)
    assert first.ca.fingerprint == second.ca.fingerprint
    assert first.ca.token_key == second.ca.token_key
    assert sorted(client.bodies) == [CA_SECRET, STATE_SECRET]
    assert client.bodies[CA_SECRET]["type"] == "kubernetes.io/tls"


async def test_replicas_that_start_at_once_end_up_with_one_ca() -> None:
    client = FakeSecrets()
    stores = [store_over(client) for _ in range(5)]
    async with trio.open_nursery() as nursery:
        for store in stores:
            nursery.start_soon(store.open)
    assert client.calls.count("create") > 2, "nobody raced"
    assert len({store.ca.fingerprint for store in stores}) == 1


async def test_who_loses_the_race_takes_what_the_other_made() -> None:
    client = FakeSecrets()
    certificate, key = ca.make_ca(NOW)
    body = ca._secret(CA_SECRET, {"tls.crt": certificate.encode(), "tls.key": key.encode()})

    def faster(name: str) -> None:
        if name == CA_SECRET and name not in client.bodies:
            client.put(name, body)

    client.before_write = faster
    assert (await opened(client)).ca.trusted == certificate


async def test_a_change_is_made_on_top_of_what_others_wrote() -> None:
    client = FakeSecrets()
    mine, yours = await opened(client), await opened(client)
    async with trio.open_nursery() as nursery:
        for i in range(10):
            nursery.start_soon(mine.update, lambda state, i=i: (bound(state, f"mine-{i}"), None))
            nursery.start_soon(yours.update, lambda state, i=i: (bound(state, f"yours-{i}"), None))
    await mine.refresh()
    assert len(mine.state.bindings) == 20
    assert client.calls.count("replace") > 20, "nobody raced"


def bound(state: State, name: str) -> State:
    binding = authority.Binding(HERE, LINE, NOW)
    return changed(state, bindings={**state.bindings, name: binding})


async def test_a_storm_of_conflicts_ends_in_an_error_that_may_be_tried_again() -> None:
    client = FakeSecrets()
    store = await opened(client)
    client.before_write = client.touch
    with pytest.raises(PeerError) as error:
        await store.update(lambda state: (bound(state, "gate-7"), None))
    assert error.value.retryable
    assert client.calls.count("replace") == limits.IDENTITY_TRIES_MAX


async def test_a_short_storm_is_sat_out() -> None:
    client = FakeSecrets()
    store = await opened(client)
    left = [limits.IDENTITY_TRIES_MAX - 1]

    def faster(name: str) -> None:
        if left[0]:
            left[0] -= 1
            client.touch(name)

    client.before_write = faster
    await store.update(lambda state: (bound(state, "gate-7"), None))
    assert store.state.bindings


async def test_a_state_that_was_deleted_meanwhile_is_made_again() -> None:
    client = FakeSecrets()
    store = await opened(client)
    del client.bodies[STATE_SECRET]
    await store.update(lambda state: (bound(state, "gate-7"), None))
    assert "gate-7" in authority.decode_state(ca._data(client.bodies[STATE_SECRET], "state")).bindings


async def test_a_change_that_changes_nothing_is_not_written() -> None:
    client = FakeSecrets()
    store = await opened(client)
    await store.update(lambda state: (state, None))
    assert "replace" not in client.calls


async def test_what_else_stands_in_the_secret_stays() -> None:
    client = FakeSecrets()
    store = await opened(client)
    body = client.bodies[STATE_SECRET]
    client.put(STATE_SECRET, {**body, "metadata": {**body["metadata"], "labels": {"backup": "yes"}}})
    await store.update(lambda state: (bound(state, "gate-7"), None))
    assert client.bodies[STATE_SECRET]["metadata"]["labels"] == {"backup": "yes"}


async def test_a_damaged_state_is_not_overwritten() -> None:
    client = FakeSecrets()
    store = await opened(client)
    client.put(STATE_SECRET, {"metadata": {}, "data": {"state": base64.b64encode(b"{").decode()}})
    with pytest.raises(BadInput):
        await store.update(lambda state: (bound(state, "gate-7"), None))
    assert client.bodies[STATE_SECRET]["data"]["state"] == base64.b64encode(b"{").decode()


async def test_an_api_server_that_fails_is_no_empty_state() -> None:
    client = FakeSecrets()
    store = await opened(client)
    client.broken = 503
    with pytest.raises(KubeError):
        await store.update(lambda state: (bound(state, "gate-7"), None))
    with pytest.raises(KubeError):
        await opened(client)


async def test_a_ca_that_was_exchanged_is_noticed() -> None:
    client = FakeSecrets()
    store = await opened(client)
    assert not await store.refresh_ca()
    old = store.ca
    certificate, key = ca.make_ca(NOW)
    parts = {"tls.crt": certificate.encode(), "tls.key": key.encode(), "ca.crt": old.trusted.encode()}
    client.put(CA_SECRET, ca._secret(CA_SECRET, parts))
    assert await store.refresh_ca()
    assert store.ca.trusted == certificate + old.trusted


# --- joins -------------------------------------------------------------------------------------------


class Gateway:
    """Joins as a whole, with a clock that is turned by hand."""

    def __init__(self, client: FakeSecrets, policy: Policy | None = None) -> None:
        self.now_s = float(NOW)
        self.foreign: set[str] = set()
        self.store = IdentityStore(client, "tinyedge", wall_s=lambda: self.now_s, pause=no_pause)
        self.joining = Joining(self.store, wall_s=lambda: self.now_s, foreign=self._foreign, policy=policy)

    async def _foreign(self, name: str) -> bool:
        await trio.lowlevel.checkpoint()
        return name in self.foreign

    def token(self, **kwargs: Any) -> str:
        return self.joining.make_token(
            **({"ttl_s": 3600} | ({} if "pattern" in kwargs else {"node": "gate-7"}) | kwargs)
        )

    async def join(self, token: str, machine: str = HERE, **kwargs: Any) -> Joined:
        given: dict[str, Any] = {"name": "", "csr": csr(), "token": token, "machine": machine}
        return await self.joining.join(joining.encode(JoinRequest(**(given | kwargs))))


async def gateway(client: FakeSecrets | None = None, policy: Policy | None = None) -> Gateway:
    made = Gateway(client or FakeSecrets(), policy)
    await made.store.open()
    return made


def facts_of(answer: joining.JoinAnswer) -> CertFacts:
    return ca.read_certificate(joining.der(answer.chain))


async def test_a_join_gives_a_certificate_that_may_connect() -> None:
    here = await gateway()
    joined = await here.join(here.token(labels={"site": "north"}), labels={"site": "x", "rack": "1"})
    assert joined.answer.node == "gate-7"
    assert joined.labels == {"site": "north", "rack": "1"}
    assert joined.answer.cas == here.store.ca.trusted
    assert here.joining.may_connect(facts_of(joined.answer), HERE).kind == "ok"


async def test_a_join_is_known_at_the_other_replica_at_once(autojump_clock: trio.testing.MockClock) -> None:
    client = FakeSecrets()
    here, there = await gateway(client), await gateway(client)
    facts = facts_of((await here.join(here.token())).answer)
    assert there.joining.may_connect(facts, HERE).reason == "Unknown"
    assert (await there.joining.connect(facts, HERE)).kind == "ok"


async def test_many_who_are_refused_at_once_do_not_make_us_ask_kubernetes_each_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    client = FakeSecrets()
    here = await gateway(client)
    asked = client.calls.count("get")
    refused = []

    async def knock() -> None:
        stranger = CertFacts("gate-9", LINE * 2, NOW, NOW + DAY_S)
        refused.append((await here.joining.connect(stranger, HERE)).kind)

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(knock)
    assert refused == ["refused"] * 50
    assert client.calls.count("get") - asked <= 2
    assert trio.current_time() - began < 3


async def test_who_joined_elsewhere_is_let_in_however_many_are_refused(
    autojump_clock: trio.testing.MockClock,
) -> None:
    client = FakeSecrets()
    here, there = await gateway(client), await gateway(client)
    stranger = CertFacts("gate-9", LINE * 2, NOW, NOW + DAY_S)
    assert (await there.joining.connect(stranger, HERE)).kind == "refused"
    facts = facts_of((await here.join(here.token())).answer)
    assert (await there.joining.connect(facts, HERE)).kind == "ok"


async def test_a_watch_that_is_behind_does_not_undo_what_was_written() -> None:
    client = FakeSecrets()
    here = await gateway(client)
    old = await client.get("tinyedge", STATE_SECRET)
    facts = facts_of((await here.join(here.token())).answer)
    here.store.take(old)
    assert here.joining.may_connect(facts, HERE).kind == "ok"
    await here.joining.revoke("gate-7")
    there = await gateway(client)
    here.store.take(await client.get("tinyedge", STATE_SECRET))
    assert here.store.state == there.store.state


async def test_a_refusal_that_can_not_be_checked_is_none(autojump_clock: trio.testing.MockClock) -> None:
    client = FakeSecrets()
    here = await gateway(client)
    client.broken = 503
    with pytest.raises(KubeError):
        await here.joining.connect(CertFacts("gate-9", LINE * 2, NOW, NOW + DAY_S), HERE)


async def test_a_token_that_is_used_at_two_replicas_at_once_counts_for_one() -> None:
    client = FakeSecrets()
    here, there = await gateway(client), await gateway(client)
    token = here.token(pattern="gate-*")
    refused, joined = [], []

    async def try_it(at: Gateway, name: str) -> None:
        try:
            joined.append((await at.join(token, name=name)).name)
        except Refused as error:
            refused.append(error.reason)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(try_it, here, "gate-1")
        nursery.start_soon(try_it, there, "gate-2")
    assert (len(joined), refused) == (1, ["TokenUsed"])
    await here.store.refresh()
    assert list(here.store.state.bindings) == joined


async def test_an_answer_that_was_lost_is_given_again_to_the_same_key_only() -> None:
    here = await gateway()
    token, request = here.token(), csr()
    first = await here.join(token, csr=request)
    again = await here.join(token, csr=request)
    assert facts_of(first.answer).serial[:16] == facts_of(again.answer).serial[:16]
    with pytest.raises(Refused) as error:
        await here.join(token)
    assert error.value.reason == "TokenUsed"


async def test_nothing_is_signed_when_it_can_not_be_written_down() -> None:
    client = FakeSecrets()
    here = await gateway(client)
    token = here.token()
    client.before_write = client.touch
    with pytest.raises(PeerError):
        await here.join(token)
    client.before_write = lambda name: None
    assert await here.join(token), "the token was not used up"


async def test_a_node_of_the_cluster_itself_can_not_be_joined_as() -> None:
    here = await gateway()
    here.foreign.add("control-plane")
    with pytest.raises(Refused, match="no edge node") as error:
        await here.join(here.token(pattern="*"), name="control-plane")
    assert error.value.reason == "NameBound"


async def test_a_rebound_name_tells_that_its_session_is_to_end() -> None:
    here = await gateway()
    assert not (await here.join(here.token())).rebound
    await here.joining.replace("gate-7")
    assert (await here.join(here.token(), THERE)).rebound


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b'{"token": 1}',
        b"[" * 10_000,
        b" " * (limits.EDGE_JOIN_BYTES_MAX + 1),
        joining.encode(JoinRequest("te1.x", "gate-7", HERE, "x" * 20_000)),
    ],
    ids=lambda body: repr(body[:20]),
)
async def test_a_request_that_is_none_is_refused_politely(body: bytes) -> None:
    with pytest.raises(Refused) as error:
        await (await gateway()).joining.join(body)
    assert error.value.reason == "BadRequest"
    assert joining.encode(error.value.body())


async def test_a_refused_join_leaves_the_token_good() -> None:
    here = await gateway()
    token = here.token()
    for wrong in (
        {"csr": "x"},
        {"labels": {"tinyedge.io/x": ""}},
        {"taints": [Taint("a", "Never")]},
        {"name": "other"},
    ):
        with pytest.raises(Refused):
            await here.join(token, **wrong)
    assert await here.join(token)


async def test_a_renewed_certificate_is_of_the_same_line_and_costs_no_write() -> None:
    client = FakeSecrets()
    here = await gateway(client)
    first = facts_of((await here.join(here.token())).answer)
    wrote = client.calls.count("replace")
    here.now_s += 60 * DAY_S
    second = facts_of(here.joining.renew(first, HERE, joining.encode(RenewRequest(csr()))))
    assert second.serial[:16] == first.serial[:16]
    assert second.serial != first.serial
    assert second.not_after_s == int(here.now_s) + 90 * DAY_S
    assert client.calls.count("replace") == wrote


async def test_an_expired_certificate_is_renewed_within_the_grace_time_and_not_after() -> None:
    here = await gateway(policy=Policy(grace_s=10 * DAY_S))
    facts = facts_of((await here.join(here.token())).answer)
    here.now_s += 99 * DAY_S
    assert here.joining.may_connect(facts, HERE).kind == "renew"
    assert here.joining.renew(facts, HERE, joining.encode(RenewRequest(csr())))
    here.now_s += 2 * DAY_S
    with pytest.raises(Refused) as error:
        here.joining.renew(facts, HERE, joining.encode(RenewRequest(csr())))
    assert error.value.reason == "Expired"


async def test_a_request_for_renewal_that_is_none_is_refused() -> None:
    here = await gateway()
    facts = facts_of((await here.join(here.token())).answer)
    for body in (b"", b"{}", joining.encode(RenewRequest("x"))):
        with pytest.raises(Refused) as error:
            here.joining.renew(facts, HERE, body)
        assert error.value.reason == "BadRequest"


async def test_revocation_ends_all_certificates_of_a_node_and_renewal_too() -> None:
    here = await gateway()
    first = facts_of((await here.join(here.token())).answer)
    second = facts_of(here.joining.renew(first, HERE, joining.encode(RenewRequest(csr()))))
    await here.joining.revoke("gate-7")
    for facts in (first, second):
        assert here.joining.may_connect(facts, HERE).reason == "Revoked"
        with pytest.raises(Refused):
            here.joining.renew(facts, HERE, joining.encode(RenewRequest(csr())))


async def test_a_node_leaves_and_its_copy_can_not_make_it_leave(autojump_clock: trio.testing.MockClock) -> None:
    here = await gateway()
    facts = facts_of((await here.join(here.token())).answer)
    with pytest.raises(Refused) as error:
        await here.joining.leave(facts, joining.encode(LeaveRequest(THERE)))
    assert error.value.reason == "Twin"
    await here.joining.leave(facts, joining.encode(LeaveRequest(HERE)))
    assert here.joining.may_connect(facts, HERE).reason == "Left"
    with pytest.raises(Refused):
        await here.joining.leave(facts, joining.encode(LeaveRequest(HERE)))


async def test_deleting_frees_the_name() -> None:
    here = await gateway()
    facts = facts_of((await here.join(here.token())).answer)
    await here.joining.delete("gate-7")
    assert here.joining.may_connect(facts, HERE).reason == "Deleted"
    assert not (await here.join(here.token(pattern="*"), THERE, name="gate-7")).rebound
    with pytest.raises(TinyEdgeError):
        await here.joining.delete("gate-8")
