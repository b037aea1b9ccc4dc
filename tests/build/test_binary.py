"""The binaries as they are handed out: that they do what the sources do, hold what they should, and no more."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from license_expression import get_spdx_licensing
from packageurl import PackageURL

from tests.build import rig
from tests.e2e.cluster import Cluster
from tests.fakes.modbus_server import ModbusServer
from tests.fakes.ports import free_port
from tests.test_daemon import SLEEPER, Node, until
from tests.test_daemon_devices import PATH, SIMULATED, reported
from tests.test_daemon_rules import TOPIC, Broker, heard
from tinyedge.protocol import dmi_pb2 as pb

pytestmark = pytest.mark.binary

ROOT = rig.ROOT
MODULES = Path(__file__).parent / "modules.txt"
GATEWAYS_OWN = ("cloud_gateway", "cryptography", "_cffi_backend", "httpx", "kubernetes")
LIBC = ("libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libutil.so.1")
OF_NO_DAEMON = ("pytest", "hypothesis", "mypy", "setuptools", "pkg_resources", "PyInstaller", "pymodbus", "aiohttp")
PUMP = """\
apiVersion: devices.kubeedge.io/v1beta1
kind: DeviceModel
metadata: {name: pump}
spec:
  protocol: modbus
  properties:
  - {name: temperature, type: INT, accessMode: ReadOnly}
---
apiVersion: devices.kubeedge.io/v1beta1
kind: Device
metadata: {name: pump-1}
spec:
  deviceModelRef: {name: pump}
  protocol: {protocolName: modbus, configData: {communicateMode: TCP, ip: 127.0.0.1, port: PORT, slaveID: 1}}
  properties:
  - name: temperature
    collectCycle: 100
    reportCycle: 100
    visitors: {protocolName: modbus, configData: {register: InputRegister, offset: 0, limit: 1}}
"""
# Tells the modules that are loaded, and goes on: what the daemon's first line would be is the rest.
ASKED_FOR_MODULES = """\
import os, signal, sys
def tell(*_):
    with open(os.environ["MODULES"] + ".new", "w") as file:
        file.write("\\n".join(sorted(sys.modules)) + f"\\n{sys.flags.optimize}")
    os.rename(os.environ["MODULES"] + ".new", os.environ["MODULES"])
signal.signal(signal.SIGUSR1, tell)
from tinyedge.__main__ import main
main()
"""


@pytest.fixture(scope="module")
def edge() -> Path:
    """The executable, in its folder."""
    return rig.folder_of("edge") / "tinyedge"


@pytest.fixture
def node(tmp_path: Path, edge: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    made.program = edge
    yield made
    if made.process is not None:
        made.program = edge
        made.close()


def output(program: Path, *words: str, stdin: str = "") -> str:
    done = subprocess.run([program, *words], input=stdin, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# what it does


def test_pods_run_and_outlive_a_daemon_that_is_killed(node: Node) -> None:
    (node.manifests / "sleeper.yaml").write_text(SLEEPER)  # read by a child, run by another
    node.start()
    before = until(node.running_since)
    node.stop(signal.SIGKILL)  # so that the next life has its checkpoint verified by a child
    node.start()
    assert until(node.running_since) == before
    assert "ImportError" not in node.log.read_text()


def test_each_of_its_children_starts(edge: Path, node: Node) -> None:
    assert "BEGIN CERTIFICATE REQUEST" in json.loads(output(edge, "make-key"))["csr"]
    node.start()
    until(node.status)
    node.stop()
    assert output(edge, "verify-checkpoint", f"{node.folder}/store/state/data.mdb") == ""
    environ = {
        **os.environ,
        "TINYEDGE_ROOT": str(node.folder / "lib"),
        "TINYEDGE_UPGRADE_STATE": str(node.folder / "up"),
    }
    argv = [str(edge), "stage-version", "/nonexistent.run", "1"]
    staged = subprocess.run(argv, capture_output=True, text=True, check=False, env=environ)
    assert "nonexistent" in staged.stdout, staged.stderr
    port = free_port()
    with subprocess.Popen([edge, "demo-server", "--port", str(port), "--folder", str(node.folder)]) as server:
        try:
            until(lambda: _answers(port))
        finally:
            server.terminate()


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == http.client.OK
    except OSError:
        return False
    finally:
        connection.close()


def test_a_mapper_of_grpcio_registers(node: Node) -> None:
    node.start()
    until(node.status)
    info = pb.MapperInfo(name="m", version="1", api_version="v1.0.0", protocol="acme", address=b"/run/m.sock")
    request = pb.MapperRegisterRequest(withData=True, mapper=info)
    with grpc.insecure_channel(f"unix://{node.folder}/dmi.sock") as channel:
        call = channel.unary_unary("/v1beta1.DeviceManagerService/MapperRegister")
        pb.MapperRegisterResponse.FromString(call(request.SerializeToString(), timeout=60))
    assert [one["name"] for one in until(lambda: node.status()["mappers"])] == ["m"]


def test_a_modbus_device_is_read(node: Node) -> None:
    server = ModbusServer()
    try:
        (node.manifests / "pump.yaml").write_text(PUMP.replace("PORT", str(server.port)))
        node.start("--set", "outbound.allow=127.0.0.1")
        until(lambda: node.client.get(PATH)["status"].get("twins"))
        assert until(lambda: reported(node, "temperature")) == "0"
    finally:
        server.close()


@pytest.mark.mosquitto
def test_it_speaks_to_a_broker(node: Node, tmp_path: Path) -> None:
    (tmp_path / "broker").mkdir()
    broker = Broker(tmp_path / "broker")
    try:
        (node.manifests / "pump.yaml").write_text(SIMULATED)
        node.start("--set", f"mqtt.url=mqtt://127.0.0.1:{broker.port}")
        until(lambda: reported(node, "temperature") == "21.5")
        answers = broker.listen(f"{TOPIC}/twin/get/result")
        until(lambda: broker.publish(f"{TOPIC}/twin/get", '{"event_id": "1"}') == 0 and answers.poll() is not None)
        assert heard(answers)[0]["twin"]["temperature"]["actual"]["value"] == "21.5"
    finally:
        broker.stop()


def test_a_node_joins_a_gateway_both_as_binaries(node: Node, tmp_path: Path) -> None:
    class Binary(Cluster):
        program = (str(rig.folder_of("gateway") / "tinyedge-gateway"),)

    (tmp_path / "gateway").mkdir()
    cluster = Binary(tmp_path / "gateway")
    try:
        cluster.start()
        node.start()
        until(node.status)
        token = cluster.gateway("token", "create", "--node", "gate").strip()
        node.client.ask("POST", "/v1/join", body={"url": cluster.url, "token": token})
        until(lambda: node.status()["link"].get("synced"))
    finally:
        cluster.close()


def test_a_broken_invariant_ends_it_without_asserts(node: Node, edge: Path, tmp_path: Path) -> None:
    planted = (ROOT / "tests" / "fakes" / "daemon_that_breaks.py").read_text()
    planted = planted.replace("import os\n", "import os\n\nassert False\n", 1)
    (node.manifests / "sleeper.yaml").write_text(SLEEPER)
    node.start()
    until(node.running_since)
    node.stop()
    node.program = rig.with_entry(edge, planted, tmp_path / "breaks")
    node.start(BREAKS_ON="Pod default/sleeper")
    assert node.ended() == 1
    node.program = edge
    node.start()
    until(node.running_since)
    broken = [entry for entry in node.client.get("/v1/blackbox")["items"] if entry["kind"] == "broken"]
    assert [(entry["object"], entry["what"]) for entry in broken] == [("Pod default/sleeper", "planted")]


# what it holds


def test_it_loads_the_modules_that_are_listed_and_no_others(node: Node, edge: Path, tmp_path: Path) -> None:
    node.program = rig.with_entry(edge, ASKED_FOR_MODULES, tmp_path / "asked")
    told = tmp_path / "modules"
    runtime = ("--set", "runtime.kind=containerd", "--set", f"runtime.endpoint={tmp_path}/none.sock")
    node.start(*runtime, MODULES=str(told))
    until(node.status)
    assert node.process is not None
    node.process.send_signal(signal.SIGUSR1)
    until(told.exists)
    node.stop()
    *modules, optimised = told.read_text().splitlines()
    assert optimised == "2"
    if os.environ.get("TINYEDGE_REWRITE_MODULES"):
        MODULES.write_text("\n".join(modules) + "\n")
    listed = MODULES.read_text().split()
    came, went = sorted(set(modules) - set(listed)), sorted(set(listed) - set(modules))
    remedy = "if that is meant: TINYEDGE_REWRITE_MODULES=1 make test, and look at what each costs"
    assert not came + went, f"came: {came}; went: {went}; {remedy}"


def test_nothing_of_the_gateway_and_no_tool_of_development_is_in_it(edge: Path, tmp_path: Path) -> None:
    names = (*GATEWAYS_OWN, *OF_NO_DAEMON, "tinyedge")
    code = f"from importlib.util import find_spec\nprint(*[name for name in {names} if find_spec(name)])"
    assert output(rig.with_entry(edge, code, tmp_path / "asked")).split() == ["tinyedge"]


def test_its_licences_and_its_bill_of_materials_name_every_file_that_is_not_ours(edge: Path) -> None:
    folder = edge.parent
    document = json.loads(folder.with_name(f"{folder.name}.cdx.json").read_text())
    files = {
        one["name"]: one["hashes"][0]["content"]
        for part in document["components"]
        for one in part.get("components", ())
    }
    libraries = {str(path.relative_to(folder)) for path in folder.rglob("*.so*")}
    assert libraries == set(files)
    for name, digest in files.items():
        assert rig.digest(folder / name) == digest
    text = (folder / "_internal" / "LICENSES").read_text()
    names = {part["bom-ref"]: part["name"] for part in document["components"]}
    within = {ref: names[one["ref"]] for one in document["dependencies"][1:] for ref in one["dependsOn"]}
    for part in document["components"]:
        [licence] = part["licenses"]
        assert "see LICENSES" not in str(licence), f"{part['name']}: build/contents.py does not know its licence"
        assert re.search(rf"(?m)^{re.escape(part['name'])} (\(in .*\) )?{re.escape(part.get('version', ''))}: ", text)
        outer = within.get(part["bom-ref"], part["name"])
        assert re.search(rf"(?m)^.*\b{re.escape(outer)}\b", text.partition("====")[2])


@pytest.mark.strace
def test_a_start_writes_nothing_but_its_state(node: Node, edge: Path, tmp_path: Path) -> None:
    (node.manifests / "sleeper.yaml").write_text(SLEEPER)
    traced = tmp_path / "strace"
    script = tmp_path / "traced"
    calls = "open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat,symlink,symlinkat,link,linkat"
    script.write_text(f'#!/bin/sh\nexec strace -D -f -z -qq -o {traced} -e trace={calls} {edge} "$@"\n')
    script.chmod(0o755)
    node.program = script
    node.start()
    until(node.running_since)
    assert node.stop() == 0
    written = [line for line in traced.read_text().splitlines() if re.search(r"O_WRONLY|O_RDWR|O_CREAT", line)]
    written += [line for line in traced.read_text().splitlines() if not re.search(r" open(at)?\(", line)]
    kept = (str(tmp_path), "/dev/", "/proc/", "/sys/fs/cgroup/")
    outside = [line for line in written if not any(f'"{where}' in line for where in kept)]
    assert not [line for line in outside if re.search(r'"/', line)]
    assert any(str(tmp_path) in line for line in written)  # it does see what is written


@pytest.mark.parametrize("product", ["edge", "gateway"])
def test_its_bill_of_materials_is_one_that_other_programs_read(product: str) -> None:
    folder = rig.folder_of(product)
    text = folder.with_name(f"{folder.name}.cdx.json").read_text()
    schema = JsonStrictValidator(SchemaVersion.V1_5)
    assert schema.validate_str(text) is None
    assert schema.validate_str(text.replace('"bom-ref"', '"bom-name"')) is not None  # it does look
    document = json.loads(text)
    expressions = get_spdx_licensing()
    for part in document["components"]:
        assert PackageURL.from_string(part["purl"]).to_string() == part["purl"]
        [licence] = part["licenses"]
        assert expressions.validate(licence["expression"]).errors == [], part["name"]
    refs = {document["metadata"]["component"]["bom-ref"], *(part["bom-ref"] for part in document["components"])}
    assert len(refs) == 1 + len(document["components"])
    depends = {ref for one in document["dependencies"] for ref in (one["ref"], *one["dependsOn"])}
    assert depends == refs


# where it runs


@pytest.mark.parametrize("product", ["edge", "gateway"])
def test_it_asks_for_no_newer_c_library_than_debian_12_has_and_for_no_other_library(
    product: str, tmp_path: Path
) -> None:
    spec = importlib.util.spec_from_file_location("tinyedge_build_floor", ROOT / "build" / "floor.py")
    assert spec is not None
    assert spec.loader is not None
    floor = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = floor
    spec.loader.exec_module(floor)
    folder = rig.folder_of(product)
    assert floor.problems(folder) == []
    shutil.copytree(folder, tmp_path / "lacks")
    (tmp_path / "lacks" / "_internal" / "libz.so.1").unlink()
    lacking = floor.problems(tmp_path / "lacks")
    assert lacking
    assert all(line.endswith(" asks for libz.so.1") for line in lacking)


@pytest.mark.root
def test_it_starts_where_there_is_a_c_library_and_nothing_else(edge: Path, tmp_path: Path) -> None:
    """In a root with the files of libc6, and neither a shell nor a folder for what is temporary."""
    listed = subprocess.run(["ldd", edge], capture_output=True, text=True, check=True).stdout
    [loader] = re.findall(r"(?m)^\s*(/\S*ld-linux\S*)", listed)
    [libc] = re.findall(r"libc\.so\.6 => (\S+)", listed)
    for path in (Path(loader), *(Path(libc).with_name(name) for name in LIBC)):
        (tmp_path / path.parent.relative_to("/")).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / path.relative_to("/"))
    shutil.copytree(edge.parent, tmp_path / "app")
    done = subprocess.run(["chroot", tmp_path, "/app/tinyedge", "version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()[:1]) == (0, ["tinyedge"]), done.stderr
