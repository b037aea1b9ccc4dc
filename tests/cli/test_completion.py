"""Completion scripts: bash's is run, those of zsh and fish are read by their own parsers where these are installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tinyedge.cli import completion
from tinyedge.cli.commands import COMMANDS


def bash(script: str, typed: str, tmp_path: Path) -> list[str]:
    """What bash would offer for `typed`, with a `tinyedge` that knows two pods."""
    words = typed.split(" ")
    fake = tmp_path / "tinyedge"
    fake.write_text('#!/bin/sh\necho "$2/web" | sed s/pods/pod/; echo pod/db\n')
    fake.chmod(0o755)
    quoted = " ".join(f"'{word}'" for word in words)
    run = (
        f"{script}\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _tinyedge; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", run],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("tinyedge desc", ["describe"]),
        (
            "tinyedge get ",
            [
                *("pods", "nodes", "configmaps", "secrets", "images", "events"),
                *("devices", "devicemodels", "localrules", "rules", "ruleendpoints"),
            ],
        ),
        ("tinyedge get po", ["pods"]),
        ("tinyedge get dev", ["devices", "devicemodels"]),
        ("tinyedge get pods ", ["web", "db"]),
        ("tinyedge get pods w", ["web"]),
        ("tinyedge logs ", ["web", "db"]),
        ("tinyedge -n plant logs w", ["web"]),
        ("tinyedge logs -n plant w", ["web"]),
        ("tinyedge get pods -o ", ["wide", "json", "yaml", "name"]),
        ("tinyedge logs --ta", ["--tail"]),
        ("tinyedge image ", ["ls", "pull", "import", "rm"]),
        ("tinyedge completion f", ["fish"]),
        ("tinyedge image import ", ["tinyedge"]),
        ("tinyedge why w", ["web"]),
        ("tinyedge device ", ["read", "write", "call", "history"]),
        ("tinyedge device read w", ["web"]),
        ("tinyedge device read -n plant w", ["web"]),
        ("tinyedge device write web w", []),
    ],
)
def test_bash_offers_what_fits(typed: str, offered: list[str], tmp_path: Path) -> None:
    assert bash(completion.bash(), typed, tmp_path) == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_command_and_option_is_offered(cli: Cli, shell: str) -> None:
    script = cli("completion", shell).out
    for command in COMMANDS:
        assert command.name in script
        for option in command.options:
            flag = option.flags[-1].lstrip("-")
            assert flag in script, (command.name, flag)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_itself_finds_no_mistake(shell: str, tmp_path: Path) -> None:
    if not shutil.which(shell):
        script = getattr(completion, shell)()
        assert script.replace("\\'", "").count("'") % 2 == 0  # the least that can be said without the shell
        return
    path = tmp_path / f"tinyedge.{shell}"
    path.write_text(getattr(completion, shell)())
    done = subprocess.run([shell, "-n", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
