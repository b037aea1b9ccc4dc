"""docs/cli.md tells the truth: every command, argument and option is there, with the words of its --help."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tinyedge.adapters.local_api import routes
from tinyedge.cli import errors
from tinyedge.cli.commands import COMMANDS, GLOBAL, Command
from tinyedge.cli.main import EXIT_INTERRUPTED, EXIT_PIPE, usage

DOC = (Path(__file__).resolve().parent.parent.parent / "docs" / "cli.md").read_text()


def section(command: Command) -> str:
    found = re.search(rf"^### tinyedge {re.escape(command.name)}\n(.*?)(?=^##|\Z)", DOC, re.MULTILINE | re.DOTALL)
    assert found, f"docs/cli.md has no section on tinyedge {command.name}"
    return found[1]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_is_described_with_all_its_options(command: Command) -> None:
    text = section(command)
    assert f"`{usage(command)}`" in text
    assert command.help[1:] in text
    for argument in command.arguments:
        assert f"| `{argument.name.upper()}` | {argument.help} |" in text
    for option in command.options:
        row = next((line for line in text.split("\n") if f"`{option.flags[-1]}`" in line and "|" in line), "")
        assert option.help in row, option.flags
        assert all(f"`{flag}`" in row for flag in option.flags)


def test_no_command_is_described_that_is_not_there() -> None:
    assert re.findall(r"^### tinyedge (\S+)$", DOC, re.MULTILINE) == [
        command.name
        for group in dict.fromkeys(c.group for c in COMMANDS)
        for command in COMMANDS
        if command.group == group
    ]


def test_what_all_commands_share_is_described() -> None:
    for option in GLOBAL:
        assert f"| `{option.flags[-1]}` `{option.value}` | {option.help} |" in DOC
    codes = [value for name, value in vars(errors).items() if name.startswith("EXIT_")]
    for code in (0, *codes, EXIT_INTERRUPTED, EXIT_PIPE):
        assert f"\n| {code} | " in DOC


def test_every_path_of_the_api_is_described() -> None:
    for method, pattern, _ in routes.ROUTES:
        last = next(part for part in reversed(pattern.split("/")) if part != "*")
        assert f"/{last}" in DOC, (method, pattern)


def test_documents_that_the_program_names_are_there() -> None:
    root = Path(__file__).resolve().parent.parent.parent
    sources = [*(root / "tinyedge" / "cli").glob("*.py"), *(root / "tinyedge" / "adapters" / "local_api").glob("*.py")]
    named = {name for source in sources for name in re.findall(r"docs/[a-z-]+\.md", source.read_text())}
    assert named
    assert [name for name in sorted(named) if not (root / name).exists()] == []
