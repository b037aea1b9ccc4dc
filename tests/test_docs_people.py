"""What is written for people in need: its words are the program's, its links lead somewhere, and nothing that listens
is left out."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

from cloud_gateway.cli import commands as gateway_commands
from tinyedge import config
from tinyedge.cli import commands as edge_commands

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")))
TROUBLE = (ROOT / "docs" / "troubleshooting.md").read_text()
SECURITY = (ROOT / "docs" / "security.md").read_text()
OTHERS = ("NotReady", "i/o timeout", "connection refused", "certificate signed by unknown authority", "oom-kill")
LISTENERS = {  # a file that listens → what docs/security.md calls it by
    "tinyedge/adapters/local_api/server.py": "api.sock",
    "tinyedge/adapters/dmi.py": "dmi.sock",
    "tinyedge/mapper/process.py": "dmi.mapper_dirs",
    "tinyedge/adapters/servicebus.py": "servicebus.listen",
    "tinyedge/adapters/process/streams.py": "exec and port-forward",
    "tinyedge/adapters/process/shim.py": "supervisors of the process runtime",
    "cloud_gateway/adapters/edges.py": "`--listen`",
    "cloud_gateway/adapters/kubelet_ports.py": "`--kubelet-ports`",
    "cloud_gateway/adapters/rest_port.py": "`--rest`",
    "cloud_gateway/adapters/status_page.py": "`--metrics`",
    "cloud_gateway/sandbox/__init__.py": "`--sandbox-listen`",
}


@functools.cache
def sources() -> str:
    """All that a program of ours may print, pieces of one text put together; what is filled in stays `{…}`."""
    files = [*(ROOT / "tinyedge").rglob("*.py"), *(ROOT / "cloud_gateway").rglob("*.py")]
    files += [one for one in (ROOT / "packaging").iterdir() if one.is_file()]
    text = "\n".join(one.read_text() for one in files if not one.name.endswith("_pb2.py"))
    return re.sub(r"\"\n\s*f?\"", "", text)


def quoted() -> list[str]:
    """Whatever stands in backticks in the first column of a table of what is said."""
    found, inside = [], False
    for line in TROUBLE.splitlines():
        first = line.split("|")[1].strip() if line.startswith("|") else ""
        if first in ("it says", "the log has"):
            inside = True
        elif not first or first == "what is seen":
            inside = False
        elif inside:
            found += re.findall(r"`([^`]+)`", first)
    return found


def is_said(words: str) -> bool:
    """Each part between `…`; a name that stands for one of theirs is what the program fills in."""
    text = re.sub(r"'gate-8'|gate-7", "…", words)
    return all(piece.strip() in sources() for piece in re.split(r"…", text) if piece.strip(" :'"))


@pytest.mark.parametrize("words", [one for one in quoted() if one not in OTHERS and not one.startswith("--")])
def test_what_a_program_is_said_to_say_stands_in_it(words: str) -> None:
    assert is_said(words)


def test_words_that_nobody_says_would_be_found() -> None:
    assert len(quoted()) > 60
    assert not is_said("the … is on fire")


def _anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_between_pages_leads_to_a_page_and_a_title(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert not anchor or anchor in _anchors(there), target


def test_every_page_can_be_found_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"(docs/{page.name}" not in readme] == []


def test_whoever_listens_stands_in_the_security_guide() -> None:
    listens = re.compile(r"open_tcp_listeners\(|[^A-Za-z.]Listener\(\w|server\.listen\(")
    found = {
        str(path.relative_to(ROOT))
        for room in ("tinyedge", "cloud_gateway")
        for path in (ROOT / room).rglob("*.py")
        if listens.search(path.read_text())
    }
    assert found == set(LISTENERS)
    assert [words for words in LISTENERS.values() if words not in SECURITY] == []


def _shown() -> list[str]:
    """Every piece of code in the pages that begins one of our commands: a line of a block, or a span."""
    found: set[str] = set()
    for page in PAGES:
        text = page.read_text()
        blocks = re.findall(r"^```(?:sh|)\n(.*?)^```|^((?: {4}\S.*\n)+)", text, re.MULTILINE | re.DOTALL)
        pieces = [line for pair in blocks for one in pair for line in one.splitlines()]
        pieces += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
        for piece in pieces:
            for part in re.split(r"&&|\| |; ", piece):
                words = re.sub(r"^[\s$]*(?:sudo |[A-Z_]+=\S+ )*(?:\.venv/bin/)?", "", part).strip()
                if re.match(r"tinyedge(-gateway)? [a-z]", words):
                    found.add(re.sub(r"\s#.*", "", words))
    return sorted(found)


@pytest.mark.parametrize("line", _shown())
def test_a_command_that_a_page_shows_is_one_and_has_these_options(line: str) -> None:
    program, _, rest = line.partition(" ")
    known = [*edge_commands.COMMANDS] if program == "tinyedge" else [*gateway_commands.COMMANDS]
    command = max((one for one in known if f"{rest} ".startswith(f"{one.name} ")), key=lambda one: len(one.name))
    flags = {flag for option in command.options for flag in option.flags} | {"--help"}
    flags |= {flag for option in edge_commands.GLOBAL for flag in option.flags} if program == "tinyedge" else set()
    ours = rest.partition(" -- ")[0]
    assert set(re.findall(r"(?<=\s)--[a-z-]+", ours)) - flags == set()


def test_a_key_of_the_configuration_that_a_page_names_is_one() -> None:
    """Or a word of the log, which stands in the sources as it is; or a file."""
    keys = {key for key, _, _ in config.described()}
    sections = {key.partition(".")[0] for key in keys}
    pattern = re.compile(r"`([a-z]+)\.([a-z_]+)(?: = [^`]*)?`")
    named = {(page.name, f"{a}.{b}") for page in PAGES for a, b in pattern.findall(page.read_text()) if a in sections}
    others = {(page, key) for page, key in named if key not in keys and not key.endswith((".py", ".sock"))}
    logged = {
        (page, key) for page, key in others if f'"{key}"' in sources() or f'"{key.removeprefix("api.")}"' in sources()
    }
    assert others - logged == set()
    assert len(named) > 80
