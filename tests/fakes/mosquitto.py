"""A real mosquitto on loopback, with a configuration of its own in a temporary folder."""

from __future__ import annotations

import datetime as dt
import ipaddress
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.fakes.ports import free_port

PROGRAM = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin") or "mosquitto"


class Mosquitto:
    """`lines` are added to its configuration. It may be stopped and started again: what it persists stays."""

    def __init__(self, folder: Path, nursery: trio.Nursery, lines: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.port = free_port()
        self.log: list[str] = []
        self._lines = lines
        self._nursery = nursery
        self._process: trio.Process | None = None

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Returns once it listens."""
        config = self.folder / "mosquitto.conf"
        config.write_text(
            "\n".join(
                [
                    f"listener {self.port} 127.0.0.1",
                    "user root",
                    "persistence true",
                    f"persistence_location {self.folder}/",
                    "log_dest stderr",
                    "log_type all",
                    *self._lines,
                    *([] if any("anonymous" in line for line in self._lines) else ["allow_anonymous true"]),
                    "",
                ]
            )
        )
        self._process = await self._nursery.start(self._run, str(config))

    async def _run(self, config: str, *, task_status: trio.TaskStatus[trio.Process] = trio.TASK_STATUS_IGNORED) -> None:
        process = await trio.lowlevel.open_process([PROGRAM, "-c", config], stderr=subprocess.PIPE)
        assert process.stderr is not None
        try:
            text = b""
            async for data in process.stderr:
                text += data
                *lines, text = text.split(b"\n")
                self.log += [line.decode(errors="replace") for line in lines]
                if any(line.endswith(b" running") for line in lines):
                    task_status.started(process)
        finally:
            with trio.CancelScope(shield=True):
                await _end(process)
        assert any(line.endswith(" running") for line in self.log), self.log

    async def stop(self) -> None:
        """As by its init system: it keeps what it persists."""
        assert self._process is not None
        await _end(self._process)

    async def kill(self) -> None:
        """As by a power cut of the broker's machine."""
        assert self._process is not None
        self._process.kill()
        await self._process.wait()


async def _end(process: trio.Process) -> None:
    """It says that it runs before it does, and what it is told in between it forgets: it is told again."""
    while process.returncode is None:
        process.terminate()
        with trio.move_on_after(1):
            await process.wait()


@asynccontextmanager
async def mosquitto(folder: Path, *lines: str) -> AsyncIterator[Mosquitto]:
    async with trio.open_nursery() as nursery:
        broker = Mosquitto(folder, nursery, lines)
        await broker.start()
        yield broker
        nursery.cancel_scope.cancel()


class Pki:
    """A CA and two certificates of it as files: the broker's for 127.0.0.1 and localhost, and a client's."""

    def __init__(self, folder: Path) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "CA of a test")])
        ca = _certificate(name, name, key, key, ca=True)
        self.ca = _write(folder / "ca.pem", ca.public_bytes(serialization.Encoding.PEM))
        for role in ("server", "client"):
            own = ec.generate_private_key(ec.SECP256R1())
            subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{role}-of-a-test")])
            signed = _certificate(subject, name, own, key)
            _write(folder / f"{role}.pem", signed.public_bytes(serialization.Encoding.PEM))
            pem = own.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            _write(folder / f"{role}.key", pem)
        self.server = (str(folder / "server.pem"), str(folder / "server.key"))
        self.client = (str(folder / "client.pem"), str(folder / "client.key"))


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    by: ec.EllipticCurvePrivateKey,
    *,
    ca: bool = False,
) -> x509.Certificate:
    now = dt.datetime.now(dt.UTC)
    names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(by, hashes.SHA256())
    )


def _write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)
