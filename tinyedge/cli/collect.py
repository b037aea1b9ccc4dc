"""`tinyedge collect`: a support bundle that may leave the site. It works with the daemon up and down.

What the daemon tells, it tells with every value of every Secret taken out (`?redact=1`); what comes from elsewhere is
sent through it for the same. Beside that, ConfigMaps are listed by key only, and environment variables and settings of
devices whose names sound like secrets lose their values. With the daemon down, containers' logs are left out: nobody
there knows what in them is secret.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import tarfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from tinyedge import __version__
from tinyedge.cli import check, offline
from tinyedge.cli.client import Client
from tinyedge.cli.errors import EXIT_USAGE, CliError
from tinyedge.cli.logs import containers_of
from tinyedge.cli.output import client, show
from tinyedge.cli.program import toml
from tinyedge.config import Config, load, shown
from tinyedge.errors import TinyEdgeError
from tinyedge.redact import REDACTED

Json = dict[str, Any]
REDACT = ("redact", "1")
TAIL_LINES = "500"
TEXT_BYTES_MAX = 2 * 1024 * 1024
SOUNDS_SECRET = re.compile(r"(?i)pass|pwd|secret|token|key|credential|auth|private|cert")
HIDDEN_ANNOTATION = "kubectl.kubernetes.io/last-applied-configuration"
VIEWS = ("status", "node", "usage", "pods", "secrets", "images", "events", "devicemodels", "blackbox", "store")
MACHINE_FILES = ("/proc/meminfo", "/proc/mounts", "/proc/loadavg", "/proc/uptime", "/proc/cmdline", "/etc/os-release")

README = """\
A support bundle of tinyedge {version}, made {time}.

    status, node, pods, …      what the node says of itself ({daemon})
    why/                       why each pod does not run, if one does not; and what is wrong with devices
    logs/                      the last lines of each container{logs}
    journal.txt, kernel.txt    the last lines of the daemon, the runtime and the kernel
    config.toml, check.txt     the configuration in force, and `tinyedge check`
    store/, blackbox           a look into the store (keys and sizes), and the black box
    machine/                   memory, mounts, load

Values of Secrets are taken out wherever they stood, ConfigMaps are listed by their keys, and environment variables and
settings of devices whose names sound like secrets have lost their values. Read what you pass on all the same: an
application may have written down what only it knows to be secret.
"""


def run(args: argparse.Namespace) -> int:
    if args.tail and not args.tail.isdigit():
        raise CliError(f"--tail {args.tail} is not a number of lines", code=EXIT_USAGE)
    bundle = Bundle(client(args), load(args.config, args.set, []))
    path = args.file or f"tinyedge-{bundle.node}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.tar.gz"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise CliError(f"can't write {path}", error.strerror or str(error), "name another file") from None
    with open(handle, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, data in bundle.parts(args.tail or TAIL_LINES, args.config, args.set, logs=not args.no_logs):
            _add(archive, f"tinyedge-{bundle.node}/{name}", data)
    missing = "; what could not be had is named in missing.txt" if bundle.missing else ""
    show(f"{path}: {os.path.getsize(path) // 1024 + 1} KiB{missing}")
    show("No value of a Secret is in it; container logs may still hold what only their application knows.")
    return 0


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = len(data), int(time.time()), 0o600
    archive.addfile(info, io.BytesIO(data))


class Bundle:
    """Collects part by part; what can't be had is named in `missing` and stops nothing."""

    def __init__(self, api: Client, config: Config) -> None:
        self.api = api
        self.config = config
        self.missing: list[str] = []
        self.up = True
        try:
            self.node = api.get("/v1/node")["metadata"]["name"]
        except (CliError, KeyError, TypeError) as error:
            self.node = config.node.name or os.uname().nodename.lower()
            self.up = False
            self.missing.append(f"everything that the daemon tells: {error}")

    def parts(
        self, tail: str, config_path: str | None, overrides: list[str], *, logs: bool
    ) -> Iterator[tuple[str, bytes]]:
        daemon = "the daemon is running" if self.up else "the daemon did not answer"
        left_out = "" if logs and self.up else " (left out)"
        made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        yield "README.txt", README.format(version=__version__, time=made, daemon=daemon, logs=left_out).encode()
        if self.up:
            yield from self._views()
            yield from self._pods(tail, logs=logs)
        yield from self._disk()
        yield from self._machine(config_path, overrides)
        if self.missing:
            yield "missing.txt", "\n".join(self.missing).encode() + b"\n"

    def _try(self, name: str, make: Callable[[], bytes]) -> Iterator[tuple[str, bytes]]:
        try:
            yield name, make()
        except (TinyEdgeError, OSError, LookupError, ValueError) as error:
            self.missing.append(f"{name}: {error}")

    # what the daemon tells

    def _get(self, path: str) -> bytes:
        return _json(plain(self.api.get(path, [REDACT])))

    def _views(self) -> Iterator[tuple[str, bytes]]:
        for name in VIEWS:
            yield from self._try(f"{name}.json", lambda name=name: self._get(f"/v1/{name}"))  # type: ignore[misc]
        yield from self._try("configmaps.json", self._configmaps)
        yield from self._devices()
        for kind in ("localrules", "rules", "ruleendpoints"):
            yield from self._try(f"{kind}.json", lambda kind=kind: self._settings(f"/v1/{kind}"))  # type: ignore[misc]
        yield from self._try("metrics.txt", lambda: str(self.api.get("/metrics", [REDACT])).encode())

    def _devices(self) -> Iterator[tuple[str, bytes]]:
        try:
            devices = self.api.get("/v1/devices", [REDACT])["items"]
        except CliError as error:
            self.missing.append(f"devices.json: {error}")
            return
        yield "devices.json", _json(settings(plain(devices)))
        for meta in (one["metadata"] for one in devices if one["status"].get("problem")):
            path = f"/v1/namespaces/{meta['namespace']}/devices/{meta['name']}/why"
            name = f"why/device_{meta['namespace']}_{meta['name']}.json"
            yield from self._try(name, lambda path=path: self._get(path))  # type: ignore[misc]

    def _settings(self, path: str) -> bytes:
        return _json(settings(plain(self.api.get(path, [REDACT]))))

    def _configmaps(self) -> bytes:
        """Keys and sizes: people put passwords into ConfigMaps."""
        items = self.api.get("/v1/configmaps", [REDACT])["items"]
        return _json(
            [
                {
                    "namespace": item["metadata"].get("namespace"),
                    "name": item["metadata"]["name"],
                    "keys": {k: len(v) for k, v in {**item.get("data", {}), **item.get("binaryData", {})}.items()},
                }
                for item in items
            ]
        )

    def _pods(self, tail: str, *, logs: bool) -> Iterator[tuple[str, bytes]]:
        try:
            pods = self.api.get("/v1/pods", [REDACT])["items"]
        except CliError:
            return
        for pod in pods:
            meta = pod["metadata"]
            name, path = (
                f"{meta['namespace']}_{meta['name']}",
                f"/v1/namespaces/{meta['namespace']}/pods/{meta['name']}",
            )
            yield from self._try(f"why/{name}.json", lambda path=path: self._get(f"{path}/why"))  # type: ignore[misc]
            for container in containers_of(pod) if logs else ():
                for previous in (False, True):
                    yield from self._log(path, name, container, tail, previous=previous)

    def _log(self, path: str, pod: str, container: str, tail: str, *, previous: bool) -> Iterator[tuple[str, bytes]]:
        params = [REDACT, ("container", container), ("tailLines", tail), ("timestamps", "1")]
        params += [("previous", "1")] if previous else []
        try:
            text = b"".join(self.api.stream("GET", f"{path}/log", params, wait_s=30))
        except CliError as error:
            if not previous:  # most containers have no run before this one
                self.missing.append(f"log of {pod}/{container}: {error}")
            return
        yield f"logs/{pod}/{container}{'.previous' if previous else ''}.log", text

    def _redacted(self, text: bytes) -> bytes:
        """Text that did not come from the daemon, with what it knows to be secret taken out."""
        text = text[-TEXT_BYTES_MAX:]
        if not self.up:
            return text
        answer = self.api.ask("POST", "/v1/redact", body={"text": text.decode("utf-8", "replace")})
        return str(answer["text"]).encode()

    # what the disk and the machine say

    def _disk(self) -> Iterator[tuple[str, bytes]]:
        path = self.config.store.path
        yield from self._try("store/look.json", lambda: self._redacted(_json(offline.look(path))))
        if not self.up:
            yield from self._try("blackbox.json", lambda: _json(offline.read_blackbox(path)))

    def _machine(self, config_path: str | None, overrides: list[str]) -> Iterator[tuple[str, bytes]]:
        yield "config.toml", self._redacted(_configuration(self.config))
        findings = check.findings_for(config_path, overrides, check.Machine())
        yield "check.txt", self._redacted(check.report(findings).encode() + b"\n")
        for path in MACHINE_FILES:
            yield from self._try(f"machine/{os.path.basename(path)}", lambda path=path: _read(path))  # type: ignore[misc]
        yield from self._try("kernel.txt", lambda: self._redacted(kernel_log()))
        yield from self._try("journal.txt", lambda: self._redacted(_journal()))


def plain(value: Any) -> Any:
    """Without annotations that repeat whole manifests, and without values of variables that sound like secrets."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    if (
        isinstance(value.get("name"), str)
        and isinstance(value.get("value"), str)
        and SOUNDS_SECRET.search(value["name"])
    ):
        return {**value, "value": REDACTED}
    return {key: plain(item) for key, item in value.items() if key != HIDDEN_ANNOTATION}


def settings(value: Any) -> Any:
    """Without values under keys that sound like secrets, however deep they stand."""
    if isinstance(value, list):
        return [settings(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: REDACTED if isinstance(item, str | int) and SOUNDS_SECRET.search(key) else settings(item)
        for key, item in value.items()
    }


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"


def _configuration(config: Config) -> bytes:
    return toml(shown(config)).encode() + b"\n"


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(TEXT_BYTES_MAX)


def kernel_log() -> bytes:
    """What the kernel still remembers: disk errors, killed processes, undervoltage."""
    lines: list[bytes] = []
    handle = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    try:
        while True:
            try:
                head, _, text = os.read(handle, 8192).partition(b";")
            except BlockingIOError:
                return b"\n".join(lines) + b"\n"
            except BrokenPipeError:
                continue  # overwritten while we read: the next read goes on behind it
            seconds = int(head.split(b",")[2]) / 1_000_000
            lines.append(f"[{seconds:.6f}] ".encode() + text.partition(b"\n")[0])
    finally:
        os.close(handle)


def _journal() -> bytes:
    import trio

    argv = ["journalctl", "--no-pager", "-o", "short-iso", "-n", "2000", "-u", "tinyedge", "-u", "containerd"]

    async def ask() -> bytes:
        with trio.fail_after(20):
            done = await trio.run_process(argv, capture_stdout=True, capture_stderr=True, check=False)
        return bytes(done.stdout or done.stderr)

    try:
        return trio.run(ask)
    except trio.TooSlowError:
        raise CliError("journalctl did not answer") from None
