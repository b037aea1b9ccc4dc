"""docs/mapper.md and the template are run as a person would run them."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml

from tests.fakes.dmi_daemon import DmiDaemon, called
from tinyedge.core.twins import complete, desired_of
from tinyedge.mapper import contract
from tinyedge.mapper.contract import FUNCTIONS
from tinyedge.model import decode
from tinyedge.model.device import Device, DeviceModel
from tinyedge.protocol import dmi
from tinyedge.protocol import dmi_pb2 as pb

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
DOC = (DOCS / "mapper.md").read_text()
TEMPLATE = DOCS / "mapper-template"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOC, re.DOTALL)


@contextmanager
def daemon_with(objects: str, folder: Path) -> Iterator[DmiDaemon]:
    """A daemon that has these devices and models."""
    daemon = DmiDaemon(str(folder / "dmi.sock"))
    read = [decode.decode_object(one) for one in yaml.safe_load_all(objects)]
    models = {one.metadata.name: one for one in read if isinstance(one, DeviceModel)}
    daemon.models = [dmi.model_to_wire(one) for one in models.values()]
    for one in read:
        if isinstance(one, Device):
            whole = complete(one, models[one.spec.device_model_ref.name], desired_of(one.spec))
            daemon.devices.append(dmi.to_wire(whole, doubles=True))
    daemon.start()
    yield daemon


@asynccontextmanager
async def running(program: Path, daemon: DmiDaemon, **environ: str) -> AsyncIterator[trio.Process]:
    """The mapper as a process; ends with 0 when it is told to."""
    env = os.environ | {"TINYEDGE_DMI": daemon.path, **environ}
    command = [sys.executable, "-W", "error", str(program)]
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            process: trio.Process = await nursery.start(
                lambda **how: trio.run_process(command, env=env, check=False, **how)  # noqa: ASYNC105
            )
            yield process
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    await daemon.stop()


def newest(daemon: DmiDaemon) -> dict[str, str]:
    twins = [twin for one in daemon.reports for twin in one.reportedDevice.twins]
    return {twin.propertyName: twin.reported.value for twin in twins}


async def test_the_sensor_of_the_page_is_read_written_and_missed(tmp_path: Path) -> None:
    chip = tmp_path / "sys" / "iio:device0"
    chip.mkdir(parents=True)
    files = {"name": "bme280\n", "in_temp_input": "23456\n", "sampling_frequency": "1.000000\n"}
    files |= {"in_humidityrelative_raw": "4000\n", "in_humidityrelative_scale": "10.5\n"}
    for name, text in files.items():
        (chip / name).write_text(text)
    program = tmp_path / "iio.py"
    program.write_text(blocks("python")[1])
    with daemon_with(blocks("yaml")[0], tmp_path) as daemon:
        async with running(program, daemon, IIO_ROOT=str(tmp_path / "sys")):
            wanted = {"temperature": "23.456", "humidity": "42.0", "rate": "10.0"}
            await daemon.until(lambda: newest(daemon) == wanted)
            assert (chip / "sampling_frequency").read_text() == "10"
            chip.rename(tmp_path / "unplugged")
            await daemon.until(lambda: [one.state for one in daemon.states] == ["online", "offline"])


async def test_the_template_is_a_mapper(tmp_path: Path) -> None:
    objects = "---\n".join(part for part in (TEMPLATE / "mapper.yaml").read_text().split("---\n") if "Pod" not in part)
    with daemon_with(objects, tmp_path) as daemon:
        async with running(TEMPLATE / "mapper.py", daemon):
            await daemon.until(lambda: newest(daemon) == {"level": "42"})
            [device] = daemon.devices
            device.spec.properties[0].desired.value = "7"
            socket = str(tmp_path / "example-mapper.sock")
            request = pb.UpdateDeviceRequest(device=device)
            error, _ = await called(socket, f"{dmi.MAPPER}UpdateDevice", request, pb.UpdateDeviceResponse)
            assert error == ""
            await daemon.until(lambda: newest(daemon) == {"level": "7"})


async def test_a_mapper_that_can_not_start_says_why(tmp_path: Path) -> None:
    env = os.environ | {"TINYEDGE_DMI": str(tmp_path / "dmi.sock"), "TINYEDGE_MAPPER": "/proc/no/mapper.sock"}
    command = [sys.executable, str(TEMPLATE / "mapper.py")]
    done = await trio.run_process(command, env=env, check=False, capture_stderr=True)
    assert done.returncode == 1
    assert done.stderr.decode().startswith("example-mapper: can't listen on /proc/no/mapper.sock")


def test_the_pod_of_the_template_is_one_that_a_node_takes() -> None:
    for raw in yaml.safe_load_all((TEMPLATE / "mapper.yaml").read_text()):
        assert decode.problems(raw) == []


def test_the_first_example_is_python() -> None:
    names: dict[str, Any] = {}
    code = blocks("python")[0].replace("run(", "dict(driver=")
    exec(code, names)  # noqa: S102 - a page of ours
    assert hasattr(names["Tank"], "read")


def test_all_that_a_driver_may_have_is_described() -> None:
    rows = re.findall(r"^\| `(\w+)\(", DOC, re.MULTILINE)
    assert sorted(rows) == sorted(FUNCTIONS)
    assert re.findall(r"^\| `(\w+) = \w+` \|", DOC, re.MULTILINE) == ["polls", "own_limits"]


@pytest.mark.parametrize(("kind", "field"), [(contract.Device, "device"), (contract.Property, "prop")])
def test_what_a_driver_is_given_is_described(kind: Any, field: str) -> None:
    told = set(re.findall(r"`(\w+)`", re.search(rf"`{field}` has (.*?)[;.]\s", DOC, re.DOTALL)[1]))  # type: ignore[index]
    known = {*kind.__struct_fields__, "key"}
    assert told - {"namespace", "protocol", "visitors"} <= known
