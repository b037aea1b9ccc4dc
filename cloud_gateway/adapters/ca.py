"""The gateway's certificate authority, and the two Secrets that are all it keeps: the CA, and who is bound to what.

Of a node's request nothing but the public key is taken; what the certificate says is ours. Time is checked by
core/authority, not by TLS: a node that was away for a year must be able to knock.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import ipaddress
import math
import secrets
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

import trio
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from msgspec import Struct

from cloud_gateway import limits
from cloud_gateway.certificates import key_usage, load_chain
from cloud_gateway.core import authority
from cloud_gateway.core.authority import CertFacts, State
from tinyedge.errors import BadInput, PeerError, TinyEdgeError, WorldError
from tinyedge.protocol import joining
from tinyedge.protocol.joining import SERVER_NAME

CA_SECRET = "tinyedge-ca"  # noqa: S105 - a name
STATE_SECRET = "tinyedge-identity"  # noqa: S105
STATE_KEY = "state"
ORGANISATION = "tinyedge:nodes"
NODE_URI = "tinyedge://node/"

CA_LIFE_S = 20 * 365 * authority.DAY_S
SERVER_LIFE_S = 5 * 365 * authority.DAY_S  # its key lives as long as the process
_BACK_S = authority.DAY_S  # clocks differ
_SERIAL_BYTES = 16
_RSA_BITS_MIN, _RSA_BITS_MAX = 2048, 4096
_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME, which the ssl module does not name

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
T = TypeVar("T")


class Signed(Struct, frozen=True):
    """A server's certificate with what stands between it and the CA, and its key; both PEM."""

    chain: str
    key: str


class Ca:
    """One CA that signs, and those that are trusted beside it."""

    def __init__(self, certificate: x509.Certificate, key: PrivateKey, between: str, trusted: str) -> None:
        """`between`: PEM of the certificates that are sent along; `trusted`: PEM of all CAs, this one first."""
        self._certificate = certificate
        self._key = key
        self._between = between
        self.trusted = trusted
        self.fingerprint: bytes = certificate.fingerprint(hashes.SHA256())
        pkcs8 = serialization.PrivateFormat.PKCS8
        self.token_key = authority.token_key(
            key.private_bytes(serialization.Encoding.DER, pkcs8, serialization.NoEncryption())
        )

    @staticmethod
    def load(certificates: str, key: str, others: str = "") -> Ca:
        """From PEM: the CA's certificate, then what may stand between it and its root; its key; other CAs to trust.
        WorldError when they do not make a CA."""
        if len(certificates) + len(others) > limits.CA_BYTES_MAX:
            raise _bad_ca(f"it is larger than {limits.CA_BYTES_MAX} bytes")
        chain, more = joining.certificates(certificates), joining.certificates(others)
        if not chain:
            raise _bad_ca("tls.crt holds no certificate")
        try:
            certificate = x509.load_pem_x509_certificate(chain[0].encode())
            for other in (*chain[1:], *more):
                x509.load_pem_x509_certificate(other.encode())
            private = serialization.load_pem_private_key(key.encode(), None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise _bad_ca(str(error)) from None
        if not isinstance(private, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            raise _bad_ca("its key is neither EC nor RSA")
        if private.public_key() != certificate.public_key():
            raise _bad_ca("tls.key is not the key of tls.crt")
        if not _may_sign(certificate):
            raise _bad_ca("tls.crt is not the certificate of a CA")
        return Ca(certificate, private, "".join(chain[1:]), "".join(dict.fromkeys([chain[0], *more])))

    def server(self, now_s: int, addresses: Sequence[str] = ()) -> Signed:
        """A certificate for the gateway itself, with a new key; `addresses`: IP addresses that it is good for too."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SERVER_NAME)])
        start, end = self._life(now_s, SERVER_LIFE_S)
        names: list[x509.GeneralName] = [x509.DNSName(SERVER_NAME)]
        names += [x509.IPAddress(ipaddress.ip_address(one)) for one in addresses]
        certificate = (
            self._issued(name, key.public_key(), start, end)
            .serial_number(_serial(secrets.token_bytes(_SERIAL_BYTES)))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return Signed(_pem(certificate) + self._between, _key_pem(key))

    def sign_node(self, key: PublicKey, name: str, line: str, now_s: int, life_s: int) -> str:
        """The chain, PEM, of a new certificate for a node. `line`: the first half of its serial number, hex."""
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANISATION),
                x509.NameAttribute(NameOID.COMMON_NAME, name),
            ]
        )
        random = secrets.token_bytes(_SERIAL_BYTES - joining.LINE_BYTES)
        start, end = self._life(now_s, life_s)
        certificate = (
            self._issued(subject, key, start, end)
            .serial_number(_serial(bytes.fromhex(line) + random))
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(NODE_URI + name)]), critical=False
            )
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return _pem(certificate) + self._between

    def _life(self, now_s: int, life_s: int) -> tuple[datetime.datetime, datetime.datetime]:
        """No certificate outlives its CA."""
        end = min(now_s + life_s, int(self._certificate.not_valid_after_utc.timestamp()))
        if end <= now_s:
            remedy = f"put a new CA into Secret {CA_SECRET}, and the old one's certificate into its ca.crt"
            raise WorldError("the gateway's CA has ended", "", remedy)
        return _time(now_s - min(_BACK_S, life_s // 10)), _time(end)

    def _issued(
        self, subject: x509.Name, key: PublicKey, start: datetime.datetime, end: datetime.datetime
    ) -> x509.CertificateBuilder:
        issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._certificate.subject)
            .public_key(key)
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(signs_certificates=False), critical=True)
            .add_extension(issuer_key, critical=False)
        )


def make_ca(now_s: int) -> tuple[str, str]:
    """A new CA: its certificate and its key, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"tinyedge CA {secrets.token_hex(4)}")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(_serial(secrets.token_bytes(_SERIAL_BYTES)))
        .not_valid_before(_time(now_s - _BACK_S))
        .not_valid_after(_time(now_s + CA_LIFE_S))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pem(certificate), _key_pem(key)


def _bad_ca(why: str) -> WorldError:
    remedy = "put tls.crt and tls.key of a CA into it, or delete it to have a new CA made (all nodes must join again)"
    return WorldError(f"Secret {CA_SECRET} holds no CA that can be used", why, remedy)


def _may_sign(certificate: x509.Certificate) -> bool:
    try:
        if not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return False
        return certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound as error:
        return error.oid == x509.KeyUsage.oid
    except ValueError:
        return False


def _serial(data: bytes) -> int:
    """A positive number whose bytes these are, with a byte 1 before them: none is lost at the front."""
    return int.from_bytes(b"\x01" + data)


def _time(at_s: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(at_s, datetime.UTC)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: PrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


# --- what nodes send ---------------------------------------------------------------------------------


def read_csr(pem: str) -> PublicKey:
    """The public key of a request whose signature shows that its sender has the private one. BadInput when not.

    The subject and all that it asks for is left aside.
    """
    if len(pem) > limits.CSR_BYTES_MAX:
        raise BadInput("the certificate request", "(not shown)", f"at most {limits.CSR_BYTES_MAX} bytes")
    try:
        request = x509.load_pem_x509_csr(pem.encode())
        key = request.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
            raise _bad_csr("an EC or RSA key")
        if isinstance(key, ec.EllipticCurvePublicKey) and not isinstance(key.curve, ec.SECP256R1):
            raise _bad_csr("the curve P-256")
        if isinstance(key, rsa.RSAPublicKey) and not _RSA_BITS_MIN <= key.key_size <= _RSA_BITS_MAX:
            raise _bad_csr(f"an RSA key of {_RSA_BITS_MIN} to {_RSA_BITS_MAX} bits")
        genuine = request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise _bad_csr(f"PEM of a PKCS#10 request ({error})") from None
    if not genuine:
        raise _bad_csr("a signature by its own key")
    return key


def _bad_csr(expected: str) -> BadInput:
    return BadInput("the certificate request", "(not shown)", expected)


def key_digest(key: PublicKey) -> str:
    """A digest of a public key, hex."""
    info = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    digest = hashes.Hash(hashes.SHA256())
    digest.update(info)
    return digest.finalize()[:16].hex()


def read_certificate(der: bytes) -> CertFacts:
    """What the certificate of a TLS client says, DER. TLS has checked that a CA of ours signed it. BadInput when it is
    not the certificate of a node."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        subject = certificate.subject
        organisations = [str(entry.value) for entry in subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
        names = [str(entry.value) for entry in subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = alternatives.get_values_for_type(x509.UniformResourceIdentifier)
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension) as error:
        raise BadInput("the client's certificate", "(not shown)", f"one of a node ({error})") from None
    serial = certificate.serial_number.to_bytes(20, "big", signed=False).lstrip(b"\0")
    is_node = organisations == [ORGANISATION] and len(names) == 1 and uris == [NODE_URI + names[0]]
    if not is_node or ExtendedKeyUsageOID.CLIENT_AUTH not in usages or len(serial) != _SERIAL_BYTES + 1:
        raise BadInput("the client's certificate", "(not shown)", "one of a node, made by this gateway")
    return CertFacts(
        name=names[0],
        serial=serial[1:].hex(),
        not_before_s=int(certificate.not_valid_before_utc.timestamp()),
        not_after_s=int(certificate.not_valid_after_utc.timestamp()),
    )


# --- the listener's TLS ------------------------------------------------------------------------------


def server_context(ca: Ca, now_s: int) -> ssl.SSLContext:
    """TLS of the listener: 1.3 only, no tickets, client certificates wanted and checked against the CAs, their times
    not."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    context.verify_mode = ssl.CERT_OPTIONAL
    context.verify_flags |= ssl.VerifyFlags(_NO_CHECK_TIME) | ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=ca.trusted)
    signed = ca.server(now_s)
    load_chain(context, signed.chain + signed.key)
    return context


# --- the Secrets -------------------------------------------------------------------------------------


class Secrets(Protocol):
    """What is needed of a Kubernetes client. Errors are TinyEdgeErrors with `status`: 404, 409, …"""

    async def get(self, namespace: str, name: str) -> dict[str, Any]: ...

    async def create(self, namespace: str, body: dict[str, Any]) -> dict[str, Any]: ...

    async def replace(self, namespace: str, name: str, body: dict[str, Any]) -> dict[str, Any]: ...


def status_of(error: TinyEdgeError) -> int:
    """The HTTP status that Kubernetes answered with; 0 when it did not."""
    return int(getattr(error, "status", 0) or 0)


class IdentityStore:
    """The CA and the state of one namespace. `state` is what was last seen: keep it fresh with `take` (from a watch) or
    `refresh`. `wall_s` tells Unix time, `pause` waits between two tries when others write too."""

    def __init__(
        self,
        client: Secrets,
        namespace: str,
        *,
        wall_s: Callable[[], float],
        pause: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._wall_s = wall_s
        self._pause = pause or _pause
        self._turn = trio.Lock()  # one change at a time from this process; others come from elsewhere
        self._secret: dict[str, Any] | None = None
        self.state = State()
        self._ca: Ca | None = None
        self._read_at = -math.inf
        self._reading = trio.Lock()

    @property
    def ca(self) -> Ca:
        """Once `open` has returned."""
        if self._ca is None:
            raise WorldError("the gateway's CA is not there yet", "", "try again")
        return self._ca

    async def open(self) -> None:
        """Read the CA and the state; make what is not there yet. Replicas that start at once end up with the same."""
        await self.refresh_ca()
        await self.refresh()

    async def refresh_ca(self) -> bool:
        """Read the CA again; True when it is another one, or others are trusted: make the listener's TLS anew."""
        body = await self._get_or_create(CA_SECRET, self._new_ca)
        made = Ca.load(_text(body, "tls.crt"), _text(body, "tls.key"), _text(body, "ca.crt"))
        before, self._ca = self._ca, made
        return before is None or (before.trusted, before.fingerprint) != (made.trusted, made.fingerprint)

    async def refresh(self) -> None:
        """Read the state again."""
        self._read_at = trio.current_time()
        self._take(await self._get_or_create(STATE_SECRET, lambda: _secret(STATE_SECRET, {STATE_KEY: b"{}"})))

    async def refresh_shared(self, every_s: float) -> None:
        """Returns once the state has been read after this call; all who ask at once share one read, and those who come
        soon after wait: strangers at the door must not make us ask Kubernetes more often than this."""
        asked_at = trio.current_time()
        async with self._reading:
            if self._read_at <= asked_at:
                await trio.sleep_until(self._read_at + every_s)
                await self.refresh()

    def take(self, body: dict[str, Any]) -> None:
        """The Secret as a watch has it now. It may be behind what was read or written here: what is older than that is
        left aside."""
        if self._secret is None or _version(body) >= _version(self._secret):
            self._take(body)

    def _take(self, body: dict[str, Any]) -> None:
        self.state = authority.decode_state(_data(body, STATE_KEY) or b"{}")
        self._secret = body

    async def update(self, change: Callable[[State], tuple[State, T]]) -> T:
        """Read, change and write until nobody else has written in between; `change` may run several times, and what it
        raises ends it. Nothing is written when it returns the state that it was given."""
        async with self._turn:
            for attempt in range(limits.IDENTITY_TRIES_MAX):
                if attempt:
                    await self._pause(attempt)
                await self.refresh()
                after, result = change(self.state)
                if after is self.state or await self._write(after):
                    return result
        raise PeerError("the identity state can't be changed", "others change it all the time", "try again")

    async def _write(self, state: State) -> bool:
        """False when somebody else has written."""
        body = {**(self._secret or {})}
        packed = authority.encode_state(state, int(self._wall_s()))
        body["data"] = {**(body.get("data") or {}), STATE_KEY: base64.b64encode(packed).decode()}
        try:
            self._take(await self._client.replace(self._namespace, STATE_SECRET, body))
        except TinyEdgeError as error:
            if status_of(error) not in (404, 409):
                raise
            return False
        return True

    async def _get_or_create(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What is there; else what we make, unless another was faster."""
        for _ in range(limits.IDENTITY_TRIES_MAX):
            try:
                return await self._client.get(self._namespace, name)
            except TinyEdgeError as error:
                if status_of(error) != 404:
                    raise
            try:
                return await self._client.create(self._namespace, make())
            except TinyEdgeError as error:
                if status_of(error) != 409:
                    raise
        raise PeerError(f"Secret {name} can be neither read nor made", "it comes and goes", "try again")

    def _new_ca(self) -> dict[str, Any]:
        certificate, key = make_ca(int(self._wall_s()))
        parts = {"tls.crt": certificate.encode(), "tls.key": key.encode()}
        return {**_secret(CA_SECRET, parts), "type": "kubernetes.io/tls"}


async def _pause(attempt: int) -> None:
    """Longer and longer, and never the same as another replica's."""
    await trio.sleep(min(2.0, 0.02 * 2**attempt) * secrets.randbelow(1000) / 1000)


def _version(body: dict[str, Any]) -> int:
    """Kubernetes' versions can be compared; 0 for one that can't."""
    text = str((body.get("metadata") or {}).get("resourceVersion") or "")
    return int(text) if text.isascii() and text.isdigit() else 0


def _secret(name: str, data: dict[str, bytes]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name},
        "type": "Opaque",
        "data": {key: base64.b64encode(value).decode() for key, value in data.items()},
    }


def _data(body: dict[str, Any], key: str) -> bytes:
    """What a Secret holds under a key; empty when there is nothing."""
    encoded = (body.get("data") or {}).get(key) or ""
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise WorldError(f"a Secret's {key} is not base64", "", "restore it from a backup") from None


def _text(body: dict[str, Any], key: str) -> str:
    return _data(body, key).decode("ascii", "replace")
