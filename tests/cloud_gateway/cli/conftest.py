"""A sandbox in a thread of its own, and the program run as a function against it."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio

from cloud_gateway import sandbox
from cloud_gateway.adapters.kube import Kube
from cloud_gateway.adapters.kube_config import from_kubeconfig
from cloud_gateway.adapters.kube_types import NAMESPACES, Resource
from cloud_gateway.cli.main import main

Json = dict[str, Any]


class Ran(NamedTuple):
    """How a command ended and what it said."""

    code: int
    out: str
    err: str


class Cluster:
    """`folder` is what --sandbox names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.failed: BaseException | None = None
        self._ready, self._stop = threading.Event(), trio.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(60)
        if self.failed is not None:
            raise self.failed
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "tinyedge"}}
        self.create(NAMESPACES, namespace)

    def stop(self) -> None:
        if self._token is not None:
            self._token.run_sync_soon(self._stop.set)
        self._thread.join(60)
        assert not self._thread.is_alive()

    def do(self, call: Callable[[Kube], Awaitable[Any]]) -> Any:
        async def run() -> Any:
            async with Kube(from_kubeconfig(self.folder / "kubeconfig")) as kube:
                return await call(kube)

        return trio.run(run)

    def create(self, resource: Resource, body: Json, namespace: str = "") -> None:
        self.do(lambda kube: kube.create(resource, body, namespace))

    def delete(self, resource: Resource, name: str) -> None:
        self.do(lambda kube: kube.delete(resource, name))

    def _run(self) -> None:
        try:
            trio.run(self._serve)
        except BaseException as error:  # noqa: BLE001 - told to the test
            self.failed = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(sandbox.serve, self.folder))
            self._ready.set()
            await self._stop.wait()
            nursery.cancel_scope.cancel()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("sandbox"))
    made.start()
    yield made
    made.stop()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run the program; no cluster but the one that is named."""

    def ran(*words: str) -> Ran:
        code = main(list(words))
        told = capsys.readouterr()
        return Ran(code, told.out, told.err)

    return ran


@pytest.fixture
def here(run: Callable[..., Ran], cluster: Cluster) -> Callable[..., Ran]:
    """Run a command against the sandbox."""
    return lambda *words: run(*words, "--sandbox", str(cluster.folder))


@pytest.fixture(autouse=True)
def _nobodys_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "POD_IP"):
        monkeypatch.delenv(name, raising=False)
