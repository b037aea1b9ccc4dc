"""What is written for people in need: its words are the program's, its links lead somewhere, and nothing that listens
is left out."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

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
