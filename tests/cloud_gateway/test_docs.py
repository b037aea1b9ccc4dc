"""docs/gateway.md tells the truth: every command and flag with the words of its --help, every metric, every right."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

from cloud_gateway.adapters import sinks
from cloud_gateway.adapters.kube_limits import Counters, watch_numbers
from cloud_gateway.adapters.sinks import Counts, numbers
from cloud_gateway.cli import main
from cloud_gateway.cli.commands import COMMANDS, Command
from cloud_gateway.core import job_spec, translate
from cloud_gateway.sandbox import packaged, schema
from tinyedge import config_edit
from tinyedge.cli import errors
from tinyedge.protocol import readings

ROOT = Path(__file__).resolve().parent.parent.parent
DOC = (ROOT / "docs" / "gateway.md").read_text()
DEVICES = (ROOT / "docs" / "devices.md").read_text()
FLEET = (ROOT / "docs" / "fleet.md").read_text()


def section(command: Command) -> str:
    found = re.search(rf"^### tinyedge-gateway {re.escape(command.name)}\n(.*?)(?=^##|\Z)", DOC, re.M | re.S)
    assert found, f"docs/gateway.md has no section on tinyedge-gateway {command.name}"
    return found[1]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_is_described_with_all_its_options(command: Command) -> None:
    text = section(command)
    assert f"`{main.usage(command)}`" in text
    assert command.help[1:] in text
    for argument in command.arguments:
        assert f"| `{argument.name.upper()}` | {argument.help} |" in text
    for option in command.options:
        row = next((line for line in text.split("\n") if f"`{option.flags[-1]}`" in line and "|" in line), "")
        assert option.help in row, option.flags
        assert all(f"`{flag}`" in row for flag in option.flags)
    described = {flag for line in text.split("\n") for flag in re.findall(r"`(--[a-z-]+)`", line.partition(" | ")[0])}
    assert described == {option.flags[-1] for option in command.options}


def test_no_command_is_described_that_is_not_there() -> None:
    assert re.findall(r"^### tinyedge-gateway (.+)$", DOC, re.M) == [command.name for command in COMMANDS]


def test_every_exit_code_is_described() -> None:
    codes = [value for name, value in vars(errors).items() if name.startswith("EXIT_")]
    for code in (0, *codes, main.EXIT_INTERRUPTED, main.EXIT_PIPE):
        assert f"\n| {code} | " in DOC


def test_every_metric_is_described() -> None:
    counters = Counters(lists=Counter(pods=1), watches=Counter(pods=1), watch_breaks=Counter(pods=1))
    named = {name.partition("{")[0] for name in watch_numbers(counters)}
    assert len(named) == 3
    counts = Counts(failures=Counter(a=1), refused=Counter(a=1))
    named |= {name.partition("{")[0] for name in numbers(counts)}
    for file in ("daemon.py", "rules.py"):
        named |= set(re.findall(r"[\"'](tinyedge_gateway_\w+)", (ROOT / "cloud_gateway" / file).read_text()))
    assert len(named) > 12
    assert {name for name in named if f"`{name}`" not in DOC} == set()


@pytest.mark.parametrize(("scheme", "module"), [("file", "files"), ("https", "http"), ("mqtts", "mqtt")])
def test_every_option_of_a_sink_is_described(scheme: str, module: str) -> None:
    source = (ROOT / "cloud_gateway" / "adapters" / f"sink_{module}.py").read_text()
    call = re.search(r"options\(url, ([^)]*)\)", source)
    assert call
    known = re.findall(r'"([a-z-]+)"', call[1])
    assert known
    row = next(line for line in DEVICES.splitlines() if line.startswith(f"| `{scheme}://"))
    assert [name for name in known if f"`{name}`" not in row] == []


def test_the_line_that_is_shown_is_one_that_sinks_get() -> None:
    item = readings.encode(readings.Report("default/pump-1", 1_795_428_000_123, 0, (("temperature", "71.5"),)))
    ((line,), _) = sinks.lines_of("gate-7", 5913, 42, item)
    assert line.data.decode() in DEVICES


def test_the_names_in_kubernetes_are_described() -> None:
    for name in (translate.CONNECTED, translate.AUTONOMY, translate.AWAY_TAINT, translate.EDGE_LABEL):
        assert name in DOC


def test_what_a_stolen_account_could_do_is_said() -> None:
    rules = (ROOT / "packaging" / "kubernetes" / "rbac.yaml").read_text()
    assert "serviceaccounts/token" in rules
    chapter = DOC.partition("## What somebody with the gateway's account could do")[2].partition("\n## ")[0]
    for word in ("Secret", "serviceaccounts/token", "create pods", "tinyedge-ca"):
        assert word in chapter


def test_documents_and_files_that_are_named_are_there() -> None:
    sources = [DOC, *(path.read_text() for path in (ROOT / "cloud_gateway").rglob("*.py"))]
    named = {
        name
        for text in sources
        for name in re.findall(r"(?<![\w/.])(?:docs/[a-z-]+\.md|packaging/[a-zA-Z./-]*\w)", text)
    }
    named |= {f"docs/{name}" for name in re.findall(r"\]\(([a-z-]+\.md)\)", DOC)}
    assert len(named) > 3
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_the_jobs_of_the_document_are_what_definitions_gateway_and_nodes_take() -> None:
    definitions = {one["spec"]["names"]["kind"]: one["spec"]["versions"][0] for one in packaged.definitions()}
    jobs = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", FLEET, re.M | re.S)]
    assert {one["kind"] for one in jobs} == {"NodeUpgradeJob", "ConfigUpdateJob"}
    for job in jobs:
        checked = schema.check(definitions[job["kind"]]["schema"]["openAPIV3Schema"], job)
        assert checked[1] == []
        assert len(job_spec.plan(job["kind"], job).waves) == 1 + len(job["spec"].get("waves", ()))
        if fields := job["spec"].get("updateFields"):
            assert config_edit.changed(b"", fields, "tinyedge.toml")


def test_keys_that_only_a_site_may_change_are_named() -> None:
    told = (ROOT / "packaging" / "kubernetes" / "crds" / "configupdatejob.yaml").read_text()
    for key in config_edit.PROTECTED:
        assert f"`{key}`" in FLEET
        assert key in told
