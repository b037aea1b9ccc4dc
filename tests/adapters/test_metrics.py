"""Metrics: the text form, and what the views give."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.fakes.backend import FakeBackend, container_status, pod
from tinyedge.adapters import metrics

LINE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(\{(?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)*\})? (-?[0-9.e+-]+|NaN)')


def parsed(text: str) -> dict[str, float]:
    """Samples by name and labels; every line must be one that a collector takes."""
    samples: dict[str, float] = {}
    for line in text.rstrip("\n").split("\n"):
        if line.startswith(("# HELP ", "# TYPE ")):
            continue
        match = LINE.fullmatch(line)
        assert match, line
        name = match[1] + (match[2] or "")
        assert name not in samples, f"{name} is there twice"
        samples[name] = float(match[3])
    return samples


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


def of(backend: FakeBackend, **counters: float) -> dict[str, float]:
    return parsed(metrics.text(backend.status(), backend.pods(), backend.usage(), counters))


def test_the_node_the_store_and_the_pods_are_measured(backend: FakeBackend) -> None:
    backend.pod_list = [pod(containerStatuses=[container_status(restarts=3)]), pod("db", "plant", phase="Pending")]
    found = of(backend, api_requests=7)
    assert found["tinyedge_ready"] == 1
    assert found['tinyedge_boot_info{reason="power"}'] == 1
    assert found['tinyedge_runtime_up{kind="containerd",version="1.6.20"}'] == 1
    assert (found["tinyedge_store_journal_bytes"], found["tinyedge_store_series_bytes"]) == (8388608, 100)
    assert found["tinyedge_store_full"] == 0
    assert found["tinyedge_machine_memory_available_bytes"] == 400 * 2**20
    assert found['tinyedge_pods{phase="Running"}'] == 1
    assert found['tinyedge_pods{phase="Failed"}'] == 0
    assert found['tinyedge_container_restarts_total{namespace="default",pod="web",container="web"}'] == 3
    assert found['tinyedge_container_cpu_cores{namespace="default",pod="web",container="web"}'] == pytest.approx(
        0.0123, 0.01
    )
    assert found['tinyedge_container_memory_bytes{namespace="default",pod="web",container="web"}'] == 4 * 2**20
    assert found["tinyedge_api_requests_total"] == 7
    assert found["process_resident_memory_bytes"] > 2**20
    assert found["process_start_time_seconds"] > 1_600_000_000


def test_trouble_shows(backend: FakeBackend) -> None:
    status = backend.status_object
    status["runtime"]["state"] = "down"
    status["store"]["state"] = "read-only"
    status["pressure"]["memory"] = True
    status["manifests"][0] |= {"problem": "unreadable", "problems": [{}, {}]}
    found = of(backend)
    assert found['tinyedge_runtime_up{kind="containerd",version="1.6.20"}'] == 0
    assert found["tinyedge_store_read_only"] == 1
    assert found['tinyedge_pressure{resource="memory"}'] == 1
    assert found['tinyedge_manifest_problems{folder="/etc/tinyedge/manifests"}'] == 3


def test_the_link_is_measured(backend: FakeBackend) -> None:
    backend.status_object["link"] = {"state": "up", "sentBytes": 5, "receivedBytes": 6, "reconnects": 2, "waiting": 3}
    samples = of(backend)
    assert samples["tinyedge_link_up"] == 1
    assert samples['tinyedge_link_bytes_total{direction="sent"}'] == 5
    assert samples['tinyedge_link_bytes_total{direction="received"}'] == 6
    assert samples["tinyedge_link_reconnects_total"] == 2
    assert samples["tinyedge_link_unacknowledged"] == 3
    backend.status_object["link"] = {"state": "down"}
    assert of(backend)["tinyedge_link_up"] == 0


def test_devices_mappers_and_what_waits_are_measured(backend: FakeBackend) -> None:
    status = backend.status_object
    status["devices"] |= {"withProblems": 2}
    status["mappers"].append({"name": "acme", "state": "away", "devices": 3, "reports": {}})
    status["mappers"].append({"name": "idle", "state": "unknown", "devices": 0, "reports": {}})
    found = of(backend)
    assert (found['tinyedge_devices{state="online"}'], found['tinyedge_devices{state="offline"}']) == (1, 0)
    assert found["tinyedge_devices_with_problems"] == 2
    assert (found['tinyedge_mapper_up{mapper="driver-modbus"}'], found['tinyedge_mapper_up{mapper="acme"}']) == (1, 0)
    assert found['tinyedge_mapper_up{mapper="idle"}'] == 1
    assert found['tinyedge_mapper_devices{mapper="acme"}'] == 3
    assert found['tinyedge_device_reports_total{mapper="driver-modbus",code="OK"}'] == 7
    assert found['tinyedge_device_reports_total{mapper="driver-modbus",code="Invalid"}'] == 1
    assert found['tinyedge_series_waiting{series="readings"}'] == 120
    assert found['tinyedge_series_dropped{series="readings"}'] == 3
    assert found['tinyedge_series_waiting{series="push"}'] == 2
    assert "tinyedge_broker_up" not in found
    status["broker"] = {"state": "up"}
    assert of(backend)["tinyedge_broker_up"] == 1


def test_every_family_has_help_and_type_once(backend: FakeBackend) -> None:
    text = metrics.text(backend.status(), backend.pods(), backend.usage())
    kinds = re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)
    assert len(kinds) == len(dict(kinds))
    assert all(kind == ("counter" if name.endswith("_total") else "gauge") for name, kind in kinds)
    assert [name for name, _ in kinds] == re.findall(r"^# HELP (\S+) \S", text, re.MULTILINE)


@pytest.mark.parametrize("empty", [{}, {"store": {}, "node": {}, "runtime": {}}])
def test_a_node_that_knows_nothing_yet_can_be_asked(empty: dict[str, Any]) -> None:
    assert parsed(metrics.text(empty, [], {"node": {}, "pods": []}))["tinyedge_ready"] == 0


def test_labels_are_escaped() -> None:
    family = metrics.gauge("x", "words", 1.5, path='a"b\\c\nd')
    assert metrics.render([family]).split("\n")[2] == 'x{path="a\\"b\\\\c\\nd"} 1.5'
