"""What the process runtime knows of its sandboxes and containers, and how it is kept in files and shown."""

from __future__ import annotations

import os
from collections.abc import Iterable

import msgspec
import trio
from msgspec import Struct

from tinyedge.adapters.process.launch import HOST_IMAGE
from tinyedge.adapters.process.link import Link
from tinyedge.model.runtime import (
    ContainerSeen,
    ContainerSpec,
    ContainerState,
    PodSeen,
    SandboxSeen,
    SandboxSpec,
    SandboxState,
)


class StoredSandbox(Struct, frozen=True):
    spec: SandboxSpec
    created_ms: int
    boot_id: str


class StoredContainer(Struct, frozen=True):
    spec: ContainerSpec
    created_ms: int


class Container:
    def __init__(self, container_id: str, folder: str, stored: StoredContainer) -> None:
        self.id = container_id
        self.folder = folder
        self.spec = stored.spec
        self.created_ms = stored.created_ms
        self.state = ContainerState.CREATED
        self.pid = 0
        self.started_ms = self.finished_ms = self.exit_code = 0
        self.reason = ""
        self.ended = trio.Event()

    def end(self, exit_code: int, finished_ms: int, reason: str) -> None:
        self.state = ContainerState.EXITED
        self.exit_code, self.finished_ms, self.reason = exit_code, finished_ms, reason
        self.ended.set()


class Sandbox:
    def __init__(self, sandbox_id: str, folder: str, stored: StoredSandbox) -> None:
        self.id = sandbox_id
        self.folder = folder
        self.spec = stored.spec
        self.created_ms = stored.created_ms
        self.boot_id = stored.boot_id
        self.containers: dict[str, Container] = {}
        self.link: Link | None = None
        self.gone = trio.Event()


# --- how a container and its sandbox are seen ------------------------------------------------------------


def _see_sandbox(sandbox: Sandbox) -> SandboxSeen:
    ready = sandbox.link is not None
    return SandboxSeen(
        sandbox.id,
        sandbox.spec.attempt,
        SandboxState.READY if ready else SandboxState.NOT_READY,
        sandbox.created_ms,
        sandbox.spec.spec_hash,
        ("127.0.0.1",) if ready else (),
    )


def _see_container(sandbox: Sandbox, container: Container) -> ContainerSeen:
    spec = container.spec
    return ContainerSeen(
        container.id,
        sandbox.id,
        spec.name,
        spec.attempt,
        container.state,
        container.created_ms,
        container.started_ms,
        container.finished_ms,
        container.exit_code,
        container.reason,
        image=spec.image,
        image_id=HOST_IMAGE,
        spec_hash=spec.spec_hash,
        log_path=log_path(sandbox.spec, spec),
    )


def log_path(sandbox: SandboxSpec, spec: ContainerSpec) -> str:
    return os.path.join(sandbox.log_directory, spec.log_path) if spec.log_path else ""


def see(all_sandboxes: Iterable[Sandbox], uid: str) -> PodSeen:
    sandboxes = [sandbox for sandbox in all_sandboxes if sandbox.spec.uid == uid]
    if not sandboxes:
        return PodSeen(uid, "", "")
    sandboxes.sort(key=lambda sandbox: (-sandbox.spec.attempt, -sandbox.created_ms))
    containers = [(sandbox, each) for sandbox in sandboxes for each in sandbox.containers.values()]
    containers.sort(key=lambda pair: (pair[1].spec.name, -pair[1].spec.attempt, -pair[1].created_ms))
    spec = sandboxes[0].spec
    return PodSeen(
        uid,
        spec.namespace,
        spec.name,
        tuple(map(_see_sandbox, sandboxes)),
        tuple(_see_container(sandbox, container) for sandbox, container in containers),
    )


# --- files -------------------------------------------------------------------------------------------------


def decode_sandbox(path: str) -> StoredSandbox | None:
    """None for what a power cut left half written."""
    try:
        with open(path, "rb") as file:
            return msgspec.msgpack.decode(file.read(), type=StoredSandbox)
    except (OSError, msgspec.MsgspecError):
        return None


def decode_container(path: str) -> StoredContainer | None:
    try:
        with open(path, "rb") as file:
            return msgspec.msgpack.decode(file.read(), type=StoredContainer)
    except (OSError, msgspec.MsgspecError):
        return None


def read_words(path: str, least: int) -> list[str] | None:
    try:
        with open(path, encoding="utf-8") as file:
            words = file.read().split()
    except (OSError, UnicodeDecodeError):
        return None
    return words if len(words) >= least and words[0].isdigit() and words[1].isdigit() else None


def write_secret(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)
