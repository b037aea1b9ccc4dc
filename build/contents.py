"""What a binary is made of: from PyInstaller's own tables, not from what was meant to be in it. Each part with its
version, its licence, the licence's text and the digests of its files; as a CycloneDX document and as one text file.
"""

from __future__ import annotations

import ast
import hashlib
import json
import platform
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any
from urllib.parse import quote

DEBIAN = Path("/usr/share/doc")
BOOTLOADER = "pyinstaller"  # its code starts the program; its licence has an exception for that
# C libraries that are linked into compiled code: part → (name, licence, where its version stands in that code).
WITHIN: dict[str, tuple[tuple[str, str, str], ...]] = {
    "lmdb": (("LMDB", "OLDAP-2.8", r"LMDB (\d+\.\d+\.\d+)"),),
    "pyyaml": (("libyaml", "MIT", r"(?<![\d.])(0\.[12]\.\d+)(?![\d.])"),),
    "protobuf": (("upb", "BSD-3-Clause", ""), ("utf8_range", "MIT", "")),
    "cryptography": (("OpenSSL", "Apache-2.0", r"OpenSSL (\d+\.\d+\.\d+)"),),
    BOOTLOADER: (("zlib", "Zlib", r" inflate (\d+\.\d+(?:\.\d+)?) "),),
}
# Where a package says it in words, or its file lists every licence of the sources instead of the library's.
SPDX: dict[str, str] = {
    "MIT License": "MIT",
    "Apache 2.0": "Apache-2.0",
    "3-Clause BSD License": "BSD-3-Clause",
    "pyinstaller": "GPL-2.0-or-later WITH Bootloader-exception",
    "libffi8": "MIT",
    "libgcc-s1": "GPL-3.0-or-later WITH GCC-exception-3.1",
    "libstdc++6": "GPL-3.0-or-later WITH GCC-exception-3.1",
    "libssl3": "Apache-2.0",
    "zlib1g": "Zlib",
    "libexpat1": "MIT",
}
UNKNOWN = "see LICENSES"


@dataclass
class Part:
    name: str
    version: str
    licence: str
    kind: str  # as package URLs have it: pypi, deb, generic
    texts: dict[str, str] = field(default_factory=dict)  # file → licence
    files: dict[str, str] = field(default_factory=dict)  # in the folder → SHA-256
    modules: int = 0
    within: str = ""  # the part whose compiled code holds it

    @property
    def purl(self) -> str:
        namespace = "debian/" if self.kind == "deb" else ""
        version = f"@{quote(self.version, safe=':')}" if self.version else ""
        return f"pkg:{self.kind}/{namespace}{quote(self.name.lower())}{version}"

    @property
    def title(self) -> str:
        return f"{self.name} (in {self.within})" if self.within else self.name


def parts(tables: Path, folder: Path, site: Path) -> list[Part]:
    """Of the program in `folder`, from the tables of its build and the environment's packages, in order of name."""
    owners = {
        Path(one.locate_file(file)).resolve(): one
        for one in distributions(path=[str(site)])
        for file in one.files or ()
    }
    found: dict[str, Part] = {}
    for name, source, collected in _sources(tables):
        part = _part_of(source, owners, found)
        if part is None:
            continue
        path = folder / "_internal" / name
        if collected and path.is_file():
            part.files[f"_internal/{name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            part.modules += 1
    tool = next(one for one in distributions(path=[str(site)]) if one.name.lower() == BOOTLOADER)
    found[BOOTLOADER] = _of_distribution(tool)
    start = folder / tables.name
    inner = [one for name in found.keys() & WITHIN.keys() for one in _within(found[name], folder, start)]
    return sorted([*found.values(), *inner], key=lambda part: part.title.lower())


def _sources(tables: Path) -> Iterator[tuple[str, str, bool]]:
    """Name, the file that it came from, and whether it is a file in the folder."""
    _, modules = ast.literal_eval((tables / "PYZ-00.toc").read_text())
    yield from ((name, source, False) for name, source, _ in modules if source)
    (collected,) = ast.literal_eval((tables / "COLLECT-00.toc").read_text())
    yield from ((name, source, True) for name, source, kind in collected if kind in ("BINARY", "EXTENSION"))


def _part_of(source: str, owners: dict[Path, Distribution], found: dict[str, Part]) -> Part | None:
    path = Path(source).resolve()
    if path in owners:
        made = _of_distribution(owners[path])
    elif path.is_relative_to(sys.base_prefix) and (
        "python3" in path.name or f"python3.{sys.version_info[1]}" in str(path)
    ):
        made = _of_python()
    elif ".so" in path.name:
        made = _of_library(path, source)
    else:
        return None  # of our own
    return found.setdefault(made.name.lower(), made)


def _of_distribution(one: Distribution) -> Part:
    texts = {}
    for file in one.files or ():
        if ".dist-info" in str(file) and re.match(r"(?i)(licen[sc]e|copying|notice)", file.name):
            texts[f"{one.name}: {file.name}"] = Path(one.locate_file(file)).read_text(errors="replace")
    said = one.metadata.get("License-Expression") or one.metadata.get("License") or ""
    if not said or "\n" in said:
        classes = one.metadata.get_all("Classifier") or ()
        said = next((word.rpartition(" :: ")[2] for word in classes if word.startswith("License")), UNKNOWN)
    return Part(one.name, one.version, SPDX.get(one.name, SPDX.get(said, said)), "pypi", texts)


def _of_python() -> Part:
    tried = (Path(sys.base_prefix) / "lib" / f"python3.{sys.version_info[1]}" / "LICENSE.txt",)
    tried += (DEBIAN / f"python3.{sys.version_info[1]}" / "copyright",)
    text = next(path.read_text() for path in tried if path.is_file())
    return Part("CPython", platform.python_version(), "Python-2.0", "generic", {"CPython": text})


def _of_library(path: Path, source: str) -> Part:
    """Of the system: the package that it belongs to, where Debian's tools know it."""
    for asked in (str(path), source, str(path).removeprefix("/usr"), source.removeprefix("/usr")):
        told = subprocess.run(["dpkg", "-S", asked], capture_output=True, text=True, check=False)
        if told.returncode == 0:
            break
    else:
        return Part(path.name.partition(".so")[0], "", UNKNOWN, "generic")
    package = told.stdout.partition(":")[0]
    query = ["dpkg-query", "-W", "-f", "${Version}\\n", package]
    version = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    copyright_file = DEBIAN / package / "copyright"
    text = copyright_file.read_text(errors="replace") if copyright_file.is_file() else ""
    return Part(package, version, SPDX.get(package, UNKNOWN), "deb", {package: text} if text else {})


def _within(outer: Part, folder: Path, start: Path) -> Iterator[Part]:
    """None if it has no compiled code here, as protobuf for armhf. `start` is the executable."""
    compiled = [start] if outer.name.lower() == BOOTLOADER else [folder / file for file in outer.files]
    for name, licence, pattern in WITHIN[outer.name.lower()] if compiled else ():
        version = ""
        for path in compiled:
            seen = re.search(pattern.encode(), path.read_bytes()) if pattern else None
            version = seen[1].decode() if seen else version
        yield Part(name, version, licence, "generic", within=outer.name)


# --- what is handed out ------------------------------------------------------------------------------


def licences(found: list[Part], own: str) -> str:
    """One text: a line for each part, then every licence once, with the program's own."""
    table = "".join(f"{part.title} {part.version}: {part.licence}\n" for part in found)
    texts = {own.strip(): ["tinyedge"]}
    for part in found:
        for name, text in part.texts.items():
            texts.setdefault(text.strip(), []).append(name)
    rule = "=" * 100
    blocks = "".join(f"\n{rule}\n{', '.join(names)}\n{rule}\n\n{text}\n" for text, names in texts.items())
    return f"This program holds, beside tinyedge itself (Apache-2.0):\n\n{table}{blocks}"


def sbom(found: list[Part], program: str, version: str, architecture: str, moment: int) -> str:
    """A CycloneDX document (1.5). Equal for equal contents, its serial number included."""
    own = f"pkg:generic/{program}@{version}?arch={architecture}"
    components = [_component(part) for part in found]
    seed = json.dumps(components, sort_keys=True) + own
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, hashlib.sha256(seed.encode()).hexdigest())}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {
                "type": "application",
                "bom-ref": own,
                "name": program,
                "version": version,
                "purl": own,
                "licenses": [{"license": {"id": "Apache-2.0"}}],
                "properties": [{"name": "tinyedge:architecture", "value": architecture}],
            },
        },
        "components": components,
        "dependencies": _dependencies(own, found),
    }
    return json.dumps(document, indent=1) + "\n"


def _dependencies(own: str, found: list[Part]) -> list[dict[str, Any]]:
    """What is linked into a part hangs on that part, all else on the program."""
    below: dict[str, list[str]] = {own: [part.purl for part in found if not part.within]}
    for part in found:
        if part.within:
            outer = next(one.purl for one in found if one.name == part.within and not one.within)
            below.setdefault(outer, []).append(part.purl)
    return [{"ref": ref, "dependsOn": refs} for ref, refs in below.items()]


def _component(part: Part) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "library", "bom-ref": part.purl, "name": part.name}
    if part.version:
        made["version"] = part.version
    if part.licence == UNKNOWN:
        made["licenses"] = [{"license": {"name": UNKNOWN}}]
    else:
        made["licenses"] = [{"expression": part.licence}]
    made["purl"] = part.purl
    if part.modules:
        made["properties"] = [{"name": "tinyedge:python-modules", "value": str(part.modules)}]
    if part.files:
        made["components"] = [
            {"type": "file", "name": name, "hashes": [{"alg": "SHA-256", "content": digest}]}
            for name, digest in sorted(part.files.items())
        ]
    return made
