"""A mapper made with KubeEdge's mapper-framework on a node of ours: `make mapper-framework MAPPER=…`

What it needs: a program that was made with that framework, as its own README says. Its driver is to keep devices in
memory: a value that was set, else `initial` of the property's visitors.configData, by `name` of protocol.configData and
`key` of visitors.configData. The program is run with `--config-file FILE --v 2`, and nothing else is done to it.

The story: it registers and reports; a value is set; it is read and called over its HTTP server; daemon and mapper are
each started anew; a mapper that was killed shows with the next read; the device goes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.fakes.ports import free_port
from tests.test_daemon import Node, until
from tinyedge.cli.errors import CliError

Json = dict[str, Any]
VERSION = "devices.kubeedge.io/v1beta1"
PATH = "/v1/namespaces/default/devices/tank-1"


def visited(name: str, **settings: Any) -> Json:
    visitors = {"protocolName": "tanks", "configData": {"key": name, **settings}}
    return {"name": name, "collectCycle": 100, "reportToCloud": True, "visitors": visitors}


MODEL: Json = {
    "apiVersion": VERSION,
    "kind": "DeviceModel",
    "metadata": {"name": "tank"},
    "spec": {
        "properties": [
            {"name": "level", "type": "DOUBLE", "accessMode": "ReadWrite", "minimum": "0", "maximum": "100"},
            {"name": "count", "type": "INT", "accessMode": "ReadOnly"},
        ]
    },
}
DEVICE: Json = {
    "apiVersion": VERSION,
    "kind": "Device",
    "metadata": {"name": "tank-1"},
    "spec": {
        "deviceModelRef": {"name": "tank"},
        "protocol": {"protocolName": "tanks", "configData": {"name": "one"}},
        "properties": [
            visited("level", dataType="DOUBLE") | {"desired": {"value": "42.5"}},
            visited("count", dataType="INT", initial=7),
        ],
        "methods": [{"name": "fill", "propertyNames": ["level"]}],
        "stateReport": {"reportToCloud": True, "reportCycle": 100},
    },
}


class World:
    def __init__(self, folder: Path, mapper: Sequence[str]) -> None:
        self.node = Node(folder)
        self.port = free_port()
        self.socket = folder / "tanks.sock"
        self.log = folder / "mapper.log"
        self.config = folder / "config.yaml"
        common = {
            "name": "tank-mapper",
            "version": "v1.13.0",
            "api_version": "v1.0.0",
            "protocol": "tanks",
            "address": "127.0.0.1",
            "edgecore_sock": f"{folder}/dmi.sock",
            "http_port": str(self.port),
        }
        self.config.write_text(yaml.safe_dump({"grpc_server": {"socket_path": str(self.socket)}, "common": common}))
        self.command = [*mapper, "--config-file", str(self.config), "--v", "2"]
        self.mapper: subprocess.Popen[bytes]

    def start_node(self) -> None:
        self.node.start(
            "--set", f"dmi.mapper_dirs={self.node.folder}", "--set", f"outbound.allow=127.0.0.1:{self.port}"
        )
        until(self.node.status)

    def start_mapper(self) -> None:
        self.socket.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.mapper = subprocess.Popen(self.command, stdout=log, stderr=log)

    def stop_mapper(self) -> None:
        self.mapper.kill()
        self.mapper.wait()

    def values(self) -> dict[str, str]:
        """Reported, while the mapper lives."""
        assert self.mapper.poll() is None, self.log.read_text()[-2000:]
        twins = self.node.client.get(PATH)["status"]["twins"]
        return {one["propertyName"]: one["reported"]["value"] for one in twins if one.get("reported")}

    def read(self) -> str:
        """Its level, or why not."""
        try:
            level: str = self.node.client.ask("POST", f"{PATH}/read")["values"]["level"]
        except CliError as error:
            return str(error.what)
        return level

    def fill(self, arguments: Json) -> str:
        """Why not; empty when it was done."""
        try:
            self.node.client.ask("POST", f"{PATH}/methods/fill", body={"arguments": arguments})
        except CliError as error:
            return str(error.what)
        return ""

    def mapper_state(self) -> str:
        return next(str(one["state"]) for one in self.node.status()["mappers"] if one["name"] == "tank-mapper")

    def set_level(self, value: str) -> None:
        """At once, or when its mapper listens again."""
        answer = self.node.client.ask("POST", f"{PATH}/properties/level", body={"value": value})
        assert answer["message"].startswith("level of default/tank-1 is "), answer
        until(lambda: self.values() == {"level": value, "count": "7"})

    def set_level_later(self, value: str) -> None:
        """While its mapper is away."""
        answer = self.node.client.ask("POST", f"{PATH}/properties/level", body={"value": value})
        assert f"is to be {value}, and will be set once it can be" in answer["message"], answer


@contextmanager
def world(folder: Path, mapper: Sequence[str]) -> Iterator[World]:
    made = World(folder, mapper)
    made.start_node()
    made.start_mapper()
    try:
        yield made
    finally:
        made.stop_mapper()
        made.node.close()


def tell(folder: Path, mapper: Sequence[str]) -> None:
    """The whole story. AssertionError says where it ended."""
    (folder / "node").mkdir()
    with world(folder / "node", mapper) as here:
        until(lambda: [one["state"] for one in here.node.status()["mappers"] if one["name"] == "tank-mapper"])
        manifest = here.node.manifests / "tank.yaml"
        http = {"tinyedge.io/mapper-http": f"http://127.0.0.1:{here.port}"}
        device = {**DEVICE, "metadata": {"name": "tank-1", "annotations": http}}
        manifest.write_text(yaml.safe_dump_all([MODEL, device]))
        until(lambda: here.values() == {"level": "42.5", "count": "7"})
        until(lambda: here.node.client.get(PATH)["status"]["state"] == "online")
        here.set_level("50")
        assert float(until(here.read)) == 50
        assert here.fill({"level": 55}) == ""
        until(lambda: here.values() == {"level": "55", "count": "7"})
        assert "level is '101', expected at most 100" in here.fill({"level": 101})
        assert "fill takes no 'count'; it takes level" in here.fill({"count": 1})

        here.node.stop()
        here.start_node()
        here.set_level("60")

        here.stop_mapper()
        here.set_level_later("70")
        here.start_mapper()
        until(lambda: here.values() == {"level": "70", "count": "7"})
        here.set_level("80")

        here.stop_mapper()
        assert f"can't reach 127.0.0.1:{here.port}" in here.read()
        until(lambda: here.mapper_state() == "away")
        here.start_mapper()
        until(lambda: here.mapper_state() == "up")

        manifest.unlink()
        until(lambda: not here.node.client.get("/v1/devices")["items"])
        assert here.mapper.poll() is None, here.log.read_text()[-2000:]


def main() -> None:
    program = sys.argv[1] if len(sys.argv) > 1 else ""
    if not os.access(program, os.X_OK):
        sys.exit(f"MAPPER={program or '(nothing)'} is no program.\n\n{__doc__}")
    with tempfile.TemporaryDirectory() as folder:
        tell(Path(folder), [program])
    sys.stdout.write("a mapper of KubeEdge's registers, reports, takes values, and outlives either side's restart\n")


if __name__ == "__main__":
    main()
