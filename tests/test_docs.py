"""The documents tell the truth about the code."""

from __future__ import annotations

import re

import yaml

from tests import docs
from tests.fakes.backend import FakeBackend
from tinyedge import config
from tinyedge.adapters import metrics
from tinyedge.model import decode
from tinyedge.model.device import HISTORY, MAPPER, MAPPER_HTTP


def test_the_configuration_page_is_what_the_code_says() -> None:
    assert docs.CONFIGURATION.read_text() == docs.configuration(), "run: make docs"


def test_every_configuration_key_is_described() -> None:
    assert [key for key, _, words in config.described() if not words] == []


OPERATIONS = (docs.ROOT / "docs" / "operations.md").read_text()


def _said_in(folder: str, pattern: str) -> set[str]:
    found: set[str] = set()
    for path in (docs.ROOT / folder).rglob("*.py"):
        found |= set(re.findall(pattern, path.read_text()))
    return found


def test_every_fault_of_the_store_is_described() -> None:
    kinds = _said_in("tinyedge/store", r'(?:note|_damage)\(\s*"([a-z][a-z-]+)"')
    assert len(kinds) > 10
    assert {kind for kind in kinds if f"`{kind}`" not in OPERATIONS} == set()


def test_every_metric_is_described() -> None:
    backend = FakeBackend()
    names = set(re.findall(r"^# TYPE (\S+)", metrics.text(backend.status(), backend.pods(), backend.usage()), re.M))
    named = {name for name in names if not name.startswith(("tinyedge_store_flushes", "tinyedge_store_checkpoints"))}
    assert len(named) > 15
    assert {name for name in named if name not in OPERATIONS} == set()


def test_every_kind_of_entry_in_the_black_box_is_described() -> None:
    kinds = _said_in("tinyedge", r'(?:\bRecord|\.record)\(\s*"([a-z.]+)"')
    assert len(kinds) > 4
    assert {kind for kind in kinds if f"`{kind}`" not in OPERATIONS} == set()


DEVICES = (docs.ROOT / "docs" / "devices.md").read_text()


def test_devices_and_models_of_the_documents_can_be_applied() -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```", DEVICES, re.MULTILINE | re.DOTALL)
    documents = [one for block in blocks for one in yaml.safe_load_all(block)]
    shown = [one for one in documents if one["kind"] in ("Device", "DeviceModel")]
    assert len(shown) > 1
    for one in shown:
        decode.decode_object(one)


def test_every_annotation_of_a_device_is_described() -> None:
    assert [name for name in (HISTORY, MAPPER, MAPPER_HTTP) if f"| `{name}` |" not in DEVICES] == []
