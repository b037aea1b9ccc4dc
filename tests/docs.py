"""Writes what of docs/ is made from the code's own tables: `python -m tests.docs`. A test holds it fresh."""

from __future__ import annotations

from pathlib import Path

from tests.docs_pods import pod_support
from tinyedge import config

ROOT = Path(__file__).resolve().parent.parent
CONFIGURATION = ROOT / "docs" / "configuration.md"
POD_SUPPORT = ROOT / "docs" / "pod-support.md"

HEAD = """\
# Configuration

The daemon reads one TOML file, `/etc/tinyedge/tinyedge.toml` unless `--config` names another. Every key has a default
that works, so an empty or missing file is fine. Each key can also be set on the command line:
`tinyedge run --set node.name=gate-7 --set manifests.paths=/srv/a,/srv/b`. The daemon never writes this file.
`tinyedge config` prints the configuration that is in force, `tinyedge check` holds it against the machine.

A value that does not fit is an error that names the key; nothing is started. An unknown key is an error for
`tinyedge check`. The daemon passes it over, and says so in its log (`config.unknown`) and in `tinyedge status`, with
the key that it is most like: it may be one of a newer version, whose file an older one has to start with after a way
back.

This page is made from `tinyedge/config.py` (`make docs`).
"""


def configuration() -> str:
    """docs/configuration.md as it should be."""
    out = [HEAD]
    section = ""
    for key, default, words in config.described():
        if key.partition(".")[0] != section:
            section = key.partition(".")[0]
            out.append(f"\n## {section}\n\n| key | default | meaning |\n| --- | --- | --- |\n")
        shown = "[" + ", ".join(f'"{item}"' for item in default) + "]" if isinstance(default, tuple) else repr(default)
        out.append(f"| `{key}` | `{shown.replace(chr(39), chr(34))}` | {words} |\n")
    return "".join(out)


if __name__ == "__main__":
    for page, text in ((CONFIGURATION, configuration()), (POD_SUPPORT, pod_support())):
        page.write_text(text)
        print(f"wrote {page.relative_to(ROOT)}")
