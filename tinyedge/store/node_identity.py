"""Who this node is: two files beside the store, which outlive a lost store.

    identity.pem    our key, our certificate and what is between it and the CA (0600)
    identity.toml   the gateway's address, the CAs, our name, the machine, and the line of our certificates

Both belong together by the line: the first half of a certificate's serial number, the same from a join through all
renewals. A renewal replaces identity.pem alone. A join writes the new key and chain aside, then identity.toml, which is
the moment from which they count, then puts the first in its place:

    identity.next.pem  ─▶  identity.toml  ─▶  identity.next.pem renamed to identity.pem

Wherever the power fails, one of the two PEM files fits the TOML file, and that one counts. Reading changes nothing.
"""

from __future__ import annotations

import os
import re
import tomllib

import msgspec
from msgspec import Struct

from tinyedge.errors import BadInput, StoreError
from tinyedge.limits import IDENTITY_FILE_BYTES_MAX
from tinyedge.protocol import der, joining
from tinyedge.store.disk import Disk
from tinyedge.store.identity import read_file, remove_file, write_file

PEM, NEXT_PEM, TOML, PENDING = "identity.pem", "identity.next.pem", "identity.toml", "identity.pending.pem"

_KEY = re.compile(r"-----BEGIN PRIVATE KEY-----\n[A-Za-z0-9+/=\n]+-----END PRIVATE KEY-----\n?")


class Identity(Struct, frozen=True):
    """`gateway`: URL of the join. `machine`: digest of the machine that joined. `line`: hex. `cas`: PEM. Times are Unix
    seconds. `pem`: path of the file with key and chain."""

    gateway: str
    node: str
    machine: str
    line: str
    cas: str
    joined_s: int
    not_before_s: int
    not_after_s: int
    pem: str


class _Toml(Struct, frozen=True):
    gateway: str
    node: str
    machine: str
    line: str
    ca: str
    joined_s: int


class IdentityFiles:
    """The files of one folder, which must be there. Every call blocks on the disk; OSErrors come as StoreErrors."""

    def __init__(self, folder: str, disk: Disk | None = None) -> None:
        self.folder = folder
        self._disk = disk or Disk()

    def load(self) -> Identity | None:
        """None: the node has not joined. StoreError when the files are there and can't be used."""
        data = self._read(TOML)
        if data is None:
            return None
        toml = self._toml(data)
        for name in (PEM, NEXT_PEM):
            certificate = self._certificate(name)
            if certificate is not None and _line(certificate) == toml.line and certificate.name == toml.node:
                return Identity(
                    toml.gateway,
                    toml.node,
                    toml.machine,
                    toml.line,
                    toml.ca,
                    toml.joined_s,
                    certificate.not_before_s,
                    certificate.not_after_s,
                    self._path(name),
                )
        why = f"{PEM} has no certificate that belongs to it"
        raise StoreError(f"the identity in {self._path(TOML)} can't be used", why, "restore the file, or join again")

    def save(self, *, gateway: str, machine: str, answer: joining.JoinAnswer, key: str, joined_s: int) -> Identity:
        """What a join has brought takes the place of any identity before. BadInput when the answer is not whole."""
        leaf = der.read(joining.der(answer.chain))
        cas = "".join(joining.certificates(answer.cas))
        if leaf.name != answer.node or not joining.valid_name(answer.node) or not _line(leaf) or not cas:
            raise BadInput("the gateway's answer", "(not shown)", "a certificate for this node and the CAs")
        toml = _Toml(gateway, answer.node, machine, _line(leaf), cas, joined_s)
        self._settle()
        self._write(NEXT_PEM, _key_and_chain(key, answer.chain))
        self._write(TOML, _toml_text(toml))
        self._settle()
        self._remove(PENDING)
        found = self.load()
        if found is None:
            raise StoreError(f"{self._path(TOML)} is gone", "just after it was written", "check the storage device")
        return found

    def renew(self, identity: Identity, answer: joining.JoinAnswer, key: str) -> Identity:
        """A new certificate of the same line, and the CAs that count from now on. BadInput when it is not ours."""
        leaf = der.read(joining.der(answer.chain))
        cas = "".join(joining.certificates(answer.cas))
        if not leaf.name == answer.node == identity.node or _line(leaf) != identity.line or not cas:
            raise BadInput("the gateway's answer", "(not shown)", f"a certificate for {identity.node}, and the CAs")
        if cas != identity.cas:
            toml = _Toml(identity.gateway, identity.node, identity.machine, identity.line, cas, identity.joined_s)
            self._write(TOML, _toml_text(toml))
        self._write(PEM, _key_and_chain(key, answer.chain))
        self._remove(NEXT_PEM)
        return msgspec.structs.replace(
            identity,
            cas=cas,
            not_before_s=leaf.not_before_s,
            not_after_s=leaf.not_after_s,
            pem=self._path(PEM),
        )

    def forget(self) -> None:
        """The node has left. The first step ends the identity; the rest removes what is of no more use."""
        for name in (TOML, PEM, NEXT_PEM, PENDING):
            self._remove(name)

    def pending_key(self) -> str:
        """The key of a join that was cut off, empty when there was none: with the same token it may be asked again."""
        data = self._read(PENDING)
        return data.decode("ascii", "replace") if data and _KEY.fullmatch(data.decode("ascii", "replace")) else ""

    def keep_pending_key(self, key: str) -> None:
        """Before the gateway is asked: a token counts once, but for who has this key."""
        self._write(PENDING, key.encode())

    def _settle(self) -> None:
        """Give the PEM file that counts its own name, and remove one that does not."""
        try:
            found = self.load()
        except StoreError:
            found = None
        if found is not None and found.pem == self._path(NEXT_PEM):
            try:
                self._disk.rename(self._path(NEXT_PEM), self._path(PEM))
                self._disk.fsync_dir(self.folder)
            except OSError as error:
                raise self._failed("write", PEM, error) from error
        else:
            self._remove(NEXT_PEM)

    def _certificate(self, name: str) -> der.Certificate | None:
        data = self._read(name)
        try:
            return None if data is None else der.read(joining.der(data.decode("ascii", "replace")))
        except BadInput:
            return None

    def _toml(self, data: bytes) -> _Toml:
        try:
            return msgspec.convert(tomllib.loads(data.decode()), _Toml)
        except (UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
            remedy = "restore the file, or join again"
            raise StoreError(f"{self._path(TOML)} can't be used", str(error), remedy) from None

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def _read(self, name: str) -> bytes | None:
        try:
            return read_file(self._disk, self._path(name), IDENTITY_FILE_BYTES_MAX)
        except OSError as error:
            raise self._failed("read", name, error) from error

    def _write(self, name: str, data: bytes) -> None:
        try:
            write_file(self._disk, self._path(name), data)
        except OSError as error:
            raise self._failed("write", name, error) from error

    def _remove(self, name: str) -> None:
        try:
            remove_file(self._disk, self._path(name))
        except OSError as error:
            raise self._failed("remove", name, error) from error

    def _failed(self, what: str, name: str, error: OSError) -> StoreError:
        why = error.strerror or str(error)
        return StoreError(f"can't {what} {self._path(name)}", why, "run it as root; check the disk and store.path")


def _line(certificate: der.Certificate) -> str:
    """Behind the byte 1 that leads every serial number; empty when it is not one of a gateway's."""
    digits = certificate.serial
    return digits[2 : 2 + 2 * joining.LINE_BYTES] if digits.startswith("01") and len(digits) == 34 else ""


def _key_and_chain(key: str, chain: str) -> bytes:
    found = _KEY.fullmatch(key)
    if found is None:
        raise BadInput("the key", "(not shown)", "PEM of a private key")
    return (key.rstrip("\n") + "\n" + "".join(joining.certificates(chain))).encode()


def _toml_text(toml: _Toml) -> bytes:
    """JSON writes strings and numbers as TOML does."""
    lines = ["# Written by tinyedge join. It belongs to identity.pem beside it."]
    lines += [
        f"{name} = {msgspec.json.encode(getattr(toml, name)).decode()}"
        for name in _Toml.__struct_fields__
        if name != "ca"
    ]
    return "\n".join([*lines, f'ca = """\n{toml.ca}"""', ""]).encode()
