"""The interface of a container runtime. `cri.py` and `process.py` pass one contract suite.

Every call may raise PeerError (`retryable` tells whether the same call may work later; `why` is shown to users, and
`what` starts with the Kubernetes reason where there is one: `ErrImagePull`, `CreateContainerConfigError`,
`RunContainerError`). Every call ends within its timeout, also when the runtime hangs. Only what carries our own label
is seen or touched.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Protocol

from tinyedge.model.image import RegistryAuth
from tinyedge.model.runtime import (
    ContainerSpec,
    ExecResult,
    ImageSeen,
    PodSeen,
    PodUsage,
    RuntimeInfo,
    SandboxSpec,
)

__all__ = ["Progress", "RegistryAuth", "Runtime"]

Progress = Callable[[int, int], None]  # bytes done, bytes in all (0 when unknown)


class Runtime(Protocol):
    async def info(self) -> RuntimeInfo: ...

    async def pods(self) -> list[PodSeen]:
        """Everything of ours. Cheap enough to be called every few seconds for 100 pods."""

    async def pod(self, uid: str) -> PodSeen: ...

    async def run_sandbox(self, spec: SandboxSpec) -> str:
        """Create and start; returns the sandbox id. Idempotent by (uid, attempt)."""

    async def stop_sandbox(self, sandbox_id: str) -> None: ...

    async def remove_sandbox(self, sandbox_id: str) -> None:
        """Stops it first, and removes its containers. No error when it is gone already."""

    async def start_container(self, sandbox_id: str, sandbox: SandboxSpec, spec: ContainerSpec) -> str:
        """Create and start; returns the container id. A container that was created but can't start is removed."""

    async def stop_container(self, container_id: str, grace_s: float) -> None:
        """SIGTERM, then SIGKILL after `grace_s`; returns when it has ended. No error when it is gone already."""

    async def remove_container(self, container_id: str) -> None: ...

    async def exec_sync(self, container_id: str, argv: Sequence[str], timeout_s: float) -> ExecResult:
        """Raises PeerError with what `ExecTimeout` when it takes longer."""

    async def exec_url(
        self,
        container_id: str,
        argv: Sequence[str],
        *,
        stdin: bool,
        stdout: bool = True,
        stderr: bool = True,
        tty: bool,
    ) -> str:
        """A URL on this machine that speaks `v4.channel.k8s.io` over WebSocket (and SPDY on containerd), with these
        streams and no others: by SPDY the server waits until each of them has been opened. A terminal has no stderr."""

    async def attach_url(
        self, container_id: str, *, stdin: bool, stdout: bool = True, stderr: bool = True, tty: bool
    ) -> str: ...

    async def port_forward_url(self, sandbox_id: str, ports: Sequence[int]) -> str: ...

    async def reopen_log(self, container_id: str) -> None: ...

    async def usage(self) -> list[PodUsage]: ...

    async def images(self) -> list[ImageSeen]: ...

    async def pull_image(self, image: str, auths: Sequence[RegistryAuth], progress: Progress | None = None) -> str:
        """Returns the image id."""

    async def remove_image(self, image_id: str) -> None: ...

    async def import_image(self, path: str, progress: Progress | None = None) -> list[str]:
        """Imports an archive (docker or OCI layout; gzip or zstd); returns the names it held."""

    async def pin_images(self, references: Sequence[str]) -> None:
        """Exactly these are marked as not to be collected by anyone else who cleans up in this runtime."""

    def changes(self) -> AsyncGenerator[str, None]:
        """Uids of pods in which something happened, as soon as it is known. An empty string says that whoever lists
        now misses nothing that happens from now on: it comes first, and again whenever changes may have been lost.
        Ends, or raises PeerError, when the runtime goes away. A runtime without events relists calmly and yields what
        differs."""

    async def aclose(self) -> None: ...
