"""What a runtime says of its own state, as a fake one can be made to say it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.fakes.grpc_server import ServedCall, grpc_server
from tinyedge.adapters.cri import CriRuntime, open_runtime
from tinyedge.errors import PeerError
from tinyedge.protocol import cri_pb2 as pb


@asynccontextmanager
async def _runtime(folder: Path, *conditions: pb.RuntimeCondition, name: str = "cri-o") -> AsyncIterator[CriRuntime]:
    answers: dict[str, bytes] = {
        "Version": pb.VersionResponse(runtime_name=name, runtime_version="1.2.3").SerializeToString(),
        "Status": pb.StatusResponse(
            status=pb.RuntimeStatus(conditions=conditions), runtime_handlers=[pb.RuntimeHandler(name="kata")]
        ).SerializeToString(),
    }

    async def answer(call: ServedCall) -> None:
        await call.answer(answers[call.headers[":path"].rpartition("/")[2]])

    path = str(folder / "cri.sock")
    async with grpc_server(path, answer), open_runtime(f"unix://{path}", "edge-1") as runtime:
        yield runtime


async def test_another_runtime_is_called_by_its_name(tmp_path: Path) -> None:
    async with _runtime(tmp_path) as runtime:
        info = await runtime.info()
        assert (info.kind, info.name, info.version, info.handlers) == ("containerd", "cri-o", "1.2.3", ("kata",))
        assert not info.has_events
        assert info.notes == ()


async def test_a_runtime_that_is_not_ready_is_no_runtime_yet(tmp_path: Path) -> None:
    starting = pb.RuntimeCondition(type="RuntimeReady", status=False, reason="Starting", message="wait a little")
    async with _runtime(tmp_path, starting) as runtime:
        with pytest.raises(PeerError, match="Starting: wait a little") as caught:
            await runtime.info()
        assert caught.value.retryable


async def test_a_network_that_is_not_ready_is_noted(tmp_path: Path) -> None:
    ready = pb.RuntimeCondition(type="RuntimeReady", status=True)
    missing = pb.RuntimeCondition(type="NetworkReady", status=False, reason="NoNetwork", message="no CNI configuration")
    async with _runtime(tmp_path, ready, missing) as runtime:
        assert (await runtime.info()).notes == ("NetworkReady is false: NoNetwork: no CNI configuration",)
