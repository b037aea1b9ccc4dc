"""The sandbox's certificates: its CA, what it serves with, and what it shows to kubelets.

    ca.pem               the CA's key and certificate: signs the others
    ca.crt               its certificate alone; clients trust it by the kubeconfig
    server.pem           for localhost, 127.0.0.1, ::1 and the hosts that are given
    kubelet-client.pem   CN kube-apiserver-kubelet-client, O system:masters: shown to kubelet endpoints
    kubeconfig           for kubectl: with the admin's token

All 0600, made once, used again, and made anew when a third of their life is left, or when they can't be read: a power
cut may leave half of what was written last. A new CA is a new cluster for those who trusted the old one.
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import os
import ssl
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from msgspec import Struct

from cloud_gateway.certificates import key_usage
from tinyedge.errors import WorldError

CLUSTER = "tinyedge-sandbox"
LOCAL = ("localhost", "127.0.0.1", "::1", "kubernetes", "kubernetes.default", "kubernetes.default.svc")
_DAY_S = 86400
_CA_LIFE_S, _LIFE_S = 3650 * _DAY_S, 365 * _DAY_S
_BACK_S = 3600  # clocks differ
_FILE_BYTES_MAX = 256 * 1024

Key = ec.EllipticCurvePrivateKey


class _Pair(Struct, frozen=True):
    key: Key
    certificate: x509.Certificate

    def pem(self) -> bytes:
        private = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return private + self.certificate.public_bytes(serialization.Encoding.PEM)


class Certs(Struct, frozen=True):
    """`ca_pem` is also what kubelet endpoints must trust for clients: the key client-ca-file of the ConfigMap
    kube-system/extension-apiserver-authentication."""

    folder: Path
    ca_pem: str

    def server_context(self) -> ssl.SSLContext:
        """For the API's own port."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / "server.pem")
        context.set_alpn_protocols(["http/1.1"])
        return context

    def kubelet_context(self) -> ssl.SSLContext:
        """For connections to kubelet endpoints. Whose certificate those show is not checked, as kube-apiserver does
        without --kubelet-certificate-authority."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.load_cert_chain(self.folder / "kubelet-client.pem")
        return context


def open_certs(folder: Path, hosts: Sequence[str], now_s: float) -> Certs:
    """Load what is there, make what is missing, near its end, or lacks one of `hosts` (names or addresses). Blocks for
    the time of a few file operations. Raises WorldError."""
    now = datetime.datetime.fromtimestamp(now_s, datetime.UTC)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        ca = _loaded(folder / "ca.pem", now)
        if ca is None:
            ca = _new_ca(now)
            write_private(folder / "ca.pem", ca.pem())
        ca_pem = ca.certificate.public_bytes(serialization.Encoding.PEM)
        write_private(folder / "ca.crt", ca_pem)
        names = tuple(dict.fromkeys((*LOCAL, *hosts)))
        _keep(folder / "server.pem", ca, now, x509.Name([_cn("kube-apiserver")]), names)
        organisation = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "system:masters")
        client = x509.Name([organisation, _cn("kube-apiserver-kubelet-client")])
        _keep(folder / "kubelet-client.pem", ca, now, client, ())
    except OSError as error:
        remedy = "give it a folder that this user may write"
        raise WorldError(f"the sandbox's certificates in {folder} can't be kept", str(error), remedy) from None
    return Certs(folder, ca_pem.decode())


def kubeconfig(url: str, ca_pem: str, token: str) -> str:
    """The text (YAML) of a kubeconfig with one cluster, one user and one context, all named `tinyedge-sandbox`."""
    authority = base64.b64encode(ca_pem.encode()).decode()
    return (
        "apiVersion: v1\n"
        "kind: Config\n"
        "clusters:\n"
        f"- name: {CLUSTER}\n"
        "  cluster:\n"
        f"    server: {url}\n"
        f"    certificate-authority-data: {authority}\n"
        "users:\n"
        f"- name: {CLUSTER}\n"
        "  user:\n"
        f"    token: {token}\n"
        "contexts:\n"
        f"- name: {CLUSTER}\n"
        "  context:\n"
        f"    cluster: {CLUSTER}\n"
        f"    user: {CLUSTER}\n"
        f"current-context: {CLUSTER}\n"
    )


def write_private(path: Path, data: bytes) -> None:
    """Write a file of secrets, 0600; readers see the old one or the new one."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
        file.write(data)
    new.replace(path)


def read_private(path: Path) -> bytes:
    """Empty when there is none, or when it is no file of ours. What others could read is closed to them first."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            os.fchmod(file.fileno(), 0o600)
            data = file.read(_FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        return b""
    return data if len(data) <= _FILE_BYTES_MAX else b""


def _keep(path: Path, ca: _Pair, now: datetime.datetime, subject: x509.Name, names: Sequence[str]) -> None:
    found = _loaded(path, now)
    if found is not None and _signed_by(found.certificate, ca) and set(names) <= set(_names(found.certificate)):
        return
    write_private(path, _issued(ca, now, subject, names).pem())


def _loaded(path: Path, now: datetime.datetime) -> _Pair | None:
    """None: there is none, it is damaged, or less than a third of its life is left."""
    data = read_private(path)
    try:
        key = serialization.load_pem_private_key(data, None)
        certificate = x509.load_pem_x509_certificate(data)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None
    if not isinstance(key, Key) or key.public_key() != certificate.public_key():
        return None
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return _Pair(key, certificate) if start <= now < end - (end - start) / 3 else None


def _signed_by(certificate: x509.Certificate, ca: _Pair) -> bool:
    try:
        certificate.verify_directly_issued_by(ca.certificate)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress))]


def _new_ca(now: datetime.datetime) -> _Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([_cn(f"{CLUSTER} CA")])
    certificate = (
        _begun(name, name, key, now, _CA_LIFE_S)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _Pair(key, certificate)


def _issued(ca: _Pair, now: datetime.datetime, subject: x509.Name, names: Sequence[str]) -> _Pair:
    """For a server when it has names, else for a client."""
    key = ec.generate_private_key(ec.SECP256R1())
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key())
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if names else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = (
        _begun(subject, ca.certificate.subject, key, now, _LIFE_S)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(issuer_key, critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([_general(one) for one in names]), critical=False)
    return _Pair(key, builder.sign(ca.key, hashes.SHA256()))


def _begun(
    subject: x509.Name, issuer: x509.Name, key: Key, now: datetime.datetime, life_s: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(seconds=_BACK_S))
        .not_valid_after(now + datetime.timedelta(seconds=life_s))
    )


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _cn(name: str) -> x509.NameAttribute[str]:
    return x509.NameAttribute(NameOID.COMMON_NAME, name)
